"""The SQLite file in the state directory: what has to outlive the daemon.

Today that is which object each node was, so that handles of the mount can be opened after a restart, and the key that
client handles are sealed with. One thread writes, in groups of a tenth of a second; nobody waits for it.
"""

import contextlib
import functools
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from fusenotify.errors import EnvironmentProblem
from fusenotify.identity import Identity, unpack_identity

log = logging.getLogger(__name__)

FILE_NAME: Final = "store.sqlite"
_APPLICATION: Final = 0x66736E79  # "fsny"
_SCHEMA: Final = 1
_ABOUT: Final = frozenset({"tree", "id", "secret", "living"})
_ID, _SECRET = 8, 32  # bytes
_GATHER: Final = 0.1  # seconds; so old may be what a killed daemon has not written
_RETRY: Final = 5.0  # seconds until what could not be written is tried again
_MOST_UNWRITTEN: Final = 1 << 16  # rows that wait for a disk that takes none; beyond it the oldest are given up
_CHUNK: Final = 512  # rows looked at between two writes
_FEW: Final = 10_000  # rows that are not worth looking for dead ones
_TABLES: Final = (
    "CREATE TABLE about (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE node (nodeid INTEGER PRIMARY KEY, generation INTEGER NOT NULL, identity BLOB NOT NULL,
       parent INTEGER NOT NULL, name BLOB NOT NULL)""",
)
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


class Unusable(Exception):
    """The database cannot be used as it is."""


class Store:
    """The database of one tree.

    Attributes:
        tree_id: names this tree, 8 bytes.
        secret: known to nobody else.
    """

    def __init__(self, state_dir: Path, tree: Identity) -> None:
        """Open the database; begin a new one where it is missing, damaged, newer than this program or another tree's.

        Raises:
            EnvironmentProblem: it can be neither opened nor made.
        """
        self._path = state_dir / FILE_NAME
        self._about: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._due = threading.Condition(self._lock)
        self._pending: dict[int, NodeRow | _Gone] = {}
        self._writing: dict[int, NodeRow | _Gone] = {}
        self._is_closing = False
        self._is_failing = False
        self._using = threading.Lock()
        self.is_gone: Callable[[NodeRow], bool] = lambda row: False
        try:
            try:
                self._connection = self._open(tree)
            except sqlite3.OperationalError:
                raise  # no room, no rights: nothing that speaks against what is in it
            except (Unusable, sqlite3.DatabaseError) as error:
                self._set_aside(error)
                self._connection = self._open(tree)
        except (OSError, sqlite3.Error, Unusable) as error:
            raise EnvironmentProblem(
                f"cannot keep a database at {self._path}: {error}. Give another place with --state-dir DIR"
            ) from error
        self.tree_id = self._about["id"]
        self.secret = self._about["secret"]
        self._rows = self._count()
        self._living = int.from_bytes(self._about["living"], "little")  # as many as were found at the last look
        self._thread = threading.Thread(target=self._write_all, name="store")
        self._thread.start()

    def close(self) -> None:
        """Write what is left and close the database."""
        with self._lock:
            self._is_closing = True
            self._due.notify()
        self._thread.join()
        self._connection.close()

    # --- opening -----------------------------------------------------------------------------------------------------

    def _open(self, tree: Identity) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            ((version,),) = connection.execute("PRAGMA user_version")
            ((application,),) = connection.execute("PRAGMA application_id")
            is_empty = (version, application) == (0, 0) and not list(connection.execute("SELECT 1 FROM sqlite_master"))
            if not is_empty and (application != _APPLICATION or version > _SCHEMA):
                raise Unusable(f"it is of version {version}, and this program knows no later one than {_SCHEMA}")
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise Unusable(verdict)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            if is_empty:
                _begin(connection, tree)
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if not tables >= {"about", "node"}:
                raise Unusable("it is incomplete")
            self._about = dict(connection.execute("SELECT key, value FROM about"))
            if not self._about.keys() >= _ABOUT:
                raise Unusable("it is incomplete")
            if not all(isinstance(value, bytes) for value in self._about.values()):
                raise Unusable("it is damaged")
            if (len(self._about["id"]), len(self._about["secret"])) != (_ID, _SECRET):
                raise Unusable("it is damaged")
            if self._about["tree"] != tree.packed():
                raise Unusable("it belongs to another tree")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: Exception) -> None:
        aside = self._path.with_suffix(".set-aside")
        log.warning(
            "%s cannot be used: %s. It is now %s; handles given out before are stale, and a new database begins",
            self._path, error, aside,
        )  # fmt: skip
        os.replace(self._path, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self._path}{suffix}")

    def _count(self) -> int:
        ((count,),) = self._connection.execute("SELECT count(*) FROM node")
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
            with self._using:
                return [NodeRow(*row) for row in self._connection.execute(query, values)]
        except sqlite3.Error as error:
            log.warning("%s cannot be read: %s. Handles may be stale", self._path, error)
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

    def _attempt(self, work: Callable[[], object]) -> bool:
        """Do something that the disk may not let us do, and return whether it did."""
        try:
            with self._using:
                self._connection.execute("BEGIN IMMEDIATE")
                try:
                    work()
                except BaseException:
                    self._connection.execute("ROLLBACK")
                    raise
                self._connection.execute("COMMIT")
            self._is_failing = False
            return True
        except sqlite3.Error as error:
            if not self._is_failing:
                log.warning("%s cannot be written: %s. Handles may be stale after a restart", self._path, error)
            self._is_failing = True
            return False

    def _attempt_prune(self) -> None:
        try:
            self._prune()
        except sqlite3.Error as error:
            log.warning("%s cannot be read: %s. It keeps rows that are not needed", self._path, error)
            self._living = self._rows  # until it has grown again

    def _write(self) -> None:
        rows = [row for row in self._writing.values() if isinstance(row, NodeRow)]
        gone = [(nodeid, row.packed) for nodeid, row in self._writing.items() if isinstance(row, _Gone)]
        self._connection.executemany(_PUT, rows)
        self._connection.executemany(_DELETE, gone)
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
            self._attempt(functools.partial(self._connection.executemany, _DELETE, gone))
            self._flush()
        self._rows = self._living = self._count()
        self._attempt(lambda: self._set_about("living", self._living.to_bytes(8, "little")))

    def _set_about(self, key: str, value: bytes) -> None:
        self._connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))


def _begin(connection: sqlite3.Connection, tree: Identity) -> None:
    about = {
        "tree": tree.packed(),
        "id": secrets.token_bytes(_ID),
        "secret": secrets.token_bytes(_SECRET),
        "living": bytes(8),
    }
    connection.execute("BEGIN IMMEDIATE")
    for statement in (*_TABLES, f"PRAGMA application_id = {_APPLICATION}", f"PRAGMA user_version = {_SCHEMA}"):
        connection.execute(statement)
    connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    connection.execute("COMMIT")
