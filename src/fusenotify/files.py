"""The operations on open files."""

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyfuse3

from fusenotify import events
from fusenotify._linux import proc_path
from fusenotify.appending import Ends
from fusenotify.attributes import entry_of
from fusenotify.callers import process_of
from fusenotify.echoes import Expectation, Name, opened_by_us
from fusenotify.identity import InodeKey
from fusenotify.inodes import Node
from fusenotify.nodes import Nodes
from fusenotify.passthrough import Context
from fusenotify.recorder import Recorder
from fusenotify.rights import Rights
from fusenotify.room import Room

# What a caller's open flags mean to the mount alone, or would ask aligned buffers of the daemon.
_NOT_PASSED_ON: Final = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_NOCTTY | os.O_DIRECT | os.O_TRUNC


@dataclass(slots=True)
class OpenFile:
    """A regular file that a program has open through the mount, and who that is."""

    fd: int
    node: Node
    writable: bool
    appends: bool
    pid: int | None
    uid: int
    gid: int


class Files:
    """The files that programs on the mount have open. A handle is the number of our descriptor."""

    def __init__(self, nodes: Nodes, recorder: Recorder, rights: Rights, room: Room) -> None:
        self._nodes = nodes
        self._recorder = recorder
        self._rights = rights
        self._room = room
        self._files: dict[int, OpenFile] = {}

    def close(self) -> None:
        """Close everything, after the filesystem is unmounted."""
        for fd in self._files:
            os.close(fd)

    def open(self, nodeid: int, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        """Open a file, without waiting for the holder of a lease, who may be waiting for us.

        Raises:
            BlockingIOError: there is one.
        """
        self._room.check(ctx.uid)
        node = self._nodes.table.get(nodeid)
        with self._opening(node, ctx):
            fd = node.reference.acquire(_passed_on(flags))
        try:
            if flags & os.O_TRUNC:
                self._empty(node, fd, flags, ctx)
        except BaseException:
            os.close(fd)
            raise
        return self._opened(fd, node, flags, ctx)

    def _opening(self, node: Node, ctx: Context) -> contextlib.AbstractContextManager[object]:
        if not self._recorder.is_asked_for(events.OPEN):
            return contextlib.nullcontext()  # and nobody wants to know who it is
        return self._recorder.use(events.OPEN, node, *self._recorder.caller(ctx))

    def _empty(self, node: Node, fd: int, flags: int, ctx: Context) -> None:
        """Do what O_TRUNC means, as the caller, so that set-id bits go where its right to keep them is missing."""
        at = self._recorder.memory_of(node)
        expectations = _writing(at, node.key)
        opened: contextlib.AbstractContextManager[int] = contextlib.nullcontext(fd)
        if flags & os.O_ACCMODE == os.O_RDONLY:  # which may truncate as well, but ftruncate(2) needs another descriptor
            expectations += opened_by_us(at, node.key)
            opened = _opened_to_write(node)
        bracket = self._recorder.operation(expectations, *self._recorder.caller(ctx))
        with bracket, opened as writable, self._rights.as_caller(ctx):
            os.ftruncate(writable, 0)
        if node.ends:
            node.ends.set(0)

    def wait_for_lease(self, nodeid: int, access_mode: int) -> None:
        """Return when whoever holds a lease on a file has let go of it. Slow: for a thread."""
        os.close(self._nodes.table.get(nodeid).reference.acquire(access_mode))

    def create(
        self, parent_nodeid: int, name: bytes, mode: int, flags: int, ctx: Context
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """Make a file and open it; one that has been made behind the mount meanwhile is opened, as open(2) does."""
        self._room.check(ctx.uid)
        parent = self._nodes.table.get(parent_nodeid)
        try:
            fd = self._make(parent, name, mode, flags, ctx)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            fd = self._open_existing(parent, name, flags, ctx)
        try:
            with contextlib.closing(self._nodes.backing.find_open(fd)) as found:
                node = self._nodes.remember(parent, name, found)
                status = found.stat
        except BaseException:
            os.close(fd)
            raise
        return self._opened(fd, node, flags, ctx), entry_of(node, status)

    def _make(self, parent: Node, name: bytes, mode: int, flags: int, ctx: Context) -> int:
        directory_fd = self._nodes.directory_fd(parent)
        at = self._recorder.name(parent, name)
        expectations = [Expectation(events.CREATE, at)]
        if self._recorder.is_asked_for(events.OPEN):
            expectations.append(Expectation(events.OPEN, at))
        with self._recorder.operation(expectations, *self._recorder.caller(ctx)), self._rights.as_caller(ctx):
            how = _passed_on(flags) | os.O_CREAT | os.O_EXCL
            return os.open(name, how, stat.S_IMODE(mode), dir_fd=directory_fd)

    def _open_existing(self, parent: Node, name: bytes, flags: int, ctx: Context) -> int:
        """Open a file that the kernel does not know of with the rights of the caller, which it has not checked.

        Whatever stands in the way makes the kernel look again: what came there may be no regular file.
        """
        try:
            with contextlib.closing(self._nodes.backing.find(self._nodes.directory_fd(parent), name)) as found:
                if stat.S_ISREG(found.stat.st_mode):
                    truncate = flags & os.O_TRUNC
                    at = self._recorder.name(parent, name)
                    expectations = _writing(at, found.key) if truncate else []
                    if self._recorder.is_asked_for(events.OPEN):
                        expectations.append(Expectation(events.OPEN, at, inode=found.key))
                    with (
                        self._recorder.operation(expectations, *self._recorder.caller(ctx)),
                        self._rights.as_caller(ctx),
                    ):
                        return os.open(proc_path(found.fd), _passed_on(flags) & ~os.O_NOFOLLOW | truncate)
        except (FileNotFoundError, BlockingIOError):
            pass
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def _opened(self, fd: int, node: Node, flags: int, ctx: Context) -> pyfuse3.FileInfo:
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        node.reference.lend(fd)
        appends = writable and bool(flags & os.O_APPEND)
        if appends:
            node.ends = node.ends or Ends(os.fstat(fd).st_size)
            node.ends.openers += 1
        pid = process_of(ctx.pid) if writable or self._recorder.is_asked_for(events.USES) else None
        self._room.take(ctx.uid)
        self._files[fd] = OpenFile(fd, node, writable, appends, pid, ctx.uid, ctx.gid)
        # Without invalidation the page cache must not outlive the open.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fd), keep_cache=False)

    def writable_fd(self, fh: int | None) -> int | None:
        """Return the descriptor of an open file that may be written to, None if there is none."""
        file = self._files.get(fh) if fh is not None else None
        return file.fd if file is not None and file.writable else None

    @property
    def tells_reads(self) -> bool:
        """Whether somebody asks for reads, which only those are told of that go by `read` or `read_at_once`."""
        return self._recorder.is_asked_for(events.ACCESS)

    def read_slowly(self, fh: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes that may not be in memory: for a thread."""
        return os.pread(fh, size, offset)

    def read(self, fh: int, offset: int, size: int) -> bytes:
        """Read up to `size` bytes, and tell of it."""
        with self._reading(self._files[fh]) as expectations:
            data = os.pread(fh, size, offset)
            if not data:
                expectations.clear()
            return data

    def _reading(self, file: OpenFile) -> contextlib.AbstractContextManager[list[Expectation]]:
        return self._recorder.use(events.ACCESS, file.node, file.pid, file.uid)

    def read_at_once(self, fh: int, offset: int, size: int) -> memoryview | None:
        """Read as `read` does, but return None where that may mean to wait."""
        buffer = bytearray(size)
        try:
            with self._reading(self._files[fh]) as expectations:
                count = os.preadv(fh, [buffer], offset, os.RWF_NOWAIT)
                if not count:
                    expectations.clear()
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return None  # a filesystem that cannot tell
        if count < size and offset + count < os.fstat(fh).st_size:
            return None  # only so much of it is in memory
        return memoryview(buffer)[:count]

    def device_of(self, fh: int) -> int:
        """Return the device number of the filesystem of an open file."""
        return self._files[fh].node.key.device

    def directory_of(self, fh: int) -> int:
        """Return the inode number of the directory that an open file was last seen in."""
        return self._files[fh].node.directory.number

    def user_of(self, fh: int) -> int:
        """Return who has opened a file."""
        return self._files[fh].uid

    def is_writable(self, fh: int) -> bool:
        """Return whether a file was opened for writing."""
        return self._files[fh].writable

    def write(self, fh: int, offset: int, data: bytes) -> int:
        """Write bytes; return how many."""
        file = self._files[fh]
        expectations = _writing(self._recorder.memory_of(file.node), file.node.key)
        status = os.fstat(fh)
        # Writing takes the set-group-id bit from a file of a group that the writer is not in.
        in_groups = status.st_mode & stat.S_ISGID
        opener = self._rights.as_user(file.uid, file.gid, file.pid) if in_groups else self._rights.writing_as(file.uid)
        with self._recorder.operation(expectations, file.pid, file.uid), opener:
            if status.st_nlink == 0:
                expectations.clear()  # silent, as behind the mount: its name may be another file's by now
            ends = file.node.ends
            in_place = file.appends and ends and not ends.is_append(offset, len(data), status.st_size)
            written = _write_in_place(fh, data, offset) if in_place else os.pwrite(fh, data, offset)
            if ends:
                ends.wrote(offset + written)
            return written

    def flush(self, fh: int) -> None:
        """Let the backing filesystem report what it reports at close(2)."""
        os.close(os.dup(fh))

    def sync(self, fh: int, datasync: bool) -> None:
        """Make a file durable. Slow: for a thread."""
        (os.fdatasync if datasync else os.fsync)(fh)

    def release(self, fh: int) -> None:
        """Close a file."""
        file = self._files.pop(fh)
        self._room.give_back(file.uid)
        file.node.reference.take_back(fh)
        if file.appends and file.node.ends:
            file.node.ends.openers -= 1
            file.node.ends = file.node.ends if file.node.ends.openers else None
        if not file.writable and not self._recorder.is_asked_for(events.CLOSE_NOWRITE):
            os.close(fh)
            return
        kind = events.CLOSE_WRITE if file.writable else events.CLOSE_NOWRITE
        expectations = [Expectation(kind, self._recorder.memory_of(file.node), inode=file.node.key)]
        if os.fstat(fh).st_nlink == 0:
            expectations.clear()
        with self._recorder.operation(expectations, file.pid, file.uid):
            os.close(fh)


@contextlib.contextmanager
def _opened_to_write(node: Node) -> Iterator[int]:
    fd = node.reference.acquire(os.O_WRONLY | os.O_NONBLOCK)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_in_place(fd: int, data: bytes, offset: int) -> int:
    """Write at an offset by a descriptor with O_APPEND, which would take pwrite(2) to the end (see its BUGS)."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_APPEND)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _writing(at: Name, key: InodeKey) -> list[Expectation]:
    """Return what a change of the contents raises: it may take set-id bits away as well."""
    return [
        Expectation(events.MODIFY, at, inode=key),
        Expectation(events.ATTRIB, at, inode=key, optional=True),
    ]


def _passed_on(flags: int) -> int:
    """Return the flags that a file is opened with on the backing tree, where nothing may make us wait."""
    return flags & ~_NOT_PASSED_ON | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
