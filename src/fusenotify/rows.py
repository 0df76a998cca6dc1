"""What the journal keeps of an entry of the tree: a row, and what a look at the entry has to tell of it."""

import os
import stat
from typing import Final, NamedTuple

ROOT_ID: Final = 1
IS_DIRECTORY: Final = 1
IS_PRESENT: Final = 2
DIRECTORY: Final = IS_PRESENT | IS_DIRECTORY
FOUND_GONE: Final = 0  # `links` of what is gone, as a comparison has found
# What changed so shortly before a look may change again without another time of change: ticks of up to 10 ms, twice.
RACY: Final = 20_000_000  # nanoseconds
_HALF: Final = 1 << 63


class Look(NamedTuple):
    """What a look at an object showed: what tells it from another one, or from itself before a change.

    Attributes:
        inode, size, mtime, ctime: of stat(2), times in nanoseconds; a `ctime` of 0 equals no other one.
        links: how many names it has, or may have; 1 for directories.
        is_dir: whether it is a directory.
    """

    inode: int
    size: int
    mtime: int
    ctime: int
    links: int
    is_dir: bool


UNSEEN: Final = Look(0, 0, 0, 0, 1, False)


def unseen(*, is_dir: bool) -> Look:
    """Return what is known of what is there and could not be seen: a file may have several names."""
    return UNSEEN._replace(links=1 if is_dir else 2, is_dir=is_dir)


def look_of(status: os.stat_result, began: int) -> Look:
    """Return what attributes tell that were looked at after `began`, in nanoseconds since 1970."""
    is_dir = stat.S_ISDIR(status.st_mode)
    ctime = status.st_ctime_ns
    return Look(
        signed(status.st_ino),
        0 if is_dir else status.st_size,
        0 if is_dir else signed(status.st_mtime_ns),
        signed(ctime) if ctime < began - RACY else 0,
        1 if is_dir else status.st_nlink,
        is_dir,
    )


def signed(number: int) -> int:
    """Return what SQLite can keep of a number of 64 bits; of what it keeps, the same."""
    return number if -_HALF <= number < _HALF else (number + _HALF) % (2 * _HALF) - _HALF


class Row(NamedTuple):
    """One row.

    Attributes:
        id, parent, name: its number, that of the directory it is in, and its name there.
        kind: IS_PRESENT, IS_DIRECTORY; of what is gone, what it was.
        inode, size, mtime, ctime, links: see `Look`.
        changed: the position of its last change.
        born: the position at which the object came to this name.
        gone: the position at which a directory of this name went, 0 if none did.
    """

    id: int
    parent: int
    name: bytes
    kind: int
    inode: int
    size: int
    mtime: int
    ctime: int
    links: int
    changed: int
    born: int
    gone: int

    def is_as(self, look: Look) -> bool:
        """Whether a look shows the object as it was."""
        return (
            self.ctime == look.ctime != 0
            and self.inode == look.inode
            and (self.size, self.mtime) == (look.size, look.mtime)
            and self.kind == IS_PRESENT | look.is_dir
        )


# As much of a row as a comparison needs (see `Row`): name, id, kind, inode, size, mtime and ctime, as they are read. To
# make something else of each takes longer than to compare it.
Known = tuple[bytes, int, int, int, int, int, int]


def is_as(known: Known, status: os.stat_result) -> bool:
    """Whether an object is as it was: the time of change of one that was looked at too early equals no other."""
    _, _, kind, inode, size, mtime, ctime = known
    if ctime == 0 or ctime != signed(status.st_ctime_ns) or inode != signed(status.st_ino):
        return False
    if kind == DIRECTORY:
        return stat.S_ISDIR(status.st_mode)
    is_file = kind == IS_PRESENT and not stat.S_ISDIR(status.st_mode)
    return is_file and size == status.st_size and mtime == signed(status.st_mtime_ns)
