"""The bounded queue of a group, with room for exactly one overflow event.

The rule is fsnotify's: when the queue is full, what comes is dropped and the one overflow event, whose place is kept
free for it, is queued in order; it is never lost, and there is never a second one until the first has been read.

What waits are batches of the group's own, and places in the log that it shares with others (`follow`).
"""

from collections import deque
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from fusenotify.batch import Batch
from fusenotify.events import OVERFLOW, EventRecord, Reason
from fusenotify.ledger import Usage
from fusenotify.sharedlog import Reader, SharedLog

DEFAULT_LIMIT = 131072


class End(Batch):
    """What tells of the end of a mark, or of everything.

    It finds room in a full queue, and stays when the rest is given up.

    So as not to take unbounded memory, whoever pushes it has to bound how many wait (`Queue.ends`).
    """

    __slots__ = ()


class Queue:
    """What one group has not read yet.

    Attributes:
        limit: how many events it holds; the overflow event comes on top of them.
        dropped: how many events found no room so far.
        overflows: how many overflow events were queued so far.
        ends: how many ends of marks wait.
        size: bytes of memory of its own batches, without those.
        on_queued: called when something was queued.
        on_loss: called with a mark, the events of it that found no room, or None where nobody knows which they were,
            and the position right before them.
        on_read: called when something was read.
        on_overflow_read: called before that when it was the overflow event.
    """

    def __init__(self, limit: int = DEFAULT_LIMIT, usage: Usage | None = None) -> None:
        """Start empty. What waits is counted in `usage`, and kept encoded then."""
        if limit < 1:
            raise ValueError(f"a queue needs room for at least one event, not {limit}")
        self.limit = limit
        self.dropped = 0
        self.overflows = 0
        self.ends = 0
        self.size = 0
        self.on_queued: Callable[[], None] = lambda: None
        self.on_loss: Callable[[int, Sequence[EventRecord] | None, int], None] = lambda _mark, _lost, _position: None
        self.on_read: Callable[[], None] = lambda: None
        self.on_overflow_read: Callable[[], None] = lambda: None
        self._usage = usage
        self._items: deque[tuple[int, Batch | Reader]] = deque()
        self._held = 0  # events in items
        self._read = 0  # events of the first item that have been read, if it is a batch
        self._peeked = 0
        self._following: tuple[int, Reader, SharedLog] | None = None  # what comes behind the items
        self._overflow: Batch | None = None  # the one that waits to be read
        self._is_over = False

    def __len__(self) -> int:
        """Return how many events wait, a waiting overflow event included."""
        self._settle()
        followed = len(self._following[1]) if self._following is not None else 0
        return self._held + followed + (self._overflow is not None)

    @property
    def overflow_waits(self) -> bool:
        """Whether an overflow event is in it."""
        self._settle()
        return self._overflow is not None

    @property
    def _room(self) -> int:
        return max(self.limit - self._held, 0)

    # --- in ----------------------------------------------------------------------------------------------------------

    def push(self, mark: int, batch: Batch) -> None:
        """Append what there is room for, in order, and the overflow event for the rest."""
        if self._is_over:
            return
        self._settle()
        followed = self.unfollow()  # what has come of the log comes first
        room = len(batch) if isinstance(batch, End) else min(self._room, len(batch))
        if room:
            self._append(mark, batch.part(0, room))
        if followed is not None:
            self.follow(*followed)
        if room < len(batch):
            self._lose(mark, batch.part(room, len(batch)).records, len(batch) - room)

    def push_overflow(self, seq: int, time_ns: int, reason: str) -> None:
        """Append the overflow event, unless one is waiting already: that one stands for this one too."""
        if not self._is_over:
            self._put_overflow(seq, time_ns, reason)

    def _put_overflow(self, seq: int, time_ns: int, reason: str) -> None:
        self._settle()
        if self._overflow is None:
            self.overflows += 1
            self._overflow = Batch((EventRecord(seq, time_ns, OVERFLOW, 0, None, reason=reason),))
            followed = self.unfollow()
            self._items.append((0, self._overflow))
            if followed is not None:
                self.follow(*followed)
            self.on_queued()

    def push_last(self, record: EventRecord) -> None:
        """Append what nothing comes after, whatever is still pushed; there is always room for it."""
        self._settle()
        self.unfollow()
        self._append(0, End((record,)))
        self._is_over = True

    def _append(self, mark: int, batch: Batch) -> None:
        if self._usage is not None:
            batch.pack()
        self._note(batch, 1)
        self._items.append((mark, batch))
        self._held += len(batch)
        self.on_queued()

    def _note(self, batch: Batch, change: int) -> None:
        """Count a batch more, or one less."""
        if isinstance(batch, End):
            self.ends += change
        elif self._usage is not None:
            self.size += change * batch.size
            self._usage.take(change * batch.size)

    def _lose(self, mark: int, records: Sequence[EventRecord], count: int) -> None:
        """Take note that so many events found no room, of which `records` are the first, if not all."""
        self.dropped += count
        # Its position is right before the first that is lost: going on from there misses nothing.
        position = records[0].seq - 1
        self.push_overflow(position, records[0].time_ns, Reason.QUEUE)
        self.on_loss(mark, records if count == len(records) else None, position)

    def give_up(self) -> None:
        """Drop all that waits but ends, for want of memory; the overflow event stands for it."""
        first = self.peek(1)
        if first is None:
            return
        mark, batch = first
        record = batch.records[0]
        overflow = record if mark == 0 and record.kind == OVERFLOW else None
        ends = self._unread_ends()
        self.dropped += len(self) - (self._overflow is not None) - sum(len(end) for _, end in ends)
        self.overflows -= self._overflow is not None  # it is the same one, in another place
        self.clear()
        if overflow is not None:
            position = overflow.seq
            self._put_overflow(position, overflow.time_ns, overflow.reason)
        else:
            position = record.seq - 1
            self._put_overflow(position, record.time_ns, Reason.QUEUE)
        for number, end in ends:
            # Who goes on from there has to hear of what is lost.
            self._append(number, End([replace(one, seq=min(one.seq, position)) for one in end.records]))
        self.on_loss(0, None, position)

    def _unread_ends(self) -> list[tuple[int, End]]:
        ends = [(mark, item) for mark, item in self._items if isinstance(item, End)]
        if self._read and ends and ends[0][1] is self._items[0][1]:
            ends[0] = ends[0][0], End(ends[0][1].records[self._read :])
        return ends

    def drop(self, mark: int) -> None:
        """Remove what waits for a mark that nobody wants any more, and follow no log for it."""
        self._settle()
        if self._following is not None and self._following[0] == mark:
            self.unfollow()
        if self._items and self._items[0][0] == mark:
            self._held += self._read
            self._read = 0
        for number, item in self._items:
            if number == mark:
                self._held -= len(item)
                if isinstance(item, Reader):
                    item.close()
                else:
                    self._note(item, -1)
        self._items = deque((number, item) for number, item in self._items if number != mark)

    def clear(self) -> None:
        """Forget everything, and follow no log any more."""
        self.unfollow()
        for _, item in self._items:
            if isinstance(item, Reader):
                item.close()
            elif item is not self._overflow:
                self._note(item, -1)
        self._items.clear()
        self._overflow = None
        self._held = self._read = 0

    # --- following a log -------------------------------------------------------------------------------------------

    def follow(self, mark: int, log: SharedLog) -> None:
        """Take everything that a log gets from now on for events of a mark."""
        if self._is_over:
            return
        reader = log.follow(self)
        self._following = mark, reader, log
        reader.limit(self._room)

    def unfollow(self) -> tuple[int, SharedLog] | None:
        """Take nothing more from the log, but what it has got already; return what `follow` was called with."""
        if self._following is None:
            return None
        mark, reader, log = self._following
        self._following = None
        self._keep(mark, reader, len(reader))
        return mark, log

    def _keep(self, mark: int, reader: Reader, count: int) -> Sequence[EventRecord]:
        """Have so many events of the log wait as an item; return those right behind them."""
        lost = reader.end_after(count)
        if count:
            self._items.append((mark, reader))
            self._held += count
        else:
            reader.close()
        return lost

    def grown(self) -> None:
        """There is something to read in the log (`Follower`)."""
        self.on_queued()

    def filled(self) -> None:
        """See whether too much waits in the log, and if not, when to look again (`Follower`)."""
        self._settle()
        if self._following is not None:
            self._following[1].limit(self._room)

    def _settle(self) -> None:
        """Read no further in the log than there was room for."""
        if self._following is None:
            return
        mark, reader, _ = self._following
        room = self._room
        lost = len(reader) - room
        if lost > 0:
            self._following = None
            first = self._keep(mark, reader, room)
            self._lose(mark, first, lost)

    def left_behind(self) -> None:
        """Give way: what waits keeps the log from forgetting (`Follower`)."""
        self.give_up()

    # --- out ---------------------------------------------------------------------------------------------------------

    def peek(self, count: int) -> tuple[int, Batch] | None:
        """Return the mark and up to `count` of the oldest events, which stay queued; None when nothing waits."""
        self._settle()
        if self._items:
            mark, item = self._items[0]
            batch = item.part(self._read, count) if isinstance(item, Batch) else item.peek(count)
        elif self._following is not None:
            mark, batch = self._following[0], self._following[1].peek(count)
        else:
            return None
        if batch is None:
            return None
        self._peeked = len(batch)
        return mark, batch

    def pop(self) -> None:
        """Remove what the last `peek` returned."""
        if not self._items:
            assert self._following is not None
            self._following[1].advance(self._peeked)
        else:
            self._pop_item(self._items[0][1])
        self.on_read()

    def _pop_item(self, item: Batch | Reader) -> None:
        if item is self._overflow:
            self._overflow = None
            self._items.popleft()
            self.on_overflow_read()
            return
        self._held -= self._peeked
        if isinstance(item, Reader):
            item.advance(self._peeked)
            if not len(item):
                self._items.popleft()
                item.close()
            return
        self._read += self._peeked
        if self._read == len(item):
            self._items.popleft()
            self._read = 0
            self._note(item, -1)
