"""Marks on what is on no fusenotify mount: this process watches it by itself, with the daemon's own event path.

So an event means the same whoever tells it. What is different: paths are absolute, every change is local, and who made
it is unknown.
"""

import errno
import os
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from typing import Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup, TaskStatus
from msgspec.structs import replace

from fusenotify.backing import Backing
from fusenotify.client.marks import BATCH, Mark, Question, Source, only_one
from fusenotify.errors import DaemonGone, EnvironmentProblem, NotAMount, NotPermitted, UsageError
from fusenotify.eventpath import EventPath
from fusenotify.events import IGNORED, LOCAL, OVERFLOW, Event, EventRecord, Scope
from fusenotify.filesystems import Filesystems
from fusenotify.mountinfo import read_mounts
from fusenotify.protocol import REMOTE_ORIGIN, AddMark, Done, Recount, RemoveMark, Sync
from fusenotify.root import Root
from fusenotify.targets import LocalTarget
from fusenotify.tree import ROOT_PATH
from fusenotify.watchers.inotify import InotifyWatcher

_GONE: Final = frozenset({errno.ENOENT, errno.ENOTDIR})


class LocalTree:
    """A directory and the marks on it, watched by this process.

    Attributes:
        target: what was marked first.
        epoch: names this watch: its positions mean nothing to any other.
        marks: the marks there are, by number.
        asked: how each of them was asked for.
        position: up to where nothing has been missed; None before the first mark.
    """

    def __init__(self, target: LocalTarget, scope: Scope, limit: int, on_arrival: Callable[[Source], None]) -> None:
        """Open the directory; `on_arrival` is called when events have been queued.

        Raises:
            DaemonGone: it is not there any more.
            NotPermitted: this user may not read it.
            EnvironmentProblem: it cannot be watched.
        """
        self.target = target
        self.epoch = secrets.token_hex(6)
        self.marks: dict[int, Mark] = {}
        self.asked: dict[int, AddMark] = {}
        self.position: int | None = None
        # A file is heard in its directory, alone: whatever else happens there is not asked for.
        self._root_path, self._marked = (target.real, ROOT_PATH) if target.is_dir else _place_of(target.real)
        self._on_arrival = on_arrival
        self._being_marked = 0
        self._news = anyio.Event()
        self._failure: Exception | None = None
        self._tasks = anyio.CancelScope()
        self._ended: anyio.Event | None = None
        with ExitStack() as stack:
            self._open(stack, recursive=scope == Scope.SUBTREE)
            self._group = self._groups.open(os.geteuid(), self._tree.root, limit)
            self._group.queue.on_queued = self._note_news
            self._closing = stack.pop_all()

    def _open(self, stack: ExitStack, *, recursive: bool) -> None:
        """Make an event path as the daemon's; there is nobody whose echoes could be heard."""
        try:
            backing = Backing(self._root_path)
        except PermissionError as error:
            raise NotPermitted(f"cannot read {self._root_path}: {error.strerror}") from error
        except OSError as error:
            if error.errno in _GONE:
                raise DaemonGone(f"{self._root_path} is not there any more") from error
            raise EnvironmentProblem(f"cannot watch {self._root_path}: {error.strerror}") from error
        stack.callback(backing.close)
        self._watcher = InotifyWatcher()
        stack.callback(self._watcher.close)
        filesystems = Filesystems(self._root_path)
        path = EventPath(backing, self._watcher, filesystems, recursive=recursive)
        self._tree, self._groups, self._hearing = path.tree, path.groups, path.hearing
        self._teller, self._translator = path.teller, path.translator
        self._backing = backing
        self._root = Root(backing, self._root_path, filesystems)
        self._hearing.before_crawl = self._keep_out_of_mounts

    async def start(self, tasks: TaskGroup) -> None:
        """Set the watches, and hear of changes in a task of its own.

        Raises:
            EnvironmentProblem: the directory cannot be watched.
        """
        await self._hearing.crawl()
        if self._watcher.root_wd is None:
            raise EnvironmentProblem(f"cannot watch {self._root_path}: see what is logged")
        await tasks.start(self._run)

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        self._ended = anyio.Event()
        task_status.started()
        try:
            with self._tasks:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._hearing.run)
                    tasks.start_soon(self._root.run, None, self._hearing.lose_root, self._hearing.start_over)
        except Exception as error:
            self._failure = error
            self._note_news()
        finally:
            self._ended.set()

    async def _keep_out_of_mounts(self) -> None:
        self._root.forbid_ours(read_mounts())
        await anyio.lowlevel.checkpoint()

    def _note_news(self) -> None:
        self._news.set()
        self._on_arrival(self)

    # --- requests ----------------------------------------------------------------------------------------------------

    async def request(self, message: Question) -> Done:
        """Carry out what a daemon would be asked for."""
        match message:
            case AddMark():
                await self._hearing.caught_up()
                self._add(message)
                await self._hearing.attend()
            case RemoveMark(_, number):
                self._group.remove(number)
                await self._hearing.attend()
            case Recount(_, number, path):
                await self._hearing.caught_up()
                below = path.removeprefix(self._prefix) if path is not None else None
                self._group.recount(number, below, self._teller.seq, time.time_ns())
            case Sync():
                await self._hearing.caught_up()
            case _:
                raise NotAMount(f"{self.target.given} is not on a fusenotify mount")
        return Done(message.request, self._teller.seq)

    def _add(self, message: AddMark) -> None:
        try:
            found = self._backing.find_beneath(message.path)
        except OSError as error:
            raise UsageError(f"cannot mark {self.target.given}: {error.strerror}") from error
        with closing(found):
            if not self._groups.mark(self._group, message, found):
                raise UsageError(f"{self.target.given} was replaced while it was being marked; try again")

    async def mark(self, message: AddMark, make: Callable[[Done], Mark]) -> Mark:
        """Add a mark on what this watches."""
        # To the event path, what is heard on a filesystem is made behind a mount; there is none here.
        self._being_marked += 1
        try:
            answer = await self.request(replace(message, path=self._marked, origins=REMOTE_ORIGIN))
        finally:
            self._being_marked -= 1
        mark = make(answer)
        self.marks[mark.number] = mark
        self.asked[mark.number] = message
        self.position = answer.seq if self.position is None else self.position
        return mark

    def cursor_of(self, _number: int) -> None:
        """Return the cursor to go on from, of which there is none: nothing is recorded."""

    @property
    def is_idle(self) -> bool:
        """Whether it watches something that no mark asks for any more."""
        return not self.marks and not self._being_marked

    async def unmark(self, mark: Mark) -> None:
        """Remove a mark; what waits for it is dropped."""
        self.marks.pop(mark.number, None)
        self.asked.pop(mark.number, None)
        await self.request(RemoveMark(0, mark.number))

    # --- events ------------------------------------------------------------------------------------------------------

    def lose(self, seq: int, time_ns: int, reason: str) -> None:
        """Queue an overflow event."""
        self._group.queue.push_overflow(seq, time_ns, reason)
        self._note_news()

    @property
    def has_news(self) -> bool:
        """Whether events wait."""
        return len(self._group.queue) > 0

    async def read(self) -> None:
        """Wait until there are events.

        Raises:
            DaemonGone: the directory has been deleted, moved or unmounted, and that has been told.
        """
        while not self.has_news:
            if self._failure is not None:
                raise self._failure
            if self._translator.root_gone:
                raise DaemonGone(f"{self._root_path} has been deleted, moved or unmounted; nothing more is heard of it")
            if self._news.is_set():
                self._news = anyio.Event()
            await self._news.wait()

    def pop(self) -> list[Event]:
        """Return some of the oldest events that wait."""
        waiting = self._group.queue.peek(BATCH)
        if waiting is None:
            return []
        self._group.queue.pop()
        self._group.note_room()
        number, batch = waiting
        mark = self.marks.get(number) if number else only_one(self.marks)
        if mark is None and number:
            return []  # unmarked meanwhile
        if number and batch.records[-1].kind == IGNORED:
            del self.marks[number], self.asked[number]  # it has ended
        return [Event(self._seen(record), self.epoch, mark) for record in batch.records]

    def _seen(self, record: EventRecord) -> EventRecord:
        """Return an event as it is told."""
        self.position = record.seq
        if record.kind == OVERFLOW:
            return replace(record, path=os.fsencode(self._root_path))
        path, old_path = self._absolute(record.path), self._absolute(record.old_path)
        return replace(record, flags=record.flags | LOCAL, path=path, old_path=old_path)

    @property
    def _prefix(self) -> bytes:
        return os.fsencode(self._root_path.rstrip("/")) + b"/"

    def _absolute(self, path: bytes | None) -> bytes | None:
        if path is None:
            return None
        return os.fsencode(self._root_path) if path == ROOT_PATH else self._prefix + path

    async def aclose(self) -> None:
        """Stop watching; whoever still waits for it gets an error."""
        self._failure = anyio.ClosedResourceError()
        self._news.set()
        self._tasks.cancel()
        if self._ended is not None:
            with anyio.CancelScope(shield=True):
                await self._ended.wait()
        self._closing.close()


def _place_of(path: str) -> tuple[str, bytes]:
    """Return the directory that something lies in, and its name there."""
    above, name = os.path.split(path)
    return above, os.fsencode(name)
