"""Makes plans of what is told: which remote changes are to be replayed on the mount, and in which directories.

Paths have a meaning only at the moment in which they are told, so they are resolved at once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from fusenotify import events
from fusenotify.dentries import Entry
from fusenotify.echoes import LocalOperation
from fusenotify.events import EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, EventRecord
from fusenotify.inodes import InodeTable, Node
from fusenotify.plans import MOST_PENDING, REPLAYED, Pending, Place, Plan
from fusenotify.status import Replays
from fusenotify.tree import ROOT_PATH, Directory, Tree

_OF_NAMES = events.CREATE | events.DELETE | events.RENAME
_LEAVING = events.DELETE | events.RENAME
_KEPT = IS_DIR | EXCHANGE | OTHER_IS_DIR


class Onlookers(Protocol):
    """Who watches the mount natively (see `onlookers`)."""

    def wanted(self, nodeids: Iterable[int], stamp: int) -> bool | None:
        """Return whether anybody watches one of these nodes, None where only a look that is still to come will tell.

        `stamp` is that of when the change was told.
        """

    async def settled(self, stamp: int) -> None:
        """Return when `wanted` can tell of every node what held at this stamp."""


class Planner:
    """Follows what is told, and what is done through the mount.

    Attributes:
        is_on: whether plans are carried out at all.
        on_plan: called when there is something to replay.
    """

    def __init__(
        self,
        table: InodeTable,
        tree: Tree,
        pending: Pending,
        onlookers: Onlookers,
        position: Callable[[], int],
        counts: Replays,
    ) -> None:
        """`position` returns where the stream is told to; plans that there is no room for are counted in `counts`."""
        self._table = table
        self._tree = tree
        self._pending = pending
        self._onlookers = onlookers
        self._position = position
        self._counts = counts
        self.is_on = True
        self.on_plan: Callable[[], None] = lambda: None
        # Local operations on names that have not been told: whatever is told before them is older than they are.
        self._untold: deque[tuple[Entry, LocalOperation]] = deque()
        # Of those on one name the last that did not fail, and the one under way or after that, which may fail.
        self._last_on: dict[Entry, list[LocalOperation]] = {}

    def note(self, operation: LocalOperation) -> None:
        """Take note of an operation through the mount that begins now."""
        self._drop_told()
        for expectation in operation.expectations:
            if expectation.kind & _OF_NAMES:
                for name in (expectation.at, expectation.to):
                    if name is not None:
                        entry = (name.directory, name.name)
                        self._untold.append((entry, operation))
                        done = [one for one in self._last_on.get(entry, ()) if one.expectations]
                        self._last_on[entry] = [*done[-1:], operation]
                        self._pending.overtake(entry, operation)

    def follow(self, records: Sequence[EventRecord], stamp: int) -> None:
        """Make plans of what is told; `stamp` is that of the onlookers when it was."""
        self._drop_told()
        overtaken = _overtaken(records) if any(record.flags & LOCAL for record in records) else None
        directories: dict[bytes, Directory | None] = {}
        for index, record in enumerate(records):
            if record.kind & REPLAYED and not record.flags & LOCAL:
                is_overtaken = overtaken is not None and index in overtaken
                for flags, old, new in self._moves(record, *self._places(record, directories)):
                    self._plan(record.kind, flags, old, new, stamp, is_overtaken=is_overtaken)
        if self._pending:
            self.on_plan()

    def ignore(self, records: Iterable[EventRecord]) -> None:
        """Take note of what was told while nobody watched anything: only of names that the kernel knows."""
        if not self._table.entries:
            return
        directories: dict[bytes, Directory | None] = {}
        for record in records:
            if not record.kind & _LEAVING or record.flags & LOCAL:
                continue
            if self._is_known(record.path, directories) or self._is_known(record.old_path, directories):
                self._skip(record.kind, record.flags, *self._places(record, directories))

    def _moves(
        self, record: EventRecord, old: Place | None, new: Place | None
    ) -> Iterator[tuple[int, Place | None, Place | None]]:
        """Yield (flags, old place, new place) of what a record comes to where the kernel holds directories."""
        flags = record.flags & _KEPT
        if flags & EXCHANGE and (old is None or new is None):
            # Seen from one of the two directories it is one thing that goes, and another one that comes.
            here, one, other = old or new, flags & IS_DIR, IS_DIR if flags & OTHER_IS_DIR else 0
            if here is not None:
                yield one if old is not None else other, here, None
                yield other if old is not None else one, None, here
        elif old is not None or new is not None:
            yield flags, old, new

    async def find_unwanted(self, plans: Sequence[Plan]) -> list[Plan]:
        """Return those plans that nobody would hear of; what they tell is taken note of."""
        stamps = [plan.stamp for plan in plans if plan.stamp is not None]
        if not stamps:
            return []
        await self._onlookers.settled(max(stamps))
        unwanted = [plan for plan in plans if plan.stamp is not None and not self._is_wanted(plan, plan.stamp)]
        for plan in unwanted:
            self._skip(plan.kind, plan.flags, plan.old, plan.new)
        return unwanted

    def _is_wanted(self, plan: Plan, stamp: int) -> bool | None:
        return self._onlookers.wanted(self._nodes_of(plan.old, plan.new), stamp)

    def _plan(
        self, kind: int, flags: int, old: Place | None, new: Place | None, stamp: int, *, is_overtaken: bool
    ) -> None:
        wanted = self.is_on and self._onlookers.wanted(self._nodes_of(old, new), stamp)
        if wanted is False or len(self._pending) >= MOST_PENDING:
            self._counts.fell_back += wanted is not False
            self._skip(kind, flags, old, new)
            return
        plan = self._pending.add(kind, flags, old, new)
        plan.stamp = stamp if wanted is None else None
        plan.void = is_overtaken
        plan.overtaken_by = [one for place in plan.places for one in self._last_on.get(place.entry, ())]

    def _nodes_of(self, *places: Place | None) -> list[int]:
        """Return the nodeids that a watch can be on for which a change in these places is an event."""
        nodeids = []
        for place in places:
            if place is not None:
                nodeids.append(place.directory.nodeid)
                nodeids += [node.nodeid for node in self._table.entries.at(*place.entry)]
        return nodeids

    def _skip(self, kind: int, flags: int, old: Place | None, new: Place | None) -> None:
        """Take note of a change that nobody watches: the name is not what the kernel was told any more."""
        entries = self._table.entries
        if kind == events.DELETE and old is not None:
            for node in entries.at(*old.entry)[:1]:
                entries.take(node, *old.entry)
        elif kind == events.RENAME and not flags & EXCHANGE:
            if new is not None:
                for node in entries.at(*new.entry)[:1]:
                    entries.take(node, *new.entry)
            if old is not None:
                for node in entries.at(*old.entry)[:1]:
                    entries.take(node, *old.entry)
                    if new is not None:
                        entries.put(node, *new.entry)

    # --- places ------------------------------------------------------------------------------------------------------

    def _places(
        self, record: EventRecord, directories: dict[bytes, Directory | None]
    ) -> tuple[Place | None, Place | None]:
        """Return the old and the new place of what a record tells, as far as the kernel holds their directories."""
        if record.kind != events.RENAME:
            return self._place(record.path, directories), None
        return self._place(record.old_path, directories), self._place(record.path, directories)

    def _is_known(self, path: bytes | None, directories: dict[bytes, Directory | None]) -> bool:
        """Whether the kernel knows a name: the least that can be asked of each event while nobody watches."""
        if path is None:
            return False
        directory, _, name = self._split(path, directories)
        return directory is not None and (directory.key, name) in self._table.entries

    def _place(self, path: bytes | None, directories: dict[bytes, Directory | None]) -> Place | None:
        if path is None:
            return None
        directory, way, name = self._split(path, directories)
        node = self._node_of(directory) if directory is not None else None
        return Place(node, b"" if path == ROOT_PATH else name, way) if node is not None else None

    def _split(self, path: bytes, directories: dict[bytes, Directory | None]) -> tuple[Directory | None, bytes, bytes]:
        """Return the directory of a path, its path and the name; `directories` are those found already."""
        way, _, name = path.rpartition(b"/")
        if way not in directories:
            directories[way] = self._tree.find(way)
        return directories[way], way, name

    def _node_of(self, directory: Directory) -> Node | None:
        """Return the node of a directory, None while the kernel holds none."""
        nodes = self._table.directories(directory.key)
        if len(nodes) < 2:
            return nodes[0] if nodes else None
        # The number was used again: it is the one that has this name.
        named = [node for node in nodes if any(name == directory.name for _, name in node.entries)]
        return (named or nodes)[-1]

    # --- local operations --------------------------------------------------------------------------------------------

    def _drop_told(self) -> None:
        """Forget the local operations that the stream has passed."""
        position = self._position()
        while self._untold and (self._untold[0][1].end <= position or not self._untold[0][1].expectations):
            entry, operation = self._untold.popleft()
            later = [one for one in self._last_on.get(entry, ()) if one is not operation]
            if later:
                self._last_on[entry] = later
            else:
                self._last_on.pop(entry, None)


def _overtaken(records: Sequence[EventRecord]) -> set[int]:
    """Return which records of a batch are of a name that a local operation behind them is about."""
    names: set[bytes] = set()
    found: set[int] = set()
    for index in range(len(records) - 1, -1, -1):
        record = records[index]
        paths = {path for path in (record.path, record.old_path) if path is not None}
        if not record.flags & LOCAL:
            if paths & names:
                found.add(index)
        elif record.kind & _OF_NAMES:
            names |= paths
    return found
