"""Answers what has changed since a cursor, page by page, from the rows of one moment."""

import contextlib
import stat
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple, Protocol

import trio

from fusenotify.backing import Backing
from fusenotify.beneath import is_nothing
from fusenotify.database import Database
from fusenotify.errors import HistoryGone
from fusenotify.filesystems import Filesystems
from fusenotify.history import EVERYTHING
from fusenotify.identity import Identity
from fusenotify.origins import Origins
from fusenotify.rows import DIRECTORY, IS_DIRECTORY, IS_PRESENT, ROOT_ID

_MOST_PLACES: Final = 1 << 16  # directories whose paths are kept
_PATIENCE: Final = 60.0  # seconds for which an answer can be read: it keeps what is written from being tidied up
_PATIENCE_FOR_PAGE: Final = 1.0  # seconds more
TOO_LATE: Final = "this answer was not read in time; ask again"
_COLUMNS: Final = "id, parent, name, kind, born, gone, changed"


class Change(NamedTuple):
    """One path that changed, or that may have.

    Attributes:
        path: relative to the root, `.` for the root itself.
        exists: whether there is something now. A directory that is gone stands for all that was below it. One that was
            replaced is named twice: first as gone, then as it is.
        is_dir: whether that is a directory; of what is gone, whether it was one.
        handle: what clients know the object by; None where there is none.
        is_new: the name stands for its object only since after the cursor; else it may have been known at the cursor.
        old_path: what the object was called at the cursor, where it has been renamed and that was asked for.
    """

    path: bytes
    exists: bool
    is_dir: bool
    handle: str | None
    is_new: bool
    old_path: bytes | None = None


class Named(NamedTuple):
    """A path to be named.

    Attributes:
        path, is_dir, is_new, old_path: see `Change`.
        exists: whether there is something by what is known: where that cannot be seen, it is believed.
        is_gone: a directory went from there: what is there now is named for itself.
    """

    path: bytes
    is_dir: bool
    is_new: bool
    exists: bool = True
    is_gone: bool = False
    old_path: bytes | None = None


class Question(Protocol):
    """What an answer consists of."""

    def named(self) -> Iterator[Named]:
        """Yield the paths. Slow: for a thread."""

    def close(self) -> None:
        """Let go of what is open."""


class Answer:
    """What has changed since a cursor, page by page. To be used in `async with`, by one task.

    It is of one moment, but for `exists`, `is_dir` and `handle`, which are looked at as a page is made. Pages can be
    had for a minute, and a second more for each.

    Attributes:
        cursor: the position that the answer leads up to, as text; the next question.
        seq: the same within this run: events with a higher one came later.
        fresh: the history since the cursor is gone, and the answer names all that there is.
        until: when pages can be had no longer, by trio's clock.
    """

    def __init__(
        self, question: Question, look: Callable[[Named], Change], cursor: str, seq: int, *, fresh: bool
    ) -> None:
        self.cursor = cursor
        self.seq = seq
        self.fresh = fresh
        self._question = question
        self._look = look
        self._named: Iterator[Named] | None = None
        self.until = trio.current_time() + _PATIENCE
        self.on_close: Callable[[], None] = lambda: None

    async def __aenter__(self) -> "Answer":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._question.close()
        self.on_close()

    async def page(self, most: int = 1000) -> list[Change]:
        """Return up to `most` more changes; there are no more when it is empty.

        Raises:
            HistoryGone: the answer is too old.
        """
        if trio.current_time() > self.until:
            raise HistoryGone(TOO_LATE)
        self.until += _PATIENCE_FOR_PAGE
        return await trio.to_thread.run_sync(self._page, most)

    def _page(self, most: int) -> list[Change]:
        if self._named is None:
            self._named = self._question.named()
        return [self._look(named) for named in islice(self._named, most)]


class _Place(NamedTuple):
    """Where a directory is: what paths below it begin with, and when it, or one above it, came to its name last."""

    prefix: bytes
    born: int


_ROOT_ONLY: Final[dict[int, _Place | None]] = {ROOT_ID: _Place(b"", EVERYTHING)}


class RowsSince:
    """The rows that changed after a position, as the database is now."""

    def __init__(
        self, database: Database, after: int, below: bytes, born_at: Callable[[bytes], int] | None = None
    ) -> None:
        """Take hold of the present state. Slow: for a thread.

        With `born_at` (see `Origins`) renames are named as such, before everything else.
        """
        self._connection = database.snapshot()
        self._after = after
        self._below = below
        self._places = _ROOT_ONLY.copy()
        self._born_at = born_at
        self._told: set[int] = set()  # rows that are named by a rename

    def close(self) -> None:
        """Let go of the state."""
        self._connection.close()

    def named(self) -> Iterator[Named]:
        """Yield the paths below the directory that was asked for."""
        everything = self._all() if self._after == EVERYTHING else self._changed()
        if self._below == b".":
            return everything
        return filter(None, map(self._within, everything))

    def _within(self, named: Named) -> Named | None:
        if named.path == self._below or self._is_within(named.path):
            return named
        # What was below there has gone with a directory above.
        is_above = named.is_gone and self._below.startswith(named.path + b"/")
        return named._replace(path=self._below) if is_above else None

    def _all(self) -> Iterator[Named]:
        return self._under(ROOT_ID, b"")

    def _renamed(self, born_at: Callable[[bytes], int]) -> Iterator[Named]:
        origins = Origins(self._connection, self._after, self._prefix_of, born_at)
        for moved in origins.moved():
            if not (self._is_within(moved.path) and self._is_within(moved.old_path)):
                continue
            self._told |= {moved.id, moved.origin}
            if moved.replaces:
                yield Named(moved.path, True, False, is_gone=True)
            yield Named(moved.path, moved.is_dir, False, old_path=moved.old_path)
            if moved.is_dir:
                yield from self._under(moved.id, moved.path + b"/")
            else:
                yield Named(moved.path, False, False)  # its content may have changed as well

    def _prefix_of(self, number: int) -> bytes | None:
        place = self._place(number)
        return None if place is None or place.born > self._after else place.prefix

    def _is_within(self, path: bytes) -> bool:
        return self._below == b"." or path.startswith(self._below + b"/")

    def _changed(self) -> Iterator[Named]:
        if self._born_at is not None:
            yield from self._renamed(self._born_at)
        query = f"SELECT {_COLUMNS} FROM entry WHERE changed > ? ORDER BY changed"
        for number, parent, name, kind, born, gone, _ in self._connection.execute(query, (self._after,)):
            if number in self._told:
                continue
            if number == ROOT_ID:
                yield Named(b".", True, False)
                continue
            place = self._place(parent)
            if place is None or place.born > self._after:
                continue  # what is above it has gone, or names it
            path = place.prefix + name
            yield from self._of_entry(path, kind, gone, is_new=born > self._after)
            if kind == DIRECTORY and born > self._after:
                yield from self._under(number, path + b"/")

    def _of_entry(self, path: bytes, kind: int, gone: int, *, is_new: bool) -> Iterator[Named]:
        is_dir = bool(kind & IS_DIRECTORY)
        if self._after != EVERYTHING and gone > self._after:
            yield Named(path, True, False, is_gone=True)
        if kind == DIRECTORY or not is_dir:
            yield Named(path, is_dir, is_new, exists=bool(kind & IS_PRESENT))

    def _under(self, number: int, prefix: bytes) -> Iterator[Named]:
        """Yield everything below a directory: its paths are all new."""
        todo = [(number, prefix)]
        query = f"SELECT {_COLUMNS} FROM entry WHERE parent = ?"
        while todo:
            number, prefix = todo.pop()
            for child, _, name, kind, _, gone, changed in self._connection.execute(query, (number,)):
                is_there = bool(kind & IS_PRESENT)
                if is_there or (self._after != EVERYTHING and changed > self._after):
                    yield from self._of_entry(prefix + name, kind, gone, is_new=True)
                if kind == DIRECTORY:
                    todo.append((child, prefix + name + b"/"))

    def _place(self, number: int) -> _Place | None:
        """Return where a directory is, None if it is below one that has gone."""
        way: list[tuple[int, bytes, int]] = []
        query = "SELECT parent, name, born FROM entry WHERE id = ? AND kind = ?"
        while number not in self._places:
            row = self._connection.execute(query, (number, DIRECTORY)).fetchone()
            if row is None:
                self._places[number] = None
                break
            way.append((number, row[1], row[2]))
            number = row[0]
        place = self._places[number]
        if len(self._places) + len(way) > _MOST_PLACES:
            self._places = _ROOT_ONLY.copy()
        for below, name, born in reversed(way):
            place = None if place is None else _Place(place.prefix + name + b"/", max(place.born, born))
            self._places[below] = place
        return place


class Scan:
    """All that there is, by looking: for when the database cannot be had."""

    def __init__(self, backing: Backing, below: bytes) -> None:
        self._backing = backing
        self._below = below

    def close(self) -> None:
        """Do nothing: nothing stays open."""

    def named(self) -> Iterator[Named]:
        """Yield the paths below the directory that was asked for."""
        todo = [self._below]
        while todo:
            path = todo.pop()
            prefix = b"" if path == b"." else path + b"/"
            with contextlib.suppress(OSError):  # gone, or not ours to read
                for name, is_dir in self._backing.list_beneath(path)[1]:
                    yield Named(prefix + name, is_dir, True)
                    if is_dir:
                        todo.append(prefix + name)


def looked_at(backing: Backing, filesystems: Filesystems, seal: Callable[[Identity, int], str], named: Named) -> Change:
    """Return what is to be said of a path now. Slow: for a thread."""
    exists = False
    if not named.is_gone:
        try:
            filesystems.expect_answer(named.path)
            with contextlib.closing(backing.find_beneath(named.path)) as found:
                handle = seal(found.identity, found.key.number)
                is_dir = stat.S_ISDIR(found.stat.st_mode)
                return Change(named.path, True, is_dir, handle, named.is_new, named.old_path)
        except OSError as error:
            exists = named.exists and not is_nothing(error)
    return Change(named.path, exists, named.is_dir, None, named.is_new, named.old_path)
