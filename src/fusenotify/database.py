"""The SQLite file in the state directory: opened, brought up to date, or set aside where it cannot be trusted.

One connection writes, under a lock, each transaction durable when it ends (WAL, `synchronous=FULL`). No event loop ever
waits for it: what uses it runs in a thread.
"""

import contextlib
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fusenotify.errors import EnvironmentProblem
from fusenotify.identity import Identity

log = logging.getLogger(__name__)

FILE_NAME: Final = "store.sqlite"
_APPLICATION: Final = 0x66736E79  # "fsny"
_ID, _SECRET = 8, 32  # bytes
_ABOUT: Final = frozenset({"tree", "id", "secret", "living"})
_TABLES: Final = frozenset({"about", "node", "epoch", "entry", "orphan", "touched", "snapshot"})
# What makes the next version of each one; the first makes the first one of nothing.
_VERSIONS: Final = (
    (
        "CREATE TABLE about (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
        """CREATE TABLE node (nodeid INTEGER PRIMARY KEY, generation INTEGER NOT NULL, identity BLOB NOT NULL,
           parent INTEGER NOT NULL, name BLOB NOT NULL)""",
    ),
    (
        """CREATE TABLE epoch (ordinal INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, seq INTEGER NOT NULL,
           is_clean INTEGER NOT NULL, is_exclusive INTEGER NOT NULL,
           is_compared INTEGER NOT NULL)""",
        """CREATE TABLE entry (id INTEGER PRIMARY KEY, parent INTEGER NOT NULL, name BLOB NOT NULL,
           kind INTEGER NOT NULL, inode INTEGER NOT NULL, size INTEGER NOT NULL, mtime INTEGER NOT NULL,
           ctime INTEGER NOT NULL, links INTEGER NOT NULL, changed INTEGER NOT NULL, born INTEGER NOT NULL,
           gone INTEGER NOT NULL)""",
        "CREATE UNIQUE INDEX entry_name ON entry (parent, name)",
        "CREATE INDEX entry_changed ON entry (changed)",
        "CREATE INDEX entry_linked ON entry (id) WHERE links > 1",
        "CREATE INDEX entry_inode ON entry (inode)",
        "CREATE INDEX entry_tombstone ON entry (changed) WHERE kind < 2",
        "CREATE TABLE orphan (id INTEGER PRIMARY KEY)",
        "CREATE TABLE touched (inode INTEGER PRIMARY KEY, epoch INTEGER NOT NULL)",
        "CREATE TABLE snapshot (name TEXT PRIMARY KEY, position INTEGER NOT NULL, cursor TEXT NOT NULL) WITHOUT ROWID",
    ),
)


class Unusable(Exception):
    """The database cannot be used as it is."""


class Database:
    """The database of one tree.

    Attributes:
        tree_id: names this tree, 8 bytes.
        secret: known to nobody else.
        path: where the file is.
    """

    def __init__(self, state_dir: Path, tree: Identity) -> None:
        """Open the database; begin a new one where it is missing, damaged, newer than this program or another tree's.

        Raises:
            EnvironmentProblem: it can be neither opened nor made.
        """
        self.path = state_dir / FILE_NAME
        self._lock = threading.Lock()
        self._about: dict[str, bytes] = {}
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
                f"cannot keep a database at {self.path}: {error}. Give another place with --state-dir DIR"
            ) from error
        self.tree_id = self._about["id"]
        self.secret = self._about["secret"]

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    # --- using -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Do all of the block or nothing of it; it is on the disk afterwards. Slow: for a thread.

        Raises:
            sqlite3.Error: the disk is full or broken; nothing has been done.
        """
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Read what has been written. Slow: for a thread."""
        with self._lock:
            yield self._connection

    def snapshot(self) -> sqlite3.Connection:
        """Return a connection that sees the database as it is now, whatever is written later, until it is closed."""
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, check_same_thread=False
        )
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM about").fetchone()  # only now does it begin
        except BaseException:
            connection.close()
            raise
        return connection

    def about(self, key: str) -> int:
        """Return a number that is kept about the tree, 0 where there is none."""
        with self.reading() as connection:
            row = connection.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return int.from_bytes(row[0], "little") if row else 0

    @property
    def size(self) -> int:
        """How many bytes the database takes on the disk, without what is written only as a log."""
        with contextlib.suppress(OSError):
            return self.path.stat().st_size
        return 0

    # --- opening -----------------------------------------------------------------------------------------------------

    def _open(self, tree: Identity) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            version = _version_of(connection)
            ((verdict,),) = connection.execute("PRAGMA quick_check(1)")
            if verdict != "ok":
                raise Unusable(verdict)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            _bring_up_to_date(connection, version, tree)
            self._about = _read_about(connection, tree)
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_suffix(".set-aside")
        log.warning(
            "%s cannot be used: %s. It is now %s; handles given out before are stale, the history of changes is gone, "
            "and a new database begins",
            self.path, error, aside,
        )  # fmt: skip
        os.replace(self.path, aside)
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}{suffix}")


def set_about(connection: sqlite3.Connection, key: str, value: int) -> None:
    """Keep a number about the tree, in a transaction."""
    connection.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value.to_bytes(8, "little")))


def _version_of(connection: sqlite3.Connection) -> int:
    ((version,),) = connection.execute("PRAGMA user_version")
    ((application,),) = connection.execute("PRAGMA application_id")
    if (version, application) == (0, 0) and not list(connection.execute("SELECT 1 FROM sqlite_master")):
        return 0
    if application != _APPLICATION or not 0 < version <= len(_VERSIONS):
        raise Unusable(f"it is of version {version}, and this program knows no later one than {len(_VERSIONS)}")
    return int(version)


def _bring_up_to_date(connection: sqlite3.Connection, version: int, tree: Identity) -> None:
    """Make what is missing, all in one transaction."""
    if version == len(_VERSIONS):
        return
    connection.execute("BEGIN IMMEDIATE")
    for statements in _VERSIONS[version:]:
        for statement in statements:
            connection.execute(statement)
    if version == 0:
        about = {
            "tree": tree.packed(),
            "id": secrets.token_bytes(_ID),
            "secret": secrets.token_bytes(_SECRET),
            "living": bytes(8),
        }
        connection.executemany("INSERT INTO about VALUES (?, ?)", about.items())
    connection.execute(f"PRAGMA application_id = {_APPLICATION}")
    connection.execute(f"PRAGMA user_version = {len(_VERSIONS)}")
    connection.execute("COMMIT")


def _read_about(connection: sqlite3.Connection, tree: Identity) -> dict[str, bytes]:
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not tables >= _TABLES:
        raise Unusable("it is incomplete")
    about = dict(connection.execute("SELECT key, value FROM about"))
    if not about.keys() >= _ABOUT:
        raise Unusable("it is incomplete")
    if not all(isinstance(value, bytes) for value in about.values()):
        raise Unusable("it is damaged")
    if (len(about["id"]), len(about["secret"])) != (_ID, _SECRET):
        raise Unusable("it is damaged")
    if about["tree"] != tree.packed():
        raise Unusable("it belongs to another tree")
    return about
