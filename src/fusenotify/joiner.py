"""Raw events of a watcher to changes: parsing with positions, and the two halves of a rename joined into one.

Pure: no descriptor, no clock. The kernel queues IN_MOVED_TO right after IN_MOVED_FROM, but as two insertions: events of
other processors can fall between them, and a read can end between them. So a half that has no partner yet holds back
what follows it (order is a promise) until the partner comes, too much has piled up, or `flush` says that enough time
has passed.
"""

import struct
from collections import deque
from collections.abc import Iterable
from typing import Final, NamedTuple

IN_ACCESS: Final = 0x1
IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
IN_CLOSE_NOWRITE: Final = 0x10
IN_OPEN: Final = 0x20
IN_MOVED_FROM: Final = 0x40
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE: Final = 0x200
IN_DELETE_SELF: Final = 0x400
IN_MOVE_SELF: Final = 0x800
IN_UNMOUNT: Final = 0x2000
IN_Q_OVERFLOW: Final = 0x4000
IN_IGNORED: Final = 0x8000
IN_ISDIR: Final = 0x40000000
FOUND: Final = 0x01000000  # not the kernel's: what a name stands for was found by looking, after it had been in doubt
ALONE: Final = 0  # the cookie of half a rename whose other half is outside the tree for sure
ITSELF: Final = b"."  # the name in events of a directory that only the directory itself tells of
_IN_MOVE: Final = IN_MOVED_FROM | IN_MOVED_TO

_HEADER: Final = struct.Struct("iIII")
# Beyond this many held-back events a lone IN_MOVED_FROM is taken for a move out of the tree.
_PATIENCE: Final = 512


class Author(NamedTuple):
    """Who made a change, from a watcher that knows; None where nothing is known of the process any more.

    Attributes:
        pid: process id (thread group).
        uid: its user id.
        is_us: whether it is this very process, whose changes are those of programs on the mount.
    """

    pid: int | None
    uid: int | None
    is_us: bool = False


# (position in the stream, watch descriptor, mask, cookie, name, who; None where the watcher does not tell)
RawEvent = tuple[int, int, int, int, bytes, Author | None]


class Move(NamedTuple):
    """A rename. A side outside the watched tree has watch descriptor None.

    Attributes:
        position: of the first half in the stream, bytes.
        end: a position behind the second half, and before whatever follows.
        is_dir: whether the object is a directory.
        by: who made it; None where the watcher does not tell.
    """

    position: int
    end: int
    is_dir: bool
    old_wd: int | None
    old_name: bytes
    new_wd: int | None
    new_name: bytes
    by: Author | None = None

    def is_mirror_of(self, other: "Move") -> bool:
        """Whether this move goes exactly the other way: the second half of a RENAME_EXCHANGE looks so."""
        return (
            self.old_wd is not None
            and self.new_wd is not None
            and (self.old_wd, self.old_name) == (other.new_wd, other.new_name)
            and (self.new_wd, self.new_name) == (other.old_wd, other.old_name)
        )


Item = RawEvent | Move


def author_of(item: Item) -> Author | None:
    """Return who made a change, None where the watcher does not tell."""
    return item.by if isinstance(item, Move) else item[5]


def is_of_others(by: Author | None) -> bool:
    """Whether a change is known to be another process's, so that it is no echo of ours."""
    return by is not None and not by.is_us


def parse(data: bytes, position: int) -> list[RawEvent]:
    """Split the bytes of an inotify read into events.

    inotify_simple's parser gives no positions and decodes every name; both would be paid for twice here.
    """
    events: list[RawEvent] = []
    append = events.append
    unpack = _HEADER.unpack_from
    offset, end = 0, len(data)
    while offset < end:
        wd, mask, cookie, length = unpack(data, offset)
        start = offset + 16
        append((position + offset, wd, mask, cookie, data[start : start + length].rstrip(b"\0"), None))
        offset = start + length
    return events


class Joiner:
    """Joins IN_MOVED_FROM and IN_MOVED_TO by cookie, keeping the order of everything else."""

    def __init__(self) -> None:
        self._held: list[Item] = []  # begins with a lone first half, unless it is empty
        self._waiting: dict[int, int] = {}  # cookie of a lone first half -> its number in the stream of items
        self._first = 0  # the number of what _held begins with
        self._last_moves: deque[Move] = deque(maxlen=3)

    @property
    def waiting(self) -> bool:
        """Whether a first half waits for its partner."""
        return bool(self._waiting)

    def held_from(self) -> list[int]:
        """Return the position of the oldest event that is held back, if any is."""
        return [self._held[0][0]] if self._held else []

    def feed(self, events: Iterable[RawEvent]) -> list[Item]:
        """Take events in stream order and return what can be told now."""
        ready: list[Item] = []
        for event in events:
            mask = event[2]
            if not mask & _IN_MOVE:
                (self._held if self._waiting else ready).append(event)
            elif mask & IN_MOVED_FROM and event[3] == ALONE:
                (self._held if self._waiting else ready).append(_out(event))
            elif mask & IN_MOVED_FROM:
                self._waiting[event[3]] = self._first + len(self._held)
                self._held.append(event)
            else:
                self._second_half(event, ready)
            if len(self._held) > _PATIENCE:
                self._give_up_oldest(ready)
        return [self._doubted(item) for item in ready]

    def flush(self, before: int | None = None) -> list[Item]:
        """Give up waiting: every lone first half (that stands before a position) becomes a move out of the tree."""
        ready: list[Item] = []
        while self._waiting and (before is None or self._held[0][0] < before):
            self._give_up_oldest(ready)
        return [self._doubted(item) for item in ready]

    def _doubted(self, item: Item) -> Item:
        """Return an item that is told next; in place of the second half of an exchange whose first is lost, that loss.

        Of an exchange with a place outside the kernel tells that something came to a name and something left it. If the
        name is exchanged again, with one in the tree, the next event is equal to the last one but for its cookie, which
        does not keep the kernel from merging them while they are unread. So what came there seems to come from outside.
        """
        if isinstance(item, Move):
            last = tuple(self._last_moves)
            self._last_moves.append(item)
            if len(last) == 3 and _has_lost_half(*last, item):
                return item.position, -1, IN_Q_OVERFLOW, 0, b"", None
        return item

    def _second_half(self, event: RawEvent, ready: list[Item]) -> None:
        is_dir = bool(event[2] & IN_ISDIR)
        number = self._waiting.pop(event[3], None)
        if number is None:
            into = Move(event[0], event[0] + 1, is_dir, None, b"", event[1], event[4], event[5])
            (self._held if self._waiting else ready).append(into)
            return
        first = self._held[number - self._first]
        assert not isinstance(first, Move)
        self._held[number - self._first] = Move(
            first[0], event[0] + 1, is_dir, first[1], first[4], event[1], event[4], event[5]
        )
        self._release(ready)

    def _give_up_oldest(self, ready: list[Item]) -> None:
        """Take the first half that has waited longest for a move out of the tree; later ones may still be joined."""
        del self._waiting[next(iter(self._waiting))]
        first = self._held[0]
        assert not isinstance(first, Move)
        self._held[0] = _out(first)
        self._release(ready)

    def _release(self, ready: list[Item]) -> None:
        """Let go of what stands before the oldest lone first half."""
        count = next(iter(self._waiting.values()), self._first + len(self._held)) - self._first
        ready += self._held[:count]
        del self._held[:count]
        self._first += count


def _has_lost_half(came: Move, left: Move, came_there: Move, back: Move) -> bool:
    """Whether four renames may be an exchange with a place outside and one with a place in the tree."""
    name, other = (left.old_wd, left.old_name), (back.old_wd, back.old_name)
    return (
        came.old_wd is left.new_wd is came_there.old_wd is None
        and (came.new_wd, came.new_name) == name == (back.new_wd, back.new_name)
        and (came_there.new_wd, came_there.new_name) == other
        and left.is_dir == came_there.is_dir
    )


def _out(first: RawEvent) -> Move:
    """Return the move out of the tree that a first half without a second one is."""
    return Move(first[0], first[0] + 1, bool(first[2] & IN_ISDIR), first[1], first[4], None, b"", first[5])
