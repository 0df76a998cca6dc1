"""How many descriptors there are for what programs on the mount have open, and who has them."""

import errno
import os
import resource
from collections import Counter
from typing import Final

# For the daemon's own work: looking names up, watching directories, clients, what is kept between operations.
_RESERVED_DESCRIPTORS: Final = 256
_FEWEST: Final = 64


class Room:
    """Counts the open files and directories of each user: each of them is a descriptor."""

    def __init__(self) -> None:
        self._opened_by: Counter[int] = Counter()
        self._most_open = max(resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _RESERVED_DESCRIPTORS, _FEWEST)

    def check(self, uid: int) -> None:
        """Leave descriptors for the daemon itself, which hears and serves others with them, and for other users.

        Raises:
            OSError: ENFILE, when a user has half of what there is, or all together have all of it.
        """
        is_full = self._opened_by.total() >= self._most_open
        if is_full or (uid != 0 and self._opened_by[uid] * 2 >= self._most_open):
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))

    def take(self, uid: int) -> None:
        """Take note that a user has opened something."""
        self._opened_by[uid] += 1

    def give_back(self, uid: int) -> None:
        """Take note that it has been closed."""
        self._opened_by[uid] -= 1
        if not self._opened_by[uid]:
            del self._opened_by[uid]
