"""What pyfuse3 calls: a thin shell that sends each request to the tree, to the open files or to the queue files.

The one place where an exception becomes an errno. A bug in a handler is EIO for its caller and a line in the log, never
the end of the mount.
"""

import errno
import functools
import logging
import os
import select
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, NoReturn, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileHandleT, FileInfo, FileNameT, FlagT, FUSEError, InodeT, ModeT, XAttrNameT

from fusenotify.config import QUEUE_DIRECTORY
from fusenotify.files import Files
from fusenotify.inodes import FIRST_VIRTUAL
from fusenotify.passthrough import Context, Passthrough
from fusenotify.queuefile import QueueFiles
from fusenotify.session import FuseLoop

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
_RESERVED: Final = QUEUE_DIRECTORY.encode()
_ALWAYS_READY: Final = select.POLLIN | select.POLLOUT | select.POLLRDNORM | select.POLLWRNORM


def answering(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn whatever a handler raises into the errno that its caller gets."""

    @functools.wraps(handler)
    async def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("%s failed; its caller got EIO", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return answer


class Operations(pyfuse3.Operations):
    """The handlers. Each of them is a call of synchronous code, but for the few that park (docs/architecture.md)."""

    supports_dot_lookup = True
    enable_acl = True

    def __init__(self, tree: Passthrough, files: Files, queues: QueueFiles, loop: FuseLoop) -> None:
        super().__init__()
        self._tree = tree
        self._files = files
        self._queues = queues
        self._loop = loop

    # --- names -------------------------------------------------------------------------------------------------------

    @answering
    async def lookup(self, parent_inode: InodeT, name: FileNameT, ctx: Context) -> EntryAttributes:
        if parent_inode >= FIRST_VIRTUAL:
            return self._queues.lookup(parent_inode, name)
        if name == _RESERVED:
            return self._queues.lookup_in(self._tree.table.get(parent_inode))
        return self._tree.lookup(parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        try:
            self._tree.forget([(nodeid, count) for nodeid, count in inode_list if nodeid < FIRST_VIRTUAL])
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
        return self._tree.mknod(parent_inode, name, mode, rdev, ctx)

    @answering
    async def mkdir(self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: Context) -> EntryAttributes:
        _check_name(parent_inode, name)
        return self._tree.mkdir(parent_inode, name, mode, ctx)

    @answering
    async def symlink(self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: Context) -> EntryAttributes:
        _check_name(parent_inode, name)
        return self._tree.symlink(parent_inode, name, target, ctx)

    @answering
    async def link(self, inode: InodeT, new_parent_inode: InodeT, new_name: FileNameT, ctx: Context) -> EntryAttributes:
        _check_name(inode, b"")
        _check_name(new_parent_inode, new_name)
        return self._tree.link(inode, new_parent_inode, new_name, ctx)

    @answering
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: Context) -> None:
        _check_name(parent_inode, name)
        self._tree.unlink(parent_inode, name, ctx)

    @answering
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: Context) -> None:
        _check_name(parent_inode, name)
        self._tree.rmdir(parent_inode, name, ctx)

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
        self._tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    @answering
    async def readlink(self, inode: InodeT, ctx: Context) -> FileNameT:
        return FileNameT(self._tree.readlink(inode))

    # --- attributes --------------------------------------------------------------------------------------------------

    @answering
    async def getattr(self, inode: InodeT, ctx: Context) -> EntryAttributes:
        return self._queues.getattr(inode) if inode >= FIRST_VIRTUAL else self._tree.getattr(inode)

    @answering
    async def setattr(
        self, inode: InodeT, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: FileHandleT | None, ctx: Context
    ) -> EntryAttributes:
        if inode >= FIRST_VIRTUAL:
            return self._queues.getattr(inode)  # as of a device file: opening with O_TRUNC changes nothing
        while True:
            try:
                return self._tree.setattr(inode, attr, fields, self._files.writable_fd(fh), ctx)
            except BlockingIOError:
                await self._loop.park(self._files.wait_for_lease, inode, os.O_WRONLY)

    @answering
    async def setxattr(self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: Context) -> None:
        _check_name(inode, b"")
        self._tree.setxattr(inode, name, value, ctx)

    @answering
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: Context) -> bytes:
        if inode >= FIRST_VIRTUAL:
            raise FUSEError(errno.ENODATA)
        return self._tree.getxattr(inode, name, ctx)

    @answering
    async def listxattr(self, inode: InodeT, ctx: Context) -> Sequence[XAttrNameT]:
        return [] if inode >= FIRST_VIRTUAL else [XAttrNameT(name) for name in self._tree.listxattr(inode, ctx)]

    @answering
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: Context) -> None:
        _check_name(inode, b"")
        self._tree.removexattr(inode, name, ctx)

    @answering
    async def access(self, inode: InodeT, mode: ModeT, ctx: Context) -> bool:
        return True  # the kernel checks (default_permissions)

    @answering
    async def statfs(self, ctx: Context) -> pyfuse3.StatvfsData:
        return self._tree.statfs()

    # --- open files --------------------------------------------------------------------------------------------------

    @answering
    async def open(self, inode: InodeT, flags: FlagT, ctx: Context) -> FileInfo:
        if inode >= FIRST_VIRTUAL:
            return await self._queues.open(inode, ctx)
        while True:
            try:
                return self._files.open(inode, flags, ctx)
            except BlockingIOError:
                if flags & os.O_NONBLOCK:
                    raise
                await self._loop.park(self._files.wait_for_lease, inode, flags & os.O_ACCMODE)

    @answering
    async def create(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, flags: FlagT, ctx: Context
    ) -> tuple[FileInfo, EntryAttributes]:
        _check_name(parent_inode, name)
        return self._files.create(parent_inode, name, mode, flags, ctx)

    @answering
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        return self._queues.read(fh, size) if fh >= FIRST_VIRTUAL else self._files.read(fh, off, size)

    @answering
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        return self._queues.write(fh, buf) if fh >= FIRST_VIRTUAL else self._files.write(fh, off, buf)

    @answering
    async def poll(self, inode: InodeT, fh: FileHandleT, poll_handle: pyfuse3.PollHandle | None, ctx: Context) -> int:
        # ENOSYS for an ordinary file would make the kernel stop asking about queue files as well.
        return self._queues.poll(fh, poll_handle) if fh >= FIRST_VIRTUAL else _ALWAYS_READY

    @answering
    async def flush(self, fh: FileHandleT) -> None:
        if fh < FIRST_VIRTUAL:
            self._files.flush(fh)

    @answering
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        if fh < FIRST_VIRTUAL:
            await self._loop.park(self._files.sync, fh, datasync)

    @answering
    async def release(self, fh: FileHandleT) -> None:
        if fh >= FIRST_VIRTUAL:
            self._queues.release(fh)
        else:
            self._files.release(fh)

    # --- open directories --------------------------------------------------------------------------------------------

    @answering
    async def opendir(self, inode: InodeT, ctx: Context) -> FileHandleT:
        return self._queues.opendir(inode) if inode >= FIRST_VIRTUAL else self._files.opendir(inode)

    @answering
    async def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh >= FIRST_VIRTUAL:
            self._queues.readdir(fh, start_id, token)
        else:
            self._files.readdir(fh, start_id, token)

    @answering
    async def releasedir(self, fh: FileHandleT) -> None:
        if fh < FIRST_VIRTUAL:
            self._files.releasedir(fh)

    @answering
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        if fh < FIRST_VIRTUAL:
            await self._loop.park(self._files.sync, fh, datasync)


def _check_name(nodeid: int, name: bytes) -> None:
    """Refuse changes in and of what is not of the backing tree."""
    if nodeid >= FIRST_VIRTUAL or name == _RESERVED:
        _not_permitted()


def _not_permitted() -> NoReturn:
    raise FUSEError(errno.EPERM)
