"""Groups of marks on daemons and on other filesystems, and the events they let through as an async iterator."""

import os
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from fusenotify import protocol
from fusenotify.client.connection import Connection
from fusenotify.client.marks import Mark, Source, check_mark
from fusenotify.errors import DaemonGone, UsageError
from fusenotify.events import Event, Kind, Origin, Scope, format_cursor
from fusenotify.protocol import AddMark, Done, Recount, Sync
from fusenotify.queue import DEFAULT_LIMIT
from fusenotify.targets import LocalTarget, Target, resolve_any
from fusenotify.transports import Credentials

if TYPE_CHECKING:
    from fusenotify.client.ignoring import Ignore
    from fusenotify.client.returning import Returning

_ORIGINS: Final = {
    Origin.ANY: protocol.LOCAL_ORIGIN | protocol.REMOTE_ORIGIN,
    Origin.LOCAL: protocol.LOCAL_ORIGIN,
    Origin.REMOTE: protocol.REMOTE_ORIGIN,
}


class Group:
    """One listener: marks, and an async iterator of the events they let through.

    Made by `open_group`. Several tasks may use it at once; each event goes to one of those that iterate.
    """

    def __init__(self, limit: int | None, *, reconnect: bool, tls: Credentials | None) -> None:
        if limit is not None and limit < 1:
            raise UsageError(f"a queue needs room for at least one event, not {limit}")
        self._limit = limit
        self._reconnect = reconnect
        self._tls = tls
        self._sources: dict[object, Source] = {}
        self._returning: dict[Source, Returning] = {}
        self._opening = anyio.Lock()
        self._arrivals: deque[Source] = deque()  # who has queued something, in the order in which it came
        self._ready: deque[Event] = deque()
        self._waiting: set[anyio.CancelScope] = set()  # of those who wait for events, to be told of new sources
        self._numbers = 0
        self._has_marked = False
        self._tasks: TaskGroup | None = None  # for what this process watches itself, and for who is to come back

    async def mark(  # noqa: PLR0913 - each says one thing of the mark
        self,
        target: str | os.PathLike[str],
        *,
        scope: Scope = Scope.SUBTREE,
        kinds: Kind = Kind.DEFAULT,
        origin: Origin = Origin.ANY,
        handles: bool = False,
        ignore: Collection[str] = (),
        oneshot: bool = False,
        exclude_self: bool = False,
        uids: Collection[int] | None = None,
        since: str | None = None,
    ) -> Mark:
        """Take an interest in an object: every change of it from the return of this call on is heard.

        The mark is on the object, whatever it is called later. When that leaves the tree the mark ends, and `ignored`
        tells of it whatever kinds were asked for.

        Args:
            target: a path, or the address of a daemon for the root of its tree, `unix:PATH` or `tls://HOST:PORT`; this
                one may have a path below the root behind it. A path on no fusenotify mount is watched by this process
                itself; of mounts of ours below it nothing is told.
            scope: `Scope.INODE` for the file or directory itself, `Scope.DIR` for the entries of a directory,
                `Scope.SUBTREE` for everything below it, `Scope.FILESYSTEM` for the whole mount.
            kinds: what to hear of; overflow and unmount come in any case.
            origin: whose changes to hear of. On no mount of ours every change is local.
            handles: have `Event.handle`, `parent` and `old_parent` filled; on no mount of ours they stay None.
            ignore: patterns as in gitignore(5), relative to the target, of names that are as if they did not exist.
            oneshot: end the mark with its first event.
            exclude_self: leave out what this process does through the mount; nothing where the daemon is on another
                machine.
            uids: only what these users do, where it is known.
            since: a cursor, `0` for everything that there is, or `@NAME` for a snapshot: what has changed since is told
                first, as recovered events whatever kinds were asked for, and then without a hole what happens from now
                on. `Mark.live` says when that begins; until then the events have the cursor that this began with.

        Raises:
            BadCursor: the cursor is malformed or of another tree, or there is no such snapshot.
            HistoryGone: what happened since the cursor is not known any more.
            NotAMount: the path is not on a fusenotify mount, and only remote changes are asked for.
            NotPermitted: this user may not watch that.
            UsageError: there is no such object, no such kind can be heard, or the group is not open.
            DaemonGone: the daemon does not answer.
        """
        self._check_open()
        resolved = await anyio.to_thread.run_sync(resolve_any, target)
        scope, kinds, origin = Scope(scope), Kind(kinds), Origin(origin)
        if isinstance(resolved, LocalTarget):
            check_mark(resolved, scope, origin, since)
        patterns = _patterns(ignore, resolved.base) if ignore else None
        # What is left out here as well cannot end a mark there (see `_end_oneshot`).
        is_ended_there = patterns is None and not isinstance(resolved, LocalTarget)
        self._numbers += 1
        request = AddMark(
            request=0,
            mark=self._numbers,
            path=b"." if isinstance(resolved, LocalTarget) else resolved.path,
            scope=str(scope),
            kinds=int(kinds),
            origins=_ORIGINS[origin],
            exclude_pid=os.getpid() if exclude_self else None,
            uids=None if uids is None else tuple(uids),
            oneshot=oneshot and is_ended_there,
            handles=handles,
            since=since,
        )
        key, source = await self._source(resolved, scope)

        def make(answer: Done) -> Mark:
            here = format_cursor(source.epoch, answer.seq)
            cursor, live = (here, here) if answer.since is None else (answer.since, None)
            return Mark(resolved.given, scope, kinds, origin, cursor, request.mark, key, patterns, oneshot, live)

        try:
            mark = await source.mark(request, make)
            self._has_marked = True
            return mark
        finally:
            await self._let_go(key, source)

    async def unmark(self, mark: Mark) -> None:
        """Lose an interest; events of it that wait are dropped.

        Raises:
            UsageError: this group has no such mark.
        """
        self._check_open()
        source = self._sources.get(mark.source)
        if source is None or source.marks.get(mark.number) is not mark:
            raise UsageError(f"this group has no such mark: {mark!r}")
        try:
            await source.unmark(mark)
        except DaemonGone:
            if not self._reconnect:
                raise
        wanted = [event for event in self._ready if event.mark is not mark]
        self._ready.clear()  # it stays the same one, which others wait to fill
        self._ready.extend(wanted)
        await self._let_go(mark.source, source)

    async def _let_go(self, key: object, source: Source) -> None:
        """Stop watching what nobody wants to hear of."""
        if source.is_idle and self._sources.get(key) is source:
            del self._sources[key]
            await source.aclose()

    async def sync(self) -> None:
        """Return when every change made before this call, on either side of every mount, is in the queue."""
        self._check_open()
        for source in tuple(self._sources.values()):
            await source.request(Sync(0))

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

        None are returned when a mark has become `live`.

        Raises:
            DaemonGone: the daemon has ended, and everything it told has been read.
            UsageError: the group never had a mark, so nothing could ever come, or it is not open.
        """
        tasks = self._check_open()
        if self._ready:
            waiting = list(self._ready)
            self._ready.clear()
            return waiting
        if not self._has_marked:
            raise UsageError("this group has no mark, so nothing can come; call `mark` first")
        while True:
            await self._take_what_is_there()
            events = self._oldest(tasks)
            if events is not None:
                return events
            await self._read_any()
            if self._tasks is None:
                raise anyio.ClosedResourceError

    async def _take_what_is_there(self) -> None:
        """Receive from others as well before what waits is handed on: who is always busy must not keep us from them."""
        silent = [source for source in self._sources.values() if not source.has_news]
        if not silent or not self._arrivals:
            return

        failed: list[Exception] = []

        async def read(source: Source) -> None:
            try:
                await source.read()
            except (DaemonGone, anyio.ClosedResourceError):
                pass  # that is met again when all has been handed on
            except Exception as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            for source in silent:
                tasks.start_soon(read, source)
            for _ in range(2):  # by then each has had its turn, and has read what is there
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]

    def _oldest(self, tasks: TaskGroup) -> list[Event] | None:
        """Return the events that came first, None if there is nothing to hand on."""
        while self._arrivals:
            source = self._arrivals.popleft()
            came = source.pop()
            events = [seen for event in came for seen in self._seen(event, source, tasks)]
            for number in source.owed():
                tasks.start_soon(_recount, source, Recount(0, number))
            if source.has_news and source not in self._arrivals:
                self._arrivals.append(source)
            if events:
                return self._end_oneshot(events, source, tasks)
            if not came:
                return []
        return None

    def _end_oneshot(self, events: list[Event], source: Source, tasks: TaskGroup) -> list[Event]:
        """Return the events of one mark, only the first if that ends the mark here."""
        mark = events[0].mark
        if not isinstance(mark, Mark) or not mark.oneshot or source.marks.get(mark.number) is not mark:
            return events  # or it has ended there
        if events[0].kind in (Kind.OVERFLOW, Kind.UNMOUNT):
            return events  # of the whole source
        del source.marks[mark.number]
        tasks.start_soon(self._drop, mark, source)
        return events[:1]

    async def _drop(self, mark: Mark, source: Source) -> None:
        with suppress(DaemonGone, UsageError):  # the source has gone, which is told elsewhere, or the mark has
            await source.unmark(mark)
        await self._let_go(mark.source, source)

    def _seen(self, event: Event, source: Source, tasks: TaskGroup) -> list[Event]:
        """Return what the ignore patterns of its mark leave of an event."""
        mark = event.mark
        if not isinstance(mark, Mark) or mark.ignore is None:
            return [event]
        told = mark.ignore.apply(event.record)
        for record in told:
            for path in mark.ignore.uncovers(record, event.record):
                tasks.start_soon(_recount, source, Recount(0, mark.number, path))
        return [event.told_as(record) for record in told]

    async def _read_any(self) -> None:
        """Wait until there is more to hand on, or somebody else to listen to."""
        with anyio.CancelScope() as waiting:  # what is read is not lost when it is cancelled
            self._waiting.add(waiting)
            try:
                if not self._sources:
                    await anyio.sleep_forever()
                await self._read_first(tuple(self._sources.values()))
            finally:
                self._waiting.remove(waiting)

    async def _read_first(self, sources: Sequence[Source]) -> None:
        if len(sources) == 1:
            await self._read(sources[0])
            return
        failed: list[Exception] = []

        async def read(source: Source, scope: anyio.CancelScope) -> None:
            try:
                await self._read(source)
            except Exception as error:
                failed.append(error)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            for source in sources:
                tasks.start_soon(read, source, tasks.cancel_scope)
        if failed:
            raise failed[0]

    async def _read(self, source: Source) -> None:
        try:
            await source.read()
        except DaemonGone:
            if not self._reconnect:
                raise
            await self._wait_for_return(source)
        except anyio.ClosedResourceError:
            if self._tasks is None or source in self._sources.values():
                raise  # else it was let go of, and there are others to listen to

    async def _wait_for_return(self, lost: Source) -> None:
        """Return when another source has taken the place of one that was lost."""
        returning = self._returning.get(lost)
        if returning is None:
            from fusenotify.client.returning import Returning  # noqa: PLC0415 - few have a use for it

            returning = self._returning[lost] = Returning(lost, self._open, self._replace)
            self._check_open().start_soon(returning.run)
        await returning.wait()

    async def _replace(self, lost: Source, found: Source) -> None:
        for key in [key for key, source in self._sources.items() if source is lost]:
            self._sources[key] = found
        del self._returning[lost]
        await lost.aclose()

    async def _source(self, target: Target | LocalTarget, scope: Scope) -> tuple[object, Source]:
        key = (target.real, scope) if isinstance(target, LocalTarget) else target.key
        async with self._opening:
            source = self._sources.get(key)
            if source is None:
                source = self._sources[key] = await self._open(target, scope)
                for waiting in self._waiting:
                    waiting.cancel()
            return key, source

    async def _open(self, target: Target | LocalTarget, scope: Scope) -> Source:
        tasks = self._check_open()
        limit = self._limit or DEFAULT_LIMIT
        if isinstance(target, LocalTarget):
            from fusenotify.client.local import LocalTree  # noqa: PLC0415 - most have no use for the event path

            tree = LocalTree(target, scope, limit, self._arrivals.append)
            try:
                await tree.start(tasks)
            except BaseException:
                await tree.aclose()
                raise
            return tree
        connection = Connection(target, await target.connect(self._tls), limit, self._arrivals.append)
        try:
            await connection.hello(self._limit or 0)
        except BaseException:
            await connection.aclose()
            raise
        return connection

    def _check_open(self) -> TaskGroup:
        if self._tasks is None:
            raise UsageError("this group is not open: use it inside `async with open_group() as group:`")
        return self._tasks

    async def __aenter__(self) -> "Group":
        """Use `async with open_group() as group`."""
        self._tasks = await anyio.create_task_group().__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hang up on every daemon."""
        tasks, self._tasks = self._check_open(), None
        tasks.cancel_scope.cancel()
        for waiting in self._waiting:
            waiting.cancel()
        # The tasks have nothing to do with the error of the block, which leaves it as it is.
        await tasks.__aexit__(None, None, None)
        while self._sources:
            await self._sources.popitem()[1].aclose()


def _patterns(lines: Collection[str], base: bytes) -> "Ignore":
    from fusenotify.client.ignoring import Ignore  # noqa: PLC0415 - few have a use for it, and pathspec is slow to load

    return Ignore(lines, base)


async def _recount(source: Source, request: Recount) -> None:
    with suppress(DaemonGone, UsageError):  # the source has gone, which is told elsewhere, or the mark has
        await source.request(request)


def open_group(*, limit: int | None = None, reconnect: bool = False, tls: Credentials | None = None) -> Group:
    """Return a new group, to be used as `async with open_group() as group:`.

    Args:
        limit: how many events its queue holds before an overflow event takes the place of the rest (131072).
        reconnect: when a daemon goes, wait for it to come back instead of raising DaemonGone. What has changed
            meanwhile is told as by `since` of `Group.mark`. Where that is not known, an overflow event with the reason
            `restart` says so; everything that is in the marks' reach follows as `create`, recovered.
        tls: how to prove who we are, and to check who the daemon is, where a target is `tls://HOST:PORT`.
    """
    return Group(limit, reconnect=reconnect, tls=tls)


@asynccontextmanager
async def watch(
    *targets: str | os.PathLike[str],
    kinds: Kind = Kind.DEFAULT,
    origin: Origin = Origin.ANY,
    recursive: bool = True,
    limit: int | None = None,
    ignore: Collection[str] = (),
    reconnect: bool = False,
    tls: Credentials | None = None,
    since: str | None = None,
) -> AsyncIterator[Group]:
    """Watch what is at some paths: `async with watch("/mnt/data", "/etc") as events: async for event in events: ...`.

    Once the block is entered no change is missed. The arguments, and the errors raised, are those of `open_group` and
    `Group.mark`; of a directory `recursive` chooses between `Scope.SUBTREE` and `Scope.DIR`.
    """
    if not targets:
        raise UsageError("nothing to watch: name at least one target")
    async with open_group(limit=limit, reconnect=reconnect, tls=tls) as group:
        for target in targets:
            scope = await scope_of(target, recursive=recursive)
            await group.mark(target, scope=scope, kinds=kinds, origin=origin, ignore=ignore, since=since)
        yield group


async def scope_of(target: str | os.PathLike[str], *, recursive: bool) -> Scope:
    """Return how far a mark on a target reaches that is told nothing else: a file is marked by itself.

    Raises:
        UsageError: there is nothing of this name.
    """
    if not (await anyio.to_thread.run_sync(resolve_any, target)).is_dir:
        return Scope.INODE
    return Scope.SUBTREE if recursive else Scope.DIR
