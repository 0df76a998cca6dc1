"""Where a write to a file opened with O_APPEND belongs: behind the end, or where the kernel says.

The kernel turns an append into a write at what *it* takes for the end, which is too early when the file has grown
behind the mount: so the backing file is opened with O_APPEND as well. Not every write by such a descriptor is an
append, however: pages of a shared mapping are written by any writable descriptor, and F_SETFL takes O_APPEND back, of
which nobody tells us. Both write at other offsets than the end as the kernel knows it, and that is the size it was told
last, or the end of what it has written since.
"""

from collections import deque
from typing import Final

_PAGE: Final = 4096
_REMEMBERED: Final = 16  # ends: a write may have been under way while another was told, as it had changed behind


class Ends:
    """What the kernel takes, or took, for the end of one file.

    Attributes:
        openers: how many descriptors with O_APPEND it is remembered for.
    """

    __slots__ = ("_told", "openers")

    def __init__(self, size: int) -> None:
        self.openers = 0
        self._told = deque([size], _REMEMBERED)

    def told(self, size: int) -> None:
        """Note that the kernel is told a size."""
        if self._told[-1] != size:
            self._told.append(size)

    def wrote(self, end: int) -> None:
        """Note that the kernel has written bytes up to `end`."""
        if self._told[-1] < end:
            self.set(end)

    def set(self, size: int) -> None:
        """Note that the kernel has set the size itself: it locks the file, so no write with another is under way."""
        self._told.clear()
        self._told.append(size)

    def is_append(self, offset: int, length: int, size: int) -> bool:
        """Whether a write is an append; `size` is the file's now."""
        if offset in (size, self._told[-1]):
            return True
        end = offset + length
        is_of_pages = offset % _PAGE == 0 and (end % _PAGE == 0 or end in self._told)
        return offset in self._told and not is_of_pages
