"""Every system call on the backing tree.

Nothing here takes a path from outside: objects are reached by descriptor, by (directory descriptor, one name), by file
handle, or by a path that the kernel keeps beneath the root (openat2 with RESOLVE_BENEATH, no symbolic links).
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import ClassVar, Final, Protocol

from fusenotify import _linux
from fusenotify._linux import proc_path
from fusenotify.identity import FileHandle, Identity, InodeKey, InodeNumber

_BENEATH: Final = _linux.RESOLVE_BENEATH | _linux.RESOLVE_NO_SYMLINKS | _linux.RESOLVE_NO_MAGICLINKS
# What name_to_handle_at(2) answers where a filesystem has no handles, and open_by_handle_at(2) without the capability.
_NO_HANDLES: Final = frozenset({errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS, errno.EPERM})

# CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID and CAP_MKNOD: see setfsuid(2).
_OVER_FILES: Final = 0b11111 | 1 << 27


class Reference(Protocol):
    """How an object of the backing tree is reached again.

    Attributes:
        outlives_names: whether it still reaches the object when that has no name any more and nobody has it open.
    """

    outlives_names: ClassVar[bool]

    def acquire(self, flags: int) -> int:
        """Return a descriptor of the object, to be given to `release` (OSError: ESTALE when the object is gone)."""

    def release(self, fd: int) -> None:
        """Give back what `acquire` returned."""

    def close(self) -> None:
        """Let go of whatever the reference holds."""


class HandleReference:
    """Reaches an object by its file handle; costs no descriptor while idle."""

    __slots__ = ("_handle", "_mount_fd")
    outlives_names: ClassVar[bool] = False

    def __init__(self, mount_fd: int, handle: FileHandle) -> None:
        self._mount_fd = mount_fd
        self._handle = handle

    def acquire(self, flags: int) -> int:
        """Open the object (flags as for open(2))."""
        return _linux.open_by_handle_at(self._mount_fd, self._handle.handle_type, self._handle.handle_bytes, flags)

    def release(self, fd: int) -> None:
        """Close the descriptor."""
        os.close(fd)

    def close(self) -> None:
        """Nothing is held."""


class DescriptorReference:
    """Keeps an O_PATH descriptor, where handles cannot be had or opened."""

    __slots__ = ("_fd",)
    outlives_names: ClassVar[bool] = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def acquire(self, flags: int) -> int:
        """Return the descriptor itself for O_PATH, else open the object anew through it."""
        if flags & os.O_PATH:
            return self._fd
        return os.open(proc_path(self._fd), flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)

    def release(self, fd: int) -> None:
        """Close what was opened anew."""
        if fd != self._fd:
            os.close(fd)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class Found:
    """An object as a lookup found it.

    Attributes:
        identity: what it is.
        stat: its attributes at that moment.
        key: device and inode number.
    """

    __slots__ = ("_backing", "_fd", "identity", "key", "stat")

    def __init__(self, backing: "Backing", fd: int, identity: Identity, status: os.stat_result) -> None:
        self._backing = backing
        self._fd = fd
        self.identity = identity
        self.stat = status
        self.key = InodeKey(status.st_dev, status.st_ino)

    @property
    def fd(self) -> int:
        """The O_PATH descriptor, valid until `keep`, `hold` or `close`."""
        return self._fd

    def keep(self) -> Reference:
        """Return a reference to the object; nothing else may be done with this afterwards but `close`."""
        if self._backing.opens_handles and isinstance(self.identity, FileHandle):
            mount_fd = self._backing.mount_fd(self)
            if mount_fd is not None:
                return HandleReference(mount_fd, self.identity)
        return self.hold()

    def hold(self) -> "DescriptorReference":
        """Return a reference that keeps the object alive; nothing else may be done with this afterwards but `close`."""
        fd, self._fd = self._fd, -1
        return DescriptorReference(fd)

    def close(self) -> None:
        """Close the descriptor, unless a reference keeps it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Backing:
    """The exported directory.

    Attributes:
        root_fd: O_RDONLY descriptor of the root.
        root_key: its device and inode number.
        opens_handles: whether file handles can be had and opened here.
    """

    def __init__(self, source: str) -> None:
        self.root_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.root_key = self._key(self.root_fd)
        self._mount_fds: dict[int, int] = {self.root_key.device: self.root_fd}
        self._fsids: dict[int, int] = {self.root_key.device: os.fstatvfs(self.root_fd).f_fsid}
        self.opens_handles = self._try_handles()

    def close(self) -> None:
        """Close every descriptor held here."""
        for fd in self._mount_fds.values():
            os.close(fd)

    def _try_handles(self) -> bool:
        try:
            handle_type, handle_bytes = _linux.name_to_handle_at(self.root_fd, b"", _linux.AT_EMPTY_PATH)
            os.close(_linux.open_by_handle_at(self.root_fd, handle_type, handle_bytes, os.O_PATH))
        except OSError as error:
            if error.errno in _NO_HANDLES:
                return False
            raise
        return True

    def mount_fd(self, found: Found) -> int | None:
        """Return a readable descriptor on the filesystem of an object, None if the object cannot lend one.

        The first object seen of a filesystem is where it is mounted: a directory, or a single file that is not to be
        opened, as opening a FIFO or a device does something.
        """
        fd = self._mount_fds.get(found.key.device)
        if fd is None and stat.S_ISDIR(found.stat.st_mode):
            fd = os.open(proc_path(found.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._mount_fds[found.key.device] = fd
        return fd

    def find(self, directory_fd: int, name: bytes) -> Found:
        """Look up one name without following a symbolic link.

        Raises:
            OSError: as from open(2).
        """
        return self._found(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd))

    def find_open(self, fd: int) -> Found:
        """Look up the object of an open descriptor, which stays the caller's."""
        return self._found(os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC))

    def find_root(self) -> Found:
        """Look up the root itself."""
        return self._found(os.dup(self.root_fd))

    def contains(self, fd: int) -> bool:
        """Whether a directory is the root or below it now, going up by `..`."""
        key, fd = self._key(fd), os.dup(fd)
        try:
            while key != self.root_key:
                above = os.open(b"..", os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = above
                previous, key = key, self._key(fd)
                if key == previous:
                    return False  # the root of everything
            return True
        finally:
            os.close(fd)

    def _key(self, fd: int) -> InodeKey:
        status = os.fstat(fd)
        return InodeKey(status.st_dev, status.st_ino)

    def _found(self, fd: int) -> Found:
        """Make `fd` the result's; it is closed where there is none."""
        try:
            status = os.fstat(fd)
            return Found(self, fd, self._identity(fd, status), status)
        except BaseException:
            os.close(fd)
            raise

    def _identity(self, fd: int, status: os.stat_result) -> Identity:
        if self.opens_handles:
            try:
                handle = _linux.name_to_handle_at(fd, b"", _linux.AT_EMPTY_PATH)
                return FileHandle(self._fsid(fd, status.st_dev), *handle)
            except OSError as error:
                if error.errno not in _NO_HANDLES:
                    raise
        return InodeNumber(status.st_dev, status.st_ino)

    def _fsid(self, fd: int, device: int) -> int:
        fsid = self._fsids.get(device)
        if fsid is None:
            # Some filesystems have no id of their own, so that below the root the device has to tell them apart.
            fsid = self._fsids[device] = os.fstatvfs(fd).f_fsid << 64 | device
        return fsid

    def open_beneath(self, path: bytes, flags: int) -> int:
        """Open a path below the root, which no symbolic link and no `..` can lead out of.

        Raises:
            OSError: ELOOP or EXDEV for a path that tries, else as from open(2).
        """
        base = self.root_fd
        parts = path.split(b"/")
        try:
            # The kernel takes at most PATH_MAX bytes at a time; a tree may be deeper.
            while len(path) > 4000 and len(parts) > 8:
                step = _linux.openat2(base, b"/".join(parts[:8]), os.O_PATH | os.O_DIRECTORY, _BENEATH)
                parts, path = parts[8:], b"/".join(parts[8:])
                if base != self.root_fd:
                    os.close(base)
                base = step
            return _linux.openat2(base, path, flags, _BENEATH)
        finally:
            if base != self.root_fd:
                os.close(base)

    def stat_beneath(self, path: bytes) -> os.stat_result | None:
        """Return the attributes of what is at a path below the root, None where nothing can be seen."""
        try:
            fd = self.open_beneath(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                return os.fstat(fd)
            finally:
                os.close(fd)
        except OSError:
            return None

    def list_beneath(self, path: bytes) -> tuple[InodeKey, list[tuple[bytes, bool]]]:
        """Return what a directory below the root is, and (name, is it a directory) of what is in it.

        Raises:
            OSError: as from open(2).
        """
        fd = self.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            with os.scandir(fd) as listing:
                entries = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in listing]
            return self._key(fd), entries
        finally:
            os.close(fd)

    def times_beneath(self, path: bytes) -> _linux.Times | None:
        """Return when what is at a path below the root was born and last changed, None where there is nothing."""
        try:
            fd = self.open_beneath(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                return _linux.statx_times(fd)
            finally:
                os.close(fd)
        except OSError:
            return None


@contextlib.contextmanager
def acting_as(uid: int, gid: int, groups: Sequence[int], capabilities: int = 0) -> Iterator[None]:
    """Make the system calls of the block with a caller's identity. There must be no `await` inside.

    `capabilities` are those of the caller: who is not root may all the same have some of the rights over files.
    """
    own_groups = os.getgroups()
    _linux.set_thread_credentials(uid, gid, groups)
    try:
        if uid != 0 and capabilities & _OVER_FILES:
            _linux.raise_capabilities(capabilities & _OVER_FILES)
        yield
    finally:
        _linux.set_thread_credentials(0, os.getegid(), own_groups)


def check_readable(backing: Backing, path: bytes, uid: int, gid: int, groups: Sequence[int]) -> InodeKey:
    """Check that a user may read the directory at a path, every component resolved with the rights of that user.

    Return which directory that is: it may be another one than the path has been taken for. A daemon without root's
    rights has the rights of its own user only, and they are what the kernel checks.

    Raises:
        OSError: EACCES, or the directory is gone.
    """
    as_user = contextlib.nullcontext() if uid == 0 or os.geteuid() != 0 else acting_as(uid, gid, groups)
    with as_user:
        fd = backing.open_beneath(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    try:
        status = os.fstat(fd)
        return InodeKey(status.st_dev, status.st_ino)
    finally:
        os.close(fd)
