"""A directory, and what is at paths below it: every look that goes by a path.

The kernel keeps each path beneath the directory (openat2 with RESOLVE_BENEATH, no symbolic links), and mounts that are
forbidden are not touched. What is found is what was there at that moment, and nothing holds it.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

from fusenotify import _linux
from fusenotify.identity import InodeKey
from fusenotify.mountinfo import mount_id_of

T = TypeVar("T")
Entry = tuple[bytes, bool, int]  # the name of something in a directory, whether it is a directory, its inode number

_NOTHING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_BENEATH: Final = _linux.RESOLVE_BENEATH | _linux.RESOLVE_NO_SYMLINKS | _linux.RESOLVE_NO_MAGICLINKS


class Forbidden(OSError):
    """ELOOP: this is on a mount that is not to be touched."""


class Beneath:
    """The directory.

    Attributes:
        root_fd: an O_RDONLY descriptor of it.
        root_key: its device and inode number.
        forbidden_mounts: numbers of mounts below it that are not to be touched: our own, which would wait for us.
    """

    def __init__(self, path: str) -> None:
        """Open the directory (OSError: as from open(2))."""
        self.root_fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root_key = key_of(self.root_fd)
        self.forbidden_mounts: frozenset[int] = frozenset()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.root_fd)

    def touchable(self, fd: int) -> int:
        """Return a descriptor, or close it and raise `Forbidden` where it is on a mount that is not to be touched."""
        if self.forbidden_mounts and mount_id_of(fd) in self.forbidden_mounts:
            os.close(fd)
            raise Forbidden(errno.ELOOP, "a mount of the tree inside itself")
        return fd

    def open_beneath(self, path: bytes, flags: int, top_fd: int | None = None) -> int:
        """Open a path below an open directory, the root by default, that no symbolic link and no `..` can lead out of.

        Raises:
            OSError: ELOOP or EXDEV for a path that tries, else as from open(2).
        """
        base = top_fd = self.root_fd if top_fd is None else top_fd
        parts = path.split(b"/")
        try:
            # The kernel takes at most PATH_MAX bytes at a time; a tree may be deeper.
            while len(path) > 4000 and len(parts) > 8:
                step = _linux.openat2(base, b"/".join(parts[:8]), os.O_PATH | os.O_DIRECTORY, _BENEATH)
                parts, path = parts[8:], b"/".join(parts[8:])
                if base != top_fd:
                    os.close(base)
                base = step
            if self.forbidden_mounts and flags & os.O_DIRECTORY:
                # Looked at before it is opened in earnest, which would already ask its daemon.
                os.close(self.touchable(_linux.openat2(base, path, os.O_PATH | os.O_DIRECTORY, _BENEATH)))
            return self.touchable(_linux.openat2(base, path, flags, _BENEATH))
        finally:
            if base != top_fd:
                os.close(base)

    def paths_of(self, number: int) -> Iterator[bytes]:
        """Yield the paths below the root of everything that has an inode number and is no directory. Slow."""
        unread = [b"."]
        while unread:
            path = unread.pop()
            prefix = b"" if path == b"." else path + b"/"
            try:
                fd = self.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
            except OSError:
                continue  # gone, or not ours to read
            try:
                with os.scandir(fd) as listing:
                    for entry in listing:
                        if entry.is_dir(follow_symlinks=False):
                            unread.append(prefix + os.fsencode(entry.name))
                        elif entry.inode() == number:
                            yield prefix + os.fsencode(entry.name)
            except FileNotFoundError:
                pass  # removed meanwhile
            finally:
                os.close(fd)

    def stat_beneath(self, path: bytes) -> os.stat_result | None:
        """Return the attributes of what is at a path below the root, None where nothing can be seen."""
        return self._seen_beneath(path, os.fstat)

    def attributes_at(self, path: bytes) -> os.stat_result | None:
        """Return the attributes of what is at a path below the root, None where there is nothing.

        Raises:
            OSError: whether there is something cannot be seen.
        """
        try:
            fd = self.open_beneath(path, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            if is_nothing(error):
                return None
            raise
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def key_unopened(self, path: bytes) -> InodeKey | None:
        """Return as `key_beneath` where no descriptor can be had; good to know an object again, and for nothing else.

        Somebody who swaps directories for symbolic links at that moment may have it be of an object elsewhere.
        """
        try:
            status = os.stat(path, dir_fd=self.root_fd, follow_symlinks=False)
        except OSError:
            return None
        return InodeKey(status.st_dev, status.st_ino)

    def key_beneath(self, path: bytes) -> InodeKey | None:
        """Return which object is at a path below the root, None where nothing can be seen."""
        return self._seen_beneath(path, key_of)

    def list_beneath(self, path: bytes) -> tuple[InodeKey, list[tuple[bytes, bool]]]:
        """Return what a directory below the root is, and (name, is it a directory) of what is in it.

        Raises:
            OSError: as from open(2).
        """
        fd = self.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            with os.scandir(fd) as listing:
                entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in listing]
            return key_of(fd), entries
        finally:
            os.close(fd)

    def list_on(self, path: bytes, offset: int) -> tuple[list[tuple[bytes, bool]], int]:
        """Return some (name, is it a directory) of a directory below the root, from an offset on, and where they end.

        Offsets are the filesystem's own, as of getdents64(2); 0 is the beginning. There are none at the end.

        Raises:
            OSError: as from open(2) and getdents64(2).
        """
        fd = self.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            os.lseek(fd, offset, os.SEEK_SET)
            piece = _linux.getdents64(fd)
            entries = [(entry.name, _is_dir(fd, entry)) for entry in piece if entry.name not in (b".", b"..")]
            return entries, piece[-1].end if piece else offset
        finally:
            os.close(fd)

    def times_beneath(self, path: bytes) -> _linux.Times | None:
        """Return when what is at a path below the root was born and last changed, None where there is nothing."""
        return self._seen_beneath(path, _linux.statx_times)

    def _seen_beneath(self, path: bytes, look: Callable[[int], T]) -> T | None:
        try:
            fd = self.open_beneath(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                return look(fd)
            finally:
                os.close(fd)
        except OSError:
            return None


def is_nothing(error: OSError) -> bool:
    """Whether an error of `open_beneath` says that there is nothing at the path; all others leave that open.

    What is below a symbolic link is at no path of the tree (ELOOP).
    """
    return error.errno in _NOTHING and not isinstance(error, Forbidden)


def key_of(fd: int) -> InodeKey:
    """Return device and inode number of what is open."""
    status = os.fstat(fd)
    return InodeKey(status.st_dev, status.st_ino)


def entries_of(listing: Iterable["os.DirEntry[str]"]) -> list[Entry]:
    """Return what a listing of scandir(3) shows."""
    return [(os.fsencode(one.name), one.is_dir(follow_symlinks=False), one.inode()) for one in listing]


def _is_dir(dir_fd: int, entry: _linux.DirectoryEntry) -> bool:
    if entry.kind != _linux.DT_UNKNOWN:
        return entry.kind == _linux.DT_DIR
    try:
        return stat.S_ISDIR(os.lstat(entry.name, dir_fd=dir_fd).st_mode)
    except OSError:
        return False  # it has gone, and that is told
