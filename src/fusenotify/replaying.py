"""Has plans carried out: starts the replayer, hands it its orders, and does without it where it is stuck."""

import contextlib
import errno
import logging
import os
import select
import socket
import stat
import subprocess
from array import array
from collections.abc import AsyncIterator
from typing import Final

import trio

from fusenotify import _linux, events, replayer
from fusenotify.events import IS_DIR
from fusenotify.filesystems import Filesystems
from fusenotify.mountinfo import MountEntry, mount_at, read_mounts
from fusenotify.mounting import CAP_SYS_ADMIN, has_capability
from fusenotify.onlookers import Onlookers
from fusenotify.orders import (
    ATTRIB,
    CLOSE_WRITE,
    EXCHANGE,
    MAKE,
    MODIFY,
    MOST_ORDERS,
    REMOVE,
    RENAME,
    Name,
    Order,
    Progress,
    message,
)  # fmt: skip
from fusenotify.planning import Planner
from fusenotify.plans import Place, Plan
from fusenotify.replay import Replay
from fusenotify.replayer import Clone, Root, Visible
from fusenotify.root import changes_of_mounts
from fusenotify.status import Replays
from fusenotify.subjects import Subjects

log = logging.getLogger(__name__)

STUCK_AFTER: Final = 2.0  # seconds with one order
_LOOKS: Final = 4  # at a replayer in that time: whatever kept us may have kept it, so the last look is not enough
_MOST_STUCK: Final = 4  # processes that do not even end: the kernel keeps them, and would keep more
_RETRY: Final = 1.0  # seconds until another attempt to start one
_PATIENCE: Final = 0.5  # seconds that a filesystem gets to answer before what was changed in it is given up
_GRACE: Final = 1.0  # seconds that the last one gets to end
_WHAT: Final = {
    events.CREATE: MAKE,
    events.DELETE: REMOVE,
    events.MODIFY: MODIFY,
    events.ATTRIB: ATTRIB,
    events.CLOSE_WRITE: CLOSE_WRITE,
    events.RENAME: RENAME,
}


class _Stuck(Exception):
    """A replayer does not get on, or has ended."""


class _Replayer:
    """A running process."""

    def __init__(self, process: trio.Process, channel: trio.SocketStream, progress: Progress) -> None:
        self._process = process
        self._channel = channel
        self.progress = progress
        self.pid = process.pid

    @classmethod
    async def start(cls) -> "_Replayer":
        """Start one, which can do nothing before it is introduced.

        Raises:
            OSError: no process, memory or descriptor is to be had.
        """
        ours, theirs = socket.socketpair()
        channel = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        progress_fd = Progress.new_fd()
        fds = (theirs.fileno(), progress_fd)
        try:
            # In a thread: what a new process closes first may be of a filesystem that is silent.
            process = await trio.lowlevel.open_process(
                replayer.command(*fds),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=fds,
                cwd="/",
            )
            return cls(process, channel, Progress(progress_fd))
        except BaseException:
            channel.socket.close()
            raise
        finally:
            theirs.close()
            os.close(progress_fd)

    async def introduce(self, root: Root, outside: bytes) -> None:
        """Tell it where to work.

        Raises:
            OSError: it has ended.
        """
        first, fds = replayer.introduction(root, outside)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        await self._channel.socket.sendmsg([first], rights)  # far less than a new channel has room for

    async def give(self, orders: bytes) -> None:
        """Have orders carried out.

        Raises:
            _Stuck: it has ended.
        """
        self.progress.clear()
        try:
            await self._channel.send_all(orders)
        except trio.BrokenResourceError as error:
            raise _Stuck from error

    async def done(self) -> None:
        """Return when it has carried out its orders.

        Raises:
            _Stuck: it does not get on, or has ended.
        """
        looks, at = 0, -1
        while True:
            with trio.move_on_after(STUCK_AFTER / _LOOKS):
                try:
                    answer = await self._channel.receive_some(1)
                except trio.BrokenResourceError as error:  # it has not even read them all
                    raise _Stuck from error
                if not answer:
                    raise _Stuck
                return
            executing = self.progress.executing()
            looks = looks + 1 if executing == at else 0
            at = executing
            if looks >= _LOOKS:
                raise _Stuck

    def kill(self) -> None:
        """End it, as far as the kernel lets it."""
        self._channel.socket.close()
        self._process.kill()

    async def ended(self) -> None:
        """Return when it has ended."""
        await self._process.wait()
        self.progress.close()


class _Cover:
    """Whether anything is mounted on what is below a mount, as of now."""

    def __init__(self, device: str, changes: select.epoll) -> None:
        self._device = device
        self._changes = changes
        self._is_there = self._look()

    def is_there(self) -> bool:
        if self._changes.poll(0):
            self._is_there = self._look()
        return self._is_there

    def _look(self) -> bool:
        mounts = read_mounts()
        ours = {mount.mount_id for mount in mounts if mount.device == self._device}
        return any(mount.parent_id in ours for mount in mounts)


class Replaying:
    """Native delivery on one mount, for as long as it is there to be seen."""

    def __init__(
        self,
        planner: Planner,
        onlookers: Onlookers,
        replay: Replay,
        subjects: Subjects,
        filesystems: Filesystems,
        counts: Replays,
        mountpoint: str,
    ) -> None:
        self._filesystems = filesystems
        self._subjects = subjects
        self._planner = planner
        self._onlookers = onlookers
        self._replay = replay
        self._counts = counts
        self._mountpoint = mountpoint
        self._work = trio.Event()
        planner.on_plan = self._wake
        self._burials = 0
        self._buried = trio.Event()
        self._replayer: _Replayer | None = None

    @contextlib.asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Have the processes there that native delivery takes: to be entered before anything is mounted.

        Between its birth and the moment at which it has closed them a process has copies of our descriptors. What is
        closed meanwhile is not closed for good, so its event comes late and is taken for somebody else's; and the
        connection to the kernel, and with it the mount, would outlive us if we were killed. vfork(2), by which
        `subprocess` starts them, keeps but one of our threads from going on.
        """
        try:
            with contextlib.suppress(OSError):  # `run` tries again, and tells
                self._replayer = await _Replayer.start()
            async with self._onlookers.prepared():
                yield
        finally:
            await self._end()

    async def run(self) -> None:
        """Replay until the mount has gone from its place.

        From then on there must be nothing of ours that holds the filesystem: it is to end with its last mount.
        """
        try:
            mount = mount_at(self._mountpoint, read_mounts())
            if mount is not None and mount.is_ours:
                await self._run_on(mount)
        finally:
            self._planner.is_on = False

    async def _run_on(self, mount: MountEntry) -> None:
        if not has_capability(CAP_SYS_ADMIN):
            await self._run(mount, Visible(mount.mount_id, self._mountpoint))
            return
        try:
            root_fd = await trio.to_thread.run_sync(_linux.clone_mount, os.fsencode(self._mountpoint))
        except OSError as error:
            log.warning("programs on the mount do not hear of changes behind it: the mount cannot be cloned: %s", error)
            self._onlookers.reason = f"to nobody: the mount cannot be cloned: {error}"
            return
        try:
            await self._run(mount, Clone(root_fd))
        finally:
            os.close(root_fd)

    async def _run(self, mount: MountEntry, root: Root) -> None:
        with changes_of_mounts() as changes, changes_of_mounts() as more_changes:
            self._replay.is_covered = _Cover(mount.device, more_changes).is_there
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._carry_out, root, nursery)
                nursery.start_soon(self._onlookers.run, mount.device)
                while any(one.device == mount.device for one in read_mounts()):
                    await trio.lowlevel.wait_readable(changes.fileno())
                nursery.cancel_scope.cancel()

    def _wake(self) -> None:
        self._work.set()

    async def _carry_out(self, root: Root, nursery: trio.Nursery) -> None:
        try:
            await self._employ(root)
            while True:
                self._work = trio.Event()
                while plans := self._replay.hand_out(MOST_ORDERS):
                    if unwanted := await self._planner.find_unwanted(plans):
                        self._replay.drop(unwanted)
                        plans = [plan for plan in plans if plan not in unwanted]
                    if orders := await self._orders(plans):
                        await self._carry_out_some(orders, root, nursery)
                await self._work.wait()
        finally:
            await self._end()

    async def _orders(self, plans: list[Plan]) -> list[tuple[Plan, Order]]:
        """Return the orders for some plans; those for which there are none are given up."""
        devices = {place.directory.key.device for plan in plans for place in plan.places}
        for device in devices if self._filesystems.distant else ():
            if not self._filesystems.answers(device) and not self._filesystems.is_silent(device):
                with trio.move_on_after(_PATIENCE):
                    await trio.to_thread.run_sync(self._filesystems.ask, device, abandon_on_cancel=True)
        orders = []
        for plan in plans:
            try:
                if any(self._filesystems.is_silent(place.directory.key.device) for place in plan.places):
                    raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
                orders.append((plan, self._order(plan)))
            except OSError as error:
                self._replay.finish(plan, error.errno or errno.EIO)
        return orders

    async def _employ(self, root: Root) -> _Replayer:
        """Set a replayer to work: the one that is prepared, or a new one where that has gone.

        A new one is born while files are open (see `prepared`). That is left as it is: it is seldom, and what is closed
        within these microseconds is taken for a remote change at worst.
        """
        while self._burials >= _MOST_STUCK:
            self._buried = trio.Event()
            await self._buried.wait()
        worker = await self._introduced(root)
        self._replay.employ(worker.pid, worker.progress)
        return worker

    async def _introduced(self, root: Root) -> _Replayer:
        while True:
            try:
                worker = self._replayer = self._replayer or await _Replayer.start()
                await worker.introduce(root, self._replay.outside)
                return worker
            except OSError as error:
                log.warning("no replayer can be started: %s; it is tried again", error)
                await self._end()
                await trio.sleep(_RETRY)

    async def _carry_out_some(self, orders: list[tuple[Plan, Order]], root: Root, nursery: trio.Nursery) -> None:
        worker = self._replayer or await self._employ(root)
        plans = [plan for plan, _ in orders]
        try:
            await worker.give(message([order for _, order in orders]))
            await worker.done()
            begun = len(plans)
        except _Stuck:
            executing = worker.progress.executing()
            # What it does not even begin is not to be tried for ever.
            begun = max(1, sum(plan.number <= executing for plan in plans), worker.progress.ended(len(plans)))
            log.warning("a replayer is stuck, or has died; another one takes its place")
            self._counts.stuck += 1
            self._replayer = None
            self._replay.dismiss()
            worker.kill()
            nursery.start_soon(self._bury, worker)
        for index, plan in enumerate(plans[:begun]):
            self._replay.finish(plan, worker.progress.error(index))
        self._replay.take_back(plans[begun:])

    async def _bury(self, worker: _Replayer) -> None:
        self._burials += 1
        await worker.ended()
        self._replay.bury(worker.pid)
        self._burials -= 1
        self._buried.set()

    async def _end(self) -> None:
        if self._replayer is not None:
            worker, self._replayer = self._replayer, None
            self._replay.dismiss()
            worker.kill()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + _GRACE):
                await worker.ended()

    def _order(self, plan: Plan) -> Order:
        what = EXCHANGE if plan.is_exchange else _WHAT[plan.kind]
        if plan.kind == events.CREATE and plan.old is not None:
            plan.file_type = self._subjects.type_to_make(plan, plan.old)
        file_type = plan.file_type or (stat.S_IFDIR if plan.flags & IS_DIR else stat.S_IFREG)
        outside = Name(0, 0, b"%d" % plan.number)
        names = [self._name(plan, place) if place is not None else outside for place in (plan.old, plan.new)]
        return Order(what, file_type, plan.number, *names)

    def _name(self, plan: Plan, place: Place) -> Name:
        way = self._subjects.way_to(plan, place)
        path = way + b"/" + place.name if way else place.name
        return Name(place.directory.nodeid, place.directory.generation, path)
