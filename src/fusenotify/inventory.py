"""Compares the tree with the rows of the journal, directory by directory, and writes down what differs.

It runs in the journal's thread, between the events, so that a row never changes between a look at the tree and the
comparison with it. Events that are still to come may have changed the tree already: what a listing shows is then told
again, or what is at a path is another directory than the row's. It is looked at again when they are through.
"""

import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from typing import Final, NamedTuple

from fusenotify import _linux
from fusenotify.backing import Backing
from fusenotify.entries import Entries
from fusenotify.filesystems import Filesystems
from fusenotify.rows import DIRECTORY, IS_PRESENT, ROOT_ID, UNSEEN, Look, is_as, look_of, signed, unseen

_DIRECTORIES_AT_ONCE: Final = 256
_ENTRIES_AT_ONCE: Final = 4096  # looked at between two transactions, and a directory more
_SLICE: Final = 0.05  # seconds, likewise
_MOST_TRIES: Final = 20
_ID: Final = 1  # of `Known`
_KIND: Final = 2

# When it began, nanoseconds since 1970; what there was, None for a mountpoint that does not answer.
Listing = tuple[int, dict[bytes, os.stat_result | None]]


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
        silent: directories that have been left out, as their filesystems do not answer.
    """

    def __init__(self, backing: Backing, entries: Entries, filesystems: Filesystems) -> None:
        self._backing = backing
        self._entries = entries
        self._filesystems = filesystems
        self._todo: deque[Directory] = deque()
        self._again: list[Directory] = []
        self.silent: list[Directory] = []
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
        self.silent = []
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

    def resume(self, position: int) -> bool:
        """Take up what was left out where filesystems answer again, at a position; return whether there is any."""
        answering: list[Directory] = []
        silent: list[Directory] = []
        for directory in self.silent:
            try:
                self._filesystems.expect_answer(directory.path)
                answering.append(directory._replace(position=position))
            except TimeoutError:
                silent.append(directory)
        self._todo.extend(answering)
        self.silent = silent
        return bool(answering)

    @property
    def waits(self) -> bool:
        """Whether nothing can be compared before more events come."""
        return bool(self._again) and not self._todo

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
                found = self._list(directory)
            except TimeoutError:
                self.silent.append(directory)
                continue
            except OSError:
                found = None
            if found is None:
                self._again.append(directory)
            else:
                seen.append(found)
                count += len(found[1][1]) + 1
        self.compared += count
        return seen

    def _list(self, directory: Directory) -> tuple[Directory, Listing] | None:
        """Return a directory as it was found and what is in it, None if what is at its path is something else."""
        self._filesystems.expect_answer(directory.path)
        fd = self._backing.open_beneath(directory.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
        try:
            status = os.fstat(fd)
            inode = signed(status.st_ino)
            if directory.inode not in (None, inode):
                return None
            if status.st_dev not in self._devices:
                # What was found is durable before anybody is promised that it was: also what was made behind our back.
                _linux.syncfs(fd)
                self._devices.add(status.st_dev)
            return directory._replace(inode=inode), self._listed(fd, directory.path)
        finally:
            os.close(fd)

    def _listed(self, fd: int, path: bytes) -> Listing:
        began = time.time_ns()
        prefix = b"" if path == b"." else path + b"/"
        doors = self._filesystems.doors
        listing: dict[bytes, os.stat_result | None] = {}
        with os.scandir(fd) as entries:
            for entry in entries:
                name = entry.name.encode(errors="surrogateescape")
                if name in doors and not self._filesystems.answers_at(prefix + name):
                    listing[name] = None
                    continue
                try:  # noqa: SIM105 - contextlib.suppress costs as much as the call itself
                    listing[name] = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    pass
        return began, listing

    # --- comparing ---------------------------------------------------------------------------------------------------

    def differences(self, seen: list[tuple[Directory, Listing]]) -> list[Difference]:
        """Return what is not as it was; only rows are read."""
        found: list[Difference] = []
        for directory, (began, listing) in seen:
            rows = self._entries.known_in(directory.id)
            has_doubts = bool(self._doubtful)
            is_doubtful = has_doubts and directory.inode in self._doubtful
            for name, status in listing.items():
                known = rows.get(name)
                if status is None:
                    if known is None or known[_KIND] != DIRECTORY:
                        found.append((directory, name, unseen(is_dir=True)))
                    elif self._goes_down:
                        self._push(directory, name, known[_ID], UNSEEN)
                    continue
                # What has several names may have been changed by one in another directory.
                is_in_doubt = is_doubtful or (has_doubts and status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode))
                if known is None or is_in_doubt or not is_as(known, status):
                    found.append((directory, name, look_of(status, began)))
                elif self._goes_down and known[_KIND] == DIRECTORY:
                    self._push(directory, name, known[_ID], look_of(status, began))
            for name, known in rows.items():
                if name not in listing and (known[_KIND] & IS_PRESENT or is_doubtful):
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

    def recent(self, differences: list[Difference], since: int) -> set[int]:
        """Return the directories, by inode number, in which something differs that may have changed since a time.

        Args:
            differences: what differs.
            since: the time, in nanoseconds since 1970.
        """
        return {
            directory.inode
            for directory, _, look in differences
            if directory.inode is not None and (look is None or look.ctime == 0 or look.ctime >= since)
        }

    def _push(self, directory: Directory, name: bytes, number: int, look: Look) -> None:
        path = name if directory.path == b"." else directory.path + b"/" + name
        self._todo.append(Directory(number, directory.position, look.inode or None, path, directory.moves, 0))
