"""One daemon as a client sees it: requests and answers, and the queue of events that came with them."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import anyio

from fusenotify import protocol
from fusenotify.errors import DaemonGone
from fusenotify.events import OVERFLOW, Event, Kind, Origin, Scope
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
from fusenotify.queue import Batch, Queue
from fusenotify.transports import Transport

_BATCH: Final = 1024
_LAST_WORDS: Final = 1.0  # seconds to tell a daemon that a mark is not wanted after all
_REPLY_LIMIT: Final = 64 << 20  # bytes; the daemon decides how long its frames are


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
