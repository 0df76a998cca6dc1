"""What the checks are made with."""

import contextlib
import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, ParamSpec

from fusenotify import _linux
from tests.users import User

P = ParamSpec("P")

NOREPLACE: Final = 1
ACCESS_ACL: Final = "system.posix_acl_access"
DEFAULT_ACL: Final = "system.posix_acl_default"
RENAME_WHITEOUT: Final = 4
CLOCK_REALTIME_COARSE: Final = 5  # by which files are stamped
UTIME_NOW: Final = (1 << 30) - 1


def fails(number: int, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Check that a call fails with this errno and no other."""
    try:
        result = repr(function(*args, **kwargs))
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    assert result == errno.errorcode[number]


@contextlib.contextmanager
def opened(path: Path | str, flags: int, mode: int = 0o666) -> Iterator[int]:
    """Open a file for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(path: Path) -> int:
    """Return permissions, set-id and sticky bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    """Return user and group."""
    return path.lstat().st_uid, path.lstat().st_gid


def with_mode(path: Path, mode: int, uid: int = 0, gid: int = 0, data: bytes = b"data") -> Path:
    """Make a file of this owner and mode."""
    path.write_bytes(data)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def folder(path: Path, mode: int, uid: int = 0, gid: int = 0) -> Path:
    """Make a directory of this owner and mode."""
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def rename2(old: Path, new: Path, flags: int) -> None:
    """Rename by renameat2(2)."""
    _linux.renameat2(_linux.AT_FDCWD, os.fsencode(old), _linux.AT_FDCWD, os.fsencode(new), flags)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return the bytes of a POSIX ACL: (tag, permissions, id) each, in the order the kernel wants."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, id & 0xFFFFFFFF) for tag, bits, id in entries)


def acl_for(user: User, bits: int, *, mask: int = 7, others: int = 0) -> bytes:
    """Return an ACL: the owner rwx, a user with these bits, the group r-x, a mask, others."""
    return acl((1, 7, -1), (2, bits, user.uid), (4, 5, -1), (16, mask, -1), (32, others, -1))


def write_to(path: Path, data: bytes) -> None:
    """Write at the beginning of a file that is there."""
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, data)


def truncate_open(path: Path, size: int) -> None:
    """Truncate by descriptor."""
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, size)
