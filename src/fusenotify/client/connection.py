"""One daemon as a client sees it: requests and answers, and the queue of events that came with them."""

from collections.abc import Callable
from contextlib import suppress
from typing import Final

import anyio
from msgspec.structs import replace

from fusenotify import protocol
from fusenotify.batch import Batch
from fusenotify.client.marks import BATCH, Mark, Question, Source, only_one
from fusenotify.errors import DaemonGone
from fusenotify.events import (
    DELETE_SELF,
    IGNORED,
    LIVE,
    OVERFLOW,
    Event,
    EventRecord,
    RecordedEvent,
    format_cursor,
)
from fusenotify.protocol import (
    AddMark,
    Done,
    Events,
    FrameBuffer,
    Hello,
    Recount,
    Refusal,
    RemoveMark,
)
from fusenotify.queue import DEFAULT_LIMIT, End, Queue
from fusenotify.targets import Target
from fusenotify.transports import Transport

_LAST_WORDS: Final = 1.0  # seconds to tell a daemon that a mark is not wanted after all
_REPLY_LIMIT: Final = 64 << 20  # bytes; the daemon decides how long its frames are


class Connection:
    """One daemon: requests and answers, and the queue of events that came with them.

    Attributes:
        target: what the daemon was reached by.
        epoch: the run of the daemon.
        marks: the marks there are, by number.
        asked: how each of them was asked for.
        position: up to where nothing has been missed; None before the first mark.
        recalling: the marks that are still told of the time before them, and the cursor which that begins at.
    """

    def __init__(self, target: Target, transport: Transport, limit: int, on_arrival: Callable[[Source], None]) -> None:
        """Begin a conversation; `on_arrival` is called with each piece of news that is queued."""
        self.target = target
        self.epoch = ""
        self.marks: dict[int, Mark] = {}
        self.asked: dict[int, AddMark] = {}
        self.position: int | None = None
        self.recalling: dict[int, str] = {}
        # The daemon keeps to the limit. Here is what it had sent when somebody waited for an answer behind it.
        self.queue = Queue(max(limit, DEFAULT_LIMIT))
        self._dropped = 0  # of the events there that found no room, those that have been made good for
        self._lossy: set[int] = set()  # marks of which everything is to be told anew
        self._on_arrival = on_arrival
        self._transport = transport
        self._frames = FrameBuffer(_REPLY_LIMIT)
        self._answers: dict[int, protocol.Reply] = {}
        self._marking: dict[int, Callable[[Done], Mark]] = {}  # request -> what makes the mark that it asks for
        self._abandoned: set[int] = set()  # requests whose answers nobody waits for any more
        self._sending = anyio.Lock()
        self._reading = anyio.Lock(fast_acquire=True)  # what is there already is read without giving way to others
        self._requests = 0
        self._received = 0

    async def hello(self, limit: int) -> None:
        """Open the group on the daemon's side."""
        await self._send(Hello(protocol.VERSION, limit))
        await self._await_answer(0)

    async def request(self, message: Question) -> protocol.Reply:
        """Send a request and return the answer; the request gets its number here.

        Raises:
            DaemonGone: nobody answers, or no more: another connection may have taken this one's place.
        """
        self._requests += 1
        number = message.request = self._requests
        try:
            await self._send(message)
            return await self._await_answer(number)
        except anyio.get_cancelled_exc_class():
            if self._answers.pop(number, None) is None:
                self._abandoned.add(number)
            raise
        except anyio.ClosedResourceError as error:
            raise DaemonGone(f"the connection to {self.target.given} was lost before there was an answer") from error

    async def mark(self, message: AddMark, make: Callable[[Done], Mark]) -> Mark:
        """Send a request for a mark; `make` makes it of the answer.

        The mark is there before any event behind the answer is looked at, whichever task reads it.
        """
        if not self._transport.shares_processes:
            message = replace(message, exclude_pid=None)  # there it is the number of another process
        made: list[Mark] = []

        def keep(answer: Done) -> Mark:
            made.append(make(answer))
            self.asked[message.mark] = message
            if answer.since is not None:
                self.recalling[message.mark] = answer.since
            return made[0]

        self._marking[self._requests + 1] = keep
        try:
            await self.request(message)
        except anyio.get_cancelled_exc_class():
            await self._give_up(message.mark)
            raise
        finally:
            self._marking.pop(message.request, None)
        return made[0]  # which may have ended already

    async def unmark(self, mark: Mark) -> None:
        """Remove a mark; what waits for it is dropped."""
        self._forget(mark.number)
        await self.request(RemoveMark(0, mark.number))

    def _forget(self, number: int) -> None:
        for numbered in (self.marks, self.asked, self.recalling):
            numbered.pop(number, None)

    async def _give_up(self, mark: int) -> None:
        """Remove a mark that nobody has come to know, without waiting for the answer."""
        self._forget(mark)
        with suppress(DaemonGone), anyio.move_on_after(_LAST_WORDS, shield=True):
            await self._ask(RemoveMark(0, mark))

    async def _ask(self, message: Question) -> None:
        """Send a request whose answer nobody waits for."""
        self._requests += 1
        message.request = self._requests
        self._abandoned.add(message.request)
        await self._send(message)

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
        await self._make_good()
        async with self._reading:
            if self._received != received:
                return
            for payload in self._frames.feed(await self._transport.receive()):
                self._take(protocol.decode_reply(payload))
            self._received += 1

    async def _make_good(self) -> None:
        """Have everything in the marks' reach told anew when the queue here was full, and that has been read.

        One mark is asked for at a time, and others may read meanwhile: the daemon takes nothing more from who has left
        many of its answers unread.
        """
        if self.queue.dropped != self._dropped and not self.has_news:
            self._dropped = self.queue.dropped
            self._lossy.update(self.marks)
        if self._lossy:
            number = next(iter(self._lossy))
            await self._ask(Recount(0, number))
            self._lossy.discard(number)

    def _take(self, message: protocol.Reply) -> None:
        match message:
            case Events(mark, records):
                self._take_events(mark, records)
            case protocol.Welcome(_, epoch):
                self.epoch = epoch
                self._answers[0] = message
            case _:
                request = message.request
                if request in self._abandoned:
                    self._abandoned.remove(request)
                    return
                if isinstance(message, Done) and request in self._marking:
                    made = self._marking[request](message)
                    self.marks[made.number] = made
                    self.position = message.seq if self.position is None else self.position
                self._answers[request] = message

    def _take_events(self, mark: int, records: list[EventRecord]) -> None:
        if not records:
            return
        last = records[-1]
        self.position = last.seq
        if records[0].kind == OVERFLOW:
            self.lose(records[0].seq, records[0].time_ns, records[0].reason)
            return
        self.queue.push(mark, End(records) if last.kind & (DELETE_SELF | IGNORED | LIVE) else Batch(records))
        self._on_arrival(self)

    def lose(self, seq: int, time_ns: int, reason: str) -> None:
        """Queue an overflow event."""
        self.queue.push_overflow(seq, time_ns, reason)
        self._on_arrival(self)

    @property
    def is_idle(self) -> bool:
        """Whether it watches something that no mark asks for any more: that is the daemon's business."""
        return False

    @property
    def has_news(self) -> bool:
        """Whether events wait that have been received."""
        return len(self.queue) > 0

    def pop(self) -> list[Event]:
        """Return the oldest events that have been received, none if there are none or their mark has gone."""
        waiting = self.queue.peek(BATCH)
        if waiting is None:
            return []
        self.queue.pop()
        number, batch = waiting
        mark = self.marks.get(number) if number else only_one(self.marks)
        if mark is None and number:
            return []  # unmarked meanwhile
        if mark is not None and batch.records[0].kind == LIVE:
            mark.live = format_cursor(self.epoch, batch.records[0].seq)
            self.recalling.pop(number, None)
            return []
        since = self._since(number)
        if number and (self.asked[number].oneshot or batch.records[-1].kind == IGNORED):
            self._forget(number)  # it has ended
        if since is not None:
            return [RecordedEvent(record, since, mark) for record in batch.records]
        return [Event(record, self.epoch, mark) for record in batch.records]

    def _since(self, number: int) -> str | None:
        """Return the cursor from which a mark (0: all of them) is still told what was recorded, None if none is."""
        if number:
            return self.recalling.get(number)
        return next(iter(self.recalling.values()), None)

    def cursor_of(self, number: int) -> str | None:
        """Return the cursor from which a mark misses nothing, if nothing more comes of this source."""
        if self.position is None:
            return None
        return self.recalling.get(number) or format_cursor(self.epoch, self.position)

    async def aclose(self) -> None:
        """Hang up."""
        with anyio.CancelScope(shield=True):
            await self._transport.aclose()
