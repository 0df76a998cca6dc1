"""What is to be replayed on the mount, in order: plans, and the names that they are about.

A plan is made from one told event and is carried out once. Until then a local operation on one of its names may
overtake it; then it is void, as the kernel has heard of something newer.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from fusenotify import events
from fusenotify.dentries import Entry
from fusenotify.echoes import LocalOperation
from fusenotify.events import EXCHANGE, IS_DIR, OTHER_IS_DIR
from fusenotify.inodes import Node

MOST_PENDING: Final = 1 << 16
REPLAYED: Final = (
    events.CREATE | events.DELETE | events.MODIFY | events.ATTRIB | events.CLOSE_WRITE | events.RENAME
)  # the kinds that can be
_MERGED: Final = events.MODIFY | events.ATTRIB


class Place(NamedTuple):
    """A name in a directory that the kernel holds.

    Attributes:
        directory, name: both.
        way: the path of the directory at its place in the stream, empty for the root.
    """

    directory: Node
    name: bytes
    way: bytes = b""

    @property
    def entry(self) -> Entry:
        """The same as `Dentries` has it."""
        return self.directory.key, self.name


class Plan:
    """One event that is to be raised on the mount.

    Attributes:
        number: its place in the order.
        kind: one bit of `Kind`.
        flags: IS_DIR, EXCHANGE, OTHER_IS_DIR.
        old: the place that it is about; of a rename the old one, None where that is outside of the tree.
        new: of a rename the new place, None where that is outside of the tree, and for all other kinds.
        file_type: what a `create` makes, one of the S_IF* of stat(2); chosen when its order is made.
        subject: the node that it is about, as soon as that is decided.
        other: the node that a rename replaces, or that goes the other way.
        decided: whether these two have been looked for.
        stamp: when it was told, as long as whether anybody watches is still to be found out; else None.
        void: whether it does not fit any more.
        overtaken_by: local operations on its names that are later than it; they may fail yet.
        made: whether the request that raises the event was answered.
        paved: directories on the way that the kernel had forgotten, and that are kept for it.
    """

    __slots__ = (
        "_is_void",
        "decided",
        "file_type",
        "flags",
        "kind",
        "made",
        "new",
        "number",
        "old",
        "other",
        "overtaken_by",
        "paved",
        "stamp",
        "subject",
    )  # fmt: skip

    def __init__(self, number: int, kind: int, flags: int, old: Place | None, new: Place | None) -> None:
        self.number = number
        self.kind = kind
        self.flags = flags
        self.old = old
        self.new = new
        self.file_type = 0
        self.subject: Node | None = None
        self.other: Node | None = None
        self.decided = False
        self.stamp: int | None = None
        self._is_void = False
        self.overtaken_by: list[LocalOperation] = []
        self.made = False
        self.paved: list[Node] = []

    @property
    def void(self) -> bool:
        """Whether it does not fit any more; an operation that fails expects nothing, and has overtaken nothing."""
        return self._is_void or any(operation.expectations for operation in self.overtaken_by)

    @void.setter
    def void(self, is_void: bool) -> None:
        self._is_void = is_void

    @property
    def places(self) -> Iterator[Place]:
        """The names that it is about."""
        if self.old is not None:
            yield self.old
        if self.new is not None:
            yield self.new

    def takes(self, entry: Entry) -> bool:
        """Whether what a name stood for before stands there no more afterwards."""
        if self.kind == events.RENAME:
            return True
        return self.kind == events.DELETE and self.old is not None and self.old.entry == entry

    @property
    def moves_directory(self) -> bool:
        """Whether a directory has another name afterwards."""
        return self.kind == events.RENAME and bool(self.flags & (IS_DIR | OTHER_IS_DIR))

    @property
    def is_exchange(self) -> bool:
        """Whether it is a rename that swaps two names."""
        return bool(self.flags & EXCHANGE)


class Pending:
    """The plans that have not been carried out."""

    def __init__(self) -> None:
        self._waiting: deque[Plan] = deque()
        self._by_entry: dict[Entry, list[Plan]] = {}
        self._last = 0
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __bool__(self) -> bool:
        """Whether there is one that has not been handed out."""
        return bool(self._waiting)

    def add(self, kind: int, flags: int, old: Place | None, new: Place | None) -> Plan:
        """Append a plan, unless the last one is the same change of the same object, as inotify(7) does it."""
        if kind & _MERGED and self._waiting and (last := self._waiting[-1]).kind == kind and last.old == old:
            return last
        self._last += 1
        plan = Plan(self._last, kind, flags, old, new)
        self._waiting.append(plan)
        self._size += 1
        for place in plan.places:
            place.directory.lookups += 1  # until the plan is forgotten, so that its number is nobody else's
            self._by_entry.setdefault(place.entry, []).append(plan)
        return plan

    def take(self, most: int) -> list[Plan]:
        """Hand out the oldest plans, in order, and none behind one that changes the way to what is below it."""
        taken: list[Plan] = []
        while self._waiting and len(taken) < most:
            taken.append(self._waiting.popleft())
            if taken[-1].moves_directory:
                break
        return taken

    def give_back(self, plans: Sequence[Plan]) -> None:
        """Take plans back that were handed out and not begun."""
        self._waiting.extendleft(reversed(plans))

    def finish(self, plan: Plan) -> None:
        """Forget a plan."""
        self._size -= 1
        for place in plan.places:
            plans = self._by_entry[place.entry]
            plans.remove(plan)
            if not plans:
                del self._by_entry[place.entry]

    def overtake(self, entry: Entry, operation: LocalOperation) -> None:
        """Take note that a local operation makes, removes or renames what has a name, unless it fails."""
        for plan in self._by_entry.get(entry, ()):
            if not plan.void:
                plan.overtaken_by.append(operation)

    def is_taken_later(self, plan: Plan, entry: Entry) -> bool:
        """Whether a later plan takes a name away, so that what is there now may not be what this plan is about."""
        return any(later.number > plan.number and later.takes(entry) for later in self._by_entry.get(entry, ()))
