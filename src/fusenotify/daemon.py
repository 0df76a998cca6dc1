"""The daemon: the one place where everything is wired, started and stopped."""

import contextlib
import faulthandler
import functools
import gc
import logging
import os
import resource
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack, suppress
from pathlib import Path

import pyfuse3
import trio

from fusenotify import _linux, mounting, server
from fusenotify.arrears import Arrears
from fusenotify.arrivals import Arrivals
from fusenotify.backing import Backing
from fusenotify.changes import Changes
from fusenotify.claims import Claims
from fusenotify.comparison import Comparison
from fusenotify.config import MountOptions
from fusenotify.crawler import Crawler
from fusenotify.echoes import Echoes
from fusenotify.errors import EnvironmentProblem, NotAMount
from fusenotify.events import format_cursor
from fusenotify.exchanges import Exchanges
from fusenotify.files import Files
from fusenotify.filesystems import Filesystems
from fusenotify.groups import Groups
from fusenotify.handles import Sealer
from fusenotify.hearing import Hearing
from fusenotify.inodes import FIRST_SYNTHETIC, InodeTable
from fusenotify.locator import Locator
from fusenotify.nodes import Nodes
from fusenotify.operations import Operations
from fusenotify.passthrough import Passthrough
from fusenotify.peer import Services
from fusenotify.queuefile import QueueFiles
from fusenotify.recorder import Recorder
from fusenotify.recovery import Recovery, topmost
from fusenotify.rights import Rights
from fusenotify.root import Root
from fusenotify.server import Server
from fusenotify.session import FuseLoop
from fusenotify.snapshot import Snapshot
from fusenotify.status import MOST_DEAF_PATHS, MOST_QUEUES, Histogram, Latency, Replays, Status
from fusenotify.store import Store
from fusenotify.stream import Stream
from fusenotify.telling import Teller
from fusenotify.translation import Translator
from fusenotify.tree import Tree
from fusenotify.watchers.inotify import InotifyWatcher
from fusenotify.whereabouts import Whereabouts

log = logging.getLogger(__name__)

_CAP_SYS_RESOURCE = 24
_MOST_DESCRIPTORS = 1 << 20
_NICE = -10
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal has been closed
_KEPT_ABROAD = 1.0  # seconds
_ANSWER = 2.0  # seconds that a filesystem of others gets to answer before its directories are left unwatched
_GRACE = 1.0  # seconds that listeners get to read their last events


class Daemon:
    """Everything that one mount consists of.

    The attributes follow the two pipelines: what hears the backing tree, who listens, what serves the kernel.
    """

    def __init__(self, target: mounting.Target, options: MountOptions, stack: ExitStack) -> None:
        self._target = target
        self._options = options
        self._epoch = secrets.token_hex(6)
        self._end_of_grace: float | None = None

        self._backing = Backing(str(target.source))
        stack.callback(self._backing.close)
        self._filesystems = Filesystems(str(target.source))
        self._watcher = InotifyWatcher()
        stack.callback(self._watcher.close)
        self._tree = Tree(self._backing.root_key)
        self._groups = Groups(self._tree, owner=os.geteuid(), watch_other=options.watch_other)
        self._changes = Changes()
        self._sent = Histogram()
        self._wire_event_path()

        with contextlib.closing(self._backing.find_root()) as root:
            store = Store(target.state_dir, root.identity)
        stack.callback(store.close)
        whereabouts = Whereabouts(self._backing, store)
        store.is_gone = whereabouts.is_gone
        earlier = filter(self._backing.is_of_root, store.from_number(FIRST_SYNTHETIC))
        self._table = InodeTable(self._backing.root_key.device, earlier)
        self._locator = Locator(
            self._backing, self._table, self._tree, whereabouts, Sealer(store.tree_id, store.secret)
        )
        self._root = Root(self._backing, str(target.source), self._filesystems)
        recorder = Recorder(self._watcher, self._hearing, self._changes, lambda: len(self._groups) > 0)
        self._nodes = Nodes(self._backing, self._table, recorder, store, whereabouts)
        stack.callback(self._nodes.close)
        rights = Rights()
        self._passthrough = Passthrough(self._nodes, recorder, rights)
        self._files = Files(self._nodes, recorder, rights, self._filesystems)
        stack.callback(self._files.close)

    def _wire_event_path(self) -> None:
        """Make what turns the watcher's bytes into events."""
        echoes = Echoes()
        stream = Stream(self._watcher)
        snapshot = Snapshot()
        crawler = Crawler(self._backing, self._watcher, stream, self._tree, self._filesystems, snapshot)
        exchanges = Exchanges(self._backing, stream, crawler, self._tree, echoes)
        claims = Claims(self._backing, self._tree, echoes)
        self._teller = Teller(snapshot)
        arrivals = Arrivals(crawler, self._teller, snapshot)
        self._translator = Translator(
            self._watcher, stream, crawler, exchanges, self._tree, claims, self._teller, arrivals
        )
        comparison = Comparison(self._backing, self._watcher, crawler, self._tree, snapshot, self._teller, arrivals)
        self._recovery = Recovery(self._watcher, stream, crawler, claims, self._translator, comparison)
        self._hearing = Hearing(
            self._watcher,
            stream,
            self._translator,
            self._recovery,
            crawler,
            claims,
            self._groups,
            self._changes.on_loop,
        )
        self._hearing.before_crawl = self._ask_distant
        arrears = Arrears(self._backing, crawler, self._filesystems, self._groups, lambda: self._teller.seq)
        self._hearing.pay_arrears = arrears.pay

    async def run(self, listen: Sequence[str], on_ready: Callable[[int], None]) -> None:
        """Watch, mount and serve until the filesystem is unmounted or a signal asks to stop.

        Raises:
            EnvironmentProblem: the tree cannot be watched or mounted.
        """
        await self._hearing.crawl()
        _spare_the_collector()
        async with AsyncExitStack() as stack:
            listeners: list[trio.SocketListener] = []
            for url in listen:
                listeners.append(server.listen(url))
                stack.push_async_callback(listeners[-1].aclose)
                path = url.partition(":")[2]
                stack.callback(_remove_socket, path, os.lstat(path))
            fuse_fd = mounting.mount_fuse(self._target, self._options)
            loop = FuseLoop(fuse_fd)
            await self._serve(fuse_fd, loop, listeners, on_ready)

    async def _serve(
        self, fuse_fd: int, loop: FuseLoop, listeners: Sequence[trio.SocketListener], on_ready: Callable[[int], None]
    ) -> None:
        services = Services(
            groups=self._groups,
            locator=self._locator,
            epoch=self._epoch,
            position=lambda: self._teller.seq,
            caught_up=self._hearing.caught_up,
            quiet=functools.partial(loop.quiet, str(self._target.mountpoint)),
            status=self._status,
            sent=self._sent,
        )
        with ExitStack() as session:  # it outlives every task: touching one that is closed crashes the process
            async with trio.open_nursery() as nursery:
                queues = QueueFiles(services, self._tree, loop, nursery.start_soon)
                operations = Operations(
                    self._nodes, self._passthrough, self._files, queues, loop, self._changes, self._filesystems
                )
                pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
                session.callback(pyfuse3.close, unmount=False)
                nursery.start_soon(self._hearing.run)
                nursery.start_soon(self._let_go)
                for listener in listeners:
                    nursery.start_soon(Server(services, self._tree).serve, listener)
                nursery.start_soon(
                    self._root.run, str(self._target.mountpoint), self._hearing.lose_root, self._hearing.start_over
                )
                nursery.start_soon(self._stop_at_signal, loop)
                nursery.start_soon(self._announce, on_ready)
                await loop.run()
                await self._say_goodbye()
                nursery.cancel_scope.cancel()

    async def _let_go(self) -> None:
        """Close what is kept of filesystems below the root soon after their use, so that they can be unmounted."""
        while True:
            abroad = trio.Event()
            self._nodes.on_abroad = self._changes.on_loop(abroad.set)
            await abroad.wait()
            await trio.sleep(_KEPT_ABROAD)
            self._nodes.let_go()

    async def _ask_distant(self) -> None:
        """Find out which of the filesystems in the tree are silent, before they are looked at."""
        if not self._filesystems.distant:
            return
        with trio.move_on_after(_ANSWER):
            async with trio.open_nursery() as nursery:
                for device in self._filesystems.distant:
                    ask = functools.partial(trio.to_thread.run_sync, self._filesystems.ask, device)
                    nursery.start_soon(functools.partial(ask, abandon_on_cancel=True))

    async def _announce(self, on_ready: Callable[[int], None]) -> None:
        """Call `on_ready` with the number of directories that are not heard, when the mount answers."""
        await trio.to_thread.run_sync(os.stat, self._target.mountpoint)
        on_ready(len(self._recovery.deaf))

    async def _stop_at_signal(self, loop: FuseLoop) -> None:
        for ours in _ENDING:
            signal.signal(ours, signal.SIG_IGN)  # what the receiver leaves behind: by then we are ending anyway
        with trio.open_signal_receiver(*_ENDING) as signals:
            async for number in signals:
                log.info("stopping at %s", signal.Signals(number).name)
                await self._say_goodbye()
                try:
                    await trio.to_thread.run_sync(lambda: mounting.unmount(str(self._target.mountpoint), lazy=True))
                except NotAMount:
                    pass  # somebody was faster
                except EnvironmentProblem as error:
                    log.warning("%s", error)
                loop.abandon()
                pyfuse3.terminate()
                return

    async def _say_goodbye(self) -> None:
        """Tell every group that nothing more will come, and let them read it."""
        self._hearing.end()
        if self._end_of_grace is None:  # this is called at a signal, and again when the mount has ended
            self._end_of_grace = trio.current_time() + _GRACE
        with trio.move_on_at(self._end_of_grace):
            while not self._groups.all_read:  # noqa: ASYNC110 - one second at the end of a life is not worth an event
                await trio.sleep(_GRACE / 100)

    def _status(self) -> Status:
        deaf, queues = self._recovery.deaf, self._groups.report()
        return Status(
            pid=os.getpid(),
            source=os.fsencode(self._target.source),
            mountpoint=os.fsencode(self._target.mountpoint),
            watcher=self._watcher.name,
            native="off",
            cursor=format_cursor(self._epoch, self._teller.seq),
            watches=self._watcher.watches,
            overflows=self._translator.overflows,
            recoveries=self._recovery.done,
            deaf=len(deaf),
            groups=len(self._groups),
            nodes=len(self._table),
            replays=Replays(),
            state=self._root.state(has_left=self._translator.root_gone),
            deaf_paths=list(topmost(deaf, MOST_DEAF_PATHS)),
            watch_limit=self._watcher.limit,
            told=self._teller.seq,
            dropped=sum(queue.dropped for queue in queues),
            queues=queues[:MOST_QUEUES],
            latency=Latency(self._hearing.latency, self._sent),
        )


def _spare_the_collector() -> None:
    """Keep garbage collection from stopping the world while the kernel's queue fills.

    What has been made so far stays for good, and events come by the hundred thousand without a cycle among them.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def _remove_socket(path: str, ours: os.stat_result) -> None:
    """Remove the file of a socket that still listens, unless another has taken its place."""
    with suppress(FileNotFoundError):
        found = os.lstat(path)
        if (found.st_dev, found.st_ino, found.st_ctime_ns) == (ours.st_dev, ours.st_ino, ours.st_ctime_ns):
            os.unlink(path)


def run(target: mounting.Target, options: MountOptions, listen: Sequence[str], on_ready: Callable[[int], None]) -> None:
    """Serve one mount in this process until it is unmounted or told to stop (SIGINT, SIGTERM).

    `on_ready` is called once, when the mount answers and every watch is in force, with the number of directories for
    which that is not possible.

    Raises:
        EnvironmentProblem: this machine does not let us.
    """
    faulthandler.register(signal.SIGUSR1)
    _raise_descriptor_limit()
    _take_precedence()
    # With it, quotas and the blocks reserved for root would not hold for anybody who writes through us.
    _linux.drop_capability(_CAP_SYS_RESOURCE)
    with ExitStack() as stack:
        daemon = Daemon(target, options, stack)
        trio.run(daemon.run, listen, on_ready)


def _take_precedence() -> None:
    """Run before ordinary programs where that is allowed: writers fill the kernel's queue of 16384 events in 0.2 s."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _raise_descriptor_limit() -> None:
    """Let many files be open at once, each of which is a descriptor of ours: all that root may have, or the user."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(int(Path("/proc/sys/fs/nr_open").read_text()), _MOST_DESCRIPTORS)
    for limit in (hard, most):
        with suppress(OSError, ValueError):  # going beyond the hard limit takes CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
