"""The process that does on the mount what has been done behind it. It decides nothing, and knows only its orders.

It is a process of its own so that our answers are waited for by nobody in the daemon: a thread there would keep it, and
the mount, from ending when it is killed. It is started without the package around it, and imports nearly nothing.
"""

import errno
import os
import signal
import socket
import stat
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from fusenotify import _linux
from fusenotify.orders import (
    ATTRIB,
    CLOSE_WRITE,
    EXCHANGE,
    LENGTH,
    MAKE,
    REMOVE,
    RENAME,
    UNKNOWN,
    Name,
    Order,
    Progress,
    unpacked,
)  # fmt: skip

_ROOT: Final = 1  # the nodeid
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_FUSE_HANDLE: Final = 0x81  # nodeid (upper and lower half) and generation
_HANDLE: Final = struct.Struct("=3I")
_PLACE: Final = struct.Struct("=QI")  # number of the mount (0: a descriptor of a clone goes with it), length of a name
_MOST_LOOKS: Final = 8  # at a file that others change and look at all the time

# Begins the program: the package is there by name only, so that importing from it brings in nothing else.
_BEGINNING: Final = (
    "import sys, types; package = types.ModuleType('fusenotify'); package.__path__ = [sys.argv[1]]; "
    "sys.modules['fusenotify'] = package; from fusenotify import replayer; replayer.main(*sys.argv[2:])"
)


def command(channel_fd: int, progress_fd: int) -> list[str]:
    """Return the command that starts a replayer.

    Args:
        channel_fd: where messages come from: the `introduction`, then orders.
        progress_fd: of `Progress`.
    """
    words = (str(channel_fd), str(progress_fd))
    return [sys.executable, "-I", "-S", "-c", _BEGINNING, os.path.dirname(__file__), *words]


def introduction(root: "Root", outside: bytes) -> tuple[bytes, list[int]]:
    """Return the first message: bytes, and the descriptors that go with them.

    Args:
        root: how the root of the mount is reached.
        outside: the name in the root of the directory that stands for everything outside of the tree.
    """
    mount_id, mountpoint = (0, b"") if isinstance(root, Clone) else (root.mount_id, os.fsencode(root.mountpoint))
    data = _PLACE.pack(mount_id, len(outside)) + outside + mountpoint
    return LENGTH.pack(len(data)) + data, [root.fd] if isinstance(root, Clone) else []


def main(channel: str, progress: str) -> None:
    """Carry out orders until there is nobody to give them."""
    for ours in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # to the daemon's process group: it says when to end
        signal.signal(ours, signal.SIG_IGN)
    shared = Progress(int(progress))
    with (
        socket.socket(fileno=int(channel)) as answers,
        suppress(ConnectionError),
    ):  # the daemon may be killed at any time
        first, fds = _received(answers)
        if not first:
            return
        worker = _introduced(first, fds)
        while message := _received(answers)[0]:
            _carry_out(list(unpacked(message)), worker, shared)
            worker.rest()
            shared.begin(0)
            answers.send(b".")


def _carry_out(orders: Sequence[Order], worker: "_Worker", shared: Progress) -> None:
    """Carry out the orders of a message.

    The requests of each tell the daemon that the kernel has taken the answers to those before. Only behind the last one
    that changes a file it has to be asked for that.
    """
    for index, order in enumerate(orders):
        error = _done(order, worker, shared)
        while number := shared.to_look_at():
            for earlier in orders:
                if earlier.number == number:
                    _keep_up(earlier, worker, shared)
            error = _done(order, worker, shared)
        shared.end(index, error)
    for last in [order for order in orders if order.takes_attributes][-1:]:
        _keep_up(last, worker, shared)


def _done(order: Order, worker: "_Worker", shared: Progress) -> int:
    shared.begin(order.number)  # before its first system call: whose requests follow, the daemon sees here
    return worker.do(order)


def _keep_up(order: Order, worker: "_Worker", shared: Progress) -> None:
    shared.begin(order.number)
    worker.keep_up(order.name)


def _received(channel: socket.socket) -> tuple[bytes, list[int]]:
    """Return the next message and its descriptors, nothing when there is none, or only the beginning of one."""
    header, fds, _, _ = socket.recv_fds(channel, LENGTH.size, 1, socket.MSG_WAITALL)
    if len(header) < LENGTH.size:
        return b"", fds
    (length,) = LENGTH.unpack(header)
    message = channel.recv(length, socket.MSG_WAITALL)
    return message if len(message) == length else b"", fds


def _introduced(message: bytes, fds: list[int]) -> "_Worker":
    mount_id, length = _PLACE.unpack_from(message)
    end = _PLACE.size + length
    root = Clone(*fds) if fds else Visible(mount_id, os.fsdecode(message[end:]))
    return _Worker(root, message[_PLACE.size : end])


class Clone:
    """A clone of the mount, which is in nobody's way."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def enter(self) -> int:
        """Return a descriptor of the root."""
        return self.fd

    def leave(self) -> None:
        """The clone keeps nothing from being unmounted."""


class Visible:
    """The mount itself, where it cannot be cloned."""

    def __init__(self, mount_id: int, mountpoint: str) -> None:
        self.mount_id = mount_id
        self.mountpoint = mountpoint
        self._fd = -1

    def enter(self) -> int:
        """Return a descriptor of the root, good until `leave`."""
        if self._fd < 0:
            fd = os.open(self.mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
            if _linux.mount_number_of(fd) != self.mount_id:
                os.close(fd)
                raise OSError(errno.ESTALE, "something else is mounted there")
            self._fd = fd
        return self._fd

    def leave(self) -> None:
        """Let go of the mount, which could not be unmounted otherwise."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


Root = Clone | Visible


class _Worker:
    """Carries out orders.

    Directories are kept open from one order to the next, or the kernel would forget the way to them at once, but no
    longer: what is open is not quite gone when it is removed.
    """

    def __init__(self, root: Root, outside: bytes) -> None:
        self._root = root
        self._outside = outside
        self._directories: dict[int, int] = {}  # nodeid to descriptor

    def do(self, order: Order) -> int:
        """Carry out an order and return 0, or the errno."""
        try:
            if order.what in (RENAME, EXCHANGE):
                self._rename(order)
            else:
                if order.what == REMOVE and order.file_type == stat.S_IFDIR:
                    self._close_directories()
                _do_in(self._open(order.name), order)
        except OSError as error:
            return error.errno or UNKNOWN
        return 0

    def keep_up(self, name: Name) -> None:
        """Have the kernel take the attributes of a file again, while the daemon says that what it has taken is old."""
        with suppress(OSError):
            directory = self._open(name)
            for _ in range(_MOST_LOOKS):
                if not os.fstatvfs(directory).f_files:
                    return
                os.stat(name.name, dir_fd=directory, follow_symlinks=False)

    def rest(self) -> None:
        """Let go of everything."""
        self._close_directories()
        self._root.leave()

    def _open(self, name: Name) -> int:
        """Return a descriptor of the directory of a name."""
        fd = self._directories.get(name.nodeid)
        if fd is None:
            root_fd = self._root.enter()
            if name.nodeid == 0:
                fd = os.open(self._outside, _DIRECTORY, dir_fd=root_fd)
            else:
                fd = os.dup(root_fd) if name.nodeid == _ROOT else _walked_to(root_fd, name)
            self._directories[name.nodeid] = fd
        return fd

    def _close_directories(self) -> None:
        while self._directories:
            os.close(self._directories.popitem()[1])

    def _rename(self, order: Order) -> None:
        flags = _linux.RENAME_EXCHANGE if order.what == EXCHANGE else 0
        if order.file_type == stat.S_IFDIR:
            self._close_directories()
        directory, new_directory = self._open(order.name), self._open(order.new)
        try:
            _linux.renameat2(directory, order.name.name, new_directory, order.new.name, flags)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            # The kernel has met a directory under its new name already. It puts it back under the old one when that is
            # looked up, but not while it holds the locks of a rename.
            os.close(os.open(order.name.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory))
            _linux.renameat2(directory, order.name.name, new_directory, order.new.name, flags)


def _walked_to(root_fd: int, name: Name) -> int:
    """Walk to a directory, and compare it with what it is to be."""
    fd = os.dup(root_fd)
    try:
        for step in name.way:
            below = os.open(step, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        handle = _HANDLE.pack(name.nodeid >> 32, name.nodeid & 0xFFFFFFFF, name.generation)
        if _linux.name_to_handle_at(fd, b"", _linux.AT_EMPTY_PATH) != (_FUSE_HANDLE, handle):
            raise OSError(errno.ESTALE, "another directory is there")
    except BaseException:
        os.close(fd)
        raise
    return fd


def _do_in(directory: int, order: Order) -> None:
    name = order.name.name
    if order.what == MAKE:
        _make(directory, name, order.file_type)
    elif order.what == REMOVE:
        if order.file_type == stat.S_IFDIR:
            os.rmdir(name, dir_fd=directory)
        else:
            os.unlink(name, dir_fd=directory)
    elif order.what == CLOSE_WRITE:
        _open_and_close(directory, name)
    else:
        _linux.touch(directory, name, attributes=order.what == ATTRIB)


def _make(directory: int, name: bytes, file_type: int) -> None:
    if file_type == stat.S_IFDIR:
        os.mkdir(name, dir_fd=directory)
    elif file_type == stat.S_IFLNK:
        os.symlink(b"nowhere", name, dir_fd=directory)
    else:
        os.mknod(name, file_type | 0o600, dir_fd=directory)


def _open_and_close(directory: int, name: bytes) -> None:
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=directory)
    try:
        os.close(os.open(_linux.proc_path(fd), os.O_WRONLY | os.O_NONBLOCK))
    finally:
        os.close(fd)
