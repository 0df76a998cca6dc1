"""What changed since a cursor, and the cursors that are kept under names: questions that need no group."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import anyio

from fusenotify.client.questions import answered, ask, connected
from fusenotify.events import IS_DIR
from fusenotify.protocol import (
    EXISTS,
    AskCursor,
    AskSnapshots,
    ChangedPath,
    Changes,
    CreateSnapshot,
    DeleteSnapshot,
    Done,
    More,
    Position,
    Since,
    Snapshots,
)
from fusenotify.targets import resolve
from fusenotify.transports import Credentials


class Change(NamedTuple):
    """A path that may have changed, and what was there when the daemon answered.

    Attributes:
        path: relative to SOURCE, `.` for the root; bytes that are no UTF-8 are surrogate-escaped.
        exists: whether there is something. If not, nothing that was below the path is there any more either, but for
            what is named behind it.
        is_dir: whether it is a directory; of what is gone, whether it was one, where that is known.
        handle: of what is there, as from `lookup`; None where it could not be had.
    """

    path: str
    exists: bool
    is_dir: bool
    handle: str | None


@dataclass(frozen=True)
class Answer:
    """What goes with the changes since a cursor.

    Attributes:
        cursor: to ask from the next time.
        fresh: whether the history since the cursor is gone: then everything that there is was named, and what was
            there earlier and is not named is gone.
    """

    cursor: str
    fresh: bool


@dataclass(frozen=True)
class ChangesSince(Answer):
    """The answer of `since`.

    Attributes:
        changes: every path that has changed, and maybe more; what they name behind each other happened so.
    """

    changes: Sequence[Change]


@dataclass(frozen=True)
class Snapshot:
    """A cursor that is kept under a name.

    Attributes:
        name: `@NAME` stands for the cursor.
        cursor: the position.
    """

    name: str
    cursor: str


async def since(target: str | os.PathLike[str], cursor: str, *, tls: Credentials | None = None) -> ChangesSince:
    """Return what may have changed below a target since a cursor: nothing that has is left out.

    Args:
        target: a file or directory on a fusenotify mount, `unix:PATH` or `tls://HOST:PORT[/PATH]`.
        cursor: of an event, or from `cursor`, or from an answer as this one; `0` for everything that there is, `@NAME`
            for a snapshot. If the daemon no longer knows what happened since, the answer is `fresh`.
        tls: as in `open_group`.

    Raises:
        BadCursor: it is malformed, or of another tree, or there is no such snapshot.
        NotPermitted: this user may not hear of what is below the target.
        NotAMount: the target is not on a fusenotify mount.
        UsageError: there is nothing of that name.
        DaemonGone: the daemon does not answer.
    """
    changes: list[Change] = []
    answer = await each_change(target, cursor, changes.extend, tls=tls)
    return ChangesSince(answer.cursor, answer.fresh, changes)


async def each_change(
    target: str | os.PathLike[str],
    cursor: str,
    take: Callable[[Sequence[Change]], None],
    *,
    tls: Credentials | None = None,
) -> Answer:
    """Do as `since`, but hand the changes over piece by piece as they come: a million take memory."""
    resolved = await anyio.to_thread.run_sync(resolve, target)
    async with connected(resolved, tls) as connection:
        piece = await answered(connection, Since(0, resolved.path, cursor), Changes)
        while True:
            take([_change(record) for record in piece.records])
            if not piece.more:
                return Answer(piece.cursor, piece.fresh)
            piece = await answered(connection, More(0), Changes)


def _change(record: ChangedPath) -> Change:
    return Change(os.fsdecode(record.path), bool(record.flags & EXISTS), bool(record.flags & IS_DIR), record.handle)


async def cursor(target: str | os.PathLike[str], *, tls: Credentials | None = None) -> str:
    """Return the current position: every change made before this call is before it, every later one behind it.

    Arguments and errors as of `since`.
    """
    resolved = await anyio.to_thread.run_sync(resolve, target)
    return (await ask(resolved, AskCursor(0), Position, tls)).cursor


async def create_snapshot(target: str | os.PathLike[str], name: str, *, tls: Credentials | None = None) -> str:
    """Have the current position kept under a name, until it is deleted, and return it; `@NAME` stands for it.

    A snapshot of that name is replaced. Arguments and errors as of `since`; besides:

    Raises:
        LimitReached: there are too many.
    """
    resolved = await anyio.to_thread.run_sync(resolve, target)
    return (await ask(resolved, CreateSnapshot(0, name), Position, tls)).cursor


async def list_snapshots(target: str | os.PathLike[str], *, tls: Credentials | None = None) -> list[Snapshot]:
    """Return the snapshots that are kept, oldest first (arguments and errors as of `since`)."""
    resolved = await anyio.to_thread.run_sync(resolve, target)
    answer = await ask(resolved, AskSnapshots(0), Snapshots, tls)
    return [Snapshot(one.name, one.cursor) for one in answer.snapshots]


async def delete_snapshot(target: str | os.PathLike[str], name: str, *, tls: Credentials | None = None) -> None:
    """Keep a snapshot no longer (arguments and errors as of `since`)."""
    resolved = await anyio.to_thread.run_sync(resolve, target)
    await ask(resolved, DeleteSnapshot(0, name), Done, tls)
