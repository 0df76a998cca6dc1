"""How far a group has fallen behind: what it has missed since its queue was full, and what of that it is being told.

From the loss on until it has caught up, changes are not told to the group as they happen, but noted in `doubt`; `due`
is what was noted before the last look began. See `arrears` for how it is told, and why in this order.

A mark that asks for the time before it, too, falls behind at once: what was recorded then is supplied to `due` first.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from fusenotify.doubt import Doubt, Doubtful
from fusenotify.events import EventRecord
from fusenotify.queue import Queue

Told = tuple[int, EventRecord]  # the number of a mark, and an event as its group may see it


class Recorded(NamedTuple):
    """What was recorded of one path before the mark that asks for it.

    Attributes:
        mark: the number of the mark.
        exists: whether there was something; if not, nothing was below it either.
        is_dir: whether that was a directory; of what was gone, whether it had been one.
        is_new: whether it may not have been there at the position that is asked for.
        old_path: where it was then, if it was, and has been renamed.
    """

    mark: int
    exists: bool
    is_dir: bool
    is_new: bool
    old_path: bytes | None = None


class Supply(Protocol):
    """What was recorded before a mark, as it comes piece by piece."""

    def ask(self) -> None:
        """Have more of it come to `due` some time."""

    def drop(self) -> None:
        """Have no more of it come."""


class Lag:
    """What one group has missed.

    Attributes:
        doubt: what is in doubt and is not being told yet; None while nothing has been missed.
        position: up to where nothing has been missed, as long as something has: what is told meanwhile is no further.
        supplies: where more to be told comes from, before what is in doubt.
        due: what is being told, or is next.
        telling: what is told of `due`, event by event; None where that is to be begun.
        on_change: called when the group has fallen behind, has caught up, or begins or ceases to note what it misses.
        may_note: tells whether the group may begin to note what it misses, or has everything in doubt at once.
        may_catch_up: tells whether it may note what it misses while it is told of everything.
        as_doubtful: returns an event that was not told as what is noted of it.
        on_room: called when it has read on, so that it can be told more.
    """

    def __init__(self, queue: Queue) -> None:
        self.doubt: Doubt | None = None
        self.position = 0
        self.supplies: deque[Supply] = deque()
        self.due: deque[tuple[bytes, Doubtful | Recorded]] = deque()
        self.telling: Iterator[Told] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.may_note: Callable[[], bool] = lambda: True
        self.may_catch_up: Callable[[], bool] = lambda: True
        self.as_doubtful: Callable[[int, EventRecord], EventRecord] = lambda _, record: record
        self._queue = queue
        queue.on_loss = self._note_loss
        queue.on_read = self.note_room
        queue.on_overflow_read = self._note_overflow_read

    @property
    def is_noting(self) -> bool:
        """Whether the group has to hear what happens, to note it: where everything is in doubt there is no need."""
        return self.doubt is not None and not self.doubt.is_total

    @property
    def has_room(self) -> bool:
        """Whether the group has read so much that it is worth while to tell it more."""
        return not self._queue.overflow_waits and len(self._queue) <= self._queue.limit // 2

    def note(self, mark: int, record: EventRecord) -> None:
        """Note that an event was not told."""
        if self.doubt is not None:
            self.doubt.note(mark, self.as_doubtful(mark, record))

    def expect(self, supply: Supply, position: int) -> None:
        """Fall behind from a position on, until what is supplied has been told."""
        self.supplies.append(supply)
        self._begin(position)
        if not self.may_note():
            self.give_up()  # that is told instead
        self.on_change()
        self.on_room()

    def supply(self, what: Sequence[tuple[bytes, Recorded]]) -> None:
        """Take in a piece of what is supplied."""
        self.due.extend(what)
        self.on_room()

    def end_supply(self, supply: Supply) -> None:
        """Take note that a supply has come to its end."""
        if supply in self.supplies:
            self.supplies.remove(supply)
            self.on_room()

    def safe(self, seq: int) -> int:
        """Return the position up to which nothing has been missed when an event at `seq` is told: at most that."""
        return seq if self.doubt is None else min(seq, self.position)

    def _begin(self, position: int) -> None:
        self.position = self.safe(position)
        if self.doubt is None:
            self.doubt = Doubt()

    def give_up(self) -> None:
        """Have everything in doubt, whatever was being told."""
        assert self.doubt is not None
        self.doubt.give_up()
        self._start_over()
        self.on_change()

    def end(self) -> None:
        """Miss nothing any more."""
        self.doubt = None
        self._start_over()
        self.on_change()

    def _start_over(self) -> None:
        for supply in self.supplies:
            supply.drop()
        self.supplies.clear()
        self.due.clear()
        self.telling = None

    def _note_loss(self, mark: int, lost: Sequence[EventRecord] | None, position: int) -> None:
        self._begin(position)
        if lost is None or not self.may_note():
            self.give_up()
            return
        for record in lost:
            self.note(mark, record)
        self.on_change()

    def note_room(self) -> None:
        """Take note that there may be room to tell more."""
        if self.doubt is not None and self.has_room:
            self.on_room()

    def _note_overflow_read(self) -> None:
        """Note anew what is missed: the reader looks at what it knows now, and so too early for what comes next."""
        if self.doubt is not None and self.doubt.is_total and self.may_catch_up():
            self._start_over()
            self.due.extend(self.doubt.take())
            self.on_change()
