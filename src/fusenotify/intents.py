"""In which directories something may change: written down durably before it does (a write-intent log).

After a crash or a power failure everything in these directories counts as changed, whatever it looks like. One may go
when all that has changed in it is told, in the rows and on its own disk. So a run of the daemon has *turns*, in each of
which a directory is written down before its first change. When everything that changed before a turn is safe, what was
written down before that turn goes, but for directories in which a change was under way then (`Journal.tend`).

Changes are made on the thread of the event loop, and written down by any thread.
"""

import contextlib
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from fusenotify.database import Database
from fusenotify.rows import signed

MOST: Final = 1 << 14  # directories in one turn, more or less; the next one costs a commit for each that is used again


class Written(NamedTuple):
    """Directories of which a transaction says that something may change in them, and in which turn."""

    turn: int
    directories: set[int]


class Intents:
    """The directories of one run, by inode number, and those that earlier runs have left in doubt.

    Attributes:
        earlier: directories in which something may have changed in a run that did not end well.
    """

    def __init__(self, database: Database, start: int) -> None:
        """Read what earlier runs have left; `start` is the first position of this one."""
        self._database = database
        self._start = self._turn = start  # turns are numbered by positions, so they are later than those of other runs
        self._lock = threading.Lock()
        self._recorded: set[int] = set()
        self._covered: set[int] = set()  # new ones in recorded ones
        self._ageing: set[int] = set()  # recorded or covered in turns from before, which are not over
        self._under_way: Counter[int] = Counter()
        with database.reading() as connection:
            self.earlier = _all(connection)

    # --- the mount's side --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def under_way(self, numbers: Iterable[int]) -> Iterator[set[int]]:
        """Make a change in directories in the block; yield which of them have to be recorded before.

        Inode numbers are the kernel's; from here on, and in what is yielded, they are as SQLite keeps them.
        """
        directories = set(map(signed, numbers))
        for one in directories:
            self._under_way[one] += 1
        try:
            yield directories - self._recorded - self._covered
        finally:
            for one in directories:
                self._under_way[one] -= 1
                if not self._under_way[one]:
                    del self._under_way[one]

    def record(self, directories: set[int]) -> None:
        """Write down durably that something may change in directories. Slow: for a thread.

        Raises:
            sqlite3.Error: that is not possible.
        """
        with self._database.transaction() as connection:
            written = self.touch(connection, directories)
        self.confirm(written)

    def cover(self, number: int, above: int) -> None:
        """Take a directory that has been made in a recorded one for recorded: who compares that one finds it."""
        with self._lock:
            if signed(above) in self._recorded or signed(above) in self._covered:
                self._covered.add(signed(number))

    # --- the journal's side ------------------------------------------------------------------------------------------

    def touch(self, connection: sqlite3.Connection, directories: set[int]) -> Written:
        """Write down, in a transaction, that something may change in directories, or has; `confirm` it afterwards."""
        written = Written(self._turn, directories - self._recorded)
        _put(connection, written)
        return written

    def confirm(self, written: Written) -> None:
        """Take note that a transaction is on the disk."""
        with self._lock:
            if written.turn == self._turn:
                self._recorded |= written.directories
                self._covered -= written.directories
            else:
                self._ageing |= written.directories

    def in_doubt(self, connection: sqlite3.Connection) -> set[int]:
        """Return all directories in which something may have changed, or may be about to."""
        with self._lock:
            return _all(connection) | self._recorded | self._covered | self._ageing

    def forget_earlier(self, connection: sqlite3.Connection) -> None:
        """Write down, in a transaction, that earlier runs have left nothing in doubt."""
        connection.execute("DELETE FROM touched WHERE epoch < ?", (self._start,))

    def forget_all(self, connection: sqlite3.Connection) -> None:
        """Write down, in a transaction, that nothing is in doubt."""
        connection.execute("DELETE FROM touched")

    # --- turns -------------------------------------------------------------------------------------------------------

    @property
    def are_many(self) -> bool:
        """Whether it is time for another turn."""
        return len(self._recorded) + len(self._covered) > MOST

    def turn(self) -> Written:
        """Begin another turn; return what is not to go with the one before, as changes are under way."""
        with self._lock:
            self._turn += 1
            self._ageing |= self._recorded | self._covered
            self._recorded.intersection_update(self._under_way)
            self._covered.intersection_update(self._under_way)
            return Written(self._turn, set(self._under_way))

    def end_earlier_turns(self, kept: Written) -> None:
        """Write down that nothing is in doubt any more that changed before the turn of `kept`. Slow: for a thread.

        Raises:
            sqlite3.Error: that is not possible.
        """
        with self._database.transaction() as connection:
            _put(connection, kept)
            connection.execute("DELETE FROM touched WHERE epoch < ?", (kept.turn,))
        with self._lock:
            self._ageing.clear()


def _put(connection: sqlite3.Connection, written: Written) -> None:
    rows = [(number, written.turn) for number in written.directories]
    connection.executemany("INSERT OR REPLACE INTO touched VALUES (?, ?)", rows)


def _all(connection: sqlite3.Connection) -> set[int]:
    return {number for (number,) in connection.execute("SELECT inode FROM touched")}
