"""fanotify(7) through ctypes: a group that reports directory handles and names, and the layout of what it reports.

Python's standard library has none of it. Every function raises `OSError` with the kernel's errno.
"""

import ctypes
import os
import struct
from collections.abc import Container
from fcntl import ioctl
from termios import FIONREAD
from typing import Final, NamedTuple

from fusenotify._linux import AT_EMPTY_PATH, name_to_handle_at, open_by_handle_at

FAN_ACCESS: Final = 0x1
FAN_MODIFY: Final = 0x2
FAN_ATTRIB: Final = 0x4
FAN_CLOSE_WRITE: Final = 0x8
FAN_CLOSE_NOWRITE: Final = 0x10
FAN_OPEN: Final = 0x20
FAN_CREATE: Final = 0x100
FAN_DELETE: Final = 0x200
FAN_Q_OVERFLOW: Final = 0x4000
FAN_RENAME: Final = 0x10000000
FAN_ONDIR: Final = 0x40000000
# OPEN, ACCESS and CLOSE_NOWRITE come in only while a mark asks for them, as our own crawl raises them. A directory
# tells of itself by the handle that comes with FAN_RENAME and FAN_DELETE, so the kinds of the object itself are not
# needed.
MASK: Final = (
    FAN_MODIFY | FAN_ATTRIB | FAN_CLOSE_WRITE | FAN_CREATE | FAN_DELETE | FAN_RENAME | FAN_ONDIR
)  # fmt: skip

_FAN_CLOEXEC: Final = 0x1
_FAN_NONBLOCK: Final = 0x2
_FAN_REPORT_DFID_NAME_TARGET: Final = 0x200 | 0x400 | 0x800 | 0x1000  # FID, DIR_FID, NAME, TARGET_FID
_FAN_MARK_ADD: Final = 0x1
_FAN_MARK_REMOVE: Final = 0x2
_FAN_MARK_FILESYSTEM: Final = 0x100
_TARGET: Final = 1  # FAN_EVENT_INFO_TYPE_FID
_DIRECTORY: Final = 2  # FAN_EVENT_INFO_TYPE_DFID_NAME
_OLD_DIRECTORY: Final = 10  # FAN_EVENT_INFO_TYPE_OLD_DFID_NAME
_NEW_DIRECTORY: Final = 12  # FAN_EVENT_INFO_TYPE_NEW_DFID_NAME

_ITSELF: Final = b".\0"  # the name in what a directory tells of itself

_HEADER: Final = struct.Struct("=IBBHQii")  # length, version, reserved, length of this header, mask, fd, pid
_INFO: Final = struct.Struct("=BBH")  # type, padding, length; the filesystem's id (8 bytes) and the handle follow
_HANDLE: Final = struct.Struct("=Ii")  # number of bytes, type; the bytes follow
_FSID: Final = struct.Struct("=II")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_libc.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)


class Record(NamedTuple):
    """What the kernel reports at once; equal changes of one process that were still unread are merged into one.

    Objects are told by their handles as `handle_of` returns them.

    Attributes:
        mask: FAN_* bits; several of them have no order.
        pid: the process (thread group) that did it; 0 outside our pid namespace.
        directory: where it happened; of a rename, where the object was before. None for what has no name.
        name: the entry; `.` for the directory itself.
        new_directory: of a rename, where the object went; else None.
        new_name: what it is called there.
        target: the object; None where that is the directory itself.
    """

    mask: int
    pid: int
    directory: bytes | None
    name: bytes
    new_directory: bytes | None
    new_name: bytes
    target: bytes | None


def init() -> int:
    """Open a group: it never blocks, holds as many events as the kernel lets a group hold, and pins no object."""
    flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_REPORT_DFID_NAME_TARGET
    fd: int = _libc.fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC)
    if fd < 0:
        _raise_errno()
    return fd


def mark_filesystem(fd: int, directory_fd: int, mask: int) -> None:
    """Have a group hear what is in a mask as well, everywhere on the filesystem of a directory."""
    _mark(fd, _FAN_MARK_ADD, directory_fd, mask)


def unmark_filesystem(fd: int, directory_fd: int, mask: int) -> None:
    """Have a group hear no more of what is in a mask; the mark stays."""
    _mark(fd, _FAN_MARK_REMOVE, directory_fd, mask)


def _mark(fd: int, flag: int, directory_fd: int, mask: int) -> None:
    if _libc.fanotify_mark(fd, flag | _FAN_MARK_FILESYSTEM, mask, directory_fd, None) != 0:
        _raise_errno()


def _raise_errno() -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number))


def count_queued(fd: int) -> int:
    """Return how many records are unread: FIONREAD counts one header for each, whatever else belongs to it."""
    available = bytearray(4)
    ioctl(fd, FIONREAD, available)
    return int.from_bytes(available, "little") // _HEADER.size


def fsid_of(fd: int) -> bytes:
    """Return the id of a descriptor's filesystem as records have it."""
    number = os.fstatvfs(fd).f_fsid
    return _FSID.pack(number & 0xFFFFFFFF, number >> 32)


def handle_of(fsid: bytes, directory_fd: int, name: bytes = b"") -> bytes:
    """Return the handle of an entry, or of a directory itself, as records have it."""
    handle_type, handle = name_to_handle_at(directory_fd, name, 0 if name else AT_EMPTY_PATH)
    return fsid + _HANDLE.pack(len(handle), handle_type) + handle


def open_handle(mount_fd: int, handle: bytes, flags: int) -> int:
    """Open the object of a handle on the filesystem of `mount_fd`.

    Raises:
        OSError: ESTALE when the object is gone, EPERM without CAP_DAC_READ_SEARCH.
    """
    _, handle_type = _HANDLE.unpack_from(handle, 8)
    return open_by_handle_at(mount_fd, handle_type, handle[16:], flags)


def parse(data: bytes, adopted: Container[bytes], expected: Container[bytes]) -> list[Record | None]:
    """Split the bytes of a read into records; None for what happened in directories that are in neither container.

    Most of what a filesystem tells is nobody's business, and costs a microsecond here. Renames are always returned, and
    what directories tell of themselves: a record before may be the first that shows one.
    """
    records: list[Record | None] = []
    offset, end = 0, len(data)
    while offset < end:
        length, _, _, header, mask, _, pid = _HEADER.unpack_from(data, offset)
        at, offset = offset + header, offset + length
        if at < offset and not mask & FAN_RENAME:
            behind = at + 20 + _HANDLE.unpack_from(data, at + 12)[0]
            handle = data[at + 4 : behind]
            if handle not in adopted and handle not in expected and data[behind : behind + 2] != _ITSELF:
                records.append(None)
                continue
        records.append(_record(data, at, offset, mask, pid))
    return records


def _record(data: bytes, at: int, end: int, mask: int, pid: int) -> Record:
    directory = new_directory = target = None
    name = new_name = b""
    while at < end:
        kind, _, size = _INFO.unpack_from(data, at)
        behind = at + 20 + _HANDLE.unpack_from(data, at + 12)[0]
        handle = data[at + 4 : behind]
        if kind == _TARGET:
            target = handle
        elif kind == _NEW_DIRECTORY:
            new_directory, new_name = handle, data[behind : data.index(0, behind)]
        elif kind in (_DIRECTORY, _OLD_DIRECTORY):
            directory, name = handle, data[behind : data.index(0, behind)]
        at += size
    return Record(mask, pid, directory, name, new_directory, new_name, target)
