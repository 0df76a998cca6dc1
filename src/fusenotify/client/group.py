"""Groups of marks on one or several daemons, and the events they let through as an async iterator."""

import os
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Final

import anyio

from fusenotify import protocol
from fusenotify.client.connection import Connection, Mark
from fusenotify.errors import UsageError
from fusenotify.events import Event, Kind, Origin, Scope, format_cursor
from fusenotify.protocol import AddMark, Done, RemoveMark, Sync
from fusenotify.queue import DEFAULT_LIMIT, Queue
from fusenotify.targets import Target, resolve

_ORIGINS: Final = {
    Origin.ANY: protocol.LOCAL_ORIGIN | protocol.REMOTE_ORIGIN,
    Origin.LOCAL: protocol.LOCAL_ORIGIN,
    Origin.REMOTE: protocol.REMOTE_ORIGIN,
}


class Group:
    """One listener: marks, and an async iterator of the events they let through.

    Made by `open_group`. Several tasks may use it at once; each event goes to one of those that iterate.
    """

    def __init__(self, limit: int | None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"a queue needs room for at least one event, not {limit}")
        self._limit = limit
        self._connections: dict[str, Connection] = {}
        self._connecting = anyio.Lock()
        self._ready: deque[Event] = deque()
        self._numbers = 0

    async def mark(
        self,
        target: str | os.PathLike[str],
        *,
        scope: Scope = Scope.SUBTREE,
        kinds: Kind = Kind.DEFAULT,
        origin: Origin = Origin.ANY,
        exclude_self: bool = False,
        uids: Collection[int] | None = None,
    ) -> Mark:
        """Take an interest in a directory: every change from the return of this call on is heard.

        Args:
            target: a path on a fusenotify mount, or `unix:PATH` for the root of a daemon's tree.
            scope: `Scope.DIR` for its entries, `Scope.SUBTREE` for everything below it.
            kinds: what to hear of; overflow and unmount come in any case.
            origin: whose changes to hear of.
            exclude_self: leave out what this process does through the mount.
            uids: only what these users do, where it is known.

        Raises:
            NotAMount: the path is not on a fusenotify mount.
            NotPermitted: the daemon does not let this user watch that.
            UsageError: there is no such directory, or no such kind can be heard.
            DaemonGone: the daemon does not answer.
        """
        resolved = await anyio.to_thread.run_sync(resolve, target)
        connection = await self._connect(resolved)
        self._numbers += 1
        number = self._numbers
        request = AddMark(
            request=0,
            mark=number,
            path=resolved.path,
            scope=str(scope),
            kinds=int(kinds),
            origins=_ORIGINS[Origin(origin)],
            exclude_pid=os.getpid() if exclude_self else None,
            uids=None if uids is None else tuple(uids),
        )

        def make(answer: Done) -> Mark:
            cursor = format_cursor(connection.epoch, answer.seq)
            return Mark(resolved.given, Scope(scope), Kind(kinds), Origin(origin), cursor, connection, number)

        return await connection.mark(request, make)

    async def unmark(self, mark: Mark) -> None:
        """Lose an interest; events of it that wait are dropped.

        Raises:
            UsageError: this group has no such mark.
        """
        connection = mark._connection
        if connection.marks.get(mark._number) is not mark:
            raise UsageError(f"this group has no such mark: {mark!r}")
        await connection.request(RemoveMark(0, mark._number))
        connection.marks.pop(mark._number, None)

    async def sync(self) -> None:
        """Return when every change made before this call, on either side of every mount, is in the queue."""
        for connection in tuple(self._connections.values()):
            await connection.request(Sync(0))

    def __aiter__(self) -> AsyncIterator[Event]:
        """Iterate over the events as they come, without end.

        Raises:
            DaemonGone: the daemon has ended, and everything it told has been read.
        """
        return self

    async def __anext__(self) -> Event:
        """Wait for the next event."""
        while not self._ready:
            self._ready.extend(await self.batch())
        return self._ready.popleft()

    async def batch(self) -> list[Event]:
        """Wait for at least one event and return all that are there, up to a thousand or so, in order.

        Raises:
            DaemonGone: the daemon has ended, and everything it told has been read.
            UsageError: the group has no mark, so nothing could ever come.
        """
        if self._ready:
            waiting = list(self._ready)
            self._ready.clear()
            return waiting
        if not any(connection.marks for connection in self._connections.values()):
            raise UsageError("this group has no mark, so nothing can come; call `mark` first")
        while True:
            for connection in self._connections.values():
                if events := connection.pop():
                    return events
            await self._read_any(tuple(self._connections.values()))

    async def _read_any(self, connections: Sequence[Connection]) -> None:
        if len(connections) == 1:
            await connections[0].read()
            return
        failed: list[Exception] = []

        async def read(connection: Connection, scope: anyio.CancelScope) -> None:
            try:
                await connection.read()
            except Exception as error:
                failed.append(error)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(read, connection, tasks.cancel_scope)
        if failed:
            raise failed[0]

    async def _connect(self, target: Target) -> Connection:
        async with self._connecting:
            connection = self._connections.get(target.daemon)
            if connection is None:
                connection = Connection(await target.connect(), Queue(self._limit or DEFAULT_LIMIT))
                try:
                    await connection.hello(self._limit or 0)
                except BaseException:
                    await connection.aclose()
                    raise
                self._connections[target.daemon] = connection
            return connection

    async def __aenter__(self) -> "Group":
        """Use `async with open_group() as group`."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hang up on every daemon."""
        while self._connections:
            await self._connections.popitem()[1].aclose()


def open_group(*, limit: int | None = None) -> Group:
    """Return a new group, to be used as `async with open_group() as group:`.

    Args:
        limit: how many events its queue holds before an overflow event takes the place of the rest (131072).
    """
    return Group(limit)


@asynccontextmanager
async def watch(
    *targets: str | os.PathLike[str],
    kinds: Kind = Kind.DEFAULT,
    origin: Origin = Origin.ANY,
    recursive: bool = True,
    limit: int | None = None,
) -> AsyncIterator[Group]:
    """Watch directories: `async with watch("/mnt/data") as events: async for event in events: ...`.

    Once the block is entered no change is missed. The arguments, and the errors raised, are those of `Group.mark`;
    `recursive` chooses between `Scope.SUBTREE` and `Scope.DIR`.
    """
    if not targets:
        raise UsageError("nothing to watch: name at least one target")
    async with open_group(limit=limit) as group:
        for target in targets:
            scope = Scope.SUBTREE if recursive else Scope.DIR
            await group.mark(target, scope=scope, kinds=kinds, origin=origin)
        yield group
