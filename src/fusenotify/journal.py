"""The journal: which paths have changed since a cursor, over restarts, crashes and power cuts.

What is kept is the tree as it is known to be, one row for each entry, and in each row the position at which it changed
last. So a path that changes a million times costs one row, and "what changed since" is a question for an index.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fusenotify.events import EventRecord


class Change(NamedTuple):
    """One path that changed, or that may have.

    Attributes:
        path: relative to the root, `.` for the root itself.
        exists: whether there is something now. A directory that is gone stands for all that was below it. One that was
            replaced is named twice: first as gone, then as it is.
        is_dir: whether that is a directory; of what is gone, whether it was one.
        handle: what clients know the object by; None where there is none.
        is_new: the name stands for its object only since after the cursor; else it may have been known at the cursor.
    """

    path: bytes
    exists: bool
    is_dir: bool
    handle: str | None
    is_new: bool


class Answer:
    """What has changed since a cursor, page by page. To be used in `async with`, by one task.

    It is of one moment, but for `exists`, `is_dir` and `handle`, which are looked at as a page is made. Up to a minute after
    the question pages can be had.

    Attributes:
        cursor: the position that the answer leads up to, as text; the next question.
        seq: the same within this run: events with a higher one came later.
        fresh: the history since the cursor is gone, and the answer names all that there is.
    """

    cursor: str
    seq: int
    fresh: bool

    async def page(self, most: int = 1000) -> list[Change]:
        """Return up to `most` more changes; there are no more when it is empty.

        Raises:
            HistoryGone: the answer is too old.
        """
        raise NotImplementedError

    async def __aenter__(self) -> "Answer":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        raise NotImplementedError


class SnapshotRow(NamedTuple):
    """A named cursor that history is kept for."""

    name: str
    cursor: str


class Journal:
    """What changed when, of one tree.

    Attributes:
        epoch: names this run of the daemon in cursors.
    """

    epoch: str

    async def since(self, cursor: str, below: bytes = b".") -> Answer:
        """Return what has changed after a cursor in a directory and below it.

        What has been told (`Hearing`) by now is in it: who asks has to call `caught_up` before. It waits for the
        comparison of the start, if that is still under way.

        Args:
            cursor: as told by this daemon or an earlier one of the tree; `0` for all that there is; `@NAME` for a snapshot.
            below: path of a directory; all of its `Change`s have paths relative to the root nevertheless.

        Raises:
            BadCursor: it is malformed, of another tree, or there is no such snapshot.
            LimitReached: too many answers are being read.
        """
        raise NotImplementedError

    async def cursor(self) -> str:
        """Return the current position, which is honoured also if the power fails right now."""
        raise NotImplementedError

    async def create_snapshot(self, name: str) -> str:
        """Keep the history from now on under a name, and return the cursor. One of the same name is replaced.

        Raises:
            UsageError: that is no name: 1 to 128 printable characters, no "/", "@" or space.
            LimitReached: there are too many.
            EnvironmentProblem: the journal cannot be written.
        """
        raise NotImplementedError

    async def snapshots(self) -> Sequence[SnapshotRow]:
        """Return all snapshots, the oldest first."""
        raise NotImplementedError

    async def delete_snapshot(self, name: str) -> None:
        """Keep no history for a snapshot any more.

        Raises:
            UsageError: there is none of this name.
            EnvironmentProblem: the journal cannot be written.
        """
        raise NotImplementedError

    def follow(self, records: Sequence[EventRecord]) -> None:
        """Take note of what is told (see `Hearing.followers`)."""
        raise NotImplementedError
