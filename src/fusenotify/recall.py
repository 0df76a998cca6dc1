"""Clients and the journal: answers in pieces that fit into frames, and marks that are told of the time before them."""

import logging
import math
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import trio

from fusenotify.answering import TOO_LATE
from fusenotify.errors import FusenotifyError, HistoryGone, LimitReached, UsageError
from fusenotify.events import EVERYTHING, IS_DIR
from fusenotify.group import Group
from fusenotify.journal import Answer, Change, Journal
from fusenotify.lag import Recorded
from fusenotify.marks import Mark
from fusenotify.protocol import DIR, EXISTS, INODE, ChangedPath, Changes
from fusenotify.tree import ROOT_PATH, Directory

log = logging.getLogger(__name__)

_PIECE: Final = 1000  # changes
_PIECE_BYTES: Final = 1 << 15  # of paths and handles; the next one may come on top
_MOST_OF_ONE: Final = 4  # answers that one user reads, but for root


@dataclass(frozen=True)
class Reach:
    """What of the tree an answer is about.

    Attributes:
        base: the directory that the client sees, and which its paths are relative to.
        top: the path of what the answer is about.
        scope: whether that is the object at `top` itself, its entries, or everything below it.
    """

    base: Directory
    top: bytes
    scope: str

    def relative(self, path: bytes, *, is_gone: bool = False) -> bytes | None:
        """Return a path as the client knows it, None where it is not in reach."""
        if self.scope == INODE:
            is_in_reach = path == self.top
        elif self.scope == DIR:
            is_in_reach = (path.rpartition(b"/")[0] or ROOT_PATH) == self.top and path != ROOT_PATH
        else:
            is_in_reach = self.top == ROOT_PATH or path.startswith(self.top + b"/") or (is_gone and path == self.top)
        if not is_in_reach:
            return None
        if self.base.is_root:
            return path
        return ROOT_PATH if path == self.base.path else path.removeprefix(self.base.prefix)


class Answers:
    """Asks the journal. Each user reads a few answers at a time, so that there are some left for others."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._reading: Counter[int] = Counter()

    @asynccontextmanager
    async def ask(self, uid: int, cursor: str, reach: Reach, *, tells_renames: bool = False) -> AsyncIterator[Answer]:
        """Have an answer for a user (arguments and errors as `Journal.since`)."""
        if uid != 0 and self._reading[uid] >= _MOST_OF_ONE:
            raise LimitReached(f"user {uid} reads {_MOST_OF_ONE} answers already; try again in a moment")
        self._reading[uid] += 1
        try:
            async with await self._journal.since(cursor, reach.top, tells_renames=tells_renames) as answer:
                yield answer
        finally:
            self._reading[uid] -= 1


class Pieces:
    """The answer to a client's last question, and what of it has not been fetched yet."""

    def __init__(self, answers: Answers, uid: int) -> None:
        self._answers = answers
        self._uid = uid
        self._stack = AsyncExitStack()
        self._answer: Answer | None = None
        self._reach: Reach | None = None
        self._page: deque[ChangedPath] = deque()
        self._has_expired = False

    @property
    def deadline(self) -> float:
        """When `expire` is to be called, by trio's clock."""
        return self._answer.until if self._answer is not None else math.inf

    async def expire(self) -> None:
        """Forget the answer, as it has not been fetched in time."""
        await self.aclose()
        self._has_expired = True

    async def begin(self, cursor: str, reach: Reach, request: int) -> Changes:
        """Ask, and return the first piece of the answer; one that was begun earlier has come to its end.

        Raises:
            BadCursor: the cursor is none of this tree.
            LimitReached: too many answers are being read.
        """
        await self.aclose()
        self._has_expired = False
        self._answer = await self._stack.enter_async_context(self._answers.ask(self._uid, cursor, reach))
        self._reach = reach
        return await self.more(request)

    async def more(self, request: int) -> Changes:
        """Return the next piece.

        Raises:
            UsageError: there is none.
            HistoryGone: it has not been asked for in time.
        """
        answer, reach = self._answer, self._reach
        if self._has_expired:
            raise HistoryGone(TOO_LATE)
        if answer is None or reach is None:
            raise UsageError("there is no more of any answer; ask with `since`")
        if not self._page:
            await self._turn_page(answer, reach)
        records: list[ChangedPath] = []
        size = 0
        while self._page and size < _PIECE_BYTES:
            record = self._page.popleft()
            size += len(record.path) + len(record.handle or "")
            records.append(record)
        piece = Changes(request, records, answer.cursor, answer.fresh, more=bool(records))
        if not records:
            await self.aclose()
        return piece

    async def _turn_page(self, answer: Answer, reach: Reach) -> None:
        """Take the next page of which something is in reach."""
        while not self._page and (changes := await answer.page(_PIECE)):
            for change in changes:
                path = reach.relative(change.path, is_gone=not change.exists)
                if path is not None:
                    flags = (EXISTS if change.exists else 0) | (IS_DIR if change.is_dir else 0)
                    self._page.append(ChangedPath(path, flags, change.handle))

    async def aclose(self) -> None:
        """Forget the answer."""
        self._answer = None
        self._page.clear()
        with trio.CancelScope(shield=True):
            await self._stack.aclose()


class Recalls:
    """Tells marks of the time before them."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Work until this is cancelled."""
        async with trio.open_nursery() as self._nursery:
            await trio.sleep_forever()

    async def begin(self, group: Group, mark: Mark, reach: Reach, cursor: str, position: int) -> None:
        """Have a mark, which was made at a position, told what has changed since a cursor.

        From the call on, before it waits for anything, what happens is told to the group only behind that.

        Raises:
            BadCursor: the cursor is none of this tree.
            HistoryGone: what has changed since then is not known any more.
            LimitReached: too many answers are being read.
        """
        recall = _Recall(group, mark, reach)
        group.recall(mark.number, recall, position)
        try:
            assert self._nursery is not None
            await self._nursery.start(recall.run, self._answers, cursor)
        except BaseException:
            group.lag.end_supply(recall)
            raise


class _Recall:
    """What was recorded before a mark, as the group can take it (`lag.Supply`)."""

    def __init__(self, group: Group, mark: Mark, reach: Reach) -> None:
        self._group = group
        self._mark = mark
        self._reach = reach
        self._is_wanted = True
        self._asked = trio.Event()

    def ask(self) -> None:
        """Have another page taken."""
        self._asked.set()

    def drop(self) -> None:
        """Take no more."""
        self._is_wanted = False
        self._asked.set()

    async def run(self, answers: Answers, cursor: str, *, task_status: trio.TaskStatus[None]) -> None:
        """Find the answer, and then hand it on page by page."""
        async with answers.ask(self._group.uid, cursor, self._reach, tells_renames=True) as answer:
            if answer.fresh and cursor != EVERYTHING:
                raise HistoryGone(
                    f"what has changed since {cursor} is not known any more; begin with the cursor {EVERYTHING}"
                )
            task_status.started()
            try:
                await self._hand_on(answer)
            except FusenotifyError as error:
                log.debug("a mark is told everything: %s", error)
                self._give_up()
            except Exception:
                log.exception("the journal failed while a mark was told of the time before it")
                self._give_up()
        self._group.lag.end_supply(self)

    def _give_up(self) -> None:
        if self._is_wanted:
            self._group.lag.give_up()

    async def _hand_on(self, answer: Answer) -> None:
        while True:
            with trio.move_on_at(answer.until) as waiting:
                await self._asked.wait()
            if waiting.cancelled_caught:
                raise HistoryGone(TOO_LATE)
            self._asked = trio.Event()
            if not self._is_wanted or self._group.mark_of(self._mark.number) is not self._mark:
                return
            changes = await answer.page(_PIECE)
            if not changes:
                return
            if self._is_wanted:
                self._group.lag.supply([told for change in changes if (told := self._told(change)) is not None])

    def _told(self, change: Change) -> tuple[bytes, Recorded] | None:
        path = self._reach.relative(change.path, is_gone=not change.exists)
        old_path = None if change.old_path is None else self._reach.relative(change.old_path, is_gone=True)
        number, is_dir = self._mark.number, change.is_dir
        if path is None:
            return None if old_path is None else (old_path, Recorded(number, False, is_dir, False))
        is_new = change.is_new or change.old_path is not None
        return path, Recorded(number, change.exists, is_dir, is_new, old_path)
