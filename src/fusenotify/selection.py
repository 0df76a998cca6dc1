"""Which of a group's marks get an event, and what of it they are told: names outside all marks never are."""

from collections.abc import Callable, Iterator

from fusenotify import events
from fusenotify.events import ALWAYS, EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, RECOVERED, RENAME, EventRecord
from fusenotify.marks import Mark, MarkIndex, Reach, in_order, of_object
from fusenotify.pinned import PinnedFile, Sighting
from fusenotify.tree import ROOT_PATH, Directory, Tree

# (number of the mark, or 0 for the group as a whole; the event as the group may see it)
Selected = tuple[int, EventRecord]


class Selector:
    """Selects for one group.

    Attributes:
        on_ended: called when a mark that was for one event only has got it.
        on_owed: called with directories that have come to where what is in them is told, and the rename that did it.
        is_owed: tells whether there are some that the group has not been told the contents of yet.
    """

    def __init__(self, tree: Tree, base: Directory, index: MarkIndex) -> None:
        self.on_ended: Callable[[Mark], None] = lambda _: None
        self.on_owed: Callable[[Directory, EventRecord], None] = lambda _, __: None
        self.is_owed: Callable[[], bool] = lambda: False
        self._tree = tree
        self._base = base
        self._index = index

    def select(self, record: EventRecord, sighting: Sighting, reach: Reach) -> Iterator[Selected]:
        """Yield (mark, event as this group may see it) of one event, and what follows from it for this group alone."""
        if record.kind & ALWAYS:
            yield 0, record
        elif record.kind == RENAME:
            yield from self._select_rename(record, sighting, reach)
        else:
            marks = reach.covering(record.path)
            if record.kind != events.CREATE:
                is_dir = bool(record.flags & IS_DIR)
                marks = _with(marks, of_object(reach.on(record.path, is_dir=is_dir, file=sighting.file)))
            path = self.relative(record.path) if marks else None
            taker = self._taker(marks, record, reach) if path is not None else None
            if taker is not None:
                yield taker, _as_seen(record, path, None)

    def _select_rename(self, record: EventRecord, sighting: Sighting, reach: Reach) -> Iterator[Selected]:
        """Select as above; a name is told if a mark reaches it, or is on the object that has or had it."""
        here, there = reach.covering(record.path), reach.covering(record.old_path)
        moved = reach.on(record.old_path, is_dir=bool(record.flags & IS_DIR), file=sighting.file)
        back: list[Mark] = []
        is_marked = bool(of_object(moved))
        is_exchange = bool(record.flags & EXCHANGE)
        if is_exchange:
            back = reach.on(record.path, is_dir=bool(record.flags & OTHER_IS_DIR), file=sighting.other)
            is_marked = is_marked and bool(of_object(back))
        path = self.relative(record.path) if here or is_marked else None
        old_path = self.relative(record.old_path) if there or is_marked else None
        if is_exchange and None in (path, old_path):
            if here or there or moved or back:
                for rename, file in self._halves_of(record, sighting, here_is_old=path is None):
                    yield from self._select_rename(rename, Sighting(file), reach)
            return
        if path is not None or old_path is not None:
            taker = self._taker(_with(here, there, of_object(moved), of_object(back)), record, reach)
            seen = _as_seen(record, path, old_path)
            if taker is not None:
                yield taker, seen
            self._owe_contents(record, reach)
            if is_exchange and taker is not None and self.is_owed():
                yield from ((taker, both) for both in _introduced(seen))
        yield from self._select_self_moves(moved, record, record.old_path, record.path, reach)
        yield from self._select_self_moves(back, record, record.path, record.old_path, reach)

    def _select_self_moves(
        self, moved: list[Mark], cause: EventRecord, old: bytes | None, new: bytes | None, reach: Reach
    ) -> Iterator[Selected]:
        """Tell the marks that are on what moved, and ask for that."""
        if not moved:
            return
        is_dir = IS_DIR if isinstance(moved[0].place, Directory) else 0
        flags, path, old_path = cause.flags & LOCAL | is_dir, self.relative(new), self.relative(old)
        told = EventRecord(cause.seq, cause.time_ns, events.MOVE_SELF, flags, path, old_path, cause.pid, cause.uid)
        for mark in moved:
            if mark.number in self._index and self._taker([mark], told, reach) is not None:
                yield mark.number, told

    def _taker(self, marks: list[Mark], record: EventRecord, reach: Reach) -> int | None:
        """Return the number of the first mark that wants an event; one that is for one event only ends with it."""
        for mark in marks:
            if mark.wants(record):
                if mark.oneshot:
                    self._index.pop(mark.number)
                    reach.forget()
                    self.on_ended(mark)
                return mark.number
        return None

    # --- over the border ---------------------------------------------------------------------------------------------

    def _halves_of(
        self, record: EventRecord, sighting: Sighting, *, here_is_old: bool
    ) -> tuple[tuple[EventRecord, PinnedFile | None], ...]:
        """Return what an exchange is to those who see one side: one thing goes out, another comes in."""
        one_is_dir = record.flags & IS_DIR
        other_is_dir = IS_DIR if record.flags & OTHER_IS_DIR else 0
        one = (record.old_path, record.path, one_is_dir, sighting.file)
        other = (record.path, record.old_path, other_is_dir, sighting.other)
        return tuple(
            (
                EventRecord(
                    record.seq, record.time_ns, record.kind, record.flags & LOCAL | is_dir, new, old, record.pid,
                    record.uid,
                ),
                file,
            )
            for old, new, is_dir, file in ((one, other) if here_is_old else (other, one))
        )  # fmt: skip

    def _owe_contents(self, record: EventRecord, reach: Reach) -> None:
        """Tell of directories that have come to where what is in them is told, from where it was not."""
        ways = [(record.old_path, record.path, record.flags & IS_DIR)]
        if record.flags & EXCHANGE:
            ways.append((record.path, record.old_path, record.flags & OTHER_IS_DIR))
        for old, new, is_dir in ways:
            if is_dir and old is not None and self._is_told_below(new, reach) and not self._is_told_below(old, reach):
                directory = self._tree.find(old)  # the tree is still the one before
                if directory is not None:
                    self.on_owed(directory, record)

    def _is_told_below(self, path: bytes | None, reach: Reach) -> bool:
        """Whether the group is told of what is in a directory at a path."""
        return self.relative(path) is not None and any(mark.reaches_below for mark in reach.covering(path))

    def relative(self, path: bytes | None) -> bytes | None:
        """Return a path as the group tells it: None outside its base."""
        if path is None or self._base.gone:
            return None
        if self._base.is_root:
            return path
        if path == self._base.path:
            return ROOT_PATH
        prefix = self._base.prefix
        return path[len(prefix) :] if path.startswith(prefix) else None


def _with(marks: list[Mark], *more: list[Mark]) -> list[Mark]:
    """Return all of some marks, in their order."""
    return in_order([*marks, *(mark for others in more for mark in others)]) if any(more) else marks


def _as_seen(record: EventRecord, path: bytes | None, old_path: bytes | None) -> EventRecord:
    if path == record.path and old_path == record.old_path:
        return record
    return EventRecord(record.seq, record.time_ns, record.kind, record.flags, path, old_path, record.pid, record.uid)


def _introduced(exchange: EventRecord) -> tuple[EventRecord, EventRecord]:
    """Return what tells of both sides of an exchange to who may not have heard of the names yet."""
    flags = exchange.flags & LOCAL | RECOVERED
    other_is_dir = IS_DIR if exchange.flags & OTHER_IS_DIR else 0
    one, other = (
        EventRecord(
            exchange.seq, exchange.time_ns, events.CREATE, flags | is_dir, name, None, exchange.pid, exchange.uid
        )
        for name, is_dir in ((exchange.path, exchange.flags & IS_DIR), (exchange.old_path, other_is_dir))
    )
    return one, other
