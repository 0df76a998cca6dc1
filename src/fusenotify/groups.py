"""Who listens: groups, their queues, and the fan-out of events to them."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from fusenotify import events
from fusenotify.errors import LimitReached, NotPermitted, UsageError
from fusenotify.events import (
    ALWAYS,
    IS_DIR,
    LOCAL,
    OVERFLOW,
    RECOVERED,
    USES,
    EventRecord,
)
from fusenotify.identity import InodeKey
from fusenotify.marks import ANY_ORIGIN, Mark, MarkedPlaces, MarkIndex, Place, Reach, Ways
from fusenotify.naming import Anonymous, Identifies, named
from fusenotify.pinned import NOTHING, Ended, Pin, PinnedFiles, Sighting
from fusenotify.protocol import DIR, FILESYSTEM, INODE, SUBTREE, AddMark
from fusenotify.queue import DEFAULT_LIMIT, Batch, Queue
from fusenotify.selection import Selector
from fusenotify.tree import Directory, Tree
from fusenotify.uses import AskedUses

MOST_GROUPS_PER_UID: Final = 1024
MOST_MARKS: Final = 8192
MOST_EVENTS: Final = 1 << 20  # in a queue, but for the daemon's user and root
MOST_UIDS: Final = 1024  # in a mark
_MOST_PINNED: Final = 1 << 14  # marked files, each of which is a descriptor
_SCOPES: Final = (INODE, DIR, SUBTREE, FILESYSTEM)


@dataclass(slots=True)
class Debt:
    """What is in a directory that has come into a group's reach from elsewhere in the tree, and is still to be told.

    Attributes:
        group: the group.
        directory: the directory; it may have been renamed again.
        cause: the rename that brought it.
        tries: how often it could not be looked at.
    """

    group: "Group"
    directory: Directory
    cause: EventRecord
    tries: int = 0


class Group:
    """One listener: marks, and the queue of what they let through.

    Attributes:
        uid: the user who opened it.
        base: the directory below which it sees anything, and which its paths are relative to.
        queue: what it has not read.
        on_queued: called when something was queued.
        identifier: finds handles.
    """

    def __init__(
        self, uid: int, tree: Tree, base: Directory, limit: int, debts: deque[Debt], places: MarkedPlaces
    ) -> None:
        self.uid = uid
        self.base = base
        self.queue = Queue(limit)
        self.on_queued: Callable[[], None] = lambda: None
        self.identifier: Identifies = Anonymous()
        self._tree = tree
        self._debts = debts
        self._index = MarkIndex(places)
        self._selector = Selector(tree, base, self._index)
        self._selector.on_ended = lambda _: self._note_marks()
        self._selector.on_owed = self._owe
        self._selector.is_owed = lambda: any(debt.group is self for debt in debts)
        self._undivided: int | None = None  # the number of the one mark that takes everything

    # --- marks -------------------------------------------------------------------------------------------------------

    @property
    def marks(self) -> int:
        """How many marks there are."""
        return len(self._index)

    @property
    def wants_handles(self) -> bool:
        """Whether some mark asks for handles."""
        return self._index.handles > 0

    def add(self, mark: Mark) -> None:
        """Add a mark, or change the one that has this number."""
        self._index.put(mark)
        self._note_marks()

    def check_room(self, number: int) -> None:
        """Refuse a new mark where there are enough.

        Raises:
            LimitReached: so it is.
        """
        if number not in self._index and len(self._index) >= MOST_MARKS:
            raise LimitReached(f"a group can have {MOST_MARKS} marks; one mark on a directory above covers them all")

    def remove(self, number: int) -> None:
        """Remove a mark, and what waits for it."""
        if self._index.pop(number) is None:
            raise UsageError(f"this group has no mark {number}")
        self.queue.drop(number)
        self._note_marks()

    def remove_all(self) -> None:
        """Remove every mark."""
        for mark in list(self._index):
            self._index.pop(mark.number)
        self._note_marks()

    def _note_marks(self) -> None:
        only = next(iter(self._index)) if len(self._index) == 1 else None
        whole = only is not None and only.takes_everything and self.base.is_root
        self._undivided = only.number if whole and only is not None else None

    def end(self, place: Place, path: bytes | None, cause: EventRecord) -> None:
        """End the marks on an object that has left the tree, whose last path is given, and tell of it."""
        handle = self.identifier.handle_of(place) if self.wants_handles else None
        flags = cause.flags & LOCAL | (IS_DIR if isinstance(place, Directory) else 0)
        shown = self._selector.relative(path)
        marks = self._index.on(place)
        for mark in marks:
            kinds = [events.DELETE_SELF] if mark.scope == INODE or mark.kinds & events.DELETE_SELF else []
            ends = [
                EventRecord(
                    cause.seq, cause.time_ns, kind, flags, shown, None, cause.pid, cause.uid,
                    handle=handle if mark.handles else None,
                )
                for kind in (*kinds, events.IGNORED)
            ]  # fmt: skip
            self.queue.push(mark.number, Batch(ends), always=True)
            self._index.pop(mark.number)
        if marks:
            self._note_marks()
            self.on_queued()

    # --- fan-out -----------------------------------------------------------------------------------------------------

    def publish(self, batch: Batch, usual: Batch, ways: Ways, sightings: Sequence[Sighting] | None = None) -> None:
        """Queue what of a batch the marks let through.

        Args:
            batch: some events.
            usual: those of them that are not only told where they are asked for.
            ways: the tree as it is for all of them.
            sightings: of each event, what marked files it is of.
        """
        if not len(self._index):
            return
        waiting = len(self.queue)
        first = batch.records[0]
        if first.kind == OVERFLOW:  # it comes alone (see `translation`)
            self.queue.push_overflow(first.seq, first.time_ns, first.reason)
        elif self._undivided is not None:
            if usual.records:
                self.queue.push(self._undivided, usual)
        else:
            self._push_selected(batch.records, ways, sightings or (NOTHING,) * len(batch))
        if len(self.queue) > waiting:
            self.on_queued()

    def _push_selected(self, records: Sequence[EventRecord], ways: Ways, sightings: Sequence[Sighting]) -> None:
        run: list[EventRecord] = []
        run_mark = 0
        reach = Reach(self._index, ways)
        for record, sighting in zip(records, sightings, strict=True):
            for mark, selected in self._selector.select(record, sighting, reach):
                if mark != run_mark and run:
                    self.queue.push(run_mark, Batch(run))
                    run = []
                run_mark = mark
                run.append(selected)
            if sighting.ended:
                if run:
                    self.queue.push(run_mark, Batch(run))
                    run = []
                for file, path in sighting.ended:
                    self.end(file, path, record)
                reach.forget()
        if run:
            self.queue.push(run_mark, Batch(run))

    def _owe(self, directory: Directory, cause: EventRecord) -> None:
        # Each by itself: before it is paid, what is below may have changed places with something else.
        self._debts.extend(Debt(self, below, cause) for below in directory.below())

    def pay(self, debt: Debt, entries: Iterable[tuple[bytes, bool]]) -> None:
        """Queue a create for every entry of a directory that has come into reach, as far as the marks want to know."""
        cause, prefix = debt.cause, debt.directory.prefix
        flags = cause.flags & LOCAL | RECOVERED
        records = [
            EventRecord(
                cause.seq, cause.time_ns, events.CREATE, flags | (IS_DIR if is_dir else 0), prefix + name, None,
                cause.pid, cause.uid,
            )
            for name, is_dir in entries
        ]  # fmt: skip
        if records:
            if self.wants_handles:
                records = list(map(named, records, self.identifier.identify(records)))
            batch = Batch(records)
            self.publish(batch, batch, Ways(self._tree))


class Groups:
    """Every group of a daemon.

    Attributes:
        debts: what has come into some group's reach and is still to be told.
        uses: where uses of files are asked for.
    """

    def __init__(
        self,
        tree: Tree,
        owner: int,
        watch_other: bool,
        look: Callable[[bytes], InodeKey | None],
        identifier: Identifies | None = None,
        most_pinned: int = _MOST_PINNED,
    ) -> None:
        """Start without groups; subtrees are for root and `owner`, unless `watch_other`.

        `look` tells what is at a path now, `identifier` finds handles; at most `most_pinned` files can be marked.
        """
        self.debts: deque[Debt] = deque()
        self._tree = tree
        self._owner = owner
        self._watch_other = watch_other
        self._look = look
        self._identifier = identifier or Anonymous()
        self._groups: dict[Group, None] = {}
        self._files = PinnedFiles(tree, look, min(most_pinned, _MOST_PINNED))
        self._places = MarkedPlaces(self._files)
        self.uses = AskedUses(tree, self._files.files_in)
        self._places.on_mark, self._places.on_unmark = self.uses.add, self.uses.remove
        self._files.on_moved = lambda directory: self.uses.unsettle((directory,))
        tree.on_placed = self.uses.unsettle
        self._last = EventRecord(0, 0, OVERFLOW, 0, None)  # that was published: what happens to the tree is its doing
        tree.on_leaving = self._end_marks_in
        tree.on_rearranged = self._look_again

    def __len__(self) -> int:
        return len(self._groups)

    def open(self, uid: int, base: Directory, limit: int) -> Group:
        """Add a group.

        Raises:
            LimitReached: this user has too many, or asks for too long a queue.
        """
        if limit > MOST_EVENTS and uid not in (0, self._owner):
            raise LimitReached(f"a queue of user {uid} can hold {MOST_EVENTS} events, not {limit}")
        if uid != 0 and sum(group.uid == uid for group in self._groups) >= MOST_GROUPS_PER_UID:
            raise LimitReached(f"user {uid} has {MOST_GROUPS_PER_UID} groups open, which is the limit; close some")
        group = Group(uid, self._tree, base, limit or DEFAULT_LIMIT, self.debts, self._places)
        group.identifier = self._identifier
        self._groups[group] = None
        return group

    def expect_handles(self) -> None:
        """Begin to take note of what handles of events take; a mark that wants them comes soon."""
        self._identifier.expect()

    def close(self, group: Group) -> None:
        """Remove a group and forget what it has not read."""
        group.remove_all()
        self._groups.pop(group, None)

    def publish(self, records: list[EventRecord]) -> None:
        """Queue some events for everybody whose marks let them through."""
        if not records:
            return
        self._last = records[-1]
        if not self._groups:
            return
        batch, ways = Batch(records), Ways(self._tree)
        sightings = [self._files.sight(record) for record in records] if self._files else None
        if self._places.handles:
            self._publish_named(records, ways, sightings)
        usual = [record for record in records if not record.kind & USES] if self.uses else records
        undivided = batch if len(usual) == len(records) else Batch(usual)
        for group in self._groups:
            if not group.wants_handles:
                group.publish(batch, undivided, ways, sightings)

    def _publish_named(self, records: list[EventRecord], ways: Ways, sightings: Sequence[Sighting] | None) -> None:
        """Queue events for the groups that ask for handles; such a group has no undivided batches."""
        known = self._identifier.identify(records)
        batch = Batch(list(map(named, records, known)))
        seen = [
            sighting._replace(other_handle=one.other)
            for sighting, one in zip(sightings or [NOTHING] * len(records), known, strict=True)
        ]
        for group in self._groups:
            if group.wants_handles:
                group.publish(batch, batch, ways, seen)

    # --- objects that leave the tree ---------------------------------------------------------------------------------

    def _end_marks_in(self, leaving: list[Directory]) -> None:
        """End the marks on directories that leave the tree, and on files that leave it with them."""
        ended = [(directory, directory.path) for directory in leaving if directory in self._places]
        for directory, path in ended:
            self._end(directory, path)
        self._end_files(self._files.leave(leaving))

    def _look_again(self) -> None:
        self._end_files(self._files.look_again())

    def _end_files(self, ended: Iterable[Ended]) -> None:
        for file, path in ended:
            self._end(file, path)

    def _end(self, place: Place, path: bytes | None) -> None:
        for group in self._groups:
            group.end(place, path, self._last)

    # --- requests ----------------------------------------------------------------------------------------------------

    @property
    def all_read(self) -> bool:
        """Whether every group has read its queue to the end."""
        return not any(len(group.queue) for group in self._groups)

    def check_room(self, uid: int) -> None:
        """Refuse more marks to a user who has as many as one group may have: each is looked at with every event.

        Raises:
            LimitReached: so it is.
        """
        if uid != 0 and sum(group.marks for group in self._groups if group.uid == uid) >= MOST_MARKS:
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
            raise UsageError(f"{os.fsdecode(request.path)} is no directory of the tree; files have the scope {INODE}")
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
                request.oneshot, request.handles,
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
