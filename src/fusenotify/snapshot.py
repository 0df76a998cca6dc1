"""What listeners have been told of the tree: the names in each directory, and which inode each one stands for.

Whatever is told passes through here, so a comparison of this with the tree finds exactly what is still to be told,
however much has been lost. There are as many entries as the tree has: a directory that nothing happens in takes its
names, one byte more for each, and eight for each inode number.
"""

from array import array
from collections import deque
from typing import Final

from fusenotify.tree import Directory

UNKNOWN: Final = 0  # the inode number of what has been heard of and not been looked at
_MOST_UNPACKED: Final = 256  # directories
_MOST_UNSEEN: Final = 1 << 16  # names
_64_BITS: Final = (1 << 64) - 1


def numbered(inode: int, *, is_dir: bool) -> int:
    """Return what the snapshot keeps of an object: its inode number, and whether it is a directory."""
    return (inode << 1 | is_dir) & _64_BITS


class _Names:
    """The names in one directory: a dictionary while they change, else packed."""

    __slots__ = ("_names", "_numbers", "unpacked")

    def __init__(self) -> None:
        self.unpacked: dict[bytes, int] | None = {}
        self._names = b""
        self._numbers: array[int] = array("Q")

    def unpack(self) -> dict[bytes, int]:
        if self.unpacked is None:
            self.unpacked = dict(zip(self._names.split(b"\0"), self._numbers, strict=True)) if self._numbers else {}
            self._names, self._numbers = b"", array("Q")
        return self.unpacked

    def pack(self) -> None:
        if self.unpacked is not None:
            self._names, self._numbers = b"\0".join(self.unpacked), array("Q", self.unpacked.values())
            self.unpacked = None


class Snapshot:
    """The names that listeners know.

    Attributes:
        unseen: names that were told of and have not been looked at: which inode they stand for is not known.
    """

    def __init__(self) -> None:
        self.unseen: deque[tuple[Directory, bytes]] = deque(maxlen=_MOST_UNSEEN)
        self._names: dict[Directory, _Names] = {}
        self._unpacked: dict[Directory, None] = {}  # the last used at the end

    def known(self, directory: Directory) -> dict[bytes, int]:
        """Return name to `numbered` object of what is known to be in a directory; not to be changed."""
        self._unpacked.pop(directory, None)
        names = self._names.get(directory)
        if names is None:
            names = self._names[directory] = _Names()
        self._unpacked[directory] = None
        if len(self._unpacked) > _MOST_UNPACKED:
            self._pack_oldest()
        return names.unpack()

    def put(self, directory: Directory, name: bytes, number: int) -> None:
        """Take note that a name stands for a `numbered` object."""
        self.known(directory)[name] = number
        if number >> 1 == UNKNOWN and not number & 1:  # which directory it is the tree knows
            self.unseen.append((directory, name))

    def fill(self, directory: Directory, numbers: dict[bytes, int]) -> None:
        """Take note of what a listing shows: names, and the `numbered` object of each."""
        self.known(directory).update(numbers)

    def take(self, directory: Directory, name: bytes) -> int | None:
        """Take note that a name has gone and return what it stood for, None if it was not known."""
        return self.known(directory).pop(name, None)

    def forget(self, gone: list[Directory]) -> None:
        """Drop directories that have left the tree."""
        for directory in gone:
            self._names.pop(directory, None)
            self._unpacked.pop(directory, None)

    def _pack_oldest(self) -> None:
        oldest = next(iter(self._unpacked))
        del self._unpacked[oldest]
        if (names := self._names.get(oldest)) is not None:
            names.pack()
