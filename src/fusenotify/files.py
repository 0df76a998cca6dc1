"""The operations on open files and directories."""

import os
import stat
from dataclasses import dataclass
from typing import Final

import pyfuse3

from fusenotify import events
from fusenotify.backing import proc_path
from fusenotify.config import QUEUE_DIRECTORY
from fusenotify.echoes import Expectation
from fusenotify.inodes import Node
from fusenotify.passthrough import Context, Passthrough, entry_of
from fusenotify.recorder import process_of

_HIDDEN: Final = QUEUE_DIRECTORY.encode()
# What a caller's open flags mean to the mount alone, or would misalign or block the daemon.
_NOT_PASSED_ON: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY | os.O_DIRECT | os.O_NONBLOCK


@dataclass(slots=True)
class OpenFile:
    """A regular file that a program has open through the mount, and who that is."""

    fd: int
    node: Node
    writable: bool
    pid: int | None
    uid: int


@dataclass(slots=True)
class OpenDirectory:
    """A directory being listed; the names are taken at the first read and at every rewind."""

    fd: int
    node: Node
    names: list[bytes]


class Files:
    """What is open on the backing tree on behalf of programs on the mount. A handle is the number of our descriptor."""

    def __init__(self, tree: Passthrough) -> None:
        self._tree = tree
        self._files: dict[int, OpenFile] = {}
        self._directories: dict[int, OpenDirectory] = {}

    def __len__(self) -> int:
        return len(self._files) + len(self._directories)

    def close(self) -> None:
        """Close everything, after the filesystem is unmounted."""
        for fd in (*self._files, *self._directories):
            os.close(fd)

    # --- files -------------------------------------------------------------------------------------------------------

    def open(self, nodeid: int, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        """Open a file."""
        node = self._tree.table.get(nodeid)
        recorder = self._tree.recorder
        expectations = [
            Expectation(events.MODIFY, recorder.memory_of(node), inode=node.key),
            Expectation(events.ATTRIB, recorder.memory_of(node), inode=node.key, optional=True),
        ]
        if flags & os.O_TRUNC:
            with recorder.operation(expectations, *recorder.caller(ctx)):
                fd = node.reference.acquire(flags & ~_NOT_PASSED_ON)
        else:
            fd = node.reference.acquire(flags & ~_NOT_PASSED_ON)
        return self._opened(fd, node, flags, ctx)

    def create(
        self, parent_nodeid: int, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it; one that has been made behind the mount meanwhile is opened, as open(2) does."""
        tree = self._tree
        parent = tree.table.get(parent_nodeid)
        directory_fd = tree.directory_fd(parent)
        expectation = Expectation(events.CREATE, tree.recorder.name(parent, name))
        make = flags & ~_NOT_PASSED_ON | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with tree.recorder.operation([expectation], *tree.recorder.caller(ctx)), tree.as_caller(ctx):
                fd = os.open(name, make, stat.S_IMODE(mode), dir_fd=directory_fd)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            entry = tree.entry_at(parent, name)
            return self.open(entry.st_ino, flags, ctx), entry
        found = tree.backing.find_open(fd)
        try:
            node = tree.remember(parent, name, found)
            return self._opened(fd, node, flags, ctx), entry_of(node, found.stat)
        finally:
            found.close()

    def _opened(self, fd: int, node: Node, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        self._files[fd] = OpenFile(fd, node, writable, process_of(ctx.pid) if writable else None, ctx.uid)
        # Without invalidation the page cache must not outlive the open; O_DIRECT has no alignment rules on the mount.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fd), keep_cache=False, direct_io=bool(flags & os.O_DIRECT))

    def writable_fd(self, fh: int | None) -> int | None:
        """Return the descriptor of an open file that may be written to, None if there is none."""
        file = self._files.get(fh) if fh is not None else None
        return file.fd if file is not None and file.writable else None

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes."""
        return os.pread(fh, size, offset)

    def write(self, fh: int, offset: int, data: bytes) -> int:
        """Write bytes; return how many."""
        file = self._files[fh]
        recorder = self._tree.recorder
        at = recorder.memory_of(file.node)
        expectations = [
            Expectation(events.MODIFY, at, inode=file.node.key),
            Expectation(events.ATTRIB, at, inode=file.node.key, optional=True),
        ]
        with recorder.operation(expectations, file.pid, file.uid):
            return os.pwrite(fh, data, offset)

    def flush(self, fh: int) -> None:
        """Let the backing filesystem report what it reports at close(2)."""
        os.close(os.dup(fh))

    def sync(self, fh: int, datasync: bool) -> None:
        """Make a file or directory durable. Slow: for a thread."""
        (os.fdatasync if datasync else os.fsync)(fh)

    def release(self, fh: int) -> None:
        """Close a file."""
        file = self._files.pop(fh)
        if not file.writable:
            os.close(fh)
            return
        recorder = self._tree.recorder
        expectation = Expectation(events.CLOSE_WRITE, recorder.memory_of(file.node), inode=file.node.key)
        with recorder.operation([expectation], file.pid, file.uid):
            os.close(fh)

    # --- directories -------------------------------------------------------------------------------------------------

    def opendir(self, nodeid: int) -> pyfuse3.FileHandleT:
        """Open a directory for listing."""
        node = self._tree.table.get(nodeid)
        fd = os.open(proc_path(self._tree.directory_fd(node)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._directories[fd] = OpenDirectory(fd, node, [])
        return pyfuse3.FileHandleT(fd)

    def readdir(self, fh: int, offset: int, token: pyfuse3.ReaddirToken) -> None:
        """Answer with the entries behind `offset` that fit, each of them a lookup as well."""
        listing = self._directories[fh]
        if offset == 0:
            listing.names = [os.fsencode(name) for name in os.listdir(fh)]
            listing.names[:0] = [b".", b".."]
        for index in range(offset, len(listing.names)):
            if not self._reply(listing, listing.names[index], index + 1, token):
                return

    def _reply(self, listing: OpenDirectory, name: bytes, next_offset: int, token: pyfuse3.ReaddirToken) -> bool:
        """Add one entry to the answer; return whether there was room for it."""
        if name in (b".", b".."):
            own = os.fstat(listing.fd)
            return pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry_of(listing.node, own), next_offset)
        if name == _HIDDEN:
            return True
        try:
            found = self._tree.backing.find(listing.fd, name)
        except FileNotFoundError:
            return True
        try:
            node = self._tree.remember(listing.node, name, found)
            entry = entry_of(node, found.stat)
        finally:
            found.close()
        if pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, next_offset):
            return True
        self._tree.forget([(node.nodeid, 1)])
        return False

    def releasedir(self, fh: int) -> None:
        """Close a directory."""
        del self._directories[fh]
        os.close(fh)
