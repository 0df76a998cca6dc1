"""The watcher's events in order, and a look at those that have not been told yet.

A directory that has come into the tree is opened by its path, which may be another one's by then: what happened to the
name since is in the stream, further down. So whoever opens a path asks here whether a name on the way is to leave.

The kernel tells a watched directory's own moves apart from its name's (IN_MOVE_SELF, right behind the two halves of the
rename): they are evidence of which directory it was, and go no further.
"""

import bisect
from collections import deque
from collections.abc import Iterator
from typing import Final, Protocol

from fusenotify.joiner import (
    IN_DELETE,
    IN_ISDIR,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    Item,
    Move,
    RawEvent,
)

# What is moved to a name may take it from another directory, an empty one, of which nothing else is told.
_LEAVING: Final = IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
_DELETED_DIRECTORY: Final = IN_DELETE | IN_ISDIR


class Source(Protocol):
    """Where the events come from: a watcher.

    Attributes:
        root_wd: the watch descriptor of the root, None before it is watched.
    """

    root_wd: int | None

    def drain(self) -> int:
        """Read what the kernel holds and return the position behind it."""

    def take(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that were read and a position behind them, None when there are none."""


class _Positions:
    """Places in the stream where something happens, in order. Storms make many of them: nothing here is linear."""

    __slots__ = ("_gone", "_positions")

    def __init__(self) -> None:
        self._positions: list[int] = []
        self._gone = 0  # so many at the beginning have been told

    def __bool__(self) -> bool:
        return self._gone < len(self._positions)

    def append(self, position: int) -> None:
        self._positions.append(position)

    def drop_first(self) -> None:
        self._gone += 1
        if self._gone * 2 > len(self._positions):
            del self._positions[: self._gone]
            self._gone = 0

    def next_from(self, position: int) -> int | None:
        index = bisect.bisect_left(self._positions, position, self._gone)
        return self._positions[index] if index < len(self._positions) else None


class Stream:
    """Takes what the watcher has read, and knows what is about to leave its name."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parsed_to = 0
        self._parsed: deque[tuple[int, list[RawEvent]]] = deque()
        self._leaving: dict[tuple[int, bytes], _Positions] = {}
        self._last_left: dict[tuple[int, bytes], int] = {}  # where anything leaves a name for the last time
        self._left_at: deque[tuple[int, tuple[int, bytes]]] = deque()  # (position, (wd, name)) of each time
        self._self_moves: dict[int, _Positions] = {}  # by wd
        self._moved: deque[tuple[int, int]] = deque()  # (position, wd) of all of them

    def next(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that have not been returned and the position behind them."""
        if not self._parsed:
            self._parse_one()
        return self._parsed.popleft() if self._parsed else None

    @property
    def has_more(self) -> bool:
        """Whether there are events that have not been returned."""
        return bool(self._parsed) or self._parse_one()

    @property
    def has_unread(self) -> bool:
        """Whether there is more, in what was read or with the kernel."""
        self._source.drain()
        return self.has_more

    def is_leaving(self, wd: int, name: bytes) -> bool:
        """Whether a directory is to leave a name (be deleted or renamed) in what was read and has not been told."""
        return (wd, name) in self._leaving

    def passes(self, item: Item) -> None:
        """Take note of the directories that leave a name by what is told next."""
        if isinstance(item, Move):
            for wd, name in (item.old_wd, item.old_name), (item.new_wd, item.new_name):
                if item.is_dir and wd is not None:
                    self.left(wd, name)
        elif item[2] & _DELETED_DIRECTORY == _DELETED_DIRECTORY:
            self.left(item[1], item[4])

    def left(self, wd: int, name: bytes) -> None:
        """Take note that a directory has left a name: this has been told."""
        positions = self._leaving[wd, name]
        positions.drop_first()
        if not positions:
            del self._leaving[wd, name]

    def leaves(self, wd: int, name: bytes, after: int) -> bool:
        """Whether anything leaves a name in what was read, from a position on that has not been told yet."""
        return self._last_left.get((wd, name), -1) >= after

    def has_moved(self, wd: int, after: int, place: tuple[int, bytes] | None = None) -> bool:
        """Whether a watched directory moves behind a position, at a `place` (wd, name) before anything leaves that."""
        self.look_ahead()
        moves = self._self_moves.get(wd)
        moved = moves.next_from(after) if moves is not None else None
        if moved is None or place is None or place not in self._leaving:
            return moved is not None
        left = self._leaving[place].next_from(after)
        return left is None or moved < left

    def told(self, position: int) -> None:
        """Take note that everything before a position has been told."""
        while self._moved and self._moved[0][0] < position:
            _, wd = self._moved.popleft()
            self._self_moves[wd].drop_first()
            if not self._self_moves[wd]:
                del self._self_moves[wd]
        while self._left_at and self._left_at[0][0] < position:
            left, place = self._left_at.popleft()
            if self._last_left[place] == left:
                del self._last_left[place]

    def pending(self) -> Iterator[RawEvent]:
        """Yield what has been parsed and not been returned."""
        for _, events in self._parsed:
            yield from events

    def skip(self) -> Iterator[tuple[int, list[RawEvent]]]:
        """Yield whatever has happened by now, as `next` does: none of it is to be told."""
        now = self._source.drain()
        end = 0
        while end < now and (chunk := self.next()) is not None:
            end = chunk[0]
            yield chunk
        self._leaving.clear()
        self._last_left.clear()
        self._left_at.clear()
        self._self_moves.clear()
        self._moved.clear()

    def look_ahead(self) -> None:
        """Read whatever has happened by now."""
        now = self._source.drain()
        while self._parsed_to < now and self._parse_one():
            self._source.drain()  # parsing may take longer than the kernel's queue lasts

    def _parse_one(self) -> bool:
        chunk = self._source.take()
        if chunk is None:
            return False
        self._parsed_to, events = chunk
        has_self_moves = False
        for position, wd, mask, _, name, _ in events:
            if mask & _LEAVING:
                place = wd, name
                self._last_left[place] = position
                self._left_at.append((position, place))
                if mask & IN_ISDIR:
                    self._leaving.setdefault(place, _Positions()).append(position)
            elif mask & IN_MOVE_SELF and wd != self._source.root_wd:
                self._self_moves.setdefault(wd, _Positions()).append(position)
                self._moved.append((position, wd))
                has_self_moves = True
        if has_self_moves:
            events = [one for one in events if not one[2] & IN_MOVE_SELF or one[1] == self._source.root_wd]
        self._parsed.append((self._parsed_to, events))
        return True
