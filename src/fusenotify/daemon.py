"""The daemon of a mount: the one place where it is wired, started and stopped."""

import functools
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack, nullcontext

import pyfuse3
import trio

from fusenotify import mounting, process
from fusenotify.backlog import Backlog
from fusenotify.changes import Changes
from fusenotify.config import JournalRules, Listening, MountOptions
from fusenotify.directories import Directories
from fusenotify.errors import EnvironmentProblem, NotAMount
from fusenotify.export import Export, OnReady
from fusenotify.files import Files
from fusenotify.listening import Listener, opened
from fusenotify.nodes import Nodes
from fusenotify.onlookers import Onlookers
from fusenotify.operations import Operations, Served
from fusenotify.passthrough import Passthrough
from fusenotify.planning import Planner
from fusenotify.plans import Pending
from fusenotify.queuefile import QueueFiles
from fusenotify.recorder import Recorder
from fusenotify.replay import Replay
from fusenotify.replaying import Replaying
from fusenotify.rights import Rights
from fusenotify.room import Room
from fusenotify.session import FuseLoop
from fusenotify.subjects import Subjects

log = logging.getLogger(__name__)

_KEPT_ABROAD = 1.0  # seconds


class Daemon:
    """Everything that one mount consists of: what is exported, and what serves the kernel."""

    def __init__(
        self, target: mounting.Target, options: MountOptions, watcher: str, native: str, stack: ExitStack
    ) -> None:
        self._target = target
        self._options = options
        self._mountpoint = str(target.mountpoint)
        self._changes = Changes()
        self._export = export = Export(
            target.source,
            target.state_dir,
            stack,
            mountpoint=self._mountpoint,
            watch_other=options.watch_other,
            watcher=watcher,
            native=native,
            rules=JournalRules(options.exclusive, options.strict_journal),
            on_loop=self._changes.on_loop,
        )
        recorder = Recorder(
            export.watcher,
            export.hearing,
            self._changes,
            lambda: len(export.groups) > 0,
            export.groups.uses,
            is_replaying=native != "off",
        )
        self._nodes = Nodes(export.backing, export.table, recorder, export.store, export.whereabouts)
        stack.callback(self._nodes.close)
        rights = Rights()
        self._passthrough = Passthrough(self._nodes, recorder, rights)
        room = Room()
        self._files = Files(self._nodes, recorder, rights, room)
        stack.callback(self._files.close)
        self._directories = Directories(self._nodes, export.filesystems, room)
        stack.callback(self._directories.close)
        pending = Pending()
        subjects = Subjects(self._nodes, pending)
        self._replay = Replay(self._nodes, pending, subjects, export.replays)
        onlookers = Onlookers(native, {os.getpid()})
        planner = Planner(export.table, export.tree, pending, onlookers, lambda: export.told_to, export.replays)
        self._replaying = Replaying(
            planner, onlookers, self._replay, subjects, export.filesystems, export.replays, self._mountpoint
        )
        if native != "off":
            backlog = Backlog(onlookers, planner)
            export.hearing.followers.append(backlog.follow)
            export.tree.on_changing = backlog.release
            export.native_reason = lambda: onlookers.reason
            recorder.on_operation = planner.note

    async def run(self, listening: Listening, on_ready: OnReady) -> None:
        """Watch, mount and serve until the filesystem is unmounted or a signal asks to stop.

        Raises:
            EnvironmentProblem: the tree cannot be watched or mounted.
        """
        async with self._replaying.prepared() if self._export.native != "off" else nullcontext():
            await self._export.crawl()
            async with opened(listening) as listeners:
                fuse_fd = mounting.mount_fuse(self._target, self._options)
                await self._serve(fuse_fd, FuseLoop(fuse_fd), listeners, on_ready)

    async def _serve(self, fuse_fd: int, loop: FuseLoop, listeners: Sequence[Listener], on_ready: OnReady) -> None:
        services = self._export.services(quiet=functools.partial(loop.quiet, self._mountpoint))
        with ExitStack() as session:  # it outlives every task: touching one that is closed crashes the process
            async with trio.open_nursery() as nursery:
                queues = QueueFiles(services, self._export.tree, loop, nursery.start_soon)
                served = Served(self._nodes, self._passthrough, self._files, self._directories, queues)
                export = self._export
                operations = Operations(served, loop, self._changes, export.filesystems, export.journal, self._replay)
                pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", set())
                session.callback(pyfuse3.close, unmount=False)
                nursery.start_soon(self._export.run, services, listeners)
                nursery.start_soon(self._let_go)
                if self._export.native != "off":
                    nursery.start_soon(self._replaying.run)
                nursery.start_soon(self._stop_at_signal, loop)
                nursery.start_soon(self._announce, listeners, on_ready)
                await loop.run()
                await self._export.say_goodbye()
                nursery.cancel_scope.cancel()

    async def _let_go(self) -> None:
        """Close what is kept of filesystems below the root soon after their use, so that they can be unmounted."""
        while True:
            abroad = trio.Event()
            self._nodes.on_abroad = self._changes.on_loop(abroad.set)
            await abroad.wait()
            await trio.sleep(_KEPT_ABROAD)
            self._nodes.let_go()

    async def _announce(self, listeners: Sequence[Listener], on_ready: OnReady) -> None:
        """Call `on_ready` when the mount answers."""
        await trio.to_thread.run_sync(mounting.read_ahead, self._mountpoint)
        on_ready(self._export.deaf, [listener.address for listener in listeners])

    async def _stop_at_signal(self, loop: FuseLoop) -> None:
        with process.ending() as told_to_end:
            await told_to_end()
        await self._export.say_goodbye()
        try:
            await trio.to_thread.run_sync(lambda: mounting.unmount(self._mountpoint, lazy=True))
        except NotAMount:
            pass  # somebody was faster
        except EnvironmentProblem as error:
            log.warning("%s", error)
        loop.abandon()
        pyfuse3.terminate()


def run(
    target: mounting.Target,
    options: MountOptions,
    listening: Listening,
    on_ready: OnReady,
    *,
    watcher: str = "auto",
    native: str = "auto",
) -> None:
    """Serve one mount in this process until it is unmounted or told to stop (SIGINT, SIGTERM).

    `on_ready` is called when the mount answers; `watcher` is what is to hear the backing tree: `auto`, `inotify` or
    `fanotify`; `native` is whether programs on the mount are to hear of remote changes: `auto`, `always` or `off`.

    Raises:
        EnvironmentProblem: this machine does not let us.
    """
    process.prepare()
    with ExitStack() as stack:
        daemon = Daemon(target, options, watcher, native, stack)
        trio.run(daemon.run, listening, on_ready)
