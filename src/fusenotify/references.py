"""How an object of the backing tree is reached again: by its file handle, by a walk to it, or by a descriptor of it."""

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import ClassVar, Final, Protocol

from fusenotify import _linux
from fusenotify._linux import proc_path
from fusenotify.identity import FileHandle, Identity

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def stale() -> OSError:
    """Return the error that says that an object is gone."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


class KeptDescriptors:
    """Descriptors that spare work, a bounded number of them: each can be had again at any time.

    The least recently used goes first. Threads may take copies; nobody is given the descriptor itself.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fds: OrderedDict[object, tuple[int, int]] = OrderedDict()  # owner -> (descriptor, device)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._fds)

    def copy(self, owner: object) -> int | None:
        """Return a new descriptor of what is kept for an owner, None if nothing is."""
        with self._lock:
            kept = self._fds.get(owner)
            if kept is None:
                return None
            self._fds.move_to_end(owner)
            return os.dup(kept[0])

    def keep(self, owner: object, fd: int) -> None:
        """Keep a copy of a descriptor for an owner, as long as there is room; without one (EMFILE) it is not kept."""
        with self._lock:
            with contextlib.suppress(OSError):
                copy = os.dup(fd)
                old = self._fds.pop(owner, None)
                self._fds[owner] = copy, os.fstat(copy).st_dev
                if old is not None:
                    os.close(old[0])
            while len(self._fds) > self._limit:
                os.close(self._fds.popitem(last=False)[1][0])

    def drop(self, owner: object) -> None:
        """Keep nothing for an owner any more."""
        with self._lock:
            kept = self._fds.pop(owner, None)
            if kept is not None:
                os.close(kept[0])

    def drop_where(self, is_unwanted: Callable[[int], bool]) -> None:
        """Close every descriptor of whose device this is true; no filesystem is asked, as it might be silent."""
        with self._lock:
            for owner, (fd, device) in list(self._fds.items()):
                if is_unwanted(device):
                    del self._fds[owner]
                    os.close(fd)

    def clear(self) -> None:
        """Close every descriptor."""
        self.drop_where(lambda device: True)


class Reference(Protocol):
    """How an object of the backing tree is reached again.

    Attributes:
        outlives_names: whether it still reaches the object when that has no name any more and nobody has it open.
    """

    outlives_names: ClassVar[bool]

    def acquire(self, flags: int) -> int:
        """Return a new descriptor of the object (OSError: ESTALE when the object is gone)."""

    def moved(self, above: "Reference", name: bytes) -> None:
        """Take note of the entry that the object was last seen as."""

    def lend(self, fd: int) -> None:
        """Take note of an open descriptor of the object, which reaches it until `take_back`."""

    def take_back(self, fd: int) -> None:
        """Take note that this descriptor is about to be closed."""

    def close(self) -> None:
        """Let go of whatever the reference holds."""


class Filesystem(Protocol):
    """Opens file handles of one filesystem."""

    def open_handle(self, handle: FileHandle, flags: int) -> int:
        """Open an object (OSError: ESTALE when it, or the filesystem, is gone)."""


class RootFilesystem:
    """The filesystem of the root, a descriptor of which is open anyway."""

    def __init__(self, root_fd: int) -> None:
        self._root_fd = root_fd

    def open_handle(self, handle: FileHandle, flags: int) -> int:
        """Open an object by its handle."""
        return _linux.open_by_handle_at(self._root_fd, handle.handle_type, handle.handle_bytes, flags)


class Submount:
    """A filesystem that is mounted somewhere below the root.

    Opening handles needs a descriptor on it. As that would keep it from being unmounted, the mountpoint is found again
    when it is needed: by the directory it lies in, and its name, which cannot be renamed while something is mounted.
    """

    def __init__(self, fsid: int, fsid_of: Callable[[int], int], kept: KeptDescriptors) -> None:
        self._fsid = fsid
        self._fsid_of = fsid_of
        self._kept = kept
        self._place: tuple[Reference, bytes] | None = None

    def entered(self, above: Reference, name: bytes) -> None:
        """Take note of where it is mounted."""
        self._place = above, name

    def open_handle(self, handle: FileHandle, flags: int) -> int:
        """Open an object by its handle, however long that takes."""
        fd = self._mount_fd()
        try:
            return _linux.open_by_handle_at(fd, handle.handle_type, handle.handle_bytes, flags)
        finally:
            os.close(fd)

    def _mount_fd(self) -> int:
        fd = self._kept.copy(self)
        if fd is not None:
            return fd
        if self._place is None:
            raise stale()
        above, name = self._place
        with _acquired(above) as directory_fd:
            fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory_fd)
        if self._fsid_of(fd) != self._fsid:
            os.close(fd)
            raise stale()
        self._kept.keep(self, fd)
        return fd


@contextlib.contextmanager
def _acquired(directory: Reference) -> Iterator[int]:
    fd = directory.acquire(os.O_PATH | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class HandleReference:
    """Reaches an object by its file handle; costs no descriptor while idle."""

    __slots__ = ("_filesystem", "_handle")
    outlives_names: ClassVar[bool] = False

    def __init__(self, filesystem: Filesystem, handle: FileHandle) -> None:
        self._filesystem = filesystem
        self._handle = handle

    def acquire(self, flags: int) -> int:
        """Open the object (flags as for open(2))."""
        return self._filesystem.open_handle(self._handle, flags)

    def moved(self, above: Reference, name: bytes) -> None:
        """A handle does not depend on names."""

    def lend(self, fd: int) -> None:
        """The handle of what is open can be opened in any case."""

    def take_back(self, fd: int) -> None:
        """Nothing was taken."""

    def close(self) -> None:
        """Nothing is held."""


class DescriptorReference:
    """Keeps an O_PATH descriptor of an object that no handle and no name leads to any more."""

    __slots__ = ("_fd",)
    outlives_names: ClassVar[bool] = True

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def acquire(self, flags: int) -> int:
        """Open the object anew through the descriptor."""
        return _opened_again(self._fd, flags)

    def moved(self, above: Reference, name: bytes) -> None:
        """A descriptor does not depend on names."""

    def lend(self, fd: int) -> None:
        """Nothing more is needed."""

    def take_back(self, fd: int) -> None:
        """Nothing was taken."""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)


class NowhereReference:
    """Reaches nothing: it is of what is gone, or was never there."""

    __slots__ = ()
    outlives_names: ClassVar[bool] = False

    def acquire(self, flags: int) -> int:
        """There is nothing to open (OSError: ESTALE)."""
        raise stale()

    def moved(self, above: Reference, name: bytes) -> None:
        """What is nowhere goes nowhere."""

    def lend(self, fd: int) -> None:
        """Nobody has it open."""

    def take_back(self, fd: int) -> None:
        """Nothing was taken."""

    def close(self) -> None:
        """Nothing is held."""


class WalkedReference:
    """Reaches an object by its name in its directory, where handles cannot be had or opened.

    A bounded number of descriptors is kept. What has none is walked to again and has to be the very object, by its
    identity; else it is ESTALE, whether it is gone, or was renamed behind the mount and nobody has looked since.
    """

    __slots__ = ("_above", "_identify", "_identity", "_kept", "_lent", "_name")
    outlives_names: ClassVar[bool] = False

    def __init__(
        self,
        kept: KeptDescriptors,
        identify: Callable[[int], Identity],
        identity: Identity | None,
        above: Reference,
        name: bytes,
    ) -> None:
        """`identify` tells what a descriptor's object is; with `identity` None it may be any."""
        self._kept = kept
        self._identify = identify
        self._identity = identity
        self._above = above
        self._name = name
        self._lent: tuple[int, ...] = ()

    def acquire(self, flags: int) -> int:
        """Return a new O_PATH descriptor, or open the object through one."""
        fd = self._copy()
        if fd is None:
            fd = self._walk()
        if flags & os.O_PATH:
            return fd
        try:
            return _opened_again(fd, flags)
        finally:
            os.close(fd)

    def _copy(self) -> int | None:
        """Return a new descriptor from one that is there, None if there is none."""
        fd = self._kept.copy(self)
        if fd is not None or not self._lent:
            return fd
        fd = os.dup(self._lent[0])
        if self._identity is None or self._identify(fd) == self._identity:
            return fd
        os.close(fd)  # it was taken back and closed meanwhile, and its number is another file's
        return None

    def _walk(self) -> int:
        way: dict[WalkedReference, None] = {self: None}
        above, fd = self._above, None
        # No recursion: a tree may be deeper than Python's stack.
        while fd is None:
            if not isinstance(above, WalkedReference):
                fd = above.acquire(os.O_PATH | os.O_DIRECTORY)
            elif above in way:
                raise stale()  # what was seen at different times does not fit together any more
            else:
                fd = above._copy()
                if fd is None:
                    way[above] = None
                    above = above._above
        for reference in reversed(way):
            fd = reference._step(fd)
        self._kept.keep(self, fd)
        return fd

    def _step(self, directory_fd: int) -> int:
        """Return a descriptor of the object; that of its directory is used up."""
        try:
            fd = os.open(self._name, _LOOK, dir_fd=directory_fd)
        except (FileNotFoundError, NotADirectoryError):
            raise stale() from None
        finally:
            os.close(directory_fd)
        try:
            if self._identity is not None and self._identify(fd) != self._identity:
                raise stale()
        except BaseException:
            os.close(fd)
            raise
        return fd

    def keep(self, fd: int) -> None:
        """Take note of a descriptor of the object, which stays the caller's."""
        self._kept.keep(self, fd)

    def moved(self, above: Reference, name: bytes) -> None:
        """Take note of the entry that the object was last seen as."""
        self._above, self._name = above, name

    def lend(self, fd: int) -> None:
        """Take note of an open descriptor of the object: it reaches it, also when the name has gone."""
        self._lent = (*self._lent, fd)

    def take_back(self, fd: int) -> None:
        """Take note that this descriptor is about to be closed."""
        self._lent = tuple(one for one in self._lent if one != fd)

    def close(self) -> None:
        """Let go of the descriptor."""
        self._kept.drop(self)


def _opened_again(fd: int, flags: int) -> int:
    if flags & os.O_PATH:
        return os.dup(fd)
    return os.open(proc_path(fd), flags & ~os.O_NOFOLLOW | os.O_CLOEXEC)
