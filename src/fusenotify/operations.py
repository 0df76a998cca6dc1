"""What pyfuse3 calls: a thin shell that sends each request to the tree, to the open files or to the queue files.

The one place where an exception becomes an errno. A bug in a handler is EIO for its caller and a line in the log, never
the end of the mount.
"""

import errno
import functools
import inspect
import logging
import os
import select
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, Final, NamedTuple, NoReturn, ParamSpec, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from fusenotify.changes import Changes
from fusenotify.config import QUEUE_DIRECTORY
from fusenotify.directories import Directories
from fusenotify.files import Files
from fusenotify.filesystems import Filesystems
from fusenotify.inodes import FIRST_VIRTUAL, ROOT_NODEID
from fusenotify.journal import Journal
from fusenotify.nodes import Nodes
from fusenotify.passthrough import Context, Passthrough
from fusenotify.queuefile import QueueFiles
from fusenotify.replay import REPLAYED_FH, Replay, refusal
from fusenotify.session import FuseLoop

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
_RESERVED: Final = QUEUE_DIRECTORY.encode()
_REPLAY_PATIENCE: Final = 1.0  # seconds that one gets before what a replayer asks of it is refused
# Seconds that attributes wait for a replay at most: it may wait for who asks, as lseek(2) holds a lock then. That is
# rare, and on a busy machine a replay takes its time.
_OVERTAKING_PATIENCE: Final = 0.5
_LISTING_PATIENCE: Final = 0.2  # seconds that a filesystem gets to answer before it is listed unseen
_FOR_THE_JOURNAL: Final = -1  # on whose account is waited for it
_ALWAYS_READY: Final = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


def answering(
    handler: Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]:
    """Turn whatever a handler raises into the errno that its caller gets, and have replayers answered by `replay`."""
    tells_caller = list(inspect.signature(handler).parameters)[-1] == "ctx"

    @functools.wraps(handler)
    async def answer(self: "Operations", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if tells_caller and cast(Context, args[-1]).pid in self.replay.pids:
                return cast(T, await self.answer_replayer(handler.__name__, *args))
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("%s failed; its caller got EIO", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return answer


class Served(NamedTuple):
    """Where requests are sent: names, attributes, open files, open directories, and what is not of the tree."""

    nodes: Nodes
    tree: Passthrough
    files: Files
    directories: Directories
    queues: QueueFiles


class Operations(pyfuse3.Operations):
    """The handlers. Each of them is a call of synchronous code, but for the few that park (docs/architecture.md).

    What changes the tree goes through `_change` and `_change_open`.

    Attributes:
        replay: answers the processes that carry out what was done behind the mount.
    """

    supports_dot_lookup = True
    enable_acl = True

    def __init__(
        self,
        served: Served,
        loop: FuseLoop,
        changes: Changes,
        filesystems: Filesystems,
        journal: Journal,
        replay: Replay,
    ) -> None:
        super().__init__()
        self.replay = replay
        self._nodes, self._tree, self._files, self._directories, self._queues = served
        self._loop = loop
        self._changes = changes
        self._filesystems = filesystems
        self._journal = journal

    async def answer_replayer(self, request: str, *args: object) -> object:
        """Answer a request of a process that does on the mount what was done behind it."""
        with trio.move_on_after(_REPLAY_PATIENCE) as waiting:
            try:
                for directory in self.replay.directories if self._filesystems.distant else ():
                    await self._await_answer(directory.key.device)
            except OSError as error:
                raise refusal(request) from error
        if waiting.cancelled_caught:
            raise refusal(request)
        return self.replay.answer(request, *args)

    async def _change(
        self, nodeid: int, function: Callable[..., T], *args: object, entries_of: Sequence[int] = ()
    ) -> T:
        """Make a change of a node, or of what is in it, by a function whose first argument that node is.

        `entries_of` are the directories, by nodeid, that get other entries by it. A node that is none of them changes
        itself.
        """
        await self._reach(nodeid, *(arg for arg in args if isinstance(arg, bytes)))
        get = self._nodes.table.get
        directories = [get(one).key.number for one in entries_of]
        if nodeid not in entries_of:
            directories.append(get(nodeid).directory.number)
        with self._journal.change(directories) as missing:
            await self._record(missing)
            return await self._make(get(nodeid).key.device, function, nodeid, *args)

    async def _change_open(self, fh: int, function: Callable[..., T], *args: object) -> T:
        """Make a change of an open file, by a function whose first argument that is."""
        await self._await_answer(self._files.device_of(fh))
        with self._journal.change([self._files.directory_of(fh)]) as missing:
            await self._record(missing)
            return await self._make(self._files.device_of(fh), function, fh, *args)

    async def _record(self, missing: set[int]) -> None:
        """Return when the journal has recorded what it is missing."""
        if missing:
            await self._loop.park(_FOR_THE_JOURNAL, self._journal.record, missing)

    async def _make(self, device: int, function: Callable[..., T], *args: object) -> T:
        make = self._changes.here if self._filesystems.is_in_memory(device) else self._changes.run
        return await make(self._loop.hand_over, function, *args)

    async def _reach(self, nodeid: int, *names: bytes) -> None:
        """Return when the filesystems of a node, and of what has these names in it, answer."""
        if not self._filesystems.distant:
            return
        await self._await_answer(self._nodes.table.get(nodeid).key.device)
        for name in names:
            for device in self._filesystems.doors.get(name, ()):
                await self._await_answer(device)

    async def _await_answer(self, device: int) -> None:
        """Return when a filesystem answers."""
        if not self._filesystems.answers(device):
            await self._loop.park_until_the_end(-device, self._filesystems.ask, device)

    async def _ask_doors(self) -> None:
        """Find out which filesystems that a listing may show are silent: it does not look at those."""
        for device in {device for devices in self._filesystems.doors.values() for device in devices}:
            if not self._filesystems.is_silent(device):
                with trio.move_on_after(_LISTING_PATIENCE):
                    await self._await_answer(device)

    # --- names -------------------------------------------------------------------------------------------------------

    @answering
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: Context) -> EntryAttributes:
        if parent_inode >= FIRST_VIRTUAL:
            return self._queues.lookup(parent_inode, name)
        if name == _RESERVED:
            return self._queues.lookup_in(self._nodes.table.get(parent_inode))
        if name == b".":  # a handle of the mount is opened
            if parent_inode == ROOT_NODEID:
                return self._nodes.root_entry()
            return (await self._loop.park(ctx.uid, self._nodes.recall, parent_inode))()
        await self._reach(parent_inode, name)
        return self._nodes.lookup(parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            self._nodes.forget([(nodeid, count) for nodeid, count in inode_list if nodeid < FIRST_VIRTUAL])
            for nodeid, count in inode_list:
                if nodeid >= FIRST_VIRTUAL:
                    self._queues.forget(nodeid, count)
        except Exception:
            log.exception("forget failed")  # nobody waits for an answer

    @answering
    async def mknod(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, rdev: int, ctx: Context
    ) -> EntryAttributes:
        _check_name(parent_inode, name)
        return await self._change(parent_inode, self._tree.mknod, name, mode, rdev, ctx, entries_of=[parent_inode])

    @answering
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: Context) -> EntryAttributes:
        _check_name(parent_inode, name)
        entry = await self._change(parent_inode, self._tree.mkdir, name, mode, ctx, entries_of=[parent_inode])
        get = self._nodes.table.get
        self._journal.cover(get(entry.st_ino).key.number, get(parent_inode).key.number)
        return entry

    @answering
    async def symlink(self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: Context) -> EntryAttributes:
        _check_name(parent_inode, name)
        return await self._change(parent_inode, self._tree.symlink, name, target, ctx, entries_of=[parent_inode])

    @answering
    async def link(self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: Context) -> EntryAttributes:
        _check_name(inode, b"")
        _check_name(new_parent_inode, new_name)
        entry = await self._change(
            inode, self._tree.link, new_parent_inode, new_name, ctx, entries_of=[new_parent_inode]
        )
        self._journal.link(self._nodes.table.get(inode).key.number)
        return entry

    @answering
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: Context) -> None:
        _check_name(parent_inode, name)
        await self._change(parent_inode, self._tree.unlink, name, ctx, entries_of=[parent_inode])

    @answering
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: Context) -> None:
        _check_name(parent_inode, name)
        await self._change(parent_inode, self._tree.rmdir, name, ctx, entries_of=[parent_inode])

    @answering
    async def rename(
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: Context,
    ) -> None:
        _check_name(parent_inode_old, name_old)
        _check_name(parent_inode_new, name_new)
        parents = [parent_inode_old, parent_inode_new]
        args = (name_old, parent_inode_new, name_new, flags, ctx)
        await self._change(parent_inode_old, self._tree.rename, *args, entries_of=parents)

    @answering
    async def readlink(self, inode: InodeT, ctx: Context) -> FileNameT:
        await self._reach(inode)
        return FileNameT(self._tree.readlink(inode))

    # --- attributes --------------------------------------------------------------------------------------------------

    @answering
    async def getattr(self, inode: InodeT, ctx: Context) -> EntryAttributes:
        if inode >= FIRST_VIRTUAL:
            return self._queues.getattr(inode)
        await self._reach(inode)
        told = self._tree.getattr(inode)
        taken = self.replay.takings.overtaken(inode, told)
        if taken is None:
            return told
        self._loop.hand_over()
        with trio.move_on_after(_OVERTAKING_PATIENCE):
            await taken.wait()
        return self._tree.getattr(inode)

    @answering
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: FileHandleT | None, ctx: Context
    ) -> EntryAttributes:
        if inode >= FIRST_VIRTUAL:
            return self._queues.getattr(inode)  # as of a device file: opening with O_TRUNC changes nothing
        while True:
            try:
                fd = self._files.writable_fd(fh)
                return await self._change(inode, self._tree.setattr, attr, fields, fd, ctx)
            except BlockingIOError:
                await self._loop.park(ctx.uid, self._files.wait_for_lease, inode, os.O_WRONLY)

    @answering
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: Context) -> None:
        _check_name(inode, b"")
        await self._change(inode, self._tree.setxattr, name, value, ctx)

    @answering
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: Context) -> bytes:
        if inode >= FIRST_VIRTUAL:
            raise FUSEError(errno.ENODATA)
        await self._reach(inode)
        return self._tree.getxattr(inode, name, ctx)

    @answering
    async def listxattr(self, inode: InodeT, ctx: Context) -> Sequence[XAttrNameT]:
        if inode >= FIRST_VIRTUAL:
            return []
        await self._reach(inode)
        return [XAttrNameT(name) for name in self._tree.listxattr(inode, ctx)]

    @answering
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: Context) -> None:
        _check_name(inode, b"")
        await self._change(inode, self._tree.removexattr, name, ctx)

    @answering
    async def access(self, inode: InodeT, mode: ModeT, ctx: Context) -> bool:
        return True  # the kernel checks (default_permissions)

    @answering
    async def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:
        if self._filesystems.is_in_memory(self._nodes.backing.root_key.device):
            return self._tree.statfs()
        return await self._loop.park(ctx.uid, self._tree.statfs)

    # --- open files --------------------------------------------------------------------------------------------------

    @answering
    async def open(self, inode: InodeT, flags: FlagT, ctx: Context) -> FileInfo:
        if inode >= FIRST_VIRTUAL:
            return await self._queues.open(inode, ctx)
        await self._reach(inode)
        while True:
            try:
                if flags & os.O_TRUNC:
                    return await self._change(inode, self._files.open, flags, ctx)
                return self._files.open(inode, flags, ctx)
            except BlockingIOError:
                if flags & os.O_NONBLOCK:
                    raise
                await self._loop.park(ctx.uid, self._files.wait_for_lease, inode, flags & os.O_ACCMODE)

    @answering
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: Context
    ) -> tuple[FileInfo, EntryAttributes]:
        _check_name(parent_inode, name)
        return await self._change(parent_inode, self._files.create, name, mode, flags, ctx, entries_of=[parent_inode])

    @answering
    async def read(  # type: ignore[override]  # pyfuse3 takes any buffer
        self, fh: FileHandleT, off: int, size: int
    ) -> bytes | memoryview:
        if fh >= FIRST_VIRTUAL:
            return self._queues.read(fh, size)
        await self._await_answer(self._files.device_of(fh))
        if self._filesystems.is_in_memory(self._files.device_of(fh)):
            return self._files.read(fh, off, size)
        data = self._files.read_at_once(fh, off, size)
        if data is None:
            if self._files.tells_reads:
                return await self._change_open(fh, self._files.read, off, size)
            return await self._loop.park(self._files.user_of(fh), self._files.read_slowly, fh, off, size)
        return data

    @answering
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        if fh >= FIRST_VIRTUAL:
            self._loop.give_way()
            return self._queues.write(fh, buf)
        return await self._change_open(fh, self._files.write, off, buf)

    @answering
    async def poll(self, inode: InodeT, fh: FileHandleT, poll_handle: pyfuse3.PollHandle | None, ctx: Context) -> int:
        # ENOSYS for an ordinary file would make the kernel stop asking about queue files as well.
        return self._queues.poll(fh, poll_handle) if fh >= FIRST_VIRTUAL else _ALWAYS_READY

    @answering
    async def flush(self, fh: FileHandleT) -> None:
        if not self._filesystems.distant:
            raise FUSEError(errno.ENOSYS)  # the kernel does not ask again: nothing near says anything at close(2)
        if fh < REPLAYED_FH and self._files.device_of(fh) in self._filesystems.distant:
            # It may take its time to take what was written.
            await self._loop.park_until_the_end(self._files.user_of(fh), self._files.flush, fh)

    @answering
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if fh < FIRST_VIRTUAL:
            await self._loop.park(self._files.user_of(fh), self._files.sync, fh, datasync)

    @answering
    async def release(self, fh: FileHandleT) -> None:
        if fh == REPLAYED_FH:
            return
        if fh >= FIRST_VIRTUAL:
            self._queues.release(fh)
        elif self._files.is_writable(fh):
            await self._change_open(fh, self._files.release)
        else:
            await self._await_answer(self._files.device_of(fh))
            self._files.release(fh)

    # --- open directories --------------------------------------------------------------------------------------------

    @answering
    async def opendir(self, inode: InodeT, ctx: Context) -> FileHandleT:
        if inode >= FIRST_VIRTUAL:
            return self._queues.opendir(inode)
        await self._reach(inode)
        return self._directories.open(inode, ctx.uid)

    @answering
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh >= FIRST_VIRTUAL:
            self._queues.readdir(fh, start_id, token)
        else:
            await self._await_answer(self._directories.device_of(fh))
            if start_id == 0:
                await self._ask_doors()
            self._directories.read(fh, start_id, token)

    @answering
    async def releasedir(self, fh: FileHandleT) -> None:
        if fh < FIRST_VIRTUAL:
            self._directories.release(fh)

    @answering
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if fh < FIRST_VIRTUAL:
            await self._loop.park(self._directories.user_of(fh), self._directories.sync, fh, datasync)


def _check_name(nodeid: int, name: bytes) -> None:
    """Refuse changes in and of what is not of the backing tree."""
    if nodeid >= FIRST_VIRTUAL or name == _RESERVED:
        _not_permitted()


def _not_permitted() -> NoReturn:
    raise FUSEError(errno.EPERM)
