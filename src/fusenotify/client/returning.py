"""Waiting for a daemon that has gone to come back, and going on from there."""

import errno
import logging
import os
import random
import select
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

import anyio
from inotify_simple import INotify, flags
from msgspec.structs import replace

from fusenotify.addresses import UnixAddress
from fusenotify.client.marks import Mark, Source
from fusenotify.errors import BadCursor, DaemonGone, EnvironmentProblem, FusenotifyError, HistoryGone, UsageError
from fusenotify.events import EVERYTHING, Reason, Scope
from fusenotify.protocol import AddMark, Done, Recount
from fusenotify.root import changes_of_mounts
from fusenotify.targets import LocalTarget, Target

log = logging.getLogger(__name__)

_FIRST_PAUSE: Final = 0.05  # seconds between two attempts, twice as long each time
_LONGEST_PAUSE: Final = 5.0
_JITTER: Final = 0.5  # of a pause, so that a thousand clients do not all come at once

Open = Callable[[Target | LocalTarget, Scope], Awaitable[Source]]
Replace = Callable[[Source, Source], Awaitable[None]]


class Returning:
    """The attempts to reach again what a source was lost of."""

    def __init__(self, lost: Source, open_source: Open, replace_source: Replace) -> None:
        """Prepare to find another source by `open_source`; it is handed on by `replace_source`."""
        self._lost = lost
        self._open = open_source
        self._replace = replace_source
        self._done = anyio.Event()
        self._failure: FusenotifyError | None = None
        self._has_told = False  # whether it has been told that events are lost

    async def wait(self) -> None:
        """Return when the new source is in place; raise what makes further attempts useless."""
        await self._done.wait()
        if self._failure is not None:
            raise self._failure

    async def run(self) -> None:
        """Try until it has worked."""
        try:
            found = await self._reach()
            await self._replace(self._lost, found)
        except FusenotifyError as error:
            self._failure = error
        finally:
            self._done.set()

    async def _reach(self) -> Source:
        pause, trouble = _FIRST_PAUSE, ""
        with signs_of(self._lost.target) as signs:
            while True:
                try:
                    return await self._attempt()
                except DaemonGone as error:
                    log.debug("%s is not back yet: %s", self._lost.target.given, error)
                except EnvironmentProblem as error:  # which time alone may not end: say so, once
                    if str(error) != trouble:
                        trouble = str(error)
                        log.warning("%s is not back yet: %s", self._lost.target.given, error)
                with anyio.move_on_after(pause * (1 + _JITTER * random.random())):
                    await anyio.wait_readable(signs)
                    signs.poll(0)
                    pause = _FIRST_PAUSE  # something has appeared; what is still missing will follow soon
                    await anyio.sleep(_FIRST_PAUSE * random.random())
                    continue
                pause = min(pause * 2, _LONGEST_PAUSE)

    async def _attempt(self) -> Source:
        lost = self._lost
        scope = next((mark.scope for mark in lost.marks.values()), Scope.SUBTREE)
        found = await self._open(lost.target, scope)
        try:
            await self._mark_again(found)
        except BaseException:
            while found.has_news:
                found.pop()  # nobody is told of an attempt that has failed
            await found.aclose()
            raise
        return found

    async def _mark_again(self, found: Source) -> None:
        """Make the marks that there were, and have them told what has changed since each of them was told last."""
        self._has_told = False
        for number, message in list(self._lost.asked.items()):
            mark = self._lost.marks.get(number)
            if mark is None:
                continue  # it has ended
            try:
                await self._mark(found, mark, message)
            except UsageError as error:
                log.warning("%s is not watched any more: %s", mark.target, error)

    async def _mark(self, found: Source, mark: Mark, message: AddMark) -> None:
        def make(answer: Done) -> Mark:
            if answer.since is not None:
                mark.live = None
            return mark

        def make_anew(answer: Done) -> Mark:
            if not self._has_told:
                self._has_told = True
                found.lose(answer.seq, time.time_ns(), Reason.RESTART)
            return make(answer)

        since = self._lost.cursor_of(mark.number)
        if since is None:  # nobody records what happens there
            await found.mark(replace(message), make_anew)
            await found.request(Recount(0, mark.number))
            return
        try:
            await found.mark(replace(message, since=since), make)
        except (HistoryGone, BadCursor) as error:
            log.debug("everything in %s is told anew: %s", mark.target, error)
            await found.mark(replace(message, since=EVERYTHING), make_anew)


@contextmanager
def signs_of(target: Target | LocalTarget) -> Iterator[select.epoll]:
    """Yield what becomes readable when a target may have come back: something was mounted, or there is a new name."""
    with ExitStack() as stack:
        signs = stack.enter_context(changes_of_mounts())
        path = _appears_at(target)
        if path is not None:
            names = stack.enter_context(INotify(nonblocking=True))
            try:
                names.add_watch(os.path.dirname(path) or ".", flags.CREATE | flags.MOVED_TO)
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOSPC):
                    raise  # else there is the clock
            signs.register(names.fileno(), select.EPOLLIN | select.EPOLLET)
        yield signs


def _appears_at(target: Target | LocalTarget) -> str | None:
    """Return the path whose appearing is worth an attempt, None if there is none: the kernel tells of mounts."""
    if isinstance(target, LocalTarget):
        return target.real
    return target.daemon.path if isinstance(target.daemon, UnixAddress) else None
