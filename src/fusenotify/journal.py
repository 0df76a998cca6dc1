"""The journal: which paths have changed since a cursor, over restarts, crashes and power cuts.

What is kept is the tree as it is known to be, one row for each entry (`entries`), and in each row the position at which
it changed last. So a path that changes a million times costs one row, and "what changed since" is a question for an
index.

A thread (`scribe`) looks at what events name, and writes. The event loop never waits for it. But an operation that is
the first to change something in a directory waits until that directory is written down.
"""

import contextlib
import errno
import functools
import logging
import os
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final, TypeVar

import trio

from fusenotify.answering import Answer, Change, Question, RowsSince, Scan, looked_at
from fusenotify.backing import Backing
from fusenotify.config import JournalRules
from fusenotify.database import Database
from fusenotify.errors import BadCursor, DaemonGone, EnvironmentProblem, LimitReached, UsageError
from fusenotify.filesystems import Filesystems
from fusenotify.history import EVERYTHING, History, SnapshotRow
from fusenotify.identity import Identity
from fusenotify.intents import Intents
from fusenotify.rows import RACY, signed
from fusenotify.scribe import Scribe
from fusenotify.status import JournalStatus

__all__ = ["Answer", "Change", "Journal", "SnapshotRow"]

log = logging.getLogger(__name__)

T = TypeVar("T")
_MOST_ANSWERS: Final = 16  # each keeps what is written meanwhile from being tidied up
_MOST_ROUNDS: Final = 5


class Journal:
    """What changed when, of one tree.

    Attributes:
        epoch: names this run of the daemon in cursors.
    """

    def __init__(
        self,
        database: Database,
        backing: Backing,
        filesystems: Filesystems,
        seal: Callable[[Identity, int], str],
        *,
        position: Callable[[], int],
        advance: Callable[[], int],
        rules: JournalRules,
    ) -> None:
        """Read what is known; `begin` begins.

        Args:
            database: where it is kept.
            backing: the tree.
            filesystems: what it consists of.
            seal: makes handles for clients.
            position: the event that was told last.
            advance: makes a new position, for a change that no event told of, and returns it.
            rules: what it may rely on, and what may rely on it.
        """
        self._database = database
        self._backing = backing
        self._filesystems = filesystems
        self._look = functools.partial(looked_at, backing, filesystems, seal)
        self._position = position
        self._advance = advance
        self._is_strict = rules.strict
        tree = backing.identify(backing.root_fd)
        self._history = History(database, tree, is_exclusive=rules.exclusive)
        self.epoch = self._history.epoch
        self._intents = Intents(database, self._history.start)
        self._scribe = Scribe(
            database, self._history, self._intents, backing, filesystems,
            is_exclusive=rules.exclusive, on_progress=self._on_progress,
        )  # fmt: skip
        self.follow = self._scribe.follow
        self._token: trio.lowlevel.TrioToken | None = None
        self._progress = trio.Event()
        self._answers = 0
        self._is_ending = False

    # --- the daemon's side -------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin, when everything is watched: what the tree was before is compared with what it is."""
        self._token = trio.lowlevel.current_trio_token()
        self._scribe.start()

    async def settle(self, caught_up: Callable[[], Awaitable[None]]) -> None:
        """Write everything down before the end, so that the next run has nothing in doubt, if the tree lets us.

        `caught_up` returns when everything that has happened is told.
        """
        for _ in range(_MOST_ROUNDS):
            await self._written(self._position())
            written = await self._in_doubt_no_more()
            await caught_up()
            if written >= self._position():
                # All looks were made before `caught_up`: none of them has shown what no event has told of.
                self._scribe.settle(written)
                return

    async def _in_doubt_no_more(self) -> int:
        """Look again at what had changed only just before it was looked at; return the position of that."""
        seq = self._advance()
        await trio.sleep(RACY / 1_000_000_000)
        self._scribe.hurry(seq, looks_again=True)
        await self._written(seq)
        return seq

    def close(self) -> None:
        """End. Slow."""
        self._is_ending = True
        self._on_progress()
        self._scribe.close()

    async def tend(self, caught_up: Callable[[], Awaitable[None]]) -> None:
        """Have what would be in doubt after a crash not grow without bounds, until this is cancelled.

        `caught_up` as in `settle`.
        """
        while True:
            while not self._intents.are_many or not self._is_sound():
                await self._progress.wait()
            try:
                await self._turn(caught_up)
            except (OSError, sqlite3.Error) as error:
                log.warning("after a crash more would be in doubt than need be: %s", error)

    async def _turn(self, caught_up: Callable[[], Awaitable[None]]) -> None:
        """Begin another turn (see `Intents`), and end those before: all changes from then are made safe."""
        kept = self._intents.turn()
        await caught_up()
        seq = self._position()
        await self._written(seq)
        await self._until(lambda: self._scribe.is_ready)
        await trio.to_thread.run_sync(self._filesystems.sync, self._backing, abandon_on_cancel=True)
        if self._is_sound() and self._scribe.written >= seq:  # else what is in doubt goes with a later turn
            await trio.to_thread.run_sync(self._intents.end_earlier_turns, kept)

    def _is_sound(self) -> bool:
        return self._scribe.is_ready and not self._scribe.is_failing and not self._scribe.is_partial

    @contextlib.contextmanager
    def change(self, directories: Iterable[int]) -> Iterator[set[int]]:
        """Make a change in directories, by inode number, in the block; yield what has to be recorded before."""
        with self._intents.under_way(directories) as missing:
            yield set() if self._scribe.is_failing and not self._is_strict else missing

    def record(self, missing: set[int]) -> None:
        """Write down durably that something is about to change in directories. Slow: for a thread.

        `missing` is as `change` yields it.

        Raises:
            OSError: EIO, when that cannot be written down and the mount is to be strict about it.
        """
        try:
            self._intents.record(missing)
        except sqlite3.Error as error:
            self._scribe.fail(error)
            if self._is_strict:
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    def cover(self, directory: int, above: int) -> None:
        """Take a directory that has been made in a recorded one for recorded: who compares that one finds it."""
        self._intents.cover(directory, above)

    def status(self) -> JournalStatus:
        """Return how it is."""
        return JournalStatus(
            state=self._state(),
            size=self._database.size,
            oldest=self._history.oldest(),
            compared=self._scribe.compared,
        )

    def _state(self) -> str:
        if self._scribe.is_failing:
            return "failing"
        if self._scribe.is_ready:
            return "ready"
        return "comparing" if self._history.has_earlier else "filling"

    # --- questions ---------------------------------------------------------------------------------------------------

    async def since(self, cursor: str, below: bytes = b".", *, tells_renames: bool = False) -> Answer:
        """Return what has changed after a cursor in a directory and below it.

        What has been told (`Hearing`) by now is in it: who asks has to call `caught_up` before. It waits for the
        comparison of the start, if that is still under way.

        Args:
            cursor: as told by this daemon or an earlier one of the tree; `0` for all that there is; `@NAME` for a
                snapshot.
            below: path of a directory; all of its `Change`s have paths relative to the root nevertheless.
            tells_renames: name what has been renamed first, as that; else it is named by its old name and its new one.

        Raises:
            BadCursor: it is malformed, of another tree, or there is no such snapshot.
            LimitReached: too many answers are being read.
            DaemonGone: the daemon is about to end.
        """
        cursor = await self._checked(cursor)
        if self._answers >= _MOST_ANSWERS:
            raise LimitReached(f"{_MOST_ANSWERS} answers are being read; try again in a moment")
        self._answers += 1
        try:
            await self._until(lambda: self._scribe.is_ready)
            seq = await self._look_at_unheard()
            await self._until(lambda: self._scribe.is_ready)
            question, fresh = await self._question(cursor, seq, below, tells_renames=tells_renames)
            answer = Answer(question, self._look, self._history.cursor_at(seq), seq, fresh=fresh)
        except BaseException:
            self._answers -= 1
            raise
        answer.on_close = self._answered
        return answer

    async def _question(self, cursor: str, seq: int, below: bytes, *, tells_renames: bool) -> tuple[Question, bool]:
        """Return the rows to be read, as they are now, and whether that is all there is as the history is gone."""
        position = self._history.position(cursor, seq)
        if self._scribe.is_failing:
            return Scan(self._backing, below), position != EVERYTHING
        after = EVERYTHING if position is None else position
        born_at = self._born_at if tells_renames else None
        rows = await trio.to_thread.run_sync(RowsSince, self._database, after, below, born_at)
        if self._history.position(cursor, seq) == position:
            return rows, position is None
        rows.close()  # what is gone may have been given up, just before the rows were taken hold of
        return await self._question(cursor, seq, below, tells_renames=tells_renames)

    def _born_at(self, path: bytes) -> int:
        try:
            self._filesystems.expect_answer(path)
        except TimeoutError:
            return 0
        times = self._backing.times_beneath(path)
        return 0 if times is None else times.born

    async def ready(self, cursor: str) -> str:
        """Return, when it can be said what has changed after a cursor, that cursor; of a snapshot, the one it keeps.

        That is after the comparison of the start.

        Raises:
            BadCursor: it is malformed, of another tree, or there is no such snapshot.
            DaemonGone: the daemon is about to end.
        """
        cursor = await self._checked(cursor)
        await self._until(lambda: self._scribe.is_ready)
        return cursor

    async def _checked(self, cursor: str) -> str:
        """Return a cursor that makes sense, which is known without any wait; of a snapshot, the one it keeps."""
        if cursor.startswith("@"):
            cursor = await self._of_snapshot(cursor[1:])
        self._history.position(cursor, self._position())
        return cursor

    def _answered(self) -> None:
        self._answers -= 1

    async def _look_at_unheard(self) -> int:
        """Write down what has changed, also where no event tells of it; return the position of that."""
        seq = self._position()  # more may be told while that is written
        await self._written(seq)  # by which it is known what has several names
        if not self._scribe.has_links and not self._scribe.is_partial:
            return seq
        seq = self._advance()
        self._scribe.hurry(seq, looks_at_unheard=True)
        await self._written(seq)
        return seq

    def link(self, inode: int) -> None:
        """Take note of a file that got another name through the mount, by which it may be changed unseen."""
        self._scribe.link(signed(inode))

    async def _of_snapshot(self, name: str) -> str:
        found = [row.cursor for row in await self.snapshots() if row.name == name]
        if not found:
            raise BadCursor(f"there is no snapshot {name!r} of this tree")
        return found[0]

    async def cursor(self) -> str:
        """Return the current position, which is honoured also if the power fails right now.

        It waits for the comparison of the start, if that is still under way.
        """
        return self._history.cursor_at(await self._promised())

    async def _promised(self) -> int:
        seq = self._position()
        await self._written(seq)
        await self._until(lambda: self._scribe.is_ready)
        return seq

    async def create_snapshot(self, name: str) -> str:
        """Keep the history from now on under a name, and return the cursor. One of the same name is replaced.

        Raises:
            UsageError: that is no name: 1 to 128 printable characters, no "/", and no "@" at the beginning.
            LimitReached: there are too many.
            EnvironmentProblem: the journal cannot be written.
        """
        seq = await self._promised()
        return await self._in_transaction(lambda connection: self._history.add_snapshot(connection, name, seq))

    async def snapshots(self) -> Sequence[SnapshotRow]:
        """Return all snapshots, the oldest first."""
        query = "SELECT name, cursor FROM snapshot ORDER BY position"
        return await self._in_transaction(lambda connection: [SnapshotRow(*row) for row in connection.execute(query)])

    async def delete_snapshot(self, name: str) -> None:
        """Keep no history for a snapshot any more.

        Raises:
            UsageError: there is none of this name.
            EnvironmentProblem: the journal cannot be written.
        """
        query = "DELETE FROM snapshot WHERE name = ?"
        if not await self._in_transaction(lambda connection: connection.execute(query, (name,)).rowcount):
            raise UsageError(f"there is no snapshot {name!r} of this tree")

    async def _in_transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def attempt() -> T:
            with self._database.transaction() as connection:
                return work(connection)

        try:
            return await trio.to_thread.run_sync(attempt)
        except sqlite3.Error as error:
            raise EnvironmentProblem(f"{self._database.path} cannot be written: {error}") from error

    # --- waiting for the thread --------------------------------------------------------------------------------------

    async def _written(self, seq: int) -> None:
        """Return when everything up to an event is in the database, or nothing can be written."""
        self._scribe.hurry(seq)
        await self._until(lambda: self._scribe.written >= seq)

    async def _until(self, is_so: Callable[[], bool]) -> None:
        while not is_so() and not self._scribe.is_failing:
            if self._is_ending:
                raise DaemonGone("the daemon is about to end")
            await self._progress.wait()

    def _on_progress(self) -> None:
        if self._token is not None:
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._tell_progress, idempotent=True)

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = trio.Event()
