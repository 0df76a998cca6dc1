"""What tests of the client library share: a function is run by fixture `go` under asyncio and under trio."""

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from fusenotify import Event, Group, client
from tests.harness import PATIENCE

T = TypeVar("T")
Run = Callable[[Callable[[], Awaitable[T]]], T]


async def until(group: Group, path: str | Path) -> list[Event]:
    """Return everything up to and including the first event on a path."""
    told: list[Event] = []
    with anyio.fail_after(PATIENCE):
        async for event in group:
            told.append(event)
            if str(path) in (event.path, event.old_path):
                return told
    raise AssertionError(f"the group ended before {path!r} came; it told {told}")


async def hear(group: Group, told: list[Event]) -> None:
    """Add what comes until it ends with an error."""
    async for event in group:
        told.append(event)


def connection_of(group: Group) -> client.Connection:
    """Return the only connection of a group."""
    (connection,) = group._sources
    assert isinstance(connection, client.Connection)
    return connection


def hang_up(group: Group) -> client.Connection:
    """Lose the only connection of a group, by a unix socket, as a network does it; return what was lost."""
    connection = connection_of(group)
    connection._transport._stream._socket.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    return connection
