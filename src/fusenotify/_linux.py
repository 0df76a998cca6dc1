"""The Linux system calls that Python's standard library does not offer, through ctypes.

This is the only module that knows C layouts and system call numbers. Every function raises `OSError` with the kernel's
errno, as the functions of `os` do.
"""

import ctypes
import errno
import fcntl
import os
import platform
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_HANDLE_FID: Final = 0x200
RENAME_EXCHANGE: Final = 2
UTIME_OMIT: Final = (1 << 30) - 2
_UTIME_NOW: Final = (1 << 30) - 1
MAX_HANDLE_SZ: Final = 128

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08

AT_SYMLINK_NOFOLLOW: Final = 0x100
OPEN_TREE_CLONE: Final = 1
MOUNT_ATTR_RDONLY: Final = 1

MS_POSIXACL: Final = 1 << 16
MNT_DETACH: Final = 2

# The C library's setgroups() changes every thread of the process (POSIX); only the bare system call is per thread.
_SYS_SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159}.get(platform.machine(), 159)
_CLONE_FS: Final = 0x200
# Numbers of system calls that are the same wherever the generic table is used.
SYS_FUTEX: Final = {"x86_64": 202}.get(platform.machine(), 98)
_HANDLE_HEAD: Final = struct.Struct("=Ii")  # of struct file_handle: how many bytes follow, and of which type
_CAPABILITIES_OF_THIS_THREAD: Final = struct.pack("=Ii", 0x20080522, 0)  # version 3 of the interface
_STATX_BASIC: Final = 0x7FF
_STATX_BTIME: Final = 0x800
_FS_IOC_GETFSUUID: Final = 0x80111500
_LONGEST_UUID: Final = 17
# The same numbers on every architecture.
_SYS_OPEN_TREE: Final = 428
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442

_libc = ctypes.CDLL(None, use_errno=True)


class _FileHandle(ctypes.Structure):
    _fields_ = (
        ("handle_bytes", ctypes.c_uint),
        ("handle_type", ctypes.c_int),
        ("f_handle", ctypes.c_ubyte * MAX_HANDLE_SZ),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long))


_libc.name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(_FileHandle),
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)
_libc.open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec), ctypes.c_int)
_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.setfsuid.argtypes = (ctypes.c_uint,)
_libc.setfsgid.argtypes = (ctypes.c_uint,)


def _raise_errno(path: bytes | None = None) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def name_to_handle_at(dir_fd: int, name: bytes, flags: int = 0) -> tuple[int, bytes]:
    """Return (handle type, handle bytes) of a name below `dir_fd`, or of `dir_fd` itself with AT_EMPTY_PATH."""
    handle = _FileHandle(handle_bytes=MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(dir_fd, name, ctypes.byref(handle), ctypes.byref(mount_id), flags) != 0:
        _raise_errno(name)
    return handle.handle_type, ctypes.string_at(handle.f_handle, handle.handle_bytes)


def mount_number_of(fd: int) -> int:
    """Return the number of the mount that a descriptor was opened on, of a filesystem that has handles."""
    handle = _FileHandle(handle_bytes=MAX_HANDLE_SZ)
    mount_id = ctypes.c_int()
    if _libc.name_to_handle_at(fd, b"", ctypes.byref(handle), ctypes.byref(mount_id), AT_EMPTY_PATH) != 0:
        _raise_errno()
    return mount_id.value


def open_by_handle_at(mount_fd: int, handle_type: int, handle_bytes: bytes, flags: int) -> int:
    """Open the object that a handle names on the filesystem of `mount_fd`; needs CAP_DAC_READ_SEARCH.

    Raises:
        OSError: ESTALE when the object is gone, EPERM without the capability.
    """
    handle = _HANDLE_HEAD.pack(len(handle_bytes), handle_type) + handle_bytes
    fd: int = _libc.open_by_handle_at(mount_fd, handle, flags | os.O_CLOEXEC)
    if fd < 0:
        # ext4 says ENOMEM while another object of the same inode number is being made (iget_locked() in fs/inode.c).
        if ctypes.get_errno() == errno.ENOMEM:
            ctypes.set_errno(errno.ESTALE)
        _raise_errno()
    return fd


def openat2(dir_fd: int, path: bytes, flags: int, resolve: int) -> int:
    """Open a path below `dir_fd` under the RESOLVE_* rules of openat2(2)."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0, resolve)
    fd: int = _libc.syscall(_SYS_OPENAT2, dir_fd, path, how, ctypes.c_size_t(len(how)))
    if fd < 0:
        _raise_errno(path)
    return fd


DT_UNKNOWN = 0
DT_DIR = 4


class DirectoryEntry(NamedTuple):
    """A name in a directory, its inode number, and the offset behind it: where lseek(2) continues a listing.

    `kind` is one of the DT_* of readdir(3).
    """

    name: bytes
    end: int
    number: int
    kind: int


def getdents64(fd: int) -> list[DirectoryEntry]:
    """Read on in a directory: at most 32 KiB of entries, none at its end."""
    buffer = ctypes.create_string_buffer(1 << 15)
    count: int = _libc.getdents64(fd, buffer, len(buffer))
    if count < 0:
        _raise_errno()
    entries, at, raw = [], 0, buffer.raw
    while at < count:
        number, end, length, kind = struct.unpack_from("=QqHB", raw, at)
        entries.append(DirectoryEntry(raw[at + 19 : raw.index(0, at + 19)], end, number, kind))
        at += length
    return entries


class Times(NamedTuple):
    """When an object was born (0 where the filesystem does not say) and last changed, nanoseconds since the epoch."""

    born: int
    changed: int


def statx_times(fd: int) -> Times:
    """Return the birth and change times of an object by statx(2)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.statx(fd, b"", AT_EMPTY_PATH, _STATX_BTIME | _STATX_BASIC, buffer) != 0:
        _raise_errno()
    born = struct.unpack_from("=qI", buffer, 0x50)
    changed = struct.unpack_from("=qI", buffer, 0x60)
    return Times(born[0] * 1_000_000_000 + born[1], changed[0] * 1_000_000_000 + changed[1])


def filesystem_id(fd: int) -> int:
    """Return 64 bits that tell the filesystem of an open file from others, also when it has been mounted again.

    That is statfs(2) f_fsid. But xfs makes that of the device number, which may be another disk's after the next start:
    there it is of the UUID, which Linux 6.9 and later tell.
    """
    number = os.fstatvfs(fd).f_fsid
    device = os.fstat(fd).st_dev
    if number == _encoded(os.major(device), os.minor(device)):
        answer = bytearray(_LONGEST_UUID)  # behind its length
        try:
            fcntl.ioctl(fd, _FS_IOC_GETFSUUID, answer)
        except OSError:
            return number
        return int.from_bytes(answer[1:9])
    return number


def _encoded(major: int, minor: int) -> int:
    """Return a device number as the kernel's new_encode_dev() has it."""
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def syncfs(fd: int) -> None:
    """Bring everything that a filesystem holds in memory to its disk."""
    if _libc.syncfs(fd) != 0:
        _raise_errno()


def utimensat(path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set the given times in nanoseconds since the epoch and leave those that are None alone.

    The distinction reaches inotify: both times raise IN_ATTRIB, the modification time alone IN_MODIFY.
    """
    times = (_Timespec * 2)(_timespec(atime_ns), _timespec(mtime_ns))
    if _libc.utimensat(AT_FDCWD, path, times, 0) != 0:
        _raise_errno(path)


def touch(dir_fd: int, name: bytes, *, attributes: bool) -> None:
    """Set the modification time of what has a name in a directory to now, with `attributes` the access time as well.

    A symbolic link is not followed; without a name it is the directory itself.
    """
    now = _Timespec(0, _UTIME_NOW)
    times = (_Timespec * 2)(now if attributes else _timespec(None), now)
    if _libc.utimensat(dir_fd, name, times, AT_SYMLINK_NOFOLLOW if name else AT_EMPTY_PATH) != 0:
        _raise_errno(name)


def _timespec(time_ns: int | None) -> _Timespec:
    if time_ns is None:
        return _Timespec(0, UTIME_OMIT)
    return _Timespec(*divmod(time_ns, 1_000_000_000))


def proc_path(fd: int) -> str:
    """Return the path that leads to the very object of a descriptor, whatever it is called by now."""
    return f"/proc/self/fd/{fd}"


def renameat2(old_dir_fd: int, old_name: bytes, new_dir_fd: int, new_name: bytes, flags: int) -> None:
    """Rename with the flags of renameat2(2), such as RENAME_EXCHANGE."""
    if _libc.renameat2(old_dir_fd, old_name, new_dir_fd, new_name, flags) != 0:
        _raise_errno(old_name)


def mount(source: bytes, target: bytes, fs_type: bytes, flags: int, data: bytes) -> None:
    """Call mount(2)."""
    if _libc.mount(source, target, fs_type, flags, data) != 0:
        _raise_errno(target)


def umount2(target: bytes, flags: int) -> None:
    """Call umount2(2)."""
    if _libc.umount2(target, flags) != 0:
        _raise_errno(target)


def clone_mount(path: bytes) -> int:
    """Return a descriptor of a copy of a mount that is in no tree of mounts, goes with it, and can be written to.

    The last is so where the filesystem itself is not read-only. What is mounted below is left out.
    """
    fd: int = _libc.syscall(_SYS_OPEN_TREE, AT_FDCWD, path, OPEN_TREE_CLONE | os.O_CLOEXEC)
    if fd < 0:
        _raise_errno(path)
    attributes = struct.pack("=4Q", 0, MOUNT_ATTR_RDONLY, 0, 0)  # to set, to clear, propagation, user namespace
    if _libc.syscall(_SYS_MOUNT_SETATTR, fd, b"", AT_EMPTY_PATH, attributes, ctypes.c_size_t(len(attributes))) != 0:
        os.close(fd)
        _raise_errno(path)
    return fd


def drop_capability(number: int) -> None:
    """Take a capability (CAP_*) for good from the calling thread, and from those that it starts."""
    effective, permitted, inheritable = _capabilities()
    kept = ~(1 << number)
    _set_capabilities(effective & kept, permitted & kept, inheritable & kept)


def raise_capabilities(capabilities: int) -> None:
    """Make those of a set of capabilities (bits) effective in the calling thread that it is permitted to have."""
    effective, permitted, inheritable = _capabilities()
    _set_capabilities(effective | capabilities & permitted, permitted, inheritable)


def _capabilities() -> tuple[int, int, int]:
    """Return the calling thread's effective, permitted and inheritable sets."""
    data = ctypes.create_string_buffer(24)
    if _libc.capget(_CAPABILITIES_OF_THIS_THREAD, data) != 0:
        _raise_errno()
    lower = struct.unpack_from("=3I", data, 0)
    upper = struct.unpack_from("=3I", data, 12)
    return lower[0] | upper[0] << 32, lower[1] | upper[1] << 32, lower[2] | upper[2] << 32


def _set_capabilities(*sets: int) -> None:
    words = [one & 0xFFFFFFFF for one in sets] + [one >> 32 & 0xFFFFFFFF for one in sets]
    if _libc.capset(_CAPABILITIES_OF_THIS_THREAD, struct.pack("=6I", *words)) != 0:
        _raise_errno()


def set_thread_credentials(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Make the calling thread, and no other, act on files as this user.

    Group changes come first going down and would need the capability going up: call with the daemon's own identity
    (uid 0) to return. setfsuid(2) reports no errors; a root daemon cannot fail.
    """
    array = (ctypes.c_uint * len(groups))(*groups)
    if uid == 0:
        _libc.setfsuid(0)
    if _libc.syscall(_SYS_SETGROUPS, ctypes.c_size_t(len(groups)), array) != 0:
        _raise_errno()
    _libc.setfsgid(gid)
    if uid != 0:
        _libc.setfsuid(uid)


def unshare_umask() -> None:
    """Give the calling thread an umask of its own (and a working directory), by unshare(2) with CLONE_FS."""
    if _libc.unshare(_CLONE_FS) != 0:
        _raise_errno()


def setfsuid(uid: int) -> None:
    """Make the calling thread, and no other, act on files as this user; setfsuid(2) reports no errors."""
    _libc.setfsuid(uid)
