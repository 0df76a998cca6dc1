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
        is_noting: tells whether what is selected is noted, to be told later: no mark ends with that.
        is_owed: tells whether there are some that the group has not been told the contents of yet.
    """

    def __init__(self, tree: Tree, base: Directory, index: MarkIndex) -> None:
        self.on_ended: Callable[[Mark], None] = lambda _: None
        self.on_owed: Callable[[Directory, EventRecord], None] = lambda _, __: None
        self.is_noting: Callable[[], bool] = lambda: False
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
            for taker in self._takers(marks, record, reach) if path is not None else ():
                yield taker.number, _as_seen(record, path, None, taker)

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
            takers = self._takers(_with(here, there, of_object(moved), of_object(back)), record, reach)
            for taker in takers:
                yield taker.number, _as_seen(record, path, old_path, taker)
            self._owe_contents(record, reach)
            for taker in takers if is_exchange and self.is_owed() else ():
                (one, _), (other, _) = self._halves_of(record, sighting, here_is_old=True)
                yield taker.number, _as_seen(_introduced(one), path, None, taker)
                yield taker.number, _as_seen(_introduced(other), old_path, None, taker)
        if is_exchange and back:
            (one, _), (other, _) = self._halves_of(record, sighting, here_is_old=True)
            yield from self._select_self_moves(moved, one, reach)
            yield from self._select_self_moves(back, other, reach)
        else:
            yield from self._select_self_moves(moved, record, reach)

    def _select_self_moves(self, moved: list[Mark], rename: EventRecord, reach: Reach) -> Iterator[Selected]:
        """Tell the marks that are on what moved, and ask for that."""
        if not moved:
            return
        told = _copy(rename, events.MOVE_SELF, rename.flags & (LOCAL | IS_DIR))
        path, old_path = self.relative(rename.path), self.relative(rename.old_path)
        for mark in moved:
            if mark.number in self._index and self._takers([mark], told, reach):
                yield mark.number, _as_seen(told, path, old_path, mark)

    def _takers(self, marks: list[Mark], record: EventRecord, reach: Reach) -> list[Mark]:
        """Return the first mark that wants an event, and if it shares that, those up to the first that does not.

        One that is for one event only ends with it.
        """
        takers: list[Mark] = []
        for mark in marks:
            if mark.wants(record):
                takers.append(mark)
                if mark.oneshot and not self.is_noting():
                    self._index.pop(mark.number)
                    reach.forget()
                    self.on_ended(mark)
                if not mark.shared:
                    break
        return takers

    # --- over the border ---------------------------------------------------------------------------------------------

    def _halves_of(
        self, record: EventRecord, sighting: Sighting, *, here_is_old: bool
    ) -> tuple[tuple[EventRecord, PinnedFile | None], tuple[EventRecord, PinnedFile | None]]:
        """Return what an exchange is to those who see one side: one thing goes out, another comes in."""
        there = _copy(record, record.kind, record.flags & (LOCAL | IS_DIR))
        back = _copy(record, record.kind, record.flags & LOCAL | (IS_DIR if record.flags & OTHER_IS_DIR else 0))
        back.path, back.old_path = record.old_path, record.path
        back.handle, back.parent, back.old_parent = sighting.other_handle, record.old_parent, record.parent
        one, other = (there, sighting.file), (back, sighting.other)
        return (one, other) if here_is_old else (other, one)

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


def _as_seen(record: EventRecord, path: bytes | None, old_path: bytes | None, mark: Mark) -> EventRecord:
    """Return an event with the names that a group may see, and with handles if the mark asks for them."""
    if path == record.path and old_path == record.old_path and (mark.handles or record.handle is record.parent is None):
        return record
    seen = _copy(record, record.kind, record.flags)
    seen.path, seen.old_path = path, old_path
    if path is None or not mark.handles:
        seen.parent = None
    if old_path is None or not mark.handles:
        seen.old_parent = None
    if not mark.handles:
        seen.handle = None
    return seen


def _introduced(half: EventRecord) -> EventRecord:
    """Return what tells of one side of an exchange to who may not have heard of the name yet."""
    told = _copy(half, events.CREATE, half.flags | RECOVERED)
    told.old_path = told.old_parent = None
    return told


def _copy(record: EventRecord, kind: int, flags: int) -> EventRecord:
    return EventRecord(
        record.seq, record.time_ns, kind, flags, record.path, record.old_path, record.pid, record.uid, record.reason,
        record.handle, record.parent, record.old_parent,
    )  # fmt: skip
