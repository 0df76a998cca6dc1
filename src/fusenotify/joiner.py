"""Raw inotify bytes to changes: parsing with positions, and the two halves of a rename joined into one.

Pure: no descriptor, no clock. The kernel queues IN_MOVED_TO right after IN_MOVED_FROM, but as two insertions: events of
other processors can fall between them, and a read can end between them. So a half that has no partner yet holds back
what follows it (order is a promise) until the partner comes, too much has piled up, or `flush` says that enough time
has passed.
"""

import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

IN_MODIFY: Final = 0x2
IN_ATTRIB: Final = 0x4
IN_CLOSE_WRITE: Final = 0x8
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
_IN_MOVE: Final = IN_MOVED_FROM | IN_MOVED_TO

_HEADER: Final = struct.Struct("iIII")
# Beyond this many held-back events a lone IN_MOVED_FROM is taken for a move out of the tree.
_PATIENCE: Final = 512

# (position in the stream, watch descriptor, mask, cookie, name)
RawEvent = tuple[int, int, int, int, bytes]


class Move(NamedTuple):
    """A rename. A side outside the watched tree has watch descriptor None.

    Attributes:
        position: of the first half in the stream, bytes.
        end: position right behind the second half.
        is_dir: whether the object is a directory.
    """

    position: int
    end: int
    is_dir: bool
    old_wd: int | None
    old_name: bytes
    new_wd: int | None
    new_name: bytes

    def is_mirror_of(self, other: "Move") -> bool:
        """Whether this move goes exactly the other way: the second half of a RENAME_EXCHANGE looks so."""
        return (self.old_wd, self.old_name) == (other.new_wd, other.new_name) and (self.new_wd, self.new_name) == (
            other.old_wd,
            other.old_name,
        )


Item = RawEvent | Move


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
        append((position + offset, wd, mask, cookie, data[start : start + length].rstrip(b"\0")))
        offset = start + length
    return events


def _end(event: RawEvent) -> int:
    """Return the position right behind an event: names are padded with NULs to a multiple of the header's size."""
    name = event[4]
    return event[0] + 16 + ((len(name) + 16) // 16 * 16 if name else 0)


class Joiner:
    """Joins IN_MOVED_FROM and IN_MOVED_TO by cookie, keeping the order of everything else."""

    def __init__(self) -> None:
        self._held: list[Item] = []
        self._waiting: dict[int, int] = {}  # cookie of a lone first half -> its index in _held

    @property
    def waiting(self) -> bool:
        """Whether a first half waits for its partner."""
        return bool(self._waiting)

    def feed(self, events: Iterable[RawEvent]) -> list[Item]:
        """Take events in stream order and return what can be told now."""
        ready: list[Item] = []
        target = self._held if self._waiting else ready
        for event in events:
            mask = event[2]
            if not mask & _IN_MOVE:
                target.append(event)
            elif mask & IN_MOVED_FROM:
                target = self._held
                self._waiting[event[3]] = len(target)
                target.append(event)
            else:
                self._second_half(event, target)
                if not self._waiting:
                    ready += self._held
                    self._held.clear()
                    target = ready
            if len(self._held) > _PATIENCE:
                ready += self.flush()
                target = ready
        return ready

    def flush(self) -> list[Item]:
        """Give up waiting: every lone first half becomes a move out of the tree."""
        for index in self._waiting.values():
            event = self._held[index]
            assert not isinstance(event, Move)
            self._held[index] = Move(event[0], _end(event), bool(event[2] & IN_ISDIR), event[1], event[4], None, b"")
        self._waiting.clear()
        ready, self._held = self._held, []
        return ready

    def _second_half(self, event: RawEvent, target: list[Item]) -> None:
        is_dir = bool(event[2] & IN_ISDIR)
        index = self._waiting.pop(event[3], None)
        if index is None:
            target.append(Move(event[0], _end(event), is_dir, None, b"", event[1], event[4]))
            return
        first = self._held[index]
        assert not isinstance(first, Move)
        self._held[index] = Move(first[0], _end(event), is_dir, first[1], first[4], event[1], event[4])
