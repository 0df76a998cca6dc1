"""The bounded queue of a group, with room for exactly one overflow event.

The rule is fsnotify's: when the queue is full, what comes is dropped and the one overflow event, whose place is kept
free for it, is queued in order; it is never lost, and there is never a second one until the first has been read.
"""

from collections import deque
from collections.abc import Sequence

import msgspec

from fusenotify.events import OVERFLOW, EventRecord, Reason

DEFAULT_LIMIT = 131072
_encoder = msgspec.msgpack.Encoder()


class Batch:
    """Events that travel together. It is encoded once, however many groups hold it."""

    __slots__ = ("_encoded", "records")

    def __init__(self, records: Sequence[EventRecord]) -> None:
        self.records = records
        self._encoded: bytes | None = None

    def __len__(self) -> int:
        return len(self.records)

    def encoded(self) -> bytes:
        """Return the records as one MessagePack array."""
        if self._encoded is None:
            self._encoded = _encoder.encode(self.records)
        return self._encoded

    def split(self, count: int) -> tuple["Batch", "Batch"]:
        """Return the first `count` records and the rest."""
        return Batch(self.records[:count]), Batch(self.records[count:])


class Queue:
    """What one group has not read yet.

    Attributes:
        limit: how many events it holds; the overflow event comes on top of them.
        dropped: how many events found no room so far.
        overflows: how many overflow events were queued so far.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"a queue needs room for at least one event, not {limit}")
        self.limit = limit
        self.dropped = 0
        self.overflows = 0
        self._items: deque[tuple[int, Batch]] = deque()
        self._held = 0
        self._overflow: Batch | None = None  # the one that waits to be read

    def __len__(self) -> int:
        """Return how many events wait, a waiting overflow event included."""
        return self._held + (self._overflow is not None)

    def push(self, mark: int, batch: Batch, *, always: bool = False) -> None:
        """Append what there is room for, in order, and the overflow event for the rest.

        What comes only once for each mark, as its end, may always be appended: so much more it can be.
        """
        room = max(self.limit - self._held, 0)
        if always or len(batch) <= room:
            self._items.append((mark, batch))
            self._held += len(batch)
            return
        accepted, rest = batch.split(room)
        if room:
            self._items.append((mark, accepted))
            self._held += room
        self.dropped += len(rest)
        first = rest.records[0]
        # Its position is right before the first that is lost: going on from there misses nothing.
        self.push_overflow(first.seq - 1, first.time_ns, Reason.QUEUE)

    def push_overflow(self, seq: int, time_ns: int, reason: str) -> None:
        """Append the overflow event, unless one is waiting already: that one stands for this one too."""
        if self._overflow is None:
            self.overflows += 1
            self._overflow = Batch((EventRecord(seq, time_ns, OVERFLOW, 0, None, reason=reason),))
            self._items.append((0, self._overflow))

    def peek(self, count: int) -> tuple[int, Batch] | None:
        """Return the mark and up to `count` of the oldest events, which stay queued; None when nothing waits."""
        if not self._items:
            return None
        mark, batch = self._items[0]
        if len(batch) > count:
            batch, rest = batch.split(count)
            self._items[0] = (mark, rest)
            self._items.appendleft((mark, batch))
        return mark, batch

    def pop(self) -> None:
        """Remove what the last `peek` returned."""
        _, batch = self._items.popleft()
        if batch is self._overflow:
            self._overflow = None
        else:
            self._held -= len(batch)

    def drop(self, mark: int) -> None:
        """Remove what waits for a mark that nobody wants any more."""
        self._items = deque((number, batch) for number, batch in self._items if number != mark)
        self._held = sum(len(batch) for _, batch in self._items if batch is not self._overflow)
