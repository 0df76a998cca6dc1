"""One client as the daemon sees it, whatever carries its frames: requests in, answers and events out."""

import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import trio

from fusenotify import protocol
from fusenotify.admission import REQUEST_COST, check_mark, check_path, cost_of
from fusenotify.backing import Found
from fusenotify.callers import Credentials
from fusenotify.errors import FusenotifyError, NotPermitted, ProtocolError, UsageError, quoted
from fusenotify.group import Group
from fusenotify.groups import Groups, path_of
from fusenotify.inquiry import Inquiry
from fusenotify.intake import Intake
from fusenotify.journal import Journal
from fusenotify.locator import Locator
from fusenotify.protocol import (
    FILESYSTEM,
    AddMark,
    AskCursor,
    AskSnapshots,
    AskStatus,
    CreateSnapshot,
    DeleteSnapshot,
    Done,
    FrameBuffer,
    Handle,
    Hello,
    Locate,
    Location,
    Lookup,
    More,
    Recount,
    RemoveMark,
    Report,
    Request,
    Since,
    Sync,
    Welcome,
)
from fusenotify.recall import Answers, Reach, Recalls
from fusenotify.status import Histogram, Status
from fusenotify.tree import Directory

log = logging.getLogger(__name__)

_MOST_REQUESTS: Final = 256  # received and not yet answered; what comes in one piece may go beyond
_MOST_ANSWERED: Final = 1 << 16  # bytes of unread answers, beyond which no more requests are carried out
_MARK_ATTEMPTS: Final = 5
_EVENTS_PER_FRAME: Final = 1024


@dataclass(frozen=True)
class Services:
    """What a client can ask the daemon for.

    Attributes:
        groups: every group.
        intake: what is held of requests and answers.
        locator: from paths to handles and back, and what a user may read.
        journal: what has changed when.
        answers: what the journal is asked by.
        recalls: tells marks of the time before them.
        epoch: the run of the daemon.
        position: the current position in the history of changes.
        caught_up: waits until every change on the backing tree made before is queued.
        attentive: waits until the watches hear of everything that the marks ask for.
        quiet: waits until every request of the mount made before is carried out.
        status: tells how the daemon is.
        sent: where it is noted how long events took from being told until handed to a client.
    """

    groups: Groups
    intake: Intake
    locator: Locator
    journal: Journal
    answers: Answers
    recalls: Recalls
    epoch: str
    position: Callable[[], int]
    caught_up: Callable[[], Awaitable[None]]
    attentive: Callable[[], Awaitable[None]]
    quiet: Callable[[], Awaitable[None]]
    status: Callable[[], Status]
    sent: Histogram


class Peer:
    """Carries out one client's requests in order and collects what it is to be sent.

    Attributes:
        on_output: called when there is something to send.
        ended: whether nothing more will come: say what is left and hang up.
    """

    def __init__(self, services: Services, credentials: Credentials, base: Directory) -> None:
        self.on_output: Callable[[], None] = lambda: None
        self.uid = credentials.uid
        self._services = services
        self._credentials = credentials
        self._base = base
        self._frames = FrameBuffer()
        # With the memory that each takes; an error stands for what could not be read.
        self._requests: deque[tuple[Request | ProtocolError, int]] = deque()
        self._request_came = trio.Event()
        self._progress = trio.Event()  # set, and replaced, when less waits than before
        self._answers: deque[bytes] = deque()
        self._asked = 0  # bytes of memory that the requests take
        self._answered = 0  # bytes of the answers
        self._share = services.intake.open(credentials.uid)
        self._share.on_room = self._note_room
        self._group: Group | None = None
        self._is_marking = False  # until that is answered no events are sent: the client does not know the mark yet
        self._inquiry = Inquiry(
            self.uid, base, services.journal, services.answers, services.groups, services.position, self._readable,
            self._quiet,
        )  # fmt: skip

    # --- in ----------------------------------------------------------------------------------------------------------

    @property
    def has_group(self) -> bool:
        """Whether it has said hello."""
        return self._group is not None

    @property
    def room(self) -> int | None:
        """How many bytes may be taken from it for now; None where that is as much as it likes."""
        if len(self._requests) + len(self._answers) >= _MOST_REQUESTS:
            return 0
        return self._share.room

    @property
    def is_busy(self) -> bool:
        """Whether it has asked for so much that no more is taken from it for now."""
        return self.room == 0

    async def wait_not_busy(self) -> None:
        """Return when more may be taken from it."""
        while self.is_busy:
            await self._progress.wait()

    async def wait_sent(self) -> None:
        """Return when everything is carried out and every answer has been handed out."""
        while self._requests or self._answers:
            await self._progress.wait()

    def _note_held(self) -> None:
        self._share.hold(len(self._frames) + self._asked + self._answered)

    def _note_progress(self) -> None:
        self._note_held()
        self._progress.set()
        self._progress = trio.Event()

    def _note_room(self) -> None:
        """Go on with what there was no room for."""
        self._note_progress()
        self.on_output()  # who polls may write again

    def feed(self, data: bytes) -> None:
        """Take what the client sent.

        Raises:
            ProtocolError: it makes no sense; the client is told in its turn, and what is behind it is not read.
        """
        try:
            for payload in self._frames.feed(data):
                request = protocol.decode_request(payload)
                self._take(request, cost_of(request, payload))
        except ProtocolError as error:
            self._take(error, REQUEST_COST)
            raise
        finally:
            self._note_held()
            self._request_came.set()

    def _take(self, request: Request | ProtocolError, cost: int) -> None:
        self._requests.append((request, cost))
        self._asked += cost

    async def run(self) -> None:
        """Carry out requests for as long as the client is there."""
        async with aclosing(self._inquiry.pieces) as pieces:
            while True:
                self._request_came = trio.Event()
                while self._requests:
                    await self._wait_read()
                    reply = await self._reply_to(self._requests[0][0])
                    self._is_marking = False
                    self._answer(reply)
                    self._asked -= self._requests.popleft()[1]
                    self._note_progress()
                    await trio.lowlevel.checkpoint()  # most requests are carried out without any wait
                with trio.move_on_at(pieces.deadline) as waiting:
                    await self._request_came.wait()
                if waiting.cancelled_caught:
                    await pieces.expire()

    async def _wait_read(self) -> None:
        """Return when so much of what was answered has been read that there is room for another answer."""
        while self._answers and (
            self._answered >= _MOST_ANSWERED or len(self._answers) >= _MOST_REQUESTS or self._share.room == 0
        ):
            await self._progress.wait()

    async def _reply_to(self, request: Request | ProtocolError) -> protocol.Reply:
        if isinstance(request, ProtocolError):
            return protocol.refusal(0, request)
        try:
            return await self._carry_out(request)
        except FusenotifyError as error:
            return protocol.refusal(getattr(request, "request", 0), error)
        except Exception:
            # A bug, and this client's alone: the daemon serves others.
            log.exception("a request of user %d failed: %r", self.uid, request)
            bug = FusenotifyError("the daemon failed to carry this out; its log says more")
            return protocol.refusal(getattr(request, "request", 0), bug)

    async def _carry_out(self, request: Request) -> protocol.Reply:
        match request:
            case Hello():
                return self._hello(request)
            case AskStatus():
                return Report(request.request, self._services.status())
            case Lookup():
                check_path(request.path)
                handle, is_dir = await self._services.locator.lookup(self._base, request.path, self._credentials)
                return Handle(request.request, handle, is_dir)
            case Locate():
                path = await self._services.locator.locate(self._base, request.handle, self._credentials)
                return Location(request.request, path)
            case AskCursor() | Since() | More() | CreateSnapshot() | DeleteSnapshot() | AskSnapshots():
                return await self._inquiry.answer(request)
        if self._group is None:
            raise ProtocolError("the first message has to be `hello`")
        match request:
            case AddMark():
                return await self._mark(self._group, request)
            case RemoveMark():
                self._group.remove(request.mark)
                await self._services.attentive()
            case Recount():
                if request.path is not None:
                    check_path(request.path)
                await self._services.caught_up()
                self._group.recount(request.mark, request.path, self._services.position(), time.time_ns())
            case Sync():
                await self._quiet()
        return Done(request.request, self._services.position())

    def _hello(self, request: Hello) -> Welcome:
        if request.version != protocol.VERSION:
            raise ProtocolError(f"this daemon speaks version {protocol.VERSION} of the protocol, not {request.version}")
        if request.limit < 0:
            raise UsageError(f"a queue cannot hold {request.limit} events")
        if self._group is not None:
            raise ProtocolError("`hello` was said already")
        self._group = self._services.groups.open(self._credentials.uid, self._base, request.limit)
        self._group.queue.on_queued = self._tell_output
        return Welcome(protocol.VERSION, self._services.epoch)

    def _tell_output(self) -> None:
        self.on_output()  # which may have been set after the group was opened

    async def _mark(self, group: Group, request: AddMark) -> Done:
        """Add a mark; what happened before is not told, so that nothing is heard twice or by halves."""
        check_mark(request)
        self._services.groups.check_reach(self._credentials.uid, request.scope)
        self._services.groups.check_room(self._credentials.uid)
        since = request.since
        if since is not None:
            since = await self._services.journal.ready(since)  # which may take long: nothing is held up by it yet
        self._is_marking = True
        for _ in range(_MARK_ATTEMPTS):
            with contextlib.closing(await self._readable(request.path)) as found:
                await self._services.caught_up()
                if self._services.groups.mark(group, request, found):
                    if since is not None:
                        await self._recall(group, request, since)
                    await self._services.attentive()
                    return Done(request.request, self._services.position(), since)
        raise NotPermitted(
            f"user {self.uid} gets no mark on {quoted(request.path)}: each time that its rights were checked, "
            "something else was there; try again when nobody renames anything on the way to it"
        )

    async def _recall(self, group: Group, request: AddMark, since: str) -> None:
        """Have a mark, which has just been made, told what has changed since a cursor; else there is no mark."""
        mark = group.mark_of(request.mark)
        assert mark is not None
        path = b"." if request.scope == FILESYSTEM else request.path
        reach = Reach(self._base, path_of(self._base, path), request.scope)
        try:
            await self._services.recalls.begin(group, mark, reach, since, self._services.position())
        except BaseException:
            if group.mark_of(request.mark) is mark:
                group.remove(request.mark)
            raise

    async def _quiet(self) -> None:
        """Return when every change made before has been told."""
        await self._services.quiet()
        await self._services.caught_up()

    # --- rights ------------------------------------------------------------------------------------------------------

    async def _readable(self, path: bytes) -> Found:
        """Return what the user may read at the path of a request.

        Rights are checked by path, and somebody may swap an object that is readable for the one that is marked: the
        two have to be the same.

        Raises:
            NotPermitted: what is at the path is not for this user.
            UsageError: there is nothing.
        """
        check_path(path)
        if b".." in path.split(b"/"):
            raise UsageError(f"{quoted(path)} is no path below the place that was opened: it has to do without `..`")
        try:
            return await self._services.locator.find_readable(path_of(self._base, path), self._credentials)
        except PermissionError as error:
            raise NotPermitted(f"user {self.uid} cannot read {quoted(path)}: {error.strerror}") from error
        except OSError as error:
            raise UsageError(f"there is no {quoted(path)} in the tree: {error.strerror}") from error

    def _answer(self, message: protocol.Reply) -> None:
        self._answers.append(protocol.encode(message))
        self._answered += len(self._answers[-1])
        self.on_output()

    # --- out ---------------------------------------------------------------------------------------------------------

    @property
    def has_output(self) -> bool:
        """Whether there is something to send."""
        group = self._telling
        return bool(self._answers or (group is not None and len(group.queue)))

    @property
    def _telling(self) -> Group | None:
        """The group, if events of it may be sent now."""
        return None if self._is_marking else self._group

    def output(self, size: int) -> bytes:
        """Return whole frames of at most `size` bytes in all; empty when nothing waits.

        Answers come before events: they do not depend on each other, and a client that waits for one is not kept
        waiting by a full queue.

        Raises:
            ValueError: the first frame alone is longer.
        """
        frames: list[bytes] = []
        room = size
        while self._answers and len(self._answers[0]) <= room:
            frames.append(self._answers.popleft())
            room -= len(frames[-1])
            self._answered -= len(frames[-1])
        if self._answers and not frames:
            raise ValueError(f"a frame of {len(self._answers[0])} bytes does not fit into {size}")
        if frames:
            self._note_progress()
        while not self._answers and (frame := self._event_frame(room, required=not frames)) is not None:
            frames.append(frame)
            room -= len(frame)
        return b"".join(frames)

    def _event_frame(self, room: int, *, required: bool) -> bytes | None:
        """Return the next frame of events that fits, None if there is none; raise if one is required and none fits."""
        group = self._telling
        if group is None:
            return None
        queue = group.queue
        count = _EVENTS_PER_FRAME
        while (waiting := queue.peek(count)) is not None:
            mark, batch = waiting
            frame = protocol.encode_events(mark, batch)
            if len(frame) <= room:
                queue.pop()
                group.note_room()
                self._services.sent.note((time.time_ns() - batch.time_ns) * 1e-9, len(batch))
                return frame
            if len(batch) == 1:
                if required:
                    raise ValueError(f"a frame of {len(frame)} bytes does not fit into {room}")
                return None
            count = len(batch) // 2
        return None

    def close(self) -> None:
        """Drop the group and its queue, and all that is held of requests and answers; `run` has to have ended."""
        self._share.close()
        if self._group is not None:
            self._services.groups.close(self._group)
            self._group = None
