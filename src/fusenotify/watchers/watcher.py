"""What every watcher is: a stream of raw events with positions, and the directories it was told to hear."""

import os
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from fusenotify.beneath import Entry, entries_of
from fusenotify.identity import InodeKey
from fusenotify.joiner import RawEvent

_QUITE_NEW: Final = 1.0  # seconds


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


class Watcher(ABC):
    """The directories that are watched, by numbers of the watcher's own (watch descriptors), and what they raised.

    Attributes:
        name: what `status` calls it.
        adoptions: directories that a handler took under watch before the stream told of them.
        root_wd: the watch descriptor of what was watched first, the root.
        on_data: called when something was read.
    """

    name: str

    def __init__(self) -> None:
        self.adoptions: dict[InodeKey, Adoption] = {}
        self._early: dict[int, float] = {}  # watches that were set by adoptions that were kept, and when
        self.on_data: Callable[[], None] = lambda: None
        self.root_wd: int | None = None
        self._wds: dict[InodeKey, int] = {}
        self._keys: dict[int, InodeKey] = {}
        self._refused: set[InodeKey] = set()
        self._uses: dict[InodeKey, int] = {}  # where uses are heard of, bits of `Kind`
        self._reads: deque[tuple[int, float]] = deque()  # (position, time) of what was read and is not told yet
        self._emptied: deque[tuple[int, int]] = deque([(0, time.time_ns())])  # (position, time) of empty kernel queues

    @abstractmethod
    def close(self) -> None:
        """Hear nothing any more."""

    @abstractmethod
    def fileno(self) -> int:
        """Return the descriptor to wait for."""

    # --- the stream ------------------------------------------------------------------------------------------------

    @abstractmethod
    def drain(self) -> int:
        """Read what the kernel holds and return the position behind it."""

    @abstractmethod
    def take(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that were read and a position behind them, None when there are none."""

    @abstractmethod
    def told(self, position: int) -> None:
        """Take note that everything before a position has been worked off and takes no memory any more."""

    def read_at(self, position: int) -> float:
        """Return when what stands before a position was read from the kernel, as `time.monotonic` does."""
        return next((when for end, when in self._reads if end >= position), time.monotonic())

    def heard_until(self, position: int) -> int:
        """Return the time, in nanoseconds since the epoch, before which nothing can be missing from the stream.

        `position` is where the stream is looked at: what the last call of `told` was given, or behind that.
        """
        return max((when for end, when in self._emptied if end <= position), default=0)

    def _note_read(self, position: int) -> None:
        self._reads.append((position, time.monotonic()))

    def _note_empty(self, position: int, time_ns: int) -> None:
        """Take note that the kernel's queue was empty at a position."""
        if self._emptied[-1][0] == position:
            self._emptied.pop()
        self._emptied.append((position, time_ns))

    def _forget_times(self, position: int) -> None:
        while self._reads and self._reads[0][0] <= position:
            self._reads.popleft()
        while len(self._emptied) > 1 and self._emptied[1][0] <= position:
            self._emptied.popleft()

    # --- the directories ---------------------------------------------------------------------------------------------

    @property
    def watches(self) -> int:
        """How many directories are watched."""
        return len(self._keys)

    @property
    def deaf(self) -> int:
        """How many directories could not be watched."""
        return len(self._refused)

    @property
    def limit(self) -> int:
        """How many directories the user may watch in all, 0 where there is no limit."""
        return 0

    @abstractmethod
    def watch(self, directory_fd: int, key: InodeKey) -> int | None:
        """Watch a directory, unless that is so already, and return its watch descriptor; None where it cannot be.

        As long as a directory lives it has the same one, and nothing else ever has it.
        """

    @abstractmethod
    def adopt(self, directory_fd: int) -> Adoption:
        """Watch a directory, then list it: in this order nothing that appears in it can be missed.

        `directory_fd` is a readable descriptor of it.
        """

    def uses_of(self, key: InodeKey) -> int:
        """Return which uses of files in a directory are heard of, bits of `Kind`."""
        return self._uses.get(key, 0)

    def hear_uses(self, directory_fd: int, key: InodeKey, uses: int) -> None:
        """Have uses of files in a watched directory heard of from now on, and no others; `uses` are bits of `Kind`."""
        if uses:
            self._uses[key] = uses
        else:
            self._uses.pop(key, None)
        if key in self._wds:
            self._ask_for_uses(directory_fd, key)

    @abstractmethod
    def _ask_for_uses(self, directory_fd: int, key: InodeKey) -> None:
        """Have the kernel tell of the uses that are to be heard of in a watched directory."""

    @abstractmethod
    def unwatch(self, wd: int) -> None:
        """Stop watching a directory that has left the tree: a watch follows its inode wherever it goes."""

    def forget(self, wd: int) -> None:
        """Take note that a directory is not watched any more."""
        key = self._keys.pop(wd, None)
        if key is not None and self._wds.get(key) == wd:
            del self._wds[key]
            self._uses.pop(key, None)

    def refuse(self, key: InodeKey) -> None:
        """Take note that a directory cannot be watched, or not even be opened."""
        self._refused.add(key)

    def allow(self, key: InodeKey) -> None:
        """Take note that a directory that may have been refused has gone: its number may become another's."""
        self._refused.discard(key)

    def wd_of(self, key: InodeKey) -> int | None:
        """Return the watch descriptor of a directory, None when it is not watched."""
        return self._wds.get(key)

    def has_heard_of(self, key: InodeKey) -> bool:
        """Whether a directory is watched, or was found to be unwatchable."""
        return key in self._wds or key in self._refused

    def keep(self, adoption: Adoption) -> None:
        """Keep an adoption for when the stream comes to its directory."""
        self.adoptions[adoption.key] = adoption
        if adoption.wd is not None:
            self._early[adoption.wd] = time.monotonic()

    def drop_early(self, is_known: Callable[[int], bool]) -> None:
        """Unwatch directories that were adopted and have gone before the stream came to them, which it has by now.

        The kernel shows a new name a moment before it queues the event of it, so those that are quite new are spared.
        """
        for wd in [wd for wd, since in self._early.items() if since < time.monotonic() - _QUITE_NEW]:
            del self._early[wd]
            if not is_known(wd):
                self.adoption_by(wd)
                self.unwatch(wd)

    def adoption_by(self, wd: int) -> Adoption | None:
        """Take out the adoption that set a watch, if that is the last one of its directory; else return None."""
        key = self._keys.get(wd)
        adoption = self.adoptions.get(key) if key is not None else None
        return self.adoptions.pop(adoption.key) if adoption is not None and adoption.wd == wd else None

    def _watched(self, key: InodeKey, wd: int) -> None:
        """Take note that a directory is watched."""
        self._refused.discard(key)
        self._wds[key] = wd
        self._keys[wd] = key
        self.root_wd = self.root_wd or wd


def list_directory(directory_fd: int) -> list[Entry]:
    """Return what is in a directory; nothing if it has been deleted."""
    with suppress(FileNotFoundError), os.scandir(directory_fd) as listing:
        return entries_of(listing)
    return []
