"""Attributes between the kernel and the backing tree: what is answered, what is changed, which events that raises."""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

import pyfuse3

from fusenotify import _linux, events
from fusenotify._linux import proc_path
from fusenotify.inodes import Node

_FIELDS: Final = tuple(f"update_{name}" for name in ("uid", "gid", "mode", "size", "atime", "mtime"))
_NOW: Final = 10**9  # nanoseconds that a request may be under way


def raised_by(fields: pyfuse3.SetattrFields) -> Iterator[tuple[int, int, bool]]:
    """Yield (kind, how many at most, may it fail to come) of the events that a change raises.

    The rules are those of the kernel's fsnotify_change(): a size is MODIFY, both times are ATTRIB, the modification
    time alone is MODIFY, the access time alone is neither. Truncation may clear set-id bits, which is one ATTRIB more.
    """
    attribs = bool(fields.update_mode) + bool(fields.update_uid or fields.update_gid)
    attribs += bool(fields.update_atime and fields.update_mtime)
    modifies = bool(fields.update_size) + bool(fields.update_mtime and not fields.update_atime)
    if attribs:
        yield events.ATTRIB, attribs, False
    elif fields.update_size:
        yield events.ATTRIB, 1, True
    if modifies:
        yield events.MODIFY, modifies, False


def has_names(status: os.stat_result) -> bool:
    """Whether an object is still in a directory (a removed directory may go on counting its own `.`)."""
    return status.st_nlink > stat.S_ISDIR(status.st_mode)


def _truncate(path: str, size: int) -> None:
    """Truncate without waiting for the holder of a lease, who may be waiting for us.

    truncate(2) would wait. Its way around, an open and a close, raises CLOSE_WRITE, which truncate(2) does not.

    Raises:
        BlockingIOError: there is one.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.ftruncate(fd, size)
    finally:
        os.close(fd)


def change(
    fd: int,
    open_fd: int | None,
    wanted: pyfuse3.EntryAttributes,
    fields: pyfuse3.SetattrFields,
    as_caller: Callable[[], contextlib.AbstractContextManager[None]],
) -> None:
    """Give an object those of the wanted attributes that `fields` names.

    Args:
        fd: an O_PATH descriptor of it.
        open_fd: a descriptor of it that is open for writing, where there is one.
        wanted: the attributes.
        fields: which of them count.
        as_caller: gives the caller's identity, whose space it is when a file is truncated, and whose groups say what
            becomes of set-id bits. Everything else the kernel has checked, or wants by itself: to take set-id bits
            away when somebody writes who may not change the mode.

    Raises:
        BlockingIOError: somebody holds a lease on the file that is to be truncated.
    """
    path = proc_path(fd)
    changes_nothing = not any(getattr(fields, name) for name in _FIELDS)  # chown(2) to nobody, which sets the ctime
    if fields.update_uid or fields.update_gid or changes_nothing:
        uid, gid = (wanted.st_uid if fields.update_uid else -1), (wanted.st_gid if fields.update_gid else -1)
        try:
            with as_caller():
                os.chown(path, uid, gid)
        except PermissionError:
            os.chown(path, uid, gid)  # of a caller that the kernel knows more of: root of a user namespace
    if fields.update_mode:
        os.chmod(path, stat.S_IMODE(wanted.st_mode))
    if fields.update_size:
        with as_caller():
            if open_fd is not None:
                os.ftruncate(open_fd, wanted.st_size)
            else:
                _truncate(path, wanted.st_size)
    if fields.update_atime or fields.update_mtime:
        _set_times(
            os.fsencode(path),
            wanted.st_atime_ns if fields.update_atime else None,
            wanted.st_mtime_ns if fields.update_mtime else None,
        )


def _set_times(path: bytes, atime_ns: int | None, mtime_ns: int | None) -> None:
    """Set times as utimensat(2), where "now" has become a time on its way.

    Who owns nothing but may write may set both times to now and to nothing else, the daemon of an ordinary user too.
    """
    try:
        _linux.utimensat(path, atime_ns, mtime_ns)
    except PermissionError:
        if atime_ns is None or atime_ns != mtime_ns or abs(time.time_ns() - atime_ns) > _NOW:
            raise
        os.utime(path)


def entry_of(node: Node, status: os.stat_result) -> pyfuse3.EntryAttributes:
    """Return what a lookup answers: the node and its attributes.

    The kernel may keep nothing of it: coherence by invalidation is not there yet (docs/guarantees.md).
    """
    entry = answer_of(node, status)
    entry.st_ino = pyfuse3.InodeT(node.nodeid)
    entry.generation = node.generation
    entry.entry_timeout = 0
    return entry


def answer_of(node: Node, status: os.stat_result) -> pyfuse3.EntryAttributes:
    """Return what getattr answers; here the inode number is the backing's own."""
    if node.ends is not None:
        node.ends.told(status.st_size)
    return attributes_of(status)


def unchecked(told: pyfuse3.EntryAttributes) -> pyfuse3.EntryAttributes:
    """Return attributes as the answer to SETATTR, with a time of modification that is wrong by a nanosecond.

    The kernel takes that answer as it is. By any other it would see in a new time that its pages of the file are old;
    by this one it would believe to have seen to that, and keep them for good (fuse_do_setattr in fs/fuse/dir.c). So it
    is not told the time before it asks again, as it does before every use.
    """
    told.st_mtime_ns ^= 1
    return told


def attributes_of(status: os.stat_result) -> pyfuse3.EntryAttributes:
    """Return attributes, with the backing's own inode number."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(status.st_ino)
    entry.attr_timeout = 0
    entry.st_mode = pyfuse3.ModeT(status.st_mode)
    entry.st_nlink = status.st_nlink
    entry.st_uid = status.st_uid
    entry.st_gid = status.st_gid
    entry.st_rdev = status.st_rdev
    entry.st_size = status.st_size
    entry.st_blksize = status.st_blksize
    entry.st_blocks = status.st_blocks
    entry.st_atime_ns = status.st_atime_ns
    entry.st_mtime_ns = status.st_mtime_ns
    entry.st_ctime_ns = status.st_ctime_ns
    return entry
