"""The client library: groups of marks on one or several daemons, and the events they let through as an async iterator.

It runs under trio and under asyncio. There is no task in the background: whoever waits, for an event or for an answer,
reads for all.
"""

import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import TypeVar

import anyio

from fusenotify import protocol
from fusenotify.batch import Batch
from fusenotify.errors import DaemonGone, ProtocolError, UsageError
from fusenotify.events import OVERFLOW, Event, Kind, Origin, Scope, format_cursor
from fusenotify.protocol import (
    AddMark,
    AskStatus,
    Done,
    Events,
    FrameBuffer,
    Handle,
    Hello,
    Locate,
    Location,
    Lookup,
    Refusal,
    RemoveMark,
    Report,
    Sync,
)
from fusenotify.queue import Queue
from fusenotify.status import Status
from fusenotify.targets import Target, resolve
from fusenotify.transports import Transport

_Answer = TypeVar("_Answer", Report, Handle, Location)
_BATCH = 1024
_LAST_WORDS = 1.0  # seconds to tell a daemon that a mark is not wanted after all
_REPLY_LIMIT = 64 << 20  # bytes; the daemon decides how long its frames are
_ORIGINS = {
    Origin.ANY: protocol.LOCAL_ORIGIN | protocol.REMOTE_ORIGIN,
    Origin.LOCAL: protocol.LOCAL_ORIGIN,
    Origin.REMOTE: protocol.REMOTE_ORIGIN,
}


@dataclass(frozen=True, eq=False)
class Mark:
    """A group's interest in a part of a tree; `event.mark` of its events.

    Attributes:
        target: what was marked, as it was given.
        scope: how far it reaches.
        kinds: what is asked for.
        origin: whose changes are asked for.
        cursor: the position from which on nothing is missed.
    """

    target: str
    scope: Scope
    kinds: Kind
    origin: Origin
    cursor: str
    _connection: "Connection" = field(repr=False)
    _number: int = field(repr=False)


class Connection:
    """One daemon: requests and answers, and the queue of events that came with them."""

    def __init__(self, transport: Transport, queue: Queue) -> None:
        self.queue = queue
        self.epoch = ""
        self.marks: dict[int, Mark] = {}
        self._transport = transport
        self._frames = FrameBuffer(_REPLY_LIMIT)
        self._answers: dict[int, protocol.Reply] = {}
        self._marking: dict[int, Callable[[Done], Mark]] = {}  # request -> what makes the mark that it asks for
        self._abandoned: set[int] = set()  # requests whose answers nobody waits for any more
        self._sending = anyio.Lock()
        self._reading = anyio.Lock()
        self._requests = 0
        self._received = 0

    async def hello(self, limit: int) -> None:
        """Open the group on the daemon's side."""
        await self._send(Hello(protocol.VERSION, limit))
        await self._await_answer(0)

    async def request(self, message: AddMark | RemoveMark | Sync | AskStatus | Lookup | Locate) -> protocol.Reply:
        """Send a request and return the answer; the request gets its number here."""
        self._requests += 1
        number = message.request = self._requests
        try:
            await self._send(message)
            return await self._await_answer(number)
        except anyio.get_cancelled_exc_class():
            if self._answers.pop(number, None) is None:
                self._abandoned.add(number)
            raise

    async def mark(self, message: AddMark, make: Callable[[Done], Mark]) -> Mark:
        """Send a request for a mark; `make` makes it of the answer.

        The mark is there before any event behind the answer is looked at, whichever task reads it.
        """
        self._marking[self._requests + 1] = make
        try:
            await self.request(message)
        except anyio.get_cancelled_exc_class():
            await self._give_up(message.mark)
            raise
        finally:
            self._marking.pop(message.request, None)
        return self.marks[message.mark]

    async def _give_up(self, mark: int) -> None:
        """Remove a mark that nobody has come to know, without waiting for the answer."""
        self.marks.pop(mark, None)
        self._requests += 1
        self._abandoned.add(self._requests)
        with suppress(DaemonGone), anyio.move_on_after(_LAST_WORDS, shield=True):
            await self._send(RemoveMark(self._requests, mark))

    async def _send(self, message: protocol.Request) -> None:
        async with self._sending:
            await self._transport.send(protocol.encode(message))

    async def _await_answer(self, request: int) -> protocol.Reply:
        while request not in self._answers:
            if 0 in self._answers:
                request = 0  # the daemon could not even read what we sent
            else:
                await self.read()
        answer = self._answers.pop(request)
        if isinstance(answer, Refusal):
            raise protocol.error_of(answer)
        return answer

    async def read(self) -> None:
        """Wait until something more has been received, by this task or by another one that is reading already.

        Raises:
            DaemonGone: nothing more will come.
        """
        received = self._received
        async with self._reading:
            if self._received != received:
                return
            for payload in self._frames.feed(await self._transport.receive()):
                self._take(protocol.decode_reply(payload))
            self._received += 1

    def _take(self, message: protocol.Reply) -> None:
        match message:
            case Events(mark, records):
                if records and records[0].kind == OVERFLOW:
                    self.queue.push_overflow(records[0].seq, records[0].time_ns, records[0].reason)
                elif records:
                    self.queue.push(mark, Batch(records))
            case protocol.Welcome(_, epoch):
                self.epoch = epoch
                self._answers[0] = message
            case Done(request) | Report(request) | Handle(request) | Location(request) | Refusal(request):
                if request in self._abandoned:
                    self._abandoned.remove(request)
                    return
                if isinstance(message, Done) and request in self._marking:
                    made = self._marking[request](message)
                    self.marks[made._number] = made
                self._answers[request] = message

    def pop(self) -> list[Event]:
        """Return the oldest events that have been received, none if there are none."""
        while (waiting := self.queue.peek(_BATCH)) is not None:
            number, batch = waiting
            self.queue.pop()
            mark = self.marks.get(number)
            if mark is not None or not number:  # else unmarked meanwhile
                return [Event(record, self.epoch, mark) for record in batch.records]
        return []

    async def aclose(self) -> None:
        """Hang up."""
        with anyio.CancelScope(shield=True):
            await self._transport.aclose()


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
                # The limit is the daemon's to keep: what it has sent, it takes for read.
                connection = Connection(await target.connect(), Queue(sys.maxsize))
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


async def status(target: str | os.PathLike[str]) -> Status:
    """Ask the daemon behind a target how it is (errors as `Group.mark`)."""
    answer = await _ask(await anyio.to_thread.run_sync(resolve, target), AskStatus(0), Report)
    return answer.status


async def lookup(path: str | os.PathLike[str]) -> str:
    """Return the handle of a file or directory on a fusenotify mount; of a symbolic link, of what it leads to.

    The handle is opaque text. It stays that of the object whatever the object is called, also when the daemon is
    restarted with the same state directory, and `locate` tells where the object is.

    Raises:
        NotAMount: the path is not on a fusenotify mount.
        NotPermitted: the caller cannot reach it.
        UsageError: there is nothing.
        DaemonGone: the daemon does not answer.
    """
    resolved = await anyio.to_thread.run_sync(resolve, path)
    return (await _ask(resolved, Lookup(0, resolved.path), Handle)).handle


async def locate(target: str | os.PathLike[str], handle: str) -> str:
    """Return the path at which the object of a handle is now, relative to SOURCE (surrogateescape).

    Args:
        target: a path on the fusenotify mount that the handle is of, or `unix:PATH`.
        handle: from `lookup`.

    Raises:
        StaleHandle: the object is gone or was moved out of the tree, or the handle is not one of this tree.
        NotPermitted: the caller cannot reach the object.
        NotAMount: the target is not on a fusenotify mount.
        DaemonGone: the daemon does not answer.
    """
    resolved = await anyio.to_thread.run_sync(resolve, target)
    return os.fsdecode((await _ask(resolved, Locate(0, handle), Location)).path)


async def _ask(target: Target, question: AskStatus | Lookup | Locate, kind: type[_Answer]) -> _Answer:
    connection = Connection(await target.connect(), Queue(1))
    try:
        answer = await connection.request(question)
    finally:
        await connection.aclose()
    if not isinstance(answer, kind):
        raise ProtocolError(f"the daemon answered {question!r} with {answer!r}")
    return answer
