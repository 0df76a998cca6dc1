"""What a replayer is told to do, and what it says of how it gets on: orders, and memory shared with the daemon.

Both ends use it, so it imports nearly nothing.
"""

import mmap
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

MAKE: Final = 1
REMOVE: Final = 2
RENAME: Final = 3
EXCHANGE: Final = 4
MODIFY: Final = 5
ATTRIB: Final = 6
CLOSE_WRITE: Final = 7

MOST_ORDERS: Final = 64  # at a time
LENGTH: Final = struct.Struct("=I")  # of a message, which begins with it
# What to do, file type, number; twice: nodeid of a directory (0: outside of the tree), generation, length of the name.
_ORDER: Final = struct.Struct("=BIQQIIQII")
_NUMBER: Final = struct.Struct("=Q")
_LOOK_AGAIN: Final = _NUMBER.size  # where numbers and errors are in the memory of `Progress`
_ERRORS: Final = 2 * _NUMBER.size
_ERROR: Final = struct.Struct("=i")
UNKNOWN: Final = -1


class Name(NamedTuple):
    """A name in a directory of the mount.

    Attributes:
        nodeid, generation: of the directory; nodeid 0 is outside of the tree.
        path: from the root: the way to the directory, and the name.
    """

    nodeid: int
    generation: int
    path: bytes

    @property
    def name(self) -> bytes:
        """The name alone."""
        return self.path.rpartition(b"/")[2]

    @property
    def way(self) -> list[bytes]:
        """The names from the root to the directory."""
        return self.path.split(b"/")[:-1]


class Order(NamedTuple):
    """One thing to do.

    Attributes:
        what: MAKE, REMOVE, …
        file_type: of what is made or removed, one of the S_IF* of stat(2).
        number: the plan's.
        name: what it is done with.
        new: of a rename the new name.
    """

    what: int
    file_type: int
    number: int
    name: Name
    new: Name

    @property
    def takes_attributes(self) -> bool:
        """Whether the kernel takes other attributes of a file by it."""
        return self.what in (MODIFY, ATTRIB, CLOSE_WRITE) and self.file_type == stat.S_IFREG


def message(orders: Sequence[Order]) -> bytes:
    """Return orders as they are sent."""
    data = b"".join(map(_packed, orders))
    return LENGTH.pack(len(data)) + data


def _packed(order: Order) -> bytes:
    name, new = order.name, order.new
    ends = (name.nodeid, name.generation, len(name.path), new.nodeid, new.generation, len(new.path))
    return _ORDER.pack(order.what, order.file_type, order.number, *ends) + name.path + new.path


def unpacked(data: bytes) -> Iterator[Order]:
    """Yield the orders of a message, which comes without its length."""
    at = 0
    while at < len(data):
        what, file_type, number, nodeid, generation, length, new_nodeid, new_generation, new_length = (
            _ORDER.unpack_from(data, at)
        )
        at += _ORDER.size
        middle, end = at + length, at + length + new_length
        name = Name(nodeid, generation, data[at:middle])
        yield Order(what, file_type, number, name, Name(new_nodeid, new_generation, data[middle:end]))
        at = end


class Progress:
    """Memory shared with the daemon: which plan is being carried out, and how those before it went."""

    def __init__(self, fd: int) -> None:
        self._memory = mmap.mmap(fd, _ERRORS + MOST_ORDERS * _ERROR.size)

    @staticmethod
    def new_fd() -> int:
        """Return a descriptor of such memory."""
        fd = os.memfd_create("fusenotify-replays")
        os.ftruncate(fd, _ERRORS + MOST_ORDERS * _ERROR.size)
        return fd

    def executing(self) -> int:
        """Return the number of the plan that is being carried out, 0 for none."""
        (number,) = _NUMBER.unpack_from(self._memory)
        return int(number)

    def begin(self, number: int) -> None:
        """Say which plan is being carried out from now on."""
        _NUMBER.pack_into(self._memory, 0, number)

    def look_again(self, number: int) -> None:
        """Say, as the daemon, of which plan the file is to be looked at again before anything else is answered."""
        _NUMBER.pack_into(self._memory, _LOOK_AGAIN, number)

    def is_to_look(self) -> bool:
        """Whether that has not been taken note of."""
        return _NUMBER.unpack_from(self._memory, _LOOK_AGAIN) != (0,)

    def to_look_at(self) -> int:
        """Take note of that: return the number, 0 for none."""
        (number,) = _NUMBER.unpack_from(self._memory, _LOOK_AGAIN)
        self.look_again(0)
        return int(number)

    def end(self, index: int, error: int) -> None:
        """Say how an order of the message went: 0, or an errno."""
        _ERROR.pack_into(self._memory, _ERRORS + index * _ERROR.size, error)

    def error(self, index: int) -> int:
        """Return how an order of the message went: 0, or an errno, or below 0 when it has not ended."""
        (error,) = _ERROR.unpack_from(self._memory, _ERRORS + index * _ERROR.size)
        return int(error)

    def ended(self, orders: int) -> int:
        """Return how many of the orders of the message have ended."""
        return sum(self.error(index) != UNKNOWN for index in range(orders))

    def clear(self) -> None:
        """Prepare for a new message."""
        self._memory[:] = _NUMBER.pack(0) * 2 + _ERROR.pack(UNKNOWN) * MOST_ORDERS

    def close(self) -> None:
        """Unmap it."""
        self._memory.close()
