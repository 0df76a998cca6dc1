"""The runs of the daemon, and how far back what the journal keeps reaches.

A *position* is a number: which run it was, and how many events it had told. So positions of all runs compare. A cursor
is the text that clients get: the name of the run in place of its number, which begins with what tells the tree from
others.
"""

import contextlib
import hashlib
import logging
import os
import re
import secrets
import sqlite3
from typing import Final, NamedTuple

from fusenotify.database import Database, set_about
from fusenotify.errors import BadCursor, LimitReached, UsageError
from fusenotify.events import format_cursor
from fusenotify.identity import Identity

log = logging.getLogger(__name__)

_SEQ_BITS: Final = 40
_CURSOR: Final = re.compile(r"c:([0-9a-f]{6})([0-9a-f]{6}):([0-9]{1,12})")
_NAME: Final = re.compile(r"[^\s/@][^\s/]{0,127}")
_MOST_SNAPSHOTS: Final = 1000
_MOST_EPOCHS: Final = 10_000
_FLOOR: Final = "floor"
SOUND_NAME: Final = "journal.sound"
_TOMBSTONES: Final = "FROM entry WHERE kind < 2"

EVERYTHING: Final = 0  # the position before all others


class SnapshotRow(NamedTuple):
    """A named cursor that history is kept for."""

    name: str
    cursor: str


class _Epoch(NamedTuple):
    ordinal: int
    seq: int
    is_clean: bool
    is_exclusive: bool
    is_compared: bool


class History:
    """What there was before, and what is promised of it.

    Attributes:
        epoch: the name of this run.
        start: its first position.
        has_earlier: whether there were runs before.
        was_exclusive: nobody else changed the tree in the run before, and what was known of the tree then was complete.
    """

    def __init__(self, database: Database, tree: Identity, *, is_exclusive: bool) -> None:
        """Read what there is, and name a new run.

        Args:
            database: where it is kept.
            tree: the root.
            is_exclusive: nobody else changes the tree.
        """
        self._tag = hashlib.sha256(tree.packed()).hexdigest()[:6]
        self._is_exclusive = is_exclusive
        with database.reading() as connection:
            rows = connection.execute(
                "SELECT name, ordinal, seq, is_clean, is_exclusive, is_compared FROM epoch"
            ).fetchall()
        self._epochs = {name: _Epoch(*rest) for name, *rest in rows}
        self.epoch = self._new_name()
        last = max(self._epochs.values(), default=None)
        self.has_earlier = last is not None
        self._ordinal = 1 if last is None else last.ordinal + 1
        self.was_exclusive = last is not None and bool(last.is_exclusive and last.is_compared)
        self.start = self._ordinal << _SEQ_BITS
        self._floor = database.about(_FLOOR)
        self._sound = database.path.with_name(SOUND_NAME)
        self._has_gap = last is not None and not last.is_clean and not self._sound.exists()
        if self._has_gap:
            log.warning("the run before could not write its journal at the end: what changed before now is not known")
            self._floor = self.start

    def _new_name(self) -> str:
        while (name := self._tag + secrets.token_hex(3)) in self._epochs:
            pass
        return name

    def begin(self, connection: sqlite3.Connection) -> None:
        """Begin the run, in a transaction."""
        if self._has_gap:
            set_about(connection, _FLOOR, self._floor)
        self.written(connection, 0)

    def set_sound(self, is_sound: bool) -> None:
        """Tell the next run whether everything that had to be written down before it happened could be.

        That is a file which is there or not: a full disk lets it go when it takes nothing any more.
        """
        with contextlib.suppress(OSError):  # a broken one does not: then nothing can be told
            if is_sound:
                self._sound.touch(0o600)
            else:
                self._sound.unlink(missing_ok=True)
                fd = os.open(self._sound.parent, os.O_RDONLY | os.O_DIRECTORY)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)

    def written(self, connection: sqlite3.Connection, seq: int, *, is_clean: bool = False) -> None:
        """Write down, in a transaction, that everything up to an event of this run is in the database."""
        connection.execute(
            "INSERT INTO epoch VALUES (?, ?, ?, ?, ?, FALSE) "
            "ON CONFLICT (ordinal) DO UPDATE SET seq = excluded.seq, is_clean = excluded.is_clean",
            (self._ordinal, self.epoch, seq, is_clean, self._is_exclusive),
        )

    def ended(self, connection: sqlite3.Connection, seq: int) -> None:
        """Write down, in a transaction, that this run has ended well."""
        self.written(connection, seq, is_clean=True)

    def lost(self, connection: sqlite3.Connection) -> None:
        """Write down, in a transaction, that events are lost."""
        connection.execute("UPDATE epoch SET is_compared = FALSE WHERE ordinal = ?", (self._ordinal,))

    def compared(self, connection: sqlite3.Connection) -> None:
        """Write down, in a transaction, that the whole tree is known as it is."""
        connection.execute("UPDATE epoch SET is_compared = TRUE WHERE ordinal = ?", (self._ordinal,))
        self._raise_floor(connection, max(0, self._ordinal - _MOST_EPOCHS) << _SEQ_BITS)

    # --- cursors -----------------------------------------------------------------------------------------------------

    def cursor_at(self, seq: int) -> str:
        """Return the text of a position of this run."""
        return format_cursor(self.epoch, seq)

    def position(self, cursor: str, now: int) -> int | None:
        """Return the position of a cursor, None if what has changed since is not known; `now` is the last event's.

        Raises:
            BadCursor: it is none, or of another tree.
        """
        if cursor == "0":
            return EVERYTHING
        parts = _CURSOR.fullmatch(cursor)
        if parts is None:
            raise BadCursor(f"{cursor[:100]!r} is no cursor: take one from `fusenotify cursor`, or from an event")
        tag, rest, seq = parts[1], parts[2], int(parts[3])
        if tag != self._tag:
            raise BadCursor(f"the cursor {cursor} belongs to another tree")
        if tag + rest == self.epoch:
            position = self.start + seq if seq <= now else None
        else:
            position = self._earlier(self._epochs.get(tag + rest), seq)
        return position if position is not None and position >= self._floor else None

    def _earlier(self, epoch: _Epoch | None, seq: int) -> int | None:
        """Return a position of an earlier run.

        A name that was told and not written down, or that was there before the run and had not been looked at when it
        ended, is in no row. If it has gone since, nothing tells of it, though who has the cursor may know it.
        """
        if epoch is None or seq > epoch.seq or not epoch.is_compared:
            return None
        return (epoch.ordinal << _SEQ_BITS) + seq

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def add_snapshot(self, connection: sqlite3.Connection, name: str, seq: int) -> str:
        """Keep the history since an event of this run; return the cursor.

        Raises:
            UsageError, LimitReached: see `Journal.create_snapshot`.
        """
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise UsageError(f"{name!r} cannot name a snapshot: give 1 to 128 printable characters, no '/' or space")
        others = connection.execute("SELECT count(*) FROM snapshot WHERE name <> ?", (name,)).fetchone()
        if others[0] >= _MOST_SNAPSHOTS:
            raise LimitReached(f"there are {_MOST_SNAPSHOTS} snapshots of this tree; delete one first")
        cursor = self.cursor_at(seq)
        connection.execute("INSERT OR REPLACE INTO snapshot VALUES (?, ?, ?)", (name, self.start + seq, cursor))
        return cursor

    # --- bounds ------------------------------------------------------------------------------------------------------

    def oldest(self) -> str:
        """Return the oldest cursor that is honoured."""
        names = {epoch.ordinal: name for name, epoch in self._epochs.items()} | {self._ordinal: self.epoch}
        ordinal, seq = divmod(self._floor, 1 << _SEQ_BITS)
        if ordinal not in names:
            ordinal, seq = min(names), 0
        return format_cursor(names[ordinal], seq)

    def compact(self, connection: sqlite3.Connection, most: int) -> None:
        """Give up, in a transaction, the oldest tombstones beyond `most`, and with them the cursors before them.

        Those that a snapshot needs are kept, up to eight times as many.
        """
        ((count,),) = connection.execute(f"SELECT count(*) {_TOMBSTONES}")
        if count <= most:
            return
        surplus = count - most // 2
        ((limit,),) = connection.execute(
            f"SELECT changed {_TOMBSTONES} ORDER BY changed LIMIT 1 OFFSET ?", (surplus - 1,)
        )
        ((oldest,),) = connection.execute("SELECT min(position) FROM snapshot")
        if oldest is not None and count <= 8 * most:
            limit = min(limit, oldest)
        connection.execute("DELETE FROM entry WHERE kind < 2 AND changed <= ?", (limit,))
        self._raise_floor(connection, limit)

    def _raise_floor(self, connection: sqlite3.Connection, floor: int) -> None:
        if floor > self._floor:
            set_about(connection, _FLOOR, floor)
            connection.execute("DELETE FROM epoch WHERE ordinal < ?", (floor >> _SEQ_BITS,))
            self._floor = floor
