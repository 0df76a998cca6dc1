"""One client's questions about history: where we are, what has changed since, which cursors are kept under names."""

import contextlib
import stat
from collections.abc import Awaitable, Callable

from fusenotify.backing import Found
from fusenotify.groups import Groups, path_of
from fusenotify.journal import Journal
from fusenotify.protocol import (
    INODE,
    SUBTREE,
    AskCursor,
    AskSnapshots,
    Changes,
    CreateSnapshot,
    DeleteSnapshot,
    Done,
    KeptSnapshot,
    More,
    Position,
    Since,
    Snapshots,
)
from fusenotify.recall import Answers, Pieces, Reach
from fusenotify.tree import Directory

Question = AskCursor | Since | More | CreateSnapshot | DeleteSnapshot | AskSnapshots


class Inquiry:
    """Answers them, in order.

    Attributes:
        pieces: the answer that is being fetched.
    """

    def __init__(
        self,
        uid: int,
        base: Directory,
        journal: Journal,
        answers: Answers,
        groups: Groups,
        position: Callable[[], int],
        readable: Callable[[bytes], Awaitable[Found]],
        quiet: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare to be asked.

        Args:
            uid: who asks.
            base: the directory that paths are relative to.
            journal: who knows.
            answers: what it is asked by.
            groups: knows who may ask.
            position: the current position in the history of changes.
            readable: returns what the user may read at a path (errors as `Peer`'s).
            quiet: waits until every change made before has been told.
        """
        self.pieces = Pieces(answers, uid)
        self._uid = uid
        self._base = base
        self._journal = journal
        self._groups = groups
        self._position = position
        self._readable = readable
        self._quiet = quiet

    async def answer(self, request: Question) -> Changes | Position | Snapshots | Done:
        """Answer a question.

        Raises:
            BadCursor: the cursor is none of this tree, or there is no such snapshot.
            HistoryGone: the rest of an answer was not fetched in time.
            NotPermitted: this user may not ask.
            UsageError: the question makes no sense.
            LimitReached: too many answers are being read, or too many snapshots kept.
        """
        match request:
            case More():
                return await self.pieces.more(request.request)
            case Since():
                return await self._since(request)
            case AskCursor():
                await self._quiet()
                return Position(request.request, await self._journal.cursor())
            case AskSnapshots():
                self._groups.check_reach(self._uid, SUBTREE)
                kept = [KeptSnapshot(*one) for one in await self._journal.snapshots()]
                return Snapshots(request.request, kept)
            case CreateSnapshot():
                self._groups.check_owner(self._uid)
                await self._quiet()
                return Position(request.request, await self._journal.create_snapshot(request.name))
            case DeleteSnapshot():
                self._groups.check_owner(self._uid)
                await self._journal.delete_snapshot(request.name)
                return Done(request.request, self._position())

    async def _since(self, request: Since) -> Changes:
        with contextlib.closing(await self._readable(request.path)) as found:
            scope = SUBTREE if stat.S_ISDIR(found.stat.st_mode) else INODE
        self._groups.check_reach(self._uid, scope)
        await self._quiet()
        reach = Reach(self._base, path_of(self._base, request.path), scope)
        return await self.pieces.begin(request.cursor, reach, request.request)
