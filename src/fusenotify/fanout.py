"""Which events get to which group, and who gives way when what has not been read takes too much memory.

A group that takes everything follows the log that all such groups share. Any other is asked what it takes of each
batch. One that has fallen behind is told nothing: it notes what it misses, as long as it is worth while.
"""

from collections.abc import Callable, Iterable
from typing import Final, Generic, Protocol, TypeVar

from msgspec.structs import replace

from fusenotify.batch import Batch
from fusenotify.events import EventRecord
from fusenotify.lag import Lag
from fusenotify.ledger import Ledger
from fusenotify.news import News
from fusenotify.queue import Queue
from fusenotify.sharedlog import SharedLog

_MOST_NOTING: Final = 16  # groups of one user that note what they miss path by path; it costs time with every event


class Listener(Protocol):
    """A group, as far as the fan-out knows it.

    Attributes:
        uid: whose it is.
        queue: what it has not read.
        lag: what it has missed.
        on_marks: called when its marks have changed.
    """

    uid: int
    queue: Queue
    lag: Lag
    on_marks: Callable[[], None]

    @property
    def undivided(self) -> int | None:
        """The number of its only mark, if that takes everything."""

    @property
    def marks(self) -> int:
        """How many marks there are."""

    def publish(self, news: News) -> None:
        """Queue what of some events the marks let through, or note it, if the group has fallen behind."""

    def note_room(self) -> None:
        """Have debts paid that were put off, if there is room for them."""


T = TypeVar("T", bound=Listener)


class Fanout(Generic[T]):
    """Hands events on to groups.

    Attributes:
        ledger: what each user takes.
        on_room: called when a group that has fallen behind has read on.
    """

    def __init__(self) -> None:
        self.ledger = Ledger()
        self.on_room: Callable[[], None] = lambda: None
        self._log = SharedLog()
        self._listeners: dict[T, None] = {}
        self._selecting: dict[T, None] = {}
        self._reading: dict[T, None] = {}  # those that have fallen behind, and have read on
        self._noting: dict[int, dict[T, None]] = {}  # by user

    def owed(self) -> list[T]:
        """Return the groups that have fallen behind and have room for what they have missed."""
        ready = []
        for listener in tuple(self._reading):
            if listener.lag.has_room:
                ready.append(listener)
            else:
                del self._reading[listener]
        return ready

    def _note_room(self, listener: T) -> None:
        self._reading[listener] = None
        self.on_room()

    def add(self, listener: T) -> None:
        """Take in a group."""
        self._listeners[listener] = None
        listener.on_marks = listener.lag.on_change = lambda: self.place(listener)
        listener.lag.on_room = lambda: self._note_room(listener)
        listener.lag.may_note = lambda: len(self._noting.get(listener.uid, ())) < _MOST_NOTING
        listener.lag.may_catch_up = lambda: self._has_turn(listener)

    def remove(self, listener: T) -> None:
        """Let a group go, with what it has not read."""
        del self._listeners[listener]
        listener.queue.clear()
        listener.lag.end()

    def place(self, listener: T) -> None:
        """Have a group hear of events in the way that its marks, and what it has missed, ask for."""
        is_here = listener in self._listeners and listener.marks > 0
        if listener in self._listeners and not is_here and listener.lag.doubt is not None:
            listener.lag.end()  # who asks for nothing misses nothing; this comes here again
            return
        is_behind = is_here and listener.lag.doubt is not None
        if not is_behind:
            self._reading.pop(listener, None)
        _keep(self._selecting, listener, is_here and not is_behind and listener.undivided is None)
        listener.queue.unfollow()
        if is_here and not is_behind and listener.undivided is not None:
            listener.queue.follow(listener.undivided, self._log)
        noting = self._noting.setdefault(listener.uid, {})
        was_noting = listener in noting
        _keep(noting, listener, is_behind and listener.lag.is_noting)
        if was_noting and listener not in noting:
            self.on_room()  # another one's turn may have come
        if not noting:
            del self._noting[listener.uid]
        if is_here and not is_behind:
            listener.note_room()

    def _has_turn(self, listener: T) -> bool:
        """Whether a group may note what it misses while it is told: those who do not even read give way to it."""
        noting = self._noting.get(listener.uid, {})
        if listener in noting or len(noting) < _MOST_NOTING:
            return True
        silent = next((one for one in noting if one.queue.overflow_waits), None)
        if silent is not None:
            silent.lag.give_up()
        return silent is not None

    def publish(self, news: News) -> None:
        """Queue some events for everybody whose marks let them through."""
        # Who comes to be among them while they are handed out has had them already.
        selecting = tuple(self._selecting)
        noting = [listener for group in self._noting.values() for listener in group]
        if news.usual:
            self._log.append(Batch(news.usual))
        for listener in selecting:
            listener.publish(news)
        for listener in noting:
            listener.publish(news)
            if not listener.lag.is_noting:
                self.place(listener)
        while (excess := self.ledger.excess()) is not None:
            self._make_room(*excess)

    def overflow(self, record: EventRecord) -> None:
        """Queue an overflow event for everybody."""
        for listener in self._marking():
            listener.queue.push_overflow(listener.lag.safe(record.seq), record.time_ns, record.reason)

    def end(self, record: EventRecord) -> None:
        """Queue what nothing comes after for everybody."""
        for listener in self._marking():
            seq = listener.lag.safe(record.seq)
            listener.lag.end()
            listener.queue.push_last(replace(record, seq=seq))

    def _marking(self) -> Iterable[T]:
        return [listener for listener in self._listeners if listener.marks]

    def _make_room(self, uid: int, size: int) -> None:
        """Have the longest queues of a user give way until so many bytes are free."""
        queues = [listener.queue for listener in self._listeners if listener.uid == uid]
        for queue in sorted(queues, key=lambda one: one.size, reverse=True):
            if size <= 0:
                return
            size -= queue.size
            queue.give_up()


def _keep(listeners: dict[T, None], listener: T, is_in: bool) -> None:
    if is_in:
        listeners.setdefault(listener)
    else:
        listeners.pop(listener, None)
