"""The backing tree: what its objects are, and how they are reached again. Every system call on it is here or below.

Nothing takes a path from outside: objects are reached by descriptor, by (directory descriptor, one name), by file
handle, or by a path that the kernel keeps beneath the root (see `beneath`).
"""

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator, Sequence
from typing import Final

from fusenotify import _linux
from fusenotify._linux import proc_path
from fusenotify.beneath import Beneath, key_of
from fusenotify.identity import FileHandle, Identity, InodeKey, InodeNumber
from fusenotify.references import (
    DescriptorReference,
    Filesystem,
    HandleReference,
    KeptDescriptors,
    Reference,
    RootFilesystem,
    Submount,
    WalkedReference,
)

# What name_to_handle_at(2) answers where a filesystem has no handles, and open_by_handle_at(2) without the capability.
# EINVAL: a kernel that does not know the flag.
_NO_HANDLES: Final = frozenset({errno.EOPNOTSUPP, errno.EOVERFLOW, errno.ENOSYS, errno.EPERM, errno.EINVAL})
_MOST_KEPT: Final = 1024
# CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID and CAP_MKNOD: see setfsuid(2).
_OVER_FILES: Final = 0b11111 | 1 << 27


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
        """The O_PATH descriptor, valid until `hold` or `close`."""
        return self._fd

    @property
    def links(self) -> int:
        """How many names it has now, in the tree or not."""
        return os.fstat(self._fd).st_nlink

    def keep(self, above: Reference, name: bytes) -> Reference:
        """Return a reference to the object, which was found as `name` in the directory `above`."""
        return self._backing.reference(self, above, name)

    def hold(self) -> DescriptorReference:
        """Return a reference that keeps the object alive; nothing else may be done with this afterwards but `close`."""
        fd, self._fd = self._fd, -1
        return DescriptorReference(fd)

    def copy(self) -> "Found":
        """Return the same with a descriptor of its own."""
        return Found(self._backing, os.dup(self._fd), self.identity, self.stat)

    def close(self) -> None:
        """Close the descriptor, unless a reference keeps it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Backing(Beneath):
    """The exported directory.

    Attributes:
        root: how it is reached.
    """

    def __init__(self, source: str) -> None:
        """Open the directory `source` (OSError: as from open(2))."""
        super().__init__(source)
        self._root_fsid = _linux.filesystem_id(self.root_fd)
        self._handle_flags: dict[int, int] = {}  # by filesystem: how identities are had; 0 where they are not
        self._kept = KeptDescriptors(_kept_at_most())
        # The filesystems of which handles can be opened.
        self._filesystems: dict[int, Filesystem] = {}
        self._submounts: dict[int, Submount] = {}
        if self._opens(self.root_fd, self.root_fd):
            self._filesystems[self._root_fsid] = RootFilesystem(self.root_fd)
        self.root: Reference = DescriptorReference(os.dup(self.root_fd))

    def close(self) -> None:
        """Close every descriptor held here."""
        self._kept.clear()
        self.root.close()
        super().close()

    def let_go(self) -> None:
        """Close what is kept of other filesystems than the root's, so that they can be unmounted."""
        self._kept.drop_where(lambda device: device != self.root_key.device)

    # --- identities and references ------------------------------------------------------------------------------------

    def identify(self, fd: int) -> Identity:
        """Return what the object of a descriptor is."""
        return self._identity(fd, os.fstat(fd))

    def _identity(self, fd: int, status: os.stat_result) -> Identity:
        fsid = self.fsid(fd, status.st_dev)
        for how in self._ways(fsid):
            try:
                handle = _linux.name_to_handle_at(fd, b"", how)
            except OSError as error:
                if error.errno not in _NO_HANDLES:
                    raise
            else:
                self._handle_flags[fsid] = how
                return FileHandle(fsid, *handle)
        self._handle_flags[fsid] = 0
        return InodeNumber(status.st_dev, status.st_ino, _linux.statx_times(fd).born)

    def _ways(self, fsid: int) -> tuple[int, ...]:
        """Return how handles may be had of a filesystem.

        Where they cannot be opened, as on overlayfs, Linux 6.5 and later give them for comparison all the same.
        """
        known = self._handle_flags.get(fsid)
        if known is None:
            return _linux.AT_EMPTY_PATH, _linux.AT_EMPTY_PATH | _linux.AT_HANDLE_FID
        return (known,) if known else ()

    def fsid(self, fd: int, device: int) -> int:
        """Return what tells the filesystem of a descriptor from any other one that is or was in the tree.

        The root's is there for as long as we are. Below it a device number is used again after an unmount, and an id
        may be missing, or that of a copy of the filesystem; both together are not.
        """
        if device == self.root_key.device:
            return self._root_fsid
        return os.fstatvfs(fd).f_fsid << 64 | device

    def is_of_root(self, identity: Identity) -> bool:
        """Whether an object is on the filesystem of the root."""
        if isinstance(identity, FileHandle):
            return identity.fsid == self._root_fsid
        return identity.device == self.root_key.device

    def _opens(self, mount_fd: int, fd: int) -> bool:
        """Whether handles of the filesystem of `fd` can be had and opened."""
        try:
            handle_type, handle_bytes = _linux.name_to_handle_at(fd, b"", _linux.AT_EMPTY_PATH)
            os.close(_linux.open_by_handle_at(mount_fd, handle_type, handle_bytes, os.O_PATH))
        except OSError as error:
            if error.errno in _NO_HANDLES:
                return False
            raise
        return True

    def reference(self, found: Found, above: Reference, name: bytes) -> Reference:
        """Return how an object is reached again that was found as `name` in the directory `above`."""
        if isinstance(found.identity, FileHandle):
            filesystem = self._filesystems.get(found.identity.fsid)
            if filesystem is not None:
                return HandleReference(filesystem, found.identity)
        reference = WalkedReference(self._kept, self.identify, found.identity, above, name)
        reference.keep(found.fd)
        return reference

    def entered(self, found: Found, above: Reference, name: bytes) -> None:
        """Take note of a directory, `name` in the directory `above`, where another filesystem is mounted."""
        fsid = self.fsid(found.fd, found.key.device)
        submount = self._submounts.get(fsid)
        if submount is None:
            submount = self._submounts[fsid] = Submount(fsid, self._fsid_of, self._kept)
        submount.entered(above, name)
        if fsid not in self._filesystems and fsid != self._root_fsid:
            with contextlib.suppress(PermissionError):  # then nothing in it can be opened either
                fd = os.open(proc_path(found.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                try:
                    if self._opens(fd, found.fd):
                        self._filesystems[fsid] = submount
                finally:
                    os.close(fd)

    def _fsid_of(self, fd: int) -> int:
        return self.fsid(fd, os.fstat(fd).st_dev)

    def open_identity(self, identity: Identity) -> int | None:
        """Open an object by what it is alone, O_PATH; None where that is not possible.

        Raises:
            OSError: ESTALE, when the object is gone.
        """
        filesystem = self._filesystems.get(identity.fsid) if isinstance(identity, FileHandle) else None
        if filesystem is None or not isinstance(identity, FileHandle):
            return None
        return filesystem.open_handle(identity, os.O_PATH)

    # --- looking up ---------------------------------------------------------------------------------------------------

    def find(self, directory_fd: int, name: bytes) -> Found:
        """Look up one name without following a symbolic link.

        Raises:
            OSError: as from open(2).
        """
        return self._found(self.touchable(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)))

    def find_open(self, fd: int) -> Found:
        """Look up the object of an open descriptor, which stays the caller's."""
        return self._found(os.open(proc_path(fd), os.O_PATH | os.O_CLOEXEC))

    def find_root(self) -> Found:
        """Look up the root itself."""
        return self._found(os.dup(self.root_fd))

    def contains(self, fd: int) -> bool:
        """Whether a directory is the root or below it now, going up by `..`."""
        key, fd = key_of(fd), os.dup(fd)
        try:
            while key != self.root_key:
                above = os.open(b"..", os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = above
                previous, key = key, key_of(fd)
                if key == previous:
                    return False  # the root of everything
            return True
        finally:
            os.close(fd)

    def _found(self, fd: int) -> Found:
        """Make `fd` the result's; it is closed where there is none."""
        try:
            status = os.fstat(fd)
            return Found(self, fd, self._identity(fd, status), status)
        except BaseException:
            os.close(fd)
            raise

    # --- by path ------------------------------------------------------------------------------------------------------

    def find_beneath(self, path: bytes) -> Found:
        """Look up what is at a path below the root, without following any symbolic link.

        Raises:
            OSError: as from `open_beneath`.
        """
        return self._found(self.open_beneath(path, os.O_PATH | os.O_NOFOLLOW))

    def way_to(self, path: bytes) -> tuple[Reference, InodeKey]:
        """Return the directory that a path below the root leads to the last name of: how it is reached, and what it is.

        Filesystems that are mounted on the way are taken note of, up to the object itself.

        Raises:
            OSError: as from open(2).
        """
        above, key = self.root, self.root_key
        parts = path.split(b"/")
        fd = os.dup(self.root_fd)
        try:
            for index, name in enumerate(parts):
                with contextlib.closing(self.find(fd, name)) as found:
                    if found.key.device != key.device and stat.S_ISDIR(found.stat.st_mode):
                        self.entered(found, above, name)
                    if index == len(parts) - 1:
                        break
                    os.close(fd)
                    fd = os.dup(found.fd)
                    above, key = WalkedReference(self._kept, self.identify, found.identity, above, name), found.key
        finally:
            os.close(fd)
        return above, key


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


def as_user(uid: int, gid: int, groups: Sequence[int]) -> contextlib.AbstractContextManager[None]:
    """Make the system calls of the block with the rights of a client's user. There must be no `await` inside.

    A daemon without root's rights has the rights of its own user only, and they are what the kernel checks.
    """
    return contextlib.nullcontext() if uid == 0 or os.geteuid() != 0 else acting_as(uid, gid, groups)


def find_readable(backing: Backing, path: bytes, uid: int, gid: int, groups: Sequence[int]) -> Found:
    """Look up what a user may read at a path, every component resolved with the rights of that user.

    Nothing is opened, as inotify_add_watch(2) does it. It may be another object than the path has been taken for.

    Raises:
        OSError: EACCES, or there is nothing.
    """
    with as_user(uid, gid, groups):
        found = backing.find_beneath(path)
        if os.access(proc_path(found.fd), os.R_OK, effective_ids=True):
            return found
    found.close()
    raise OSError(errno.EACCES, os.strerror(errno.EACCES))


def _kept_at_most() -> int:
    """Return how many descriptors may be kept where handles do not do: the rest is for files that are open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_KEPT if soft == resource.RLIM_INFINITY else max(16, min(_MOST_KEPT, soft // 4))
