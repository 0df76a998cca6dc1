"""Questions to a daemon that need no group: how it is, what the handle of an object is, where the object of one is."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

import anyio

from fusenotify.client.connection import Connection
from fusenotify.client.marks import Question
from fusenotify.errors import ProtocolError
from fusenotify.protocol import (
    AskStatus,
    Changes,
    Done,
    Handle,
    Locate,
    Location,
    Lookup,
    Position,
    Report,
    Snapshots,
)
from fusenotify.status import Status
from fusenotify.targets import Target, resolve
from fusenotify.transports import Credentials

_Answer = TypeVar("_Answer", Report, Handle, Location, Position, Changes, Snapshots, Done)


async def status(target: str | os.PathLike[str], *, tls: Credentials | None = None) -> Status:
    """Ask the daemon behind a target how it is (arguments and errors as `open_group` and `Group.mark`)."""
    answer = await ask(await anyio.to_thread.run_sync(resolve, target), AskStatus(0), Report, tls)
    return answer.status


async def lookup(path: str | os.PathLike[str], *, tls: Credentials | None = None) -> str:
    """Return the handle of a file or directory on a fusenotify mount; of a symbolic link, of what it leads to.

    The path may also be a target behind TLS, `tls://HOST:PORT/PATH`, for which `tls` is as in `open_group`; there no
    symbolic link is followed.

    The handle is opaque text. It stays that of the object whatever the object is called, also when the daemon is
    restarted with the same state directory, and `locate` tells where the object is.

    Raises:
        NotAMount: the path is not on a fusenotify mount.
        NotPermitted: the caller cannot reach it.
        UsageError: there is nothing.
        DaemonGone: the daemon does not answer.
    """
    resolved = await anyio.to_thread.run_sync(resolve, path)
    return (await ask(resolved, Lookup(0, resolved.path), Handle, tls)).handle


async def locate(target: str | os.PathLike[str], handle: str, *, tls: Credentials | None = None) -> str:
    """Return the path at which the object of a handle is now, relative to SOURCE (surrogateescape).

    Args:
        target: a path on the fusenotify mount that the handle is of, `unix:PATH` or `tls://HOST:PORT`.
        handle: from `lookup`.
        tls: as in `open_group`.

    Raises:
        StaleHandle: the object is gone or was moved out of the tree, or the handle is not one of this tree.
        NotPermitted: the caller cannot reach the object.
        NotAMount: the target is not on a fusenotify mount.
        DaemonGone: the daemon does not answer.
    """
    resolved = await anyio.to_thread.run_sync(resolve, target)
    return os.fsdecode((await ask(resolved, Locate(0, handle), Location, tls)).path)


async def is_directory(target: Target, tls: Credentials | None) -> bool:
    """Ask the daemon of a target whether that is a directory (errors as `lookup`)."""
    return (await ask(target, Lookup(0, target.path), Handle, tls)).is_dir


async def ask(target: Target, question: Question, kind: type[_Answer], tls: Credentials | None) -> _Answer:
    """Ask one question of a daemon, by a connection of its own."""
    async with connected(target, tls) as connection:
        return await answered(connection, question, kind)


@asynccontextmanager
async def connected(target: Target, tls: Credentials | None) -> AsyncIterator[Connection]:
    """Have a connection that is for questions only."""
    connection = Connection(target, await target.connect(tls), 1, lambda _: None)
    try:
        yield connection
    finally:
        await connection.aclose()


async def answered(connection: Connection, question: Question, kind: type[_Answer]) -> _Answer:
    """Return the answer to a question, which has to be of a kind."""
    answer = await connection.request(question)
    if not isinstance(answer, kind):
        raise ProtocolError(f"the daemon answered {question!r} with {answer!r}")
    return answer
