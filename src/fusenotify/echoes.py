"""Which events of the backing tree are echoes of operations made through the mount.

A handler notes where the watcher's stream of bytes stood before and after its system calls. Its echoes lie between the
two, and no other handler's can (handlers do not overlap, see docs/architecture.md), so an event inside the bracket
that is what the operation was expected to raise is `local`; everything else is remote. An expectation that nothing
matched had no echo (the directory is not watched, the event merged into an unread one, or the queue overflowed) and is
published by the operation itself when the stream passes the end of the bracket.

An operation is noted before its system calls, with a bracket that is open until they are over: they may take long, and
the stream goes on meanwhile.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from fusenotify.identity import InodeKey
from fusenotify.joiner import Move

STILL_OPEN: Final = 1 << 62  # the end of a bracket whose system calls are being made


@dataclass(slots=True)
class Name:
    """A directory entry as an operation knew it: the directory, its watch descriptor (None: unwatched), the name."""

    directory: InodeKey
    wd: int | None
    name: bytes

    @property
    def heard(self) -> tuple[int | None, bytes]:
        """What a `Move` says of this end: an unwatched directory is not heard."""
        return (self.wd, self.name) if self.wd is not None else (None, b"")


@dataclass(slots=True)
class Expectation:
    """One event that an operation raises on the backing tree.

    Attributes:
        kind: one bit of `Kind`.
        at: the entry it is raised on; for a rename, the old one.
        to: the new entry of a rename.
        is_dir: whether the object is a directory.
        inode: the object, where only the object is certain and the name is a memory (changes of open files).
        exchange: whether a rename swaps the two.
        other_is_dir: whether the other object of an exchange is a directory.
        optional: whether the event may fail to come without the operation having to tell of it.
        silent: whether it comes of the way the daemon does things and not of what the caller did, so nobody is told.
        most: how many events the operation can raise for this; identical ones may merge into fewer.
        heard: how many events matched so far.
        watch: the watch descriptor of the directory that was made.
    """

    kind: int
    at: Name
    to: Name | None = None
    is_dir: bool = False
    inode: InodeKey | None = None
    exchange: bool = False
    other_is_dir: bool = False
    optional: bool = False
    silent: bool = False
    most: int = 1
    heard: int = 0
    watch: int | None = None

    @property
    def complete(self) -> bool:
        """Whether every event that the operation can raise for this has been matched."""
        return self.heard >= self.most

    def other_than(self, move: Move) -> bool:
        """Whether what goes the other way is a directory, of this exchange's half that `move` tells of."""
        return self.other_is_dir if move.is_dir == self.is_dir else self.is_dir

    def matches_move(self, move: Move) -> bool:
        """Whether this is the rename that `move` tells of, in either direction of an exchange."""
        if self.to is None:
            return False
        old, new = (move.old_wd, move.old_name), (move.new_wd, move.new_name)
        at, to = self.at.heard, self.to.heard
        return (old, new) == (at, to) or (self.exchange and (old, new) == (to, at))


@dataclass(slots=True)
class LocalOperation:
    """One operation through the mount: who made it, where its echoes lie, what they should be."""

    start: int
    end: int
    pid: int | None
    uid: int | None
    expectations: list[Expectation]

    @property
    def places(self) -> Iterator[Name]:
        """Return the entries that it changes."""
        for one in self.expectations:
            yield one.at
            if one.to is not None:
                yield one.to

    def is_silent(self, kind: int) -> bool:
        """Whether an echo of this kind is told to nobody."""
        return any(expectation.silent and expectation.kind == kind for expectation in self.expectations)


class Echoes:
    """The operations whose echoes have not all been passed in the stream yet, oldest first."""

    def __init__(self) -> None:
        self._operations: deque[LocalOperation] = deque()

    def __bool__(self) -> bool:
        return bool(self._operations)

    def __iter__(self) -> Iterator[LocalOperation]:
        return iter(self._operations)

    def add(self, operation: LocalOperation) -> None:
        """Note an operation that begins now; operations come in the order of their brackets."""
        self._operations.append(operation)

    def passed(self, position: int) -> Iterator[tuple[LocalOperation, Expectation]]:
        """Drop the operations whose brackets end at or before `position`; yield what of them was never heard."""
        while self._operations and self._operations[0].end <= position:
            operation = self._operations.popleft()
            for expectation in operation.expectations:
                if not expectation.heard and not expectation.optional:
                    yield operation, expectation

    def under_way(self) -> LocalOperation | None:
        """Return the operation whose system calls are being made; None while there is none, as nearly always."""
        if self._operations and self._operations[-1].end == STILL_OPEN:
            return self._operations[-1]
        return None

    def at(self, position: int) -> LocalOperation | None:
        """Return the operation whose bracket an event at `position` lies in."""
        if self._operations and self._operations[0].start <= position < self._operations[0].end:
            return self._operations[0]
        return None
