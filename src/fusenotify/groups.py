"""Who listens to what: groups, their marks, and the fan-out of events to their queues."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from fusenotify import events
from fusenotify.batch import Batch
from fusenotify.errors import LimitReached, NotPermitted, UsageError
from fusenotify.events import ALWAYS, EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, RECOVERED, EventRecord
from fusenotify.fanout import Fanout
from fusenotify.lag import Lag, Told
from fusenotify.ledger import Usage
from fusenotify.protocol import DIR, LOCAL_ORIGIN, REMOTE_ORIGIN, SUBTREE, AddMark
from fusenotify.queue import DEFAULT_LIMIT, Queue
from fusenotify.status import QueueStatus
from fusenotify.tree import ROOT_PATH, Directory, Tree

MOST_GROUPS_PER_UID: Final = 1024
MOST_MARKS: Final = 8192
MOST_EVENTS: Final = 1 << 20  # in a queue, but for the daemon's user and root
MOST_UIDS: Final = 1024  # in a mark
_ANY_ORIGIN: Final = LOCAL_ORIGIN | REMOTE_ORIGIN


@dataclass(slots=True)
class Mark:
    """A group's interest in one directory: an object, so it follows that directory through renames.

    Attributes:
        number: what the client calls it.
        directory: the marked directory.
        subtree: whether it reaches below the directory's own entries.
        kinds: bits of `Kind`; overflow and unmount are always among them.
        origins: LOCAL_ORIGIN, REMOTE_ORIGIN or both.
        exclude_pid: a process whose changes are of no interest.
        uids: the users whose changes are of interest; None for everybody's.
    """

    number: int
    directory: Directory
    subtree: bool
    kinds: int
    origins: int
    exclude_pid: int | None
    uids: frozenset[int] | None

    def covers(self, path: bytes | None) -> bool:
        """Whether a path lies in the mark's reach: an entry of the directory, or anything below it."""
        if path is None or self.directory.gone:
            return False
        prefix = self.directory.prefix
        if not path.startswith(prefix) or path == ROOT_PATH:
            return False
        return self.subtree or b"/" not in path[len(prefix) :]

    def wants(self, record: EventRecord) -> bool:
        """Whether kind, origin and maker of an event are asked for."""
        origin = LOCAL_ORIGIN if record.flags & LOCAL else REMOTE_ORIGIN
        return (
            bool(record.kind & self.kinds)
            and bool(origin & self.origins)
            and (self.exclude_pid is None or record.pid != self.exclude_pid)
            and (self.uids is None or record.uid in self.uids)
        )

    @property
    def takes_everything(self) -> bool:
        """Whether there is nothing that this mark would leave out."""
        return (
            self.directory.is_root
            and self.subtree
            and self.kinds & events.DEFAULT == events.DEFAULT
            and self.origins == _ANY_ORIGIN
            and self.exclude_pid is None
            and self.uids is None
        )


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
        lag: what it has missed, if it was full.
        on_marks: called when the marks have changed.
        undivided: the number of its only mark, if that takes everything.
    """

    def __init__(self, usage: Usage, tree: Tree, base: Directory, limit: int, debts: deque[Debt]) -> None:
        self.uid = usage.uid
        self.base = base
        self.queue = Queue(limit, usage)
        self.lag = Lag(self.queue)
        self.on_marks: Callable[[], None] = lambda: None
        self.undivided: int | None = None
        self._usage = usage
        self._tree = tree
        self._debts = debts
        self._marks: dict[int, Mark] = {}

    @property
    def marks(self) -> int:
        """How many marks there are."""
        return len(self._marks)

    def add(self, mark: Mark) -> None:
        """Add a mark, or change the one that has this number."""
        if mark.number not in self._marks and len(self._marks) >= MOST_MARKS:
            raise LimitReached(f"a group can have {MOST_MARKS} marks; one mark on a directory above covers them all")
        self._usage.marks += mark.number not in self._marks
        self._marks[mark.number] = mark
        self._note_marks()

    def remove(self, number: int) -> None:
        """Remove a mark."""
        if self._marks.pop(number, None) is None:
            raise UsageError(f"this group has no mark {number}")
        self._usage.marks -= 1
        self._note_marks()

    def remove_all(self) -> None:
        """Remove every mark."""
        self._usage.marks -= len(self._marks)
        self._marks.clear()
        self._note_marks()

    def _note_marks(self) -> None:
        marks = list(self._marks.values())
        whole = len(marks) == 1 and marks[0].takes_everything and self.base.is_root
        self.undivided = marks[0].number if whole else None
        self.on_marks()

    # --- what it is told -----------------------------------------------------------------------------------------

    def publish(self, batch: Batch) -> None:
        """Queue what of a batch the marks let through, or note it, if the group has fallen behind."""
        if self.lag.doubt is None:
            self._push_selected(batch.records)
            return
        for record in batch.records:
            if self.undivided is not None:
                self.lag.note(self.undivided, record)
                continue
            for mark, selected in self._select(record):
                self.lag.note(mark, selected)

    def tell(self, missed: Iterable[Told]) -> None:
        """Queue what was missed; there has to be room for it."""
        for mark, run in itertools.groupby(missed, key=lambda one: one[0]):
            self.queue.push(mark, Batch([record for _, record in run]))

    def _push_selected(self, records: Sequence[EventRecord]) -> None:
        run: list[EventRecord] = []
        run_mark = 0
        for record in records:
            for mark, selected in self._select(record):
                if mark != run_mark and run:
                    self.queue.push(run_mark, Batch(run))
                    run = []
                run_mark = mark
                run.append(selected)
        if run:
            self.queue.push(run_mark, Batch(run))

    def _select(self, record: EventRecord) -> Iterator[tuple[int, EventRecord]]:
        """Yield (mark, event as this group may see it) of one event, and what follows from it for this group alone."""
        if record.kind & ALWAYS:
            yield 0, record
            return
        if record.path == ROOT_PATH:
            marks = [mark for mark in self._marks.values() if mark.directory.is_root]
        else:
            marks = [mark for mark in self._marks.values() if mark.covers(record.path) or mark.covers(record.old_path)]
        if not marks or (record.path == ROOT_PATH and not self.base.is_root):
            return
        path = record.path if record.path == ROOT_PATH else self._visible(record.path, marks)
        old_path = self._visible(record.old_path, marks)
        if path is None and old_path is None:
            return
        if record.flags & EXCHANGE and None in (path, old_path):
            for rename in self._renames_of(record, here_is_old=path is None):
                yield from self._select(rename)
            return
        taker = next((mark for mark in marks if mark.wants(record)), None)
        if taker is not None:
            yield taker.number, self._as_seen(record, path, old_path)
            if record.flags & EXCHANGE and any(debt.group is self for debt in self._debts):
                yield from ((taker.number, both) for both in self._introduced(record, path, old_path))
        is_new = path is not None and old_path is None and record.old_path is not None
        if is_new and record.flags & IS_DIR and any(mark.subtree for mark in marks):
            assert record.old_path is not None
            directory = self._tree.find(record.old_path)  # the tree is still the one before
            if directory is not None:
                # Each by itself: before it is paid, what is below may have changed places with something else.
                self._debts.extend(Debt(self, below, record) for below in directory.below())

    def _renames_of(self, record: EventRecord, *, here_is_old: bool) -> tuple[EventRecord, EventRecord]:
        """Return what an exchange across the border is to those on this side: one thing goes out, another comes in."""
        one_is_dir = record.flags & IS_DIR
        other_is_dir = IS_DIR if record.flags & OTHER_IS_DIR else 0
        one = (record.old_path, record.path, one_is_dir)
        other = (record.path, record.old_path, other_is_dir)
        out, into = (
            EventRecord(
                record.seq, record.time_ns, record.kind, record.flags & LOCAL | is_dir, new, old, record.pid, record.uid
            )
            for old, new, is_dir in ((one, other) if here_is_old else (other, one))
        )
        return out, into

    def _introduced(
        self, record: EventRecord, path: bytes | None, old_path: bytes | None
    ) -> tuple[EventRecord, EventRecord]:
        """Return what tells of both sides of an exchange to who may not have heard of the names yet."""
        flags = record.flags & LOCAL | RECOVERED
        other_is_dir = IS_DIR if record.flags & OTHER_IS_DIR else 0
        one, other = (
            EventRecord(record.seq, record.time_ns, events.CREATE, flags | is_dir, name, None, record.pid, record.uid)
            for name, is_dir in ((path, record.flags & IS_DIR), (old_path, other_is_dir))
        )
        return one, other

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
            self.publish(Batch(records))

    # --- what it may see -----------------------------------------------------------------------------------------

    def mark_over(self, path: bytes, preferred: int) -> int | None:
        """Return the number of the mark by which the group is told of a path of the tree, if there is any."""
        mark = self._marks.get(preferred)
        if mark is not None and mark.covers(path):
            return mark.number
        return next((mark.number for mark in self._marks.values() if mark.covers(path)), None)

    def reaches_below(self, path: bytes) -> bool:
        """Whether what is in a directory of the tree is told to the group because of a mark above it."""
        return any(mark.subtree and mark.covers(path) for mark in self._marks.values())

    @property
    def marked(self) -> list[Directory]:
        """The marked directories that are in the tree."""
        return [mark.directory for mark in self._marks.values() if not mark.directory.gone]

    def _visible(self, path: bytes | None, marks: list[Mark]) -> bytes | None:
        """Return a path as the group may see it: None outside its base and outside all its marks."""
        if path is None or self.base.gone or not any(mark.covers(path) for mark in marks):
            return None
        prefix = self.base.prefix
        return path[len(prefix) :] if path.startswith(prefix) else None

    def _as_seen(self, record: EventRecord, path: bytes | None, old_path: bytes | None) -> EventRecord:
        if path == record.path and old_path == record.old_path:
            return record
        return EventRecord(
            record.seq, record.time_ns, record.kind, record.flags, path, old_path, record.pid, record.uid
        )


class Groups:
    """Every group of a daemon.

    Attributes:
        debts: what has come into some group's reach and is still to be told.
        fanout: hands events on to them.
    """

    def __init__(self, tree: Tree, owner: int, watch_other: bool) -> None:
        """Start without groups; subtrees are for root and `owner`, unless `watch_other`."""
        self.debts: deque[Debt] = deque()
        self._tree = tree
        self._owner = owner
        self._watch_other = watch_other
        self.fanout: Fanout[Group] = Fanout()
        self._groups: dict[Group, None] = {}

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
        group = Group(usage, self._tree, base, limit or DEFAULT_LIMIT, self.debts)
        self._groups[group] = None
        self.fanout.add(group)
        return group

    def close(self, group: Group) -> None:
        """Remove a group and forget what it has not read."""
        if self._groups.pop(group, self) is self:
            return
        group.remove_all()
        self.fanout.remove(group)
        self.fanout.ledger.close_group(self.fanout.ledger.of(group.uid))

    def publish(self, records: list[EventRecord]) -> None:
        """Queue some events for everybody whose marks let them through."""
        if records and self._groups:
            self.fanout.publish(records)

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
        """Refuse a subtree to whom it is not meant for.

        Raises:
            NotPermitted: names below a directory would be told to somebody who may not read them.
        """
        if scope == SUBTREE and uid not in (0, self._owner) and not self._watch_other:
            raise NotPermitted(
                "watching a subtree is for the daemon's user and root, as it tells names in directories that others "
                "may not read; watch single directories, or mount with -o watch_other"
            )

    def make_mark(self, group: Group, request: AddMark) -> Mark:
        """Turn a request into a mark on a directory of the tree as it is now.

        Raises:
            UsageError: there is no such directory, or the request makes no sense.
        """
        if request.scope not in (SUBTREE, DIR):
            raise UsageError(f"{request.scope!r} is no scope; the scopes are {SUBTREE} and {DIR}")
        if not request.origins & _ANY_ORIGIN:
            raise UsageError("a mark needs at least one origin")
        if unheard := request.kinds & ~events.DEFAULT:
            names = [events.kind_name(kind) for kind in map(int, events.Kind) if kind & unheard]
            raise UsageError(f"these kinds cannot be asked for yet: {', '.join(names) or hex(unheard)}")
        if request.uids is not None and len(request.uids) > MOST_UIDS:
            raise LimitReached(f"a mark can name {MOST_UIDS} users, not {len(request.uids)}; name none to hear of all")
        directory = None if b".." in request.path.split(b"/") else self._tree.find(request.path, group.base)
        if directory is None or directory.gone:
            raise UsageError(
                f"{os.fsdecode(request.path)} is no directory of the tree (single files cannot be marked yet)"
            )
        return Mark(
            number=request.mark,
            directory=directory,
            subtree=request.scope == SUBTREE,
            kinds=request.kinds | ALWAYS,
            origins=request.origins,
            exclude_pid=request.exclude_pid,
            uids=None if request.uids is None else frozenset(request.uids),
        )
