"""How far a group has fallen behind: what it has missed since its queue was full, and what of that it is being told.

From the loss on until it has caught up, changes are not told to the group as they happen, but noted in `doubt`; `due`
is what was noted before the last look began. See `arrears` for how it is told, and why in this order.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence

from fusenotify.doubt import Doubt, Doubtful
from fusenotify.events import EventRecord
from fusenotify.queue import Queue

Told = tuple[int, EventRecord]  # the number of a mark, and an event as its group may see it


class Lag:
    """What one group has missed.

    Attributes:
        doubt: what is in doubt and is not being told yet; None while nothing has been missed.
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
        self.due: deque[tuple[bytes, Doubtful]] = deque()
        self.telling: Iterator[Told] | None = None
        self.on_change: Callable[[], None] = lambda: None
        self.on_room: Callable[[], None] = lambda: None
        self.may_note: Callable[[], bool] = lambda: True
        self.may_catch_up: Callable[[], bool] = lambda: True
        self.as_doubtful: Callable[[int, EventRecord], EventRecord] = lambda _, record: record
        self._queue = queue
        queue.on_loss = self._begin
        queue.on_read = self._note_read
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

    def give_up(self) -> None:
        """Have everything in doubt, whatever was being told."""
        if self.doubt is None:
            self.doubt = Doubt()
        self.doubt.give_up()
        self._start_over()
        self.on_change()

    def end(self) -> None:
        """Miss nothing any more."""
        self.doubt = None
        self._start_over()
        self.on_change()

    def _start_over(self) -> None:
        self.due.clear()
        self.telling = None

    def _begin(self, mark: int, lost: Sequence[EventRecord] | None) -> None:
        if lost is None or not self.may_note():
            self.give_up()
            return
        if self.doubt is None:
            self.doubt = Doubt()
        for record in lost:
            self.note(mark, record)
        self.on_change()

    def _note_read(self) -> None:
        if self.doubt is not None and self.has_room:
            self.on_room()

    def _note_overflow_read(self) -> None:
        """Note anew what is missed: the reader looks at what it knows now, and so too early for what comes next."""
        if self.doubt is not None and self.doubt.is_total and self.may_catch_up():
            self._start_over()
            self.due.extend(self.doubt.take())
            self.on_change()
