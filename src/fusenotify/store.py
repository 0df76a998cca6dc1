"""What the kernel's nodes were, so that handles of the mount can be opened after a restart.

One thread writes them into the database, in groups of a tenth of a second; nobody waits for it.
"""

import contextlib
import functools
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

from fusenotify.database import Database, set_about
from fusenotify.identity import Identity, unpack_identity

log = logging.getLogger(__name__)

_GATHER: Final = 0.1  # seconds; so old may be what a killed daemon has not written
_RETRY: Final = 5.0  # seconds until what could not be written is tried again
_MOST_UNWRITTEN: Final = 1 << 16  # rows that wait for a disk that takes none; beyond it the oldest are given up
_CHUNK: Final = 512  # rows looked at between two writes
_FEW: Final = 10_000  # rows that are not worth looking for dead ones
_PUT: Final = """
INSERT INTO node VALUES (?, ?, ?, ?, ?) ON CONFLICT (nodeid) DO UPDATE SET
    generation = excluded.generation, identity = excluded.identity, parent = excluded.parent, name = excluded.name
WHERE identity <> excluded.identity OR parent <> excluded.parent OR name <> excluded.name
    OR generation <> excluded.generation
"""
_DELETE: Final = "DELETE FROM node WHERE nodeid = ? AND identity = ?"
_COLUMNS: Final = "nodeid, generation, identity, parent, name"


class NodeRow(NamedTuple):
    """What is remembered of one node.

    Attributes:
        nodeid, generation: what the kernel calls it.
        packed: its identity.
        parent: nodeid of the directory that it was last seen in.
        name: its name there.
    """

    nodeid: int
    generation: int
    packed: bytes
    parent: int
    name: bytes

    @property
    def identity(self) -> Identity:
        """What the object is."""
        return unpack_identity(self.packed)


class _Gone(NamedTuple):
    """Stands for a row that is to be deleted, if it still is that of this object."""

    packed: bytes


class Store:
    """Remembers nodes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._pending: dict[int, NodeRow | _Gone] = {}
        self._writing: dict[int, NodeRow | _Gone] = {}
        self._is_closing = False
        self._is_failing = False
        self.is_gone: Callable[[NodeRow], bool] = lambda row: False
        self._rows = self._count()
        self._living = database.about("living")  # as many as were found at the last look
        self._thread = threading.Thread(target=self._write_all, name="store")
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        with self._lock:
            self._is_closing = True
            self._due.notify()
        self._thread.join()

    def _count(self) -> int:
        with self._database.reading() as connection:
            ((count,),) = connection.execute("SELECT count(*) FROM node")
        return int(count)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def put(self, row: NodeRow) -> None:
        """Remember a node from now on; it is on the disk a little later."""
        with self._lock:
            if not self._pending:
                self._due.notify()
            self._pending[row.nodeid] = row

    def forget(self, row: NodeRow) -> None:
        """Remember a node no longer, unless another object has taken its number."""
        with self._lock:
            recent = self._pending.get(row.nodeid) or self._writing.get(row.nodeid)
            if recent is None or recent.packed == row.packed:
                if not self._pending:
                    self._due.notify()
                self._pending[row.nodeid] = _Gone(row.packed)

    def row(self, nodeid: int) -> NodeRow | None:
        """Return what is remembered of a node. Slow: for a thread."""
        with self._lock:
            recent = self._pending.get(nodeid) or self._writing.get(nodeid)
        if recent is not None:
            return recent if isinstance(recent, NodeRow) else None
        found = self._select(f"SELECT {_COLUMNS} FROM node WHERE nodeid = ?", nodeid)
        return found[0] if found else None

    def from_number(self, nodeid: int) -> Iterator[Identity]:
        """Yield what the nodes from a number on are; rows that make no sense are left out."""
        for row in self._select(f"SELECT {_COLUMNS} FROM node WHERE nodeid >= ?", nodeid):
            with contextlib.suppress(ValueError, TypeError):
                yield row.identity

    def _select(self, query: str, *values: int) -> Sequence[NodeRow]:
        try:
            with self._database.reading() as connection:
                return [NodeRow(*row) for row in connection.execute(query, values)]
        except sqlite3.Error as error:
            log.warning("%s cannot be read: %s. Handles may be stale", self._database.path, error)
            return ()

    # --- writing -----------------------------------------------------------------------------------------------------

    def _write_all(self) -> None:
        while True:
            with self._lock:
                self._due.wait_for(lambda: self._pending or self._is_closing)
                if not self._pending:
                    return
                self._due.wait_for(lambda: self._is_closing, _RETRY if self._is_failing else _GATHER)
                is_last = self._is_closing
            is_written = self._flush()
            if is_last and not is_written:
                return
            if is_written and self._rows > max(_FEW, 2 * self._living):
                self._attempt_prune()

    def _flush(self) -> bool:
        """Write what is pending; what the disk does not take stays pending."""
        with self._lock:
            self._writing, self._pending = self._pending, {}
        is_written = self._attempt(self._write)
        with self._lock:
            if not is_written:
                self._pending = self._writing | self._pending
                while len(self._pending) > _MOST_UNWRITTEN:
                    del self._pending[next(iter(self._pending))]
            self._writing = {}
        return is_written

    def _attempt(self, work: Callable[[sqlite3.Connection], object]) -> bool:
        """Do something that the disk may not let us do, and return whether it did."""
        try:
            with self._database.transaction() as connection:
                work(connection)
            self._is_failing = False
            return True
        except sqlite3.Error as error:
            if not self._is_failing:
                path = self._database.path
                log.warning("%s cannot be written: %s. Handles may be stale after a restart", path, error)
            self._is_failing = True
            return False

    def _attempt_prune(self) -> None:
        try:
            self._prune()
        except sqlite3.Error as error:
            log.warning("%s cannot be read: %s. It keeps rows that are not needed", self._database.path, error)
            self._living = self._rows  # until it has grown again

    def _write(self, connection: sqlite3.Connection) -> None:
        rows = [row for row in self._writing.values() if isinstance(row, NodeRow)]
        gone = [(nodeid, row.packed) for nodeid, row in self._writing.items() if isinstance(row, _Gone)]
        connection.executemany(_PUT, rows)
        connection.executemany(_DELETE, gone)
        self._rows += len(rows)  # or fewer: those that were there

    def _prune(self) -> None:
        """Forget the nodes of objects that are gone. Each look goes through as many rows as came since the last one."""
        last = 0
        while rows := self._select(
            f"SELECT {_COLUMNS} FROM node WHERE nodeid > ? ORDER BY nodeid LIMIT {_CHUNK}", last
        ):
            if self._is_closing:
                return
            last = rows[-1].nodeid
            gone = [(row.nodeid, row.packed) for row in rows if self.is_gone(row)]
            self._attempt(functools.partial(_delete, gone))
            self._flush()
        self._rows = self._living = self._count()
        self._attempt(lambda connection: set_about(connection, "living", self._living))


def _delete(gone: Sequence[tuple[int, bytes]], connection: sqlite3.Connection) -> None:
    connection.executemany(_DELETE, gone)
