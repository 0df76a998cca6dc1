"""Who listens: every group, what is marked, and the fan-out of events."""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from fusenotify import events
from fusenotify.errors import LimitReached, NotPermitted, UsageError, quoted
from fusenotify.events import ALWAYS, OVERFLOW, UNMOUNT, USES, EventRecord
from fusenotify.fanout import Fanout
from fusenotify.group import MOST_MARKS, Debt, Group
from fusenotify.identity import InodeKey
from fusenotify.marks import ANY_ORIGIN, Mark, MarkedPlaces, Place, Ways
from fusenotify.naming import Anonymous, Identifies, named
from fusenotify.news import News
from fusenotify.pinned import NOTHING, Ended, Pin, PinnedFiles
from fusenotify.protocol import DIR, FILESYSTEM, INODE, SUBTREE, AddMark
from fusenotify.queue import DEFAULT_LIMIT
from fusenotify.status import QueueStatus
from fusenotify.tree import Directory, Tree
from fusenotify.uses import AskedUses

MOST_GROUPS_PER_UID: Final = 1024
MOST_EVENTS: Final = 1 << 20  # in a queue, but for the daemon's user and root
MOST_UIDS: Final = 1024  # in a mark
MOST_PINNED: Final = 1 << 14  # marked files, each of which is a descriptor
_SCOPES: Final = (INODE, DIR, SUBTREE, FILESYSTEM)


class Groups:
    """Every group of a daemon.

    Attributes:
        debts: what has come into some group's reach and is still to be told.
        on_debts: called when there are new ones that no event announces.
        uses: where uses of files are asked for.
        identifier: finds handles.
        fanout: hands events on to the groups.
    """

    def __init__(
        self,
        tree: Tree,
        owner: int,
        watch_other: bool,
        look: Callable[[bytes], InodeKey | None],
        most_pinned: int = MOST_PINNED,
    ) -> None:
        """Start without groups; subtrees are for root and `owner`, unless `watch_other`.

        `look` tells what is at a path now; at most `most_pinned` files can be marked.
        """
        self.debts: deque[Debt] = deque()
        self.on_debts: Callable[[], None] = lambda: None
        self._tree = tree
        self._owner = owner
        self._watch_other = watch_other
        self._look = look
        self.identifier: Identifies = Anonymous()
        self.fanout: Fanout[Group] = Fanout()
        self._groups: dict[Group, None] = {}
        self._files = PinnedFiles(tree, look, min(most_pinned, MOST_PINNED))
        self._places = MarkedPlaces(self._files)
        self.uses = AskedUses(tree, self._files.files_in)
        self._places.on_mark, self._places.on_unmark = self.uses.add, self.uses.remove
        self._files.on_moved = lambda directory: self.uses.unsettle((directory,))
        tree.on_placed = self.uses.unsettle
        self._last = EventRecord(0, 0, OVERFLOW, 0, None)  # that was published: what happens to the tree is its doing
        tree.on_leaving = self._end_marks_in

    def __len__(self) -> int:
        return len(self._groups)

    def open(self, uid: int, base: Directory, limit: int) -> Group:
        """Add a group.

        Raises:
            LimitReached: this user has too many, or asks for too long a queue.
        """
        if limit > MOST_EVENTS and uid not in (0, self._owner):
            raise LimitReached(f"a queue of user {uid} can hold {MOST_EVENTS} events, not {limit}")
        usage = self.fanout.ledger.of(uid)
        if uid != 0 and usage.groups >= MOST_GROUPS_PER_UID:
            raise LimitReached(f"user {uid} has {MOST_GROUPS_PER_UID} groups open, which is the limit; close some")
        usage.groups += 1
        group = Group(usage, self._tree, base, limit or DEFAULT_LIMIT, self.debts, self._places)
        group.identifier = self.identifier
        group.on_debts = self.on_debts
        self._groups[group] = None
        self.fanout.add(group)
        return group

    def close(self, group: Group) -> None:
        """Remove a group and forget what it has not read."""
        if self._groups.pop(group, self) is self:
            return
        self.fanout.remove(group)
        group.remove_all()
        self.fanout.ledger.close_group(self.fanout.ledger.of(group.uid))

    def publish(self, records: list[EventRecord]) -> None:
        """Queue some events for everybody whose marks let them through."""
        if not records:
            return
        first, last = records[0], records[-1]
        self._last = last
        if not self._groups:
            return
        if first.kind == OVERFLOW:  # it comes alone (see `translation`)
            self.fanout.overflow(first)
            return
        told = records[:-1] if last.kind == UNMOUNT else records
        if told:
            news = self._news_of(told)
            self.fanout.publish(news)
            # Who has fallen behind is not told of events, but of the end of a mark all the same.
            self._end_files(one for sighting in news.sightings for one in sighting.ended if one.file in self._places)
        if last.kind == UNMOUNT:
            self.fanout.end(last)

    def _news_of(self, records: list[EventRecord]) -> News:
        sightings = [self._files.sight(record) for record in records] if self._files else [NOTHING] * len(records)
        usual = [record for record in records if not record.kind & USES] if self.uses else records
        ways = Ways(self._tree)
        if not self._places.handles:
            return News(records, usual, ways, sightings, records, sightings)
        known = self.identifier.identify(records)
        named_sightings = [
            sighting._replace(other_handle=one.other) for sighting, one in zip(sightings, known, strict=True)
        ]
        return News(records, usual, ways, sightings, list(map(named, records, known)), named_sightings)

    # --- objects that leave the tree ---------------------------------------------------------------------------------

    def _end_marks_in(self, leaving: list[Directory]) -> None:
        """End the marks on directories that leave the tree, and on files that leave it with them."""
        ended = [(directory, directory.path) for directory in leaving if directory in self._places]
        for directory, path in ended:
            self._end(directory, path)
        self._end_files(self._files.leave(leaving))

    def look_again(self) -> None:
        """Find out which marked files have left the tree unheard, when it has been compared after an overflow."""
        self._end_files(self._files.look_again())

    def _end_files(self, ended: Iterable[Ended]) -> None:
        for file, path in ended:
            self._end(file, path)

    def _end(self, place: Place, path: bytes | None) -> None:
        if self._last.kind == UNMOUNT:
            return  # nothing comes after that
        for group in self._groups:
            group.end(place, path, self._last)

    # --- requests ----------------------------------------------------------------------------------------------------

    def report(self) -> list[QueueStatus]:
        """Return the groups in figures, those first that have most to read."""
        figures = [
            QueueStatus(
                group.uid,
                group.marks,
                len(group.queue),
                group.queue.limit,
                group.queue.dropped,
                group.queue.overflows,
            )
            for group in self._groups
        ]
        return sorted(figures, key=lambda figure: figure.waiting, reverse=True)

    @property
    def all_read(self) -> bool:
        """Whether every group has read its queue to the end."""
        return not any(len(group.queue) for group in self._groups)

    def check_room(self, uid: int) -> None:
        """Refuse more marks to a user who has as many as one group may have: each is looked at with every event.

        Raises:
            LimitReached: so it is.
        """
        if uid != 0 and self.fanout.ledger.of(uid).marks >= MOST_MARKS:
            raise LimitReached(f"user {uid} has {MOST_MARKS} marks, which is the limit; mark a directory above instead")

    def check_reach(self, uid: int, scope: str) -> None:
        """Refuse more than single objects and directories to whom that is not meant for.

        Raises:
            NotPermitted: names below a directory would be told to somebody who may not read them.
        """
        if scope in (SUBTREE, FILESYSTEM) and uid not in (0, self._owner) and not self._watch_other:
            raise NotPermitted(
                f"a mark with the scope {scope} is for the daemon's user and root, as it tells names in directories "
                "that others may not read; watch single directories, or mount with -o watch_other"
            )

    def check_owner(self, uid: int) -> None:
        """Refuse to all others what the daemon keeps for its own user.

        Raises:
            NotPermitted: so it is.
        """
        if uid not in (0, self._owner):
            raise NotPermitted("snapshots are made and deleted by the daemon's user and root; keep a cursor instead")

    def mark(self, group: Group, request: AddMark, found: Pin) -> bool:
        """Add the mark that is asked for, to what its user may read at the path of the request.

        Args:
            group: who asks.
            request: for what.
            found: what was there when the user's rights were checked; it stays the caller's.

        Returns:
            False where another object is there in the tree as it is now.

        Raises:
            UsageError: there is no such object, or the request makes no sense.
            LimitReached: the group has too many marks, too many users are named, or too many files marked.
        """
        _check(request)
        if group.base.gone:
            raise UsageError("the directory that was opened is gone, and no directory below it can be marked")
        place: Place | None = None
        path = path_of(group.base, request.path)
        directory = self._tree.find(path)
        if request.scope == FILESYSTEM:
            pass
        elif directory is not None:
            if directory.key != found.key or directory.gone:
                return False
            place = directory
        elif request.scope != INODE:
            raise UsageError(f"{quoted(request.path)} is no directory of the tree; files have the scope {INODE}")
        group.check_room(request.mark)
        if directory is None and request.scope == INODE:
            above, _, name = path.rpartition(b"/")
            directory = self._tree.find(above)
            if directory is None or self._look(path) != found.key:
                return False
            place = self._files.pin(directory, name, found)
        uids = None if request.uids is None else frozenset(request.uids)
        group.add(
            Mark(
                request.mark, place, request.scope, request.kinds | ALWAYS, request.origins, request.exclude_pid, uids,
                request.oneshot, request.handles, request.shared,
            )
        )  # fmt: skip
        return True


def path_of(base: Directory, path: bytes) -> bytes:
    """Return the path below the root of what a client calls by a path below its base."""
    names = [name for name in path.split(b"/") if name not in (b"", b".")]
    return base.prefix + b"/".join(names) if names else base.path


def _check(request: AddMark) -> None:
    if request.scope not in _SCOPES:
        raise UsageError(f"{request.scope!r} is no scope; the scopes are {', '.join(_SCOPES)}")
    if not request.origins & ANY_ORIGIN:
        raise UsageError("a mark needs at least one origin")
    if unknown := request.kinds & ~events.ALL:
        raise UsageError(f"these are bits of no kind: {unknown:#x}")
    if request.uids is not None and len(request.uids) > MOST_UIDS:
        raise LimitReached(f"a mark can name {MOST_UIDS} users, not {len(request.uids)}; name none to hear of all")
