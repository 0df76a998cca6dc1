"""What a daemon does with or without a mount: it hears a backing tree, and tells those who listen."""

import contextlib
import functools
import os
import resource
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import trio

from fusenotify import process
from fusenotify.addresses import Address
from fusenotify.backing import Backing
from fusenotify.config import JournalRules, Listening
from fusenotify.database import Database
from fusenotify.eventpath import EventPath
from fusenotify.events import format_cursor
from fusenotify.filesystems import Filesystems
from fusenotify.handles import Sealer
from fusenotify.identification import Identifier
from fusenotify.inodes import FIRST_SYNTHETIC, InodeTable
from fusenotify.intake import Intake
from fusenotify.journal import Journal
from fusenotify.listening import Listener, opened
from fusenotify.locator import Locator
from fusenotify.peer import Services
from fusenotify.recall import Answers, Recalls
from fusenotify.root import Root
from fusenotify.server import Server
from fusenotify.status import MOST_DEAF_PATHS, MOST_QUEUES, Histogram, Latency, Replays, Status
from fusenotify.store import Store
from fusenotify.tree import topmost
from fusenotify.watchers import choosing
from fusenotify.whereabouts import Whereabouts

_ANSWER: Final = 2.0  # seconds that a filesystem of others gets to answer before its directories are left unwatched
_PINNED_PART: Final = 8  # one descriptor in so many may be of a marked file
_GRACE: Final = 1.0  # seconds that listeners get to read their last events

# Called once, when every watch is in force, with the number of directories for which that is not possible, and with
# where clients can connect.
OnReady = Callable[[int, Sequence[Address]], None]


class Export:
    """A backing tree, what hears it, who listens, and whom they may ask.

    Attributes:
        backing, filesystems: the tree, and what it consists of.
        watcher, hearing, tree: what hears it; the directories that are watched.
        groups: who listens.
        journal: what has changed when, also before this run.
        table, store, whereabouts: which object a handle is of.
        native, native_reason, replays: how native delivery is set, what that comes to and why, and how it goes.
    """

    def __init__(  # noqa: PLR0913 - each says one thing of it
        self,
        source: Path,
        state_dir: Path,
        stack: ExitStack,
        *,
        mountpoint: str = "",
        watch_other: bool = False,
        watcher: str = "auto",
        native: str = "off",
        rules: JournalRules = JournalRules(),  # noqa: B008 - it is frozen
        on_loop: Callable[[Callable[[], None]], Callable[[], None]] = lambda function: function,
    ) -> None:
        """Wire it up; `stack` takes down what has to be taken down.

        Args:
            source: the backing tree.
            state_dir: what has to outlive the daemon is kept there.
            stack: closes everything in the end.
            mountpoint: where the tree is mounted by this daemon, if it is.
            watch_other: other users may have marks on subtrees.
            watcher: what is to hear the tree: `auto`, `inotify` or `fanotify`.
            native: whether programs on the mount are to hear of remote changes: `auto`, `always` or `off`.
            rules: those of the journal.
            on_loop: makes a function of the event loop's callable by the thread that makes changes, if there is one.

        Raises:
            EnvironmentProblem: the tree cannot be opened, or the watcher that is asked for cannot be had.
        """
        self._source = source
        self._mountpoint = mountpoint
        self.native = native
        self.native_reason: Callable[[], str] = lambda: (
            "to nobody: asked for" if mountpoint else "to nobody: there is no mount"
        )
        self.replays = Replays()
        self._end_of_grace: float | None = None

        self.backing = Backing(str(source))
        stack.callback(self.backing.close)
        self.filesystems = Filesystems(str(source))
        self.watcher, self._watcher_reason = choosing.choose(
            watcher, str(source), self.backing.root_fd, self.filesystems
        )
        stack.callback(self.watcher.close)
        path = EventPath(
            self.backing,
            self.watcher,
            self.filesystems,
            watch_other=watch_other,
            most_pinned=resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _PINNED_PART,
            on_loop=on_loop,
        )
        self.tree, self.groups, self.hearing = path.tree, path.groups, path.hearing
        self._teller, self._translator, self._recovery = path.teller, path.translator, path.recovery
        self.hearing.before_crawl = self._ask_distant
        self._sent = Histogram()

        with contextlib.closing(self.backing.find_root()) as root:
            database = Database(state_dir, root.identity)
        stack.callback(database.close)
        self.store = Store(database)
        stack.callback(self.store.close)
        self.whereabouts = Whereabouts(self.backing, self.store)
        self.store.is_gone = self.whereabouts.is_gone
        earlier = filter(self.backing.is_of_root, self.store.from_number(FIRST_SYNTHETIC))
        self.table = InodeTable(self.backing.root_key.device, earlier)
        sealer = Sealer(database.tree_id, database.secret)
        self.journal = Journal(
            database,
            self.backing,
            self.filesystems,
            sealer.seal,
            position=lambda: self._teller.seq,
            advance=self._teller.advance,
            rules=rules,
        )
        stack.callback(self.journal.close)
        self.hearing.followers.append(self.journal.follow)
        self.groups.identifier = Identifier(
            self.backing, path.stream, self.tree, sealer, lambda: path.translator.position
        )
        self._locator = Locator(self.backing, self.table, self.tree, self.whereabouts, sealer)
        self._answers = Answers(self.journal)
        self._recalls = Recalls(self._answers)
        self._root = Root(self.backing, str(source), self.filesystems)

    async def crawl(self) -> None:
        """Set every watch; from then on no change is missed."""
        with process.made_for_good():
            await self.hearing.crawl()
        self.journal.begin()

    def services(self, quiet: Callable[[], Awaitable[None]]) -> Services:
        """Return what clients can ask for; `quiet` waits for the requests of the mount, if there is one."""
        return Services(
            groups=self.groups,
            intake=Intake(),
            locator=self._locator,
            journal=self.journal,
            answers=self._answers,
            recalls=self._recalls,
            epoch=self.journal.epoch,
            position=lambda: self._teller.seq,
            caught_up=self.hearing.caught_up,
            attentive=self.hearing.attend,
            quiet=quiet,
            status=self._status,
            sent=self._sent,
        )

    async def run(self, services: Services, listeners: Sequence[Listener]) -> None:
        """Hear, and serve clients, until this is cancelled."""
        server = Server(services, self.tree)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.hearing.run)
            nursery.start_soon(self._recalls.run)
            nursery.start_soon(self.journal.tend, self.hearing.caught_up)
            nursery.start_soon(self._root.run, self._mountpoint, self.hearing.lose_root, self.hearing.start_over)
            for listener in listeners:
                nursery.start_soon(server.serve, listener)

    async def say_goodbye(self) -> None:
        """Tell every group that nothing more will come, and let them read it."""
        if self._end_of_grace is None:
            with trio.move_on_after(_GRACE):
                await self.journal.settle(self.hearing.caught_up)
        self.hearing.end()
        if self._end_of_grace is None:  # of a mount this is called at a signal, and again when it has ended
            self._end_of_grace = trio.current_time() + _GRACE
        with trio.move_on_at(self._end_of_grace):
            while not self.groups.all_read:  # noqa: ASYNC110 - one second at the end of a life is not worth an event
                await trio.sleep(_GRACE / 100)

    @property
    def told_to(self) -> int:
        """The position in the watcher's stream right behind what has been told."""
        return self._translator.position

    @property
    def deaf(self) -> int:
        """How many directories are not heard."""
        return len(self._recovery.deaf)

    async def _ask_distant(self) -> None:
        """Find out which of the filesystems in the tree are silent, before they are looked at."""
        if not self.filesystems.distant:
            return
        with trio.move_on_after(_ANSWER):
            async with trio.open_nursery() as nursery:
                for device in self.filesystems.distant:
                    ask = functools.partial(trio.to_thread.run_sync, self.filesystems.ask, device)
                    nursery.start_soon(functools.partial(ask, abandon_on_cancel=True))

    def _status(self) -> Status:
        deaf, queues = self._recovery.deaf, self.groups.report()
        return Status(
            pid=os.getpid(),
            source=os.fsencode(self._source),
            mountpoint=os.fsencode(self._mountpoint),
            watcher=self.watcher.name,
            watcher_reason=self._watcher_reason,
            native=self.native,
            native_reason=self.native_reason(),
            cursor=format_cursor(self.journal.epoch, self._teller.seq),
            watches=self.watcher.watches,
            overflows=self._translator.overflows,
            recoveries=self._recovery.done,
            deaf=len(deaf),
            groups=len(self.groups),
            nodes=len(self.table),
            replays=self.replays,
            state=self._root.state(has_left=self._translator.root_gone),
            deaf_paths=list(topmost(deaf, MOST_DEAF_PATHS)),
            watch_limit=self.watcher.limit,
            told=self._teller.seq,
            dropped=sum(queue.dropped for queue in queues),
            queues=queues[:MOST_QUEUES],
            latency=Latency(self.hearing.latency, self._sent),
            journal=self.journal.status(),
        )


def serve(source: Path, state_dir: Path, listening: Listening, on_ready: OnReady, *, watcher: str = "auto") -> None:
    """Serve a tree that is mounted nowhere in this process, until it is told to stop (SIGINT, SIGTERM).

    `watcher` is what is to hear the tree: `auto`, `inotify` or `fanotify`.

    Raises:
        EnvironmentProblem: this machine does not let us.
    """
    process.prepare()
    with ExitStack() as stack:
        trio.run(_serve, Export(source, state_dir, stack, watcher=watcher), listening, on_ready)


async def _serve(export: Export, listening: Listening, on_ready: OnReady) -> None:
    # Without a mount there is nobody whose requests could be waited for.
    services = export.services(quiet=trio.lowlevel.checkpoint)
    await export.crawl()
    async with opened(listening) as listeners, trio.open_nursery() as nursery:
        nursery.start_soon(export.run, services, listeners)
        with process.ending() as told_to_end:
            on_ready(export.deaf, [listener.address for listener in listeners])
            await told_to_end()
        await export.say_goodbye()
        nursery.cancel_scope.cancel()
