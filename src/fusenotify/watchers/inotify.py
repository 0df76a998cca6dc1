"""inotify: one watch per directory, and a read buffer of our own.

The kernel's queue holds 16384 events and loses the rest, so it is emptied first and looked at later: every caller that
passes by drains it into the buffer. The stream of bytes has positions, which tell what came before what.
"""

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD
from typing import Final

from inotify_simple import INotify, flags

from fusenotify._linux import proc_path
from fusenotify.backing import Entry, entries_of
from fusenotify.errors import EnvironmentProblem
from fusenotify.identity import InodeKey

log = logging.getLogger(__name__)

# OPEN, ACCESS and CLOSE_NOWRITE stay out: our own crawl raises them. Unlinked files are silent, as their name may by
# then stand for another file.
_MASK: Final = (
    flags.CREATE
    | flags.DELETE
    | flags.MODIFY
    | flags.ATTRIB
    | flags.CLOSE_WRITE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.EXCL_UNLINK
)
_CHUNK: Final = 64 * 1024  # bytes worked on before the kernel's queue is drained again
# Beyond this many bytes not told yet (parsed they take ten times as much memory) the kernel's queue is left to fill: an
# overflow event is better than no memory.
_BUFFER_LIMIT: Final = 64 * 1024 * 1024
_LIMIT_ADVICE: Final = (
    "the limit of inotify watches is reached, so changes in some directories are not heard but found by looking, late; "
    "raise it with `sysctl fs.inotify.max_user_watches=1048576`"
)


@dataclass(slots=True)
class Adoption:
    """A directory as it was taken under watch.

    Attributes:
        wd: its watch descriptor; None where it could not be watched.
        key: device and inode number.
        entries: (name, is it a directory, inode number) of what was in it right after the watch was set.
        overlaps: whether events came before the end of the listing, so that both may tell the same.
        until: the position in the stream at the end of the listing.
    """

    wd: int | None
    key: InodeKey
    entries: list[Entry]
    overlaps: bool
    until: int


class InotifyWatcher:
    """The watches on the backing tree and the bytes they raised.

    Attributes:
        adoptions: directories that a handler took under watch before the stream told of them.
        root_wd: the watch descriptor of what was watched first, the root.
    """

    name = "inotify"

    def __init__(self) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise EnvironmentProblem(
                "no inotify instance is left for this user (fs.inotify.max_user_instances); "
                "raise it with `sysctl fs.inotify.max_user_instances=1024` or end a program that watches files"
            ) from error
        self.adoptions: dict[InodeKey, Adoption] = {}
        self.on_data: Callable[[], None] = lambda: None
        self.root_wd: int | None = None  # of what was watched first
        self._wds: dict[InodeKey, int] = {}
        self._refused: set[InodeKey] = set()
        self._keys: dict[int, InodeKey] = {}
        self._buffer: deque[bytes] = deque()
        self._untold = 0  # bytes read and not told yet, here or with whoever took them
        self._read = 0
        self._taken = 0
        self._reads: deque[tuple[int, float]] = deque()  # (position, time) of what was read and is not told yet
        self._emptied: deque[tuple[int, int]] = deque([(0, time.time_ns())])  # (position, time) of empty kernel queues
        self._available = bytearray(4)

    def close(self) -> None:
        """Drop every watch."""
        self._inotify.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        fd: int = self._inotify.fileno()
        return fd

    @property
    def watches(self) -> int:
        """How many watches are set."""
        return len(self._keys)

    @property
    def limit(self) -> int:
        """How many watches the user may have in all, 0 where the kernel does not say."""
        try:
            return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
        except OSError:
            return 0

    @property
    def deaf(self) -> int:
        """How many directories could not be watched."""
        return len(self._refused)

    def refuse(self, key: InodeKey) -> None:
        """Take note that a directory cannot even be opened."""
        self._refused.add(key)

    def allow(self, key: InodeKey) -> None:
        """Take note that a directory that may have been refused has gone: its number may become another's."""
        self._refused.discard(key)

    # --- the stream ------------------------------------------------------------------------------------------------

    def drain(self) -> int:
        """Move what the kernel holds into the buffer and return the position behind it, in bytes."""
        fd, now = self._inotify.fileno(), time.time_ns()
        ioctl(fd, FIONREAD, self._available)
        waiting = int.from_bytes(self._available, "little")
        while waiting > 0 and self._untold < _BUFFER_LIMIT:
            data = os.read(fd, min(waiting, _CHUNK))
            self._buffer.append(data)
            self._untold += len(data)
            self._read += len(data)
            self._reads.append((self._read, time.monotonic()))
            waiting -= len(data)
            self.on_data()
        if not waiting:
            if self._emptied[-1][0] == self._read:
                self._emptied.pop()
            self._emptied.append((self._read, now))
        return self._read + waiting

    def take(self) -> tuple[int, bytes] | None:
        """Return the oldest buffered bytes and their position, None when there are none."""
        if not self._buffer:
            return None
        position, data = self._taken, self._buffer.popleft()
        self._taken += len(data)
        return position, data

    def told(self, position: int) -> None:
        """Take note that everything before a position has been worked off and takes no memory any more."""
        self._untold = self._read - position
        while self._reads and self._reads[0][0] <= position:
            self._reads.popleft()
        while len(self._emptied) > 1 and self._emptied[1][0] <= position:
            self._emptied.popleft()

    def read_at(self, position: int) -> float:
        """Return when what stands before a position was read from the kernel, as `time.monotonic` does."""
        return next((when for end, when in self._reads if end >= position), time.monotonic())

    def heard_until(self, position: int) -> int:
        """Return the time, in nanoseconds since the epoch, before which nothing can be missing from the stream.

        `position` is where the stream is looked at: what the last call of `told` was given, or behind that.
        """
        return max((when for end, when in self._emptied if end <= position), default=0)

    # --- the watches -----------------------------------------------------------------------------------------------

    def wd_of(self, key: InodeKey) -> int | None:
        """Return the watch descriptor of a directory, None when it is not watched."""
        return self._wds.get(key)

    def has_heard_of(self, key: InodeKey) -> bool:
        """Whether a directory is watched, or was found to be unwatchable."""
        return key in self._wds or key in self._refused

    def adopt(self, directory_fd: int) -> Adoption:
        """Watch a directory, then list it: in this order nothing that appears in it can be missed.

        `directory_fd` is a readable descriptor of it.
        """
        stat = os.fstat(directory_fd)
        key = InodeKey(stat.st_dev, stat.st_ino)
        before = self.drain()
        has_raised_events = key in self._wds
        wd = self.watch(directory_fd, key)
        entries: list[Entry] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(directory_fd) as listing:
            entries = entries_of(listing)
        until = self.drain()
        return Adoption(wd, key, entries, has_raised_events or until > before, until)

    def adoption_by(self, wd: int) -> Adoption | None:
        """Take out the adoption that set a watch, if that is the last one of its directory; else return None."""
        key = self._keys.get(wd)
        adoption = self.adoptions.get(key) if key is not None else None
        return self.adoptions.pop(adoption.key) if adoption is not None and adoption.wd == wd else None

    def watch(self, directory_fd: int, key: InodeKey) -> int | None:
        """Watch a directory, unless that is so already, and return its watch descriptor; None where it cannot be.

        As long as a directory lives it has the same one, and nothing else ever has it.
        """
        try:
            wd: int = self._inotify.add_watch(proc_path(directory_fd), _MASK)
        except OSError as error:
            if error.errno == errno.ENOSPC and not self._refused:
                log.warning("%s", _LIMIT_ADVICE)
            if error.errno != errno.ENOENT:
                self._refused.add(key)
            return None
        self._refused.discard(key)
        self._wds[key] = wd
        self._keys[wd] = key
        self.root_wd = self.root_wd or wd
        return wd

    def unwatch(self, wd: int) -> None:
        """Stop watching a directory that has left the tree: a watch follows its inode wherever it goes."""
        self.forget(wd)
        with contextlib.suppress(OSError):  # EINVAL: the kernel dropped it when the directory was deleted
            self._inotify.rm_watch(wd)

    def forget(self, wd: int) -> None:
        """Take note that the kernel has dropped a watch (IN_IGNORED)."""
        key = self._keys.pop(wd, None)
        if key is not None and self._wds.get(key) == wd:
            del self._wds[key]
