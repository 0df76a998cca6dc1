"""Reading a directory of the backing tree, at the offsets that its own filesystem gives.

A listing may go on for long, be taken up again at an offset it was told (`telldir`), and the directory may change
meanwhile. What stays must be neither skipped nor doubled. Filesystems see to that with offsets that mean a place and
not a count (see `d_off` in getdents64(2)); so these are what the kernel is told, and no copy of the names is kept.
"""

import os
from collections import deque
from collections.abc import Iterator

from fusenotify import _linux


class _Piece:
    """What one system call returned: the entries, and where in them an offset leads to."""

    def __init__(self, start: int, entries: list[_linux.DirectoryEntry]) -> None:
        self.entries = entries
        self.end = entries[-1].end if entries else start
        self._behind = {start: 0} | {entry.end: index for index, entry in enumerate(entries, 1)}

    def index_of(self, offset: int) -> int | None:
        """Return the index of the entry behind an offset, None if the offset or what is behind it is not in here."""
        index = self._behind.get(offset)
        return index if index is not None and index < len(self.entries) else None


class Listing:
    """The entries of an open directory. Two pieces of 32 KiB are kept: the kernel asks for the last few again."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pieces: deque[_Piece] = deque(maxlen=2)
        self._place = 0  # where the next piece begins

    def entries(self, offset: int) -> Iterator[_linux.DirectoryEntry]:
        """Yield the entries behind an offset: 0, which looks at the directory anew, or where an entry ended.

        Raises:
            OSError: as from getdents64(2) and lseek(2).
        """
        if offset == 0:
            self._go_to(0)
        while True:
            for piece in self._pieces:
                index = piece.index_of(offset)
                if index is not None:
                    yield from piece.entries[index:]
                    offset = piece.end
                    break
            else:
                if offset != self._place:
                    self._go_to(offset)
                entries = _linux.getdents64(self._fd)
                if not entries:
                    return
                self._pieces.append(_Piece(offset, entries))
                self._place = entries[-1].end

    def _go_to(self, offset: int) -> None:
        os.lseek(self._fd, offset, os.SEEK_SET)
        self._pieces.clear()
        self._place = offset
