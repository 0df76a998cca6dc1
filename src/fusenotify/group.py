"""One listener: its marks, and the queue of what they let through."""

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from msgspec.structs import replace

from fusenotify import events
from fusenotify.batch import Batch
from fusenotify.errors import LimitReached, UsageError
from fusenotify.events import IS_DIR, LOCAL, RECOVERED, EventRecord
from fusenotify.lag import Lag, Supply
from fusenotify.ledger import Usage
from fusenotify.marks import Mark, MarkedPlaces, MarkIndex, Place, Reach, Ways
from fusenotify.naming import Anonymous, Identifies, named
from fusenotify.news import News
from fusenotify.pinned import NOTHING, Sighting
from fusenotify.protocol import INODE
from fusenotify.queue import End, Queue
from fusenotify.selection import Selected, Selector
from fusenotify.tree import Directory, Tree

MOST_MARKS: Final = 8192


@dataclass(slots=True)
class Debt:
    """What is in a directory and is still to be told to a group, which knows nothing of it or has asked for it anew.

    Attributes:
        group: the group.
        directory: the directory; it may have been renamed again.
        cause: the rename that brought it into the group's reach; of what was asked for, a stand-in.
        tries: how often it could not be looked at.
    """

    group: "Group"
    directory: Directory
    cause: EventRecord
    tries: int = 0


class Group:
    """One listener: marks, and the queue of what they let through.

    Attributes:
        uid: the user who opened it.
        base: the directory below which it sees anything, and which its paths are relative to.
        queue: what it has not read.
        lag: what it has missed, if that was full.
        on_marks: called when the marks have changed.
        on_debts: called when it has become possible to pay debts, or to go on with it.
        identifier: finds handles.
    """

    def __init__(
        self, usage: Usage, tree: Tree, base: Directory, limit: int, debts: deque[Debt], places: MarkedPlaces
    ) -> None:
        self.uid = usage.uid
        self.base = base
        self.queue = Queue(limit, usage)
        self.lag = Lag(self.queue)
        self.lag.as_doubtful = self._as_doubtful
        self.on_marks: Callable[[], None] = lambda: None
        self.on_debts: Callable[[], None] = lambda: None
        self.identifier: Identifies = Anonymous()
        self._usage = usage
        self._counted = 0  # marks that are in the usage
        self._tree = tree
        self._debts = debts
        self._deferred: list[Debt] = []  # debts that wait for room in the queue
        self._recounted: set[Directory] = set()  # what was asked for and has not been told yet
        self._owed = 0  # debts, wherever they are
        self._owed_from = 0  # the position right before the first of their causes
        self._index = MarkIndex(places)
        self._selector = Selector(tree, base, self._index)
        self._selector.on_ended = lambda _: self._note_marks()
        self._selector.on_owed = self._owe
        self._selector.is_noting = lambda: self.lag.doubt is not None
        self._selector.is_owed = lambda: self._owed > 0
        self._undivided: int | None = None  # the number of the one mark that takes everything
        self._recalling: list[int] = []  # marks that are told of the time before them

    # --- marks -------------------------------------------------------------------------------------------------------

    @property
    def marks(self) -> int:
        """How many marks there are."""
        return len(self._index)

    @property
    def undivided(self) -> int | None:
        """The number of its only mark, if that takes everything and the group is owed nothing."""
        return None if self._owed else self._undivided

    @property
    def wants_handles(self) -> bool:
        """Whether some mark asks for handles."""
        return self._index.handles > 0

    def add(self, mark: Mark) -> None:
        """Add a mark, or change the one that has this number."""
        self._index.put(mark)
        self._note_marks()

    def check_room(self, number: int) -> None:
        """Refuse a new mark where there are enough.

        Raises:
            LimitReached: so it is.
        """
        if number not in self._index and self._weight >= MOST_MARKS:
            raise LimitReached(
                f"a group can have {MOST_MARKS} marks, ended ones included whose `ignored` was not read, and less if "
                "they name many users; one mark on a directory above covers them all"
            )

    def remove(self, number: int) -> None:
        """Remove a mark, and what waits for it."""
        if self._index.pop(number) is None:
            raise UsageError(f"this group has no mark {number}")
        self.queue.drop(number)
        self.lag.note_room()
        self._recalling = [one for one in self._recalling if one != number]
        self._note_marks()

    def remove_all(self) -> None:
        """Remove every mark."""
        for mark in list(self._index):
            self._index.pop(mark.number)
        self._note_marks()

    def _note_marks(self) -> None:
        only = next(iter(self._index)) if len(self._index) == 1 else None
        whole = only is not None and only.takes_everything and self.base.is_root
        self._undivided = only.number if whole and only is not None else None
        self._count_marks()
        self.on_marks()

    def _count_marks(self) -> None:
        """Take note of how many marks there are, and of those that have ended and whose end nobody has read."""
        self._usage.marks += self._weight - self._counted
        self._counted = self._weight

    @property
    def _weight(self) -> int:
        return self._index.weight + self.queue.ends

    def end(self, place: Place, path: bytes | None, cause: EventRecord) -> None:
        """End the marks on an object that has left the tree, whose last path is given, and tell of it."""
        handle = self.identifier.handle_of(place) if self.wants_handles else None
        flags = cause.flags & LOCAL | (IS_DIR if isinstance(place, Directory) else 0)
        shown = self._selector.relative(path)
        marks = self._index.on(place)
        for mark in marks:
            kinds = [events.DELETE_SELF] if mark.scope == INODE or mark.kinds & events.DELETE_SELF else []
            ends = [
                self._placed(EventRecord(
                    cause.seq, cause.time_ns, kind, flags, shown, None, cause.pid, cause.uid,
                    handle=handle if mark.handles else None,
                ))
                for kind in (*kinds, events.IGNORED)
            ]  # fmt: skip
            self.queue.push(mark.number, End(ends))
            self._index.pop(mark.number)
        if marks:
            self._note_marks()

    # --- fan-out -----------------------------------------------------------------------------------------------------

    def publish(self, news: News) -> None:
        """Queue what of some events the marks let through, or note it, if the group has fallen behind."""
        undivided = self.undivided
        if undivided is not None:
            self._hand_on([(undivided, record) for record in news.usual])
        elif self.wants_handles:
            self._publish_selected(news.named, news.ways, news.named_sightings)
        elif len(self._index):
            self._publish_selected(news.records, news.ways, news.sightings)

    def _publish_selected(self, records: Sequence[EventRecord], ways: Ways, sightings: Sequence[Sighting]) -> None:
        told: list[Selected] = []
        reach = Reach(self._index, ways)
        for record, sighting in zip(records, sightings, strict=True):
            told.extend(self._selector.select(record, sighting, reach))
            if sighting.ended:
                self._hand_on(told)
                told = []
                for file, path in sighting.ended:
                    self.end(file, path, record)
                reach.forget()
        self._hand_on(told)

    def _hand_on(self, told: Iterable[Selected]) -> None:
        """Queue what was selected, or note it, if the group has fallen behind."""
        if self.lag.doubt is None:
            self._push(told)
            return
        for mark, record in told:
            self.lag.note(mark, record)

    def _push(self, told: Iterable[Selected]) -> None:
        for mark, run in itertools.groupby(told, key=lambda one: one[0]):
            self.queue.push(mark, Batch([self._placed(record) for _, record in run]))

    def _placed(self, record: EventRecord) -> EventRecord:
        """Return an event with a position from which on nothing is missed by who goes on from there."""
        seq = self.lag.safe(record.seq)
        if self._owed:
            seq = min(seq, self._owed_from)
        return record if seq == record.seq else replace(record, seq=seq)

    # --- what it has missed ------------------------------------------------------------------------------------------

    def tell(self, missed: Iterable[Selected]) -> None:
        """Queue what was missed; there has to be room for it. A mark that is for one event only ends with it."""
        for number, run in itertools.groupby(missed, key=lambda one: one[0]):
            mark = self._index.get(number)
            records = [self._placed(record) for _, record in run]
            if mark is None:
                continue
            if mark.oneshot:
                self._index.pop(number)
                records = records[:1]
            self.queue.push(number, Batch(records))
            if mark.oneshot:
                self._note_marks()

    def recall(self, number: int, supply: Supply, position: int) -> None:
        """Tell a mark, which was made at a position, what is supplied, and then that what follows is live."""
        self._recalling.append(number)
        self.lag.expect(supply, position)

    def catch_up(self, seq: int, time_ns: int) -> None:
        """Take note that nothing has been missed up to a position."""
        self.lag.end()
        recalling, self._recalling = self._recalling, []
        for number in recalling:
            if number in self._index:
                record = EventRecord(seq, time_ns, events.LIVE, RECOVERED, None)
                self.queue.push(number, End([self._placed(record)]))
        self._count_marks()

    def mark_of(self, number: int) -> Mark | None:
        """Return the mark of a number, None if there is none."""
        return self._index.get(number)

    def mark_over(self, path: bytes, preferred: int, *, below: bool = False) -> int | None:
        """Return the number of the mark by which the group is told of a path of the tree, if there is any.

        That is one that shares with no other, if possible, as what is told here is told once. A mark on the very object
        will not do where it is about what is `below` as well.
        """
        covering = self._covering(path)
        covering = [mark for mark in covering if not mark.shared] or covering
        mark = self._index.get(preferred)
        if mark is not None and (mark in covering or (not below and mark.scope == INODE and _is_at(mark.place, path))):
            return mark.number
        return covering[0].number if covering else None

    def reaches_below(self, path: bytes) -> bool:
        """Whether what is in a directory of the tree is told to the group."""
        return bool(self._covering(path + b"/."))

    def _covering(self, path: bytes) -> list[Mark]:
        return Reach(self._index, Ways(self._tree)).covering(path)

    @property
    def marked(self) -> list[Directory]:
        """The directories that the group sees from which on marks reach what is in them."""
        places = [mark.place or self.base for mark in self._index if mark.scope != INODE]
        return [
            place
            for place in dict.fromkeys(places)
            if isinstance(place, Directory) and not place.gone and self._selector.relative(place.path) is not None
        ]

    def _as_doubtful(self, number: int, record: EventRecord) -> EventRecord:
        """Return what is noted of an event: who has marked the object itself follows it, and knows no other names."""
        mark = self._index.get(number)
        if mark is None or mark.scope != INODE:
            return record
        flags = record.flags & (LOCAL | IS_DIR)
        return EventRecord(record.seq, record.time_ns, events.MODIFY, flags, record.path)

    # --- debts -------------------------------------------------------------------------------------------------------

    def _owe(self, directory: Directory, cause: EventRecord) -> None:
        # Each by itself: before it is paid, what is below may have changed places with something else.
        self._add_debts((Debt(self, below, cause) for below in directory.below()), cause.seq - 1)

    def _add_debts(self, debts: Iterable[Debt], position: int) -> None:
        self._owed_from = min(self._owed_from, position) if self._owed else position
        before = len(self._debts)
        self._debts.extend(debts)
        self._count_owed(len(self._debts) - before)

    def _count_owed(self, more: int) -> None:
        was_owed = self._owed > 0
        self._owed += more
        if was_owed != (self._owed > 0):
            self.on_marks()  # it may follow the common log again, or no more

    def recount(self, number: int, path: bytes | None, seq: int, time_ns: int) -> None:
        """Owe the group everything that is in a mark's reach, or what of it is below a path, if that is still there.

        What is no directory has nothing below it.

        Raises:
            UsageError: there is no such mark.
        """
        mark = self._index.get(number)
        if mark is None:
            raise UsageError(f"this group has no mark {number}")
        top = self._tree.root if mark.place is None else mark.place
        if not isinstance(top, Directory) or mark.scope == INODE:
            return
        start = self._tree.find(path, self.base) if path is not None else None
        if start is None or not start.is_below(top):
            start = top
        cause = EventRecord(seq, time_ns, events.CREATE, 0, start.path)
        asked = start.below() if mark.reaches_below else (start,)
        new = [one for one in asked if one not in self._recounted]  # however often it is asked for, it is owed once
        self._recounted.update(new)
        self._add_debts((Debt(self, directory, cause) for directory in new), seq)
        self.on_debts()

    def defer(self, debt: Debt, count: int) -> bool:
        """Put a debt off if there is no room for so many events, or others are missed; return whether it is.

        What a queue could never hold is told as far as it goes. What follows waits too: a directory comes before what
        is in it.
        """
        has_room = len(self.queue) + count <= self.queue.limit or not len(self.queue)
        if has_room and self.lag.doubt is None and not self._deferred:
            return False
        self._deferred.append(debt)
        return True

    def write_off(self, debt: Debt) -> None:
        """Take note that a debt is not owed any more."""
        self._recounted.discard(debt.directory)
        self._count_owed(-1)

    def note_room(self) -> None:
        """Take note that something has been read; debts that were put off are paid once that is half of the queue."""
        self._count_marks()
        if self._deferred and self.lag.doubt is None and len(self.queue) * 2 <= self.queue.limit:
            self._debts.extend(self._deferred)
            self._deferred.clear()
            self.on_debts()

    def pay(self, debt: Debt, entries: Iterable[tuple[bytes, bool]]) -> None:
        """Queue a create for every entry of a directory that has come into reach, as far as the marks want to know."""
        cause, prefix = debt.cause, debt.directory.prefix
        flags = cause.flags & LOCAL | RECOVERED
        records = [
            EventRecord(
                cause.seq, cause.time_ns, events.CREATE, flags | (IS_DIR if is_dir else 0), prefix + name, None,
                cause.pid, cause.uid,
            )
            for name, is_dir in entries
        ]  # fmt: skip
        if records:
            if self.wants_handles:
                records = list(map(named, records, self.identifier.identify(records)))
            self._publish_selected(records, Ways(self._tree), (NOTHING,) * len(records))
        self.write_off(debt)


def _is_at(place: Place | None, path: bytes) -> bool:
    """Whether a marked object has a path."""
    if isinstance(place, Directory):
        return not place.gone and place.path == path
    return place is not None and any(directory.prefix + name == path for directory, name in place.names)
