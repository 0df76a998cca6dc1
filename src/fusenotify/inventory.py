"""Compares the tree with the rows of the journal, directory by directory, and writes down what differs.

It runs in the journal's thread, between the events, so that a row never changes between a look at the tree and the
comparison with it. Events that are still to come may have changed the tree already: what a listing shows is then told
again, or what is at a path is another directory than the row's. It is looked at again when they are through.
"""

import contextlib
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from fusenotify import _linux
from fusenotify.backing import Backing
from fusenotify.entries import Entries
from fusenotify.rows import DIRECTORY, IS_PRESENT, ROOT_ID, Look, look_of

_DIRECTORIES_AT_ONCE: Final = 256
_ENTRIES_AT_ONCE: Final = 4096  # looked at between two transactions, and a directory more
_SLICE: Final = 0.05  # seconds, likewise
_MOST_TRIES: Final = 20

Listing = tuple[int, dict[bytes, os.stat_result]]  # when it began, nanoseconds since 1970; what there was


class Directory(NamedTuple):
    """A directory to be compared.

    Attributes:
        id: the number of its row.
        position: where what differs in it counts as changed.
        inode: its inode number, where that is known.
        path: where it was when paths had changed their meaning `moves` times.
        tries: how often something else was there.
    """

    id: int
    position: int
    inode: int | None
    path: bytes
    moves: int
    tries: int


# A directory, a name in it, and what is there.
Difference = tuple[Directory, bytes, Look | None]


class Inventory:
    """What of the tree is still to be compared.

    Attributes:
        compared: how many entries have been looked at.
    """

    def __init__(self, backing: Backing, entries: Entries, is_silent: Callable[[bytes], bool]) -> None:
        self._backing = backing
        self._entries = entries
        self._is_silent = is_silent
        self._todo: deque[Directory] = deque()
        self._again: list[Directory] = []
        self._doubtful: set[int] = set()
        self._goes_down = True
        self._devices: set[int] = set()
        self.compared = 0

    def __bool__(self) -> bool:
        return bool(self._todo or self._again)

    def begin(self, position: int, doubtful: set[int], only: list[int] | None = None) -> None:
        """Compare the whole tree, or some directories (and what is new in them).

        Args:
            position: where what differs counts as changed.
            doubtful: inode numbers of directories whose entries may have changed, also where nothing shows it.
            only: the numbers of the rows of these directories.
        """
        self._doubtful = doubtful
        self._goes_down = only is None
        self._todo.clear()
        self._again.clear()
        for number in [ROOT_ID] if only is None else only:
            self.add(number, position)

    def add(self, number: int, position: int) -> None:
        """Compare one more directory; what differs in it counts as changed at a position."""
        self._todo.append(Directory(number, position, None, b"", -1, 0))

    def look_again(self, *, is_idle: bool) -> None:
        """Take up again what could not be compared: events have come, or none did for a while (`is_idle`).

        Where that happens again and again no events will come: nobody may read that directory.
        """
        for directory in self._again:
            tries = directory.tries + is_idle
            if tries < _MOST_TRIES:
                self._todo.append(directory._replace(tries=tries))
        self._again.clear()

    @property
    def waits(self) -> bool:
        """Whether nothing can be compared before more events come."""
        return bool(self._again) and not self._todo

    def sync(self) -> None:
        """Bring everything that has been compared to its disk, with all that was changed since. Slow.

        Raises:
            OSError: a disk does not take it.
        """
        _linux.syncfs(self._backing.root_fd)

    # --- looking -----------------------------------------------------------------------------------------------------

    def take(self) -> list[Directory]:
        """Return some directories that are to be compared next, where they are by their rows."""
        found: list[Directory] = []
        while self._todo and len(found) < _DIRECTORIES_AT_ONCE:
            directory = self._todo.popleft()
            if directory.moves != self._entries.moves:
                path = self._entries.path_of(directory.id)
                if path is None:
                    continue  # it is gone
                directory = directory._replace(path=path, moves=self._entries.moves)
            found.append(directory)
        return found

    def look(self, directories: list[Directory]) -> list[tuple[Directory, Listing]]:
        """Look at directories; those that take too long come later."""
        seen: list[tuple[Directory, Listing]] = []
        count, end = 0, time.monotonic() + _SLICE
        for index, directory in enumerate(directories):
            if count >= _ENTRIES_AT_ONCE or time.monotonic() > end:
                self._todo.extendleft(reversed(directories[index:]))
                break
            try:
                listing = self._list(directory)
            except OSError:
                listing = None
            if listing is None:
                self._again.append(directory)
            else:
                seen.append((directory, listing))
                count += len(listing[1]) + 1
        self.compared += count
        return seen

    def _list(self, directory: Directory) -> Listing | None:
        """Return what is in a directory, None if what is at its path is something else."""
        if self._is_silent(directory.path):
            return None
        fd = self._backing.open_beneath(directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            if directory.inode is not None and look_of(status, 0).inode != directory.inode:
                return None
            if status.st_dev not in self._devices:
                # What was found is durable before anybody is promised that it was: also what was made behind our back.
                _linux.syncfs(fd)
                self._devices.add(status.st_dev)
            return _listed(fd)
        finally:
            os.close(fd)

    # --- comparing ---------------------------------------------------------------------------------------------------

    def differences(self, seen: list[tuple[Directory, Listing]]) -> list[Difference]:
        """Return what is not as it was; only rows are read."""
        found: list[Difference] = []
        for directory, (began, listing) in seen:
            rows = self._entries.known_in(directory.id)
            has_doubts = bool(self._doubtful)
            is_doubtful = has_doubts and self._inode_of(directory) in self._doubtful
            for name, status in listing.items():
                known = rows.get(name)
                # What has several names may have been changed by one in another directory.
                is_in_doubt = is_doubtful or (has_doubts and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode))
                if known is None or is_in_doubt or not known.is_as(status):
                    found.append((directory, name, look_of(status, began)))
                elif self._goes_down and known.kind == DIRECTORY:
                    self._push(directory, name, known.id, look_of(status, began))
            for name, known in rows.items():
                if name not in listing and (known.kind & IS_PRESENT or is_doubtful):
                    found.append((directory, name, None))
        return found

    def looks(self, differences: list[Difference]) -> Iterator[tuple[bytes, Look]]:
        """Yield the path and the look of everything that differs and is there."""
        for directory, name, look in differences:
            if look is not None:
                yield (name if directory.path == b"." else directory.path + b"/" + name), look

    def write(self, differences: list[Difference]) -> None:
        """Write down, in a transaction, what differs.

        It counts as changed at the position of the comparison, but never earlier than what events have told of it.
        """
        for directory, name, look in differences:
            row = self._entries.find(directory.id, name)
            position = directory.position if row is None else max(directory.position, row.changed)
            if look is None:
                assert row is not None
                self._entries.remove(row, position)
                continue
            if look.links > 1:
                self._entries.note_links(look)
            # What events have told of and nobody has seen yet has no inode number.
            is_same = row is not None and row.kind == IS_PRESENT | look.is_dir and row.inode in (look.inode, 0)
            if row is not None and is_same:
                self._entries.touch(row, look, position)
            else:
                row = self._entries.put(directory.id, name, row, look, position, position)
            if look.is_dir and (self._goes_down or not is_same):
                self._push(directory, name, row.id, look)

    def _push(self, directory: Directory, name: bytes, number: int, look: Look) -> None:
        path = name if directory.path == b"." else directory.path + b"/" + name
        self._todo.append(Directory(number, directory.position, look.inode, path, directory.moves, 0))

    def _inode_of(self, directory: Directory) -> int | None:
        if directory.inode is not None:
            return directory.inode
        status = self._backing.stat_beneath(directory.path)
        return None if status is None else look_of(status, 0).inode


def _listed(fd: int) -> Listing:
    began = time.time_ns()
    listing: dict[bytes, os.stat_result] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):
                listing[entry.name.encode(errors="surrogateescape")] = entry.stat(follow_symlinks=False)
    return began, listing
