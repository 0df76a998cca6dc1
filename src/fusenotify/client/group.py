"""Groups: marks on daemons and on other filesystems, and the events they let through as an async iterator."""

import os
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel

from fusenotify import protocol
from fusenotify.client.marks import Mark, Source, check_mark
from fusenotify.client.questions import is_directory
from fusenotify.client.sources import Sources
from fusenotify.errors import DaemonGone, UsageError
from fusenotify.events import Event, EventRecord, Kind, Origin, Scope, format_cursor
from fusenotify.protocol import AddMark, Done, Recount, Sync
from fusenotify.targets import LocalTarget, resolve_any
from fusenotify.transports import Credentials

if TYPE_CHECKING:
    from fusenotify.client.ignoring import Ignore

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
        self._reconnect = reconnect
        self._sources = Sources(limit, reconnect=reconnect, tls=tls)
        self._ready: deque[Event] = deque()
        # What was handed on last of a mark that shares its events: those behind it are told the same.
        self._shared: WeakKeyDictionary[Source, Event] = WeakKeyDictionary()
        self._numbers = 0
        self._has_marked = False

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
        self._sources.check_open()
        resolved = await anyio.to_thread.run_sync(resolve_any, target)
        scope, kinds, origin = Scope(scope), Kind(kinds), Origin(origin)
        if isinstance(resolved, LocalTarget):
            check_mark(resolved, scope, origin, since)
        patterns = _patterns(ignore, resolved.base) if ignore else None
        # What is left out here as well cannot end a mark there (see `_end_oneshot`), nor keep others from having it.
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
            shared=patterns is not None or (oneshot and not is_ended_there),
        )
        key, source = await self._sources.find(resolved, scope)

        def make(answer: Done) -> Mark:
            here = format_cursor(source.epoch, answer.seq)
            cursor, live = (here, here) if answer.since is None else (answer.since, None)
            return Mark(resolved.given, scope, kinds, origin, cursor, request.mark, key, patterns, oneshot, live)

        try:
            mark = await source.mark(request, make)
            self._has_marked = True
            return mark
        finally:
            await self._sources.let_go(key, source)

    async def unmark(self, mark: Mark) -> None:
        """Lose an interest; events of it that wait are dropped.

        Raises:
            UsageError: this group has no such mark.
        """
        self._sources.check_open()
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
        await self._sources.let_go(mark.source, source)

    async def sync(self) -> None:
        """Return when every change made before this call, on either side of every mount, is in the queue."""
        self._sources.check_open()
        for source in self._sources:
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
        self._sources.check_open()
        if self._ready:
            waiting = list(self._ready)
            self._ready.clear()
            return waiting
        if not self._has_marked:
            raise UsageError("this group has no mark, so nothing can come; call `mark` first")
        while True:
            await self._sources.take_what_is_there()
            events = self._oldest()
            if events is not None:
                return events
            await self._sources.wait()

    def _oldest(self) -> list[Event] | None:
        """Return the events that came first, None if there is nothing to hand on."""
        while (heard := self._sources.pop()) is not None:
            source, came = heard
            events = self._handed_on(source, came)
            if events or not came:
                return events
        return None

    def _handed_on(self, source: Source, heard: list[Event]) -> list[Event]:
        """Return what is handed on of events of one mark, only the first if that ends the mark here."""
        told: list[Event] = []
        for event in heard:
            shared = self._shared.get(source)
            if shared is not None and shared.mark is not event.mark and _are_same(shared.record, event.record):
                continue  # another mark has had it
            seen = self._seen(event, source)
            told += seen
            if len(seen) == 1 and _is_shared(event, source) and _are_same(seen[0].record, event.record):
                self._shared[source] = event
            if seen and self._end_oneshot(event, source):
                return told[:1]
        return told

    def _end_oneshot(self, event: Event, source: Source) -> bool:
        """End the mark of an event if that is done here; return whether it is."""
        mark = event.mark
        if not isinstance(mark, Mark) or not mark.oneshot or source.marks.get(mark.number) is not mark:
            return False  # or it has ended there
        if event.kind in (Kind.OVERFLOW, Kind.UNMOUNT):
            return False  # of the whole source
        del source.marks[mark.number]
        self._sources.tasks.start_soon(self._drop, mark, source)
        return True

    async def _drop(self, mark: Mark, source: Source) -> None:
        with suppress(DaemonGone, UsageError):  # the source has gone, which is told elsewhere, or the mark has
            await source.unmark(mark)
        await self._sources.let_go(mark.source, source)

    def _seen(self, event: Event, source: Source) -> list[Event]:
        """Return what the ignore patterns of its mark leave of an event."""
        mark = event.mark
        if not isinstance(mark, Mark) or mark.ignore is None:
            return [event]
        told = mark.ignore.apply(event.record)
        for record in told:
            for path in mark.ignore.uncovers(record, event.record):
                self._sources.tasks.start_soon(_recount, source, Recount(0, mark.number, path))
        return [event._told_as(record) for record in told]

    async def __aenter__(self) -> "Group":
        """Use `async with open_group() as group`."""
        await self._sources.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Hang up on every daemon."""
        await self._sources.aclose()


def _patterns(lines: Collection[str], base: bytes) -> "Ignore":
    if isinstance(lines, str):
        raise UsageError(f"ignore takes several patterns, not one text: ignore=[{lines!r}]")
    from fusenotify.client.ignoring import Ignore  # noqa: PLC0415 - few have a use for it, and pathspec is slow to load

    return Ignore(lines, base)


def _is_shared(event: Event, source: Source) -> bool:
    """Whether other marks are told of an event as well, as that of its mark may leave it out here."""
    asked = source.asked.get(event.mark.number) if isinstance(event.mark, Mark) else None
    return asked is not None and asked.shared


def _are_same(one: EventRecord, other: EventRecord) -> bool:
    """Whether two marks were told the same, with handles or without."""
    return (one.seq, one.kind, one.path, one.old_path) == (other.seq, other.kind, other.path, other.old_path)


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
            scope = await scope_of(target, recursive=recursive, tls=tls)
            await group.mark(target, scope=scope, kinds=kinds, origin=origin, ignore=ignore, since=since)
        yield group


async def scope_of(target: str | os.PathLike[str], *, recursive: bool, tls: Credentials | None = None) -> Scope:
    """Return how far a mark on a target reaches that is told nothing else: a file is marked by itself.

    Raises:
        UsageError: there is nothing of this name.
        FusenotifyError: the daemon that has to be asked cannot be, as in `Group.mark`.
    """
    resolved = await anyio.to_thread.run_sync(resolve_any, target)
    is_dir = resolved.is_dir
    if is_dir is None and not isinstance(resolved, LocalTarget):
        is_dir = await is_directory(resolved, tls)
    if not is_dir:
        return Scope.INODE
    return Scope.SUBTREE if recursive else Scope.DIR
