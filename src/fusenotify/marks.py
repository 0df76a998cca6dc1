"""Marks: what a group takes an interest in, and which of them reach what is at a path.

Nothing here is linear in the number of marks: they are found by the directories on the way to a path.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from fusenotify import events
from fusenotify.events import LOCAL, EventRecord
from fusenotify.pinned import PinnedFile, PinnedFiles
from fusenotify.protocol import DIR, FILESYSTEM, INODE, LOCAL_ORIGIN, REMOTE_ORIGIN, SUBTREE
from fusenotify.tree import ROOT_PATH, Directory, Tree

_USERS_OF_A_MARK: Final = 64  # so many users that marks name take the memory, and count as much, as another mark
ANY_ORIGIN: Final = LOCAL_ORIGIN | REMOTE_ORIGIN

# What a mark is on. A directory is an object of the tree, a file is known by its descriptor: either is followed.
Place = Directory | PinnedFile


@dataclass(slots=True, eq=False)
class Mark:
    """A group's interest in an object.

    Attributes:
        number: what the client calls it.
        place: the marked object; None for everything.
        scope: how far it reaches: the object itself, its entries, everything below it, everything.
        kinds: bits of `Kind`; overflow and unmount are always among them.
        origins: LOCAL_ORIGIN, REMOTE_ORIGIN or both.
        exclude_pid: a process whose changes are of no interest.
        uids: the users whose changes are of interest; None for everybody's.
        oneshot: whether it ends with the first event.
        handles: whether events carry handles.
        shared: whether what it takes is also for the next mark that wants it.
        order: of two marks that want an event, the one with the lower number gets it.
    """

    number: int
    place: Place | None
    scope: str
    kinds: int
    origins: int
    exclude_pid: int | None
    uids: frozenset[int] | None
    oneshot: bool = False
    handles: bool = False
    shared: bool = False
    order: int = 0

    def wants(self, record: EventRecord) -> bool:
        """Whether kind, origin and maker of an event are asked for."""
        origin = LOCAL_ORIGIN if record.flags & LOCAL else REMOTE_ORIGIN
        return (
            bool(record.kind & self.kinds)
            and bool(origin & self.origins)
            and (self.exclude_pid is None or record.pid != self.exclude_pid)
            and (self.uids is None or record.uid in self.uids)
        )

    @property
    def reaches_below(self) -> bool:
        """Whether what is in a directory that it reaches is reached as well."""
        return self.scope in (SUBTREE, FILESYSTEM)

    @property
    def takes_everything(self) -> bool:
        """Whether there is nothing of the kinds that are always told that this mark would leave out."""
        whole = self.place is None or (isinstance(self.place, Directory) and self.place.is_root)
        return (
            whole
            and self.reaches_below
            and self.kinds & (events.DEFAULT | events.USES) == events.DEFAULT
            and self.origins == ANY_ORIGIN
            and self.exclude_pid is None
            and self.uids is None
            and not self.oneshot
            and not self.handles
        )


class MarkedPlaces:
    """What has marks, of whatever group.

    Attributes:
        files: the marked objects that are no directories.
        handles: how many marks want handles.
        on_mark, on_unmark: called with a mark that is there from now on, and with one that is gone.
    """

    def __init__(self, files: PinnedFiles) -> None:
        self.files = files
        self.on_mark: Callable[[Mark], None] = lambda _: None
        self.on_unmark: Callable[[Mark], None] = lambda _: None
        self.handles = 0
        self._marks: Counter[Place] = Counter()

    def __contains__(self, place: Place) -> bool:
        return place in self._marks

    def take(self, mark: Mark) -> None:
        """Take note of a mark."""
        self.on_mark(mark)
        self.handles += mark.handles
        if mark.place is not None:
            self._marks[mark.place] += 1

    def leave(self, mark: Mark) -> None:
        """Take note that a mark is gone; a file without any is kept no longer."""
        self.on_unmark(mark)
        self.handles -= mark.handles
        place = mark.place
        if place is None:
            return
        self._marks[place] -= 1
        if not self._marks[place]:
            del self._marks[place]
            if isinstance(place, PinnedFile):
                self.files.forget(place)


class MarkIndex:
    """The marks of one group.

    Attributes:
        handles: how many of them want handles.
    """

    def __init__(self, places: MarkedPlaces) -> None:
        self._places = places
        self._marks: dict[int, Mark] = {}
        self._on: dict[Place | None, list[Mark]] = {}  # None: everywhere
        self._added = 0
        self._users = 0  # that are named
        self.handles = 0

    @property
    def weight(self) -> int:
        """How many marks there are, those counted for more that name many users."""
        return len(self._marks) + self._users // _USERS_OF_A_MARK

    def __len__(self) -> int:
        return len(self._marks)

    def __contains__(self, number: int) -> bool:
        return number in self._marks

    def get(self, number: int) -> Mark | None:
        """Return the mark of this number, None if there is none."""
        return self._marks.get(number)

    def __iter__(self) -> Iterator[Mark]:
        """Iterate over all marks."""
        return iter(self._marks.values())

    def put(self, mark: Mark) -> None:
        """Add a mark, or change the one that has this number."""
        self._places.take(mark)
        before = self.pop(mark.number)
        self._added += 1
        mark.order = before.order if before is not None else self._added
        self._marks[mark.number] = mark
        self._users += len(mark.uids or ())
        self.handles += mark.handles
        self._on.setdefault(mark.place, []).append(mark)

    def pop(self, number: int) -> Mark | None:
        """Remove a mark and return it, None if there is none of this number."""
        mark = self._marks.pop(number, None)
        if mark is not None:
            self._users -= len(mark.uids or ())
            self.handles -= mark.handles
            self._on[mark.place].remove(mark)
            if not self._on[mark.place]:
                del self._on[mark.place]
            self._places.leave(mark)
        return mark

    def on(self, place: Place | None) -> list[Mark]:
        """Return the marks that are on an object, in their order; of None, those on everything."""
        marks = self._on.get(place)
        return sorted(marks, key=_order) if marks else []

    def over(self, way: Iterable[Directory], last: Directory | None) -> list[Mark]:
        """Return the marks that reach the entries of `last`, which lies at the end of a way, in their order."""
        on = self._on
        found = [mark for place in (None, *way) if place in on for mark in on[place] if mark.reaches_below]
        if last in on and last is not None:
            found += [mark for mark in on[last] if mark.scope == DIR]
        return in_order(found) if len(found) > 1 else found


class Ways:
    """Which directories lie on the way to a path, while the tree does not change."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self._ways: dict[bytes, tuple[list[Directory], Directory | None]] = {}

    def to_entries_of(self, path: bytes) -> tuple[list[Directory], Directory | None]:
        """Return the directories on the way to what is in the directory at `path`, and that one, None if not known."""
        way = self._ways.get(path)
        if way is None:
            way = self._ways[path] = self.tree.way_to(path)
        return way


class Reach:
    """How far the marks of a group reach, while the tree does not change."""

    def __init__(self, index: MarkIndex, ways: Ways) -> None:
        self._index = index
        self._ways = ways
        self._covering: dict[bytes, list[Mark]] = {}

    def forget(self) -> None:
        """Take note that a mark has gone."""
        self._covering.clear()

    def covering(self, path: bytes | None) -> list[Mark]:
        """Return the marks that reach what is at a path by where that is, in their order."""
        if path is None:
            return []
        above = path.rpartition(b"/")[0] if path != ROOT_PATH else ROOT_PATH
        marks = self._covering.get(above)
        if marks is None:
            way, last = self._ways.to_entries_of(b"" if above == ROOT_PATH else above)
            marks = self._covering[above] = self._index.over(way, last)
        return marks

    def on(self, path: bytes | None, *, is_dir: bool, file: PinnedFile | None) -> list[Mark]:
        """Return the marks that are on the very object at a path, in their order."""
        place: Place | None = file
        if is_dir and path is not None:
            place = self._ways.tree.find(path)
        return self._index.on(place) if place is not None else []


def of_object(marks: Iterable[Mark]) -> list[Mark]:
    """Return those of some marks that are interested in the object itself."""
    return [mark for mark in marks if mark.scope == INODE]


def in_order(marks: Iterable[Mark]) -> list[Mark]:
    """Return marks in the order in which they get events, each once."""
    return sorted(dict.fromkeys(marks), key=_order)


def _order(mark: Mark) -> int:
    return mark.order
