"""One log of encoded events for every group that takes all there is: such a group's queue is a place in it.

An event is kept once, however many have yet to read it, and to publish it costs nothing for those who lag behind: only
those are looked at who have read everything, who have reached their limit, and who have to give way.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

from fusenotify.batch import Batch
from fusenotify.events import EventRecord

MOST_BYTES: Final = 64 << 20  # that wait for the slowest reader
_ENTRY_COST: Final = 320  # bytes of memory that an entry takes on top of what is encoded in it
_AT_A_TIME: Final = 64  # readers that are told that they lag behind, with each batch


class Follower(Protocol):
    """Whoever reads the log."""

    def grown(self) -> None:
        """There is something to read again."""

    def filled(self) -> None:
        """As much waits as `Reader.limit` lets wait, or more."""

    def left_behind(self) -> None:
        """What waits is in everybody's way: it has to be given up."""


class _Entry:
    """One batch; the last entry of a log is empty, and is where those are who have read everything."""

    __slots__ = ("batch", "following", "readers", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.batch: Batch | None = None
        self.following: _Entry | None = None
        self.readers: dict[Reader, None] = {}


class Reader:
    """A place in the log, and where reading ends: nowhere, or after a number of events."""

    __slots__ = ("_end", "_entry", "_log", "_offset", "follower")

    def __init__(self, log: "SharedLog", entry: _Entry, follower: Follower) -> None:
        self.follower = follower
        self._log = log
        self._entry = entry
        self._offset = 0
        self._end: int | None = None
        entry.readers[self] = None

    def __len__(self) -> int:
        """Return how many events wait."""
        return (self._log.end if self._end is None else self._end) - self._entry.start - self._offset

    @property
    def is_open(self) -> bool:
        """Whether it follows the log wherever that grows."""
        return self._end is None and self in self._entry.readers

    def limit(self, most: int) -> None:
        """Have the follower told (`filled`) when more than so many wait."""
        self._log.remind(self, self._entry.start + self._offset + most)

    def peek(self, count: int) -> Batch | None:
        """Return the oldest events that wait, up to `count`; None when none do."""
        if self._entry.batch is None:
            return None
        return self._entry.batch.part(self._offset, min(count, len(self)))

    def advance(self, count: int) -> None:
        """Go on by as many events as the last `peek` returned."""
        self._offset += count
        assert self._entry.batch is not None
        if self._offset == len(self._entry.batch):
            following = self._entry.following
            assert following is not None
            self._offset = 0
            self._log.move(self, self._entry, following)
            self._entry = following

    def end_after(self, count: int) -> Sequence[EventRecord]:
        """Read no more than so many further events; return those behind them in the same batch, if any are there."""
        self._end = self._entry.start + self._offset + count
        return self._log.behind(self._end)

    def close(self) -> None:
        """Read no more."""
        self._log.move(self, self._entry, None)


class SharedLog:
    """The log.

    Attributes:
        end: how many events have been appended in all.
        size: bytes of memory that are held.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.end = 0
        self.size = 0
        self._most_bytes = most_bytes
        self._readers = 0
        self._tail = _Entry(0)
        self._entries: deque[_Entry] = deque()  # without the tail
        self._looked_at: tuple[_Entry, Sequence[EventRecord]] | None = None  # many end in the same batch
        self._reminders: list[tuple[int, int, Reader]] = []  # a heap: (how far the log may grow, order, whom to tell)
        self._order = itertools.count()

    def follow(self, follower: Follower) -> Reader:
        """Return a reader of everything that is appended from now on."""
        self._readers += 1
        return Reader(self, self._tail, follower)

    def append(self, batch: Batch) -> None:
        """Append some events, if anybody reads."""
        if not self._readers:
            self._reminders.clear()
            return
        entry = self._tail
        entry.batch = batch
        self.end += len(batch)
        self.size += batch.size + _ENTRY_COST
        batch.pack()
        self._tail = entry.following = _Entry(self.end)
        self._entries.append(entry)
        for reader in tuple(entry.readers):
            reader.follower.grown()
        self._remind_some()
        self._make_room()

    def remind(self, reader: Reader, end: int) -> None:
        """Tell a reader's follower when the log has grown beyond `end`."""
        heapq.heappush(self._reminders, (end, next(self._order), reader))

    def _remind_some(self) -> None:
        for _ in range(_AT_A_TIME):
            if not self._reminders or self._reminders[0][0] >= self.end:
                return
            reader = heapq.heappop(self._reminders)[2]
            if reader.is_open:
                reader.follower.filled()

    def _make_room(self) -> None:
        for _ in range(_AT_A_TIME):
            if self.size <= self._most_bytes or not self._entries:
                return
            next(iter(self._entries[0].readers)).follower.left_behind()

    def move(self, reader: Reader, entry: _Entry, following: _Entry | None) -> None:
        """Take a reader from one entry to another, or away, and forget what nobody will read any more."""
        if entry.readers.pop(reader, self) is self:
            return
        if following is None:
            self._readers -= 1
        else:
            following.readers[reader] = None
        while self._entries and not self._entries[0].readers:
            batch = self._entries.popleft().batch
            assert batch is not None
            self.size -= batch.size + _ENTRY_COST

    def behind(self, position: int) -> Sequence[EventRecord]:
        """Return the event at a position and those behind it in its batch; none at the end of the log."""
        for entry in reversed(self._entries):
            if entry.start <= position:
                return self._records_of(entry)[position - entry.start :]
        return ()

    def _records_of(self, entry: _Entry) -> Sequence[EventRecord]:
        if self._looked_at is None or self._looked_at[0] is not entry:
            assert entry.batch is not None
            self._looked_at = entry, entry.batch.records
        return self._looked_at[1]
