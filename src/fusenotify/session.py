"""The FUSE session loop: who reads the FUSE descriptor, and what happens while a handler waits.

pyfuse3 reaches its event loop through one module attribute, `pyfuse3.trio`, so that asyncio can stand in for trio.
`FuseLoop` stands in there too and keeps the concurrency contract of docs/architecture.md:

- exactly one task holds the reader's role and serves one request after the other; trio gets a turn when there is
  something else to be done and no more requests come, and in any case soon (see `waiting`);
- a handler that must wait calls `park`, which hands the role to another task first, however many are parked already;
- the descriptor is non-blocking, so a caller killed between poll and read costs one more turn and no more.
"""

import errno
import logging
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, TypeVar

import pyfuse3
import trio

from fusenotify.waiting import Requests

log = logging.getLogger(__name__)

T = TypeVar("T")

_IDLE_LOOPS: Final = 8  # kept for the next handlers that park; each owns a request buffer of 1 MiB
# Parked handlers that wait in the kernel at the same time, of all users and of one: more of them wait in line.
_MOST_THREADS: Final = 1024
_MOST_THREADS_OF_ONE: Final = 256
# Makes requests on the mount. RELEASE may be behind: no more than 12 are in line at a time (`max_background`), and each
# request lets so many more pass. It is a process of its own: a thread of ours that waits for our own answer would keep
# the mount, and us, from ending when we are killed. It is born while files are open, of which it has copies for some
# microseconds (see `Replaying.prepared`), but only where somebody waits for the end of traffic that does not end.
_MARKER: Final = "import os, sys\nfor _ in range(8): os.statvfs(sys.argv[1])"


class FuseLoop:
    """Runs pyfuse3's session loop on a mounted, non-blocking FUSE descriptor."""

    def __init__(self, fuse_fd: int) -> None:
        self._requests = Requests(fuse_fd)
        self._reader: trio.lowlevel.Task | None = None
        self._standby = trio.lowlevel.ParkingLot()
        self._start_another: Callable[[], None] = lambda: None
        self._limiter = trio.CapacityLimiter(_MOST_THREADS)
        self._limiters: dict[int, trio.CapacityLimiter] = {}
        self._to_abandon: set[trio.CancelScope] = set()
        self._ending = False
        self._marking = trio.Lock()
        self._markers_begun = 0
        self._marker_answered = 0

    async def run(self) -> None:
        """Serve requests until the filesystem is unmounted or `pyfuse3.terminate` is called."""
        vars(pyfuse3)["trio"] = _Loop(self)
        self._requests.begin()
        try:
            # One task of pyfuse3's own making; the others are ours, and beyond so many idle ones pyfuse3 ends them.
            await pyfuse3.main(_IDLE_LOOPS, 1)
        finally:
            self._requests.end()
            vars(pyfuse3)["trio"] = trio

    async def park(self, uid: int, function: Callable[..., T], *args: object) -> T:
        """Run something slow in a thread, for the handler that calls this; other requests are served meanwhile.

        `uid` is for whom, or below 0 because of what: whoever waits for 256 things, such as leases, waits in line with
        the next and delays nobody.
        """
        return await self._in_thread(uid, function, args, abandon=False)

    async def park_until_the_end(self, uid: int, function: Callable[..., T], *args: object) -> T:
        """Do as `park` does, for what nothing depends on: it is left behind when the daemon is to end.

        Raises:
            OSError: ENOTCONN, when that has happened.
        """
        with trio.CancelScope() as scope:
            self._to_abandon.add(scope)
            try:
                if not self._ending:
                    return await self._in_thread(uid, function, args, abandon=True)
            finally:
                self._to_abandon.remove(scope)
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    async def _in_thread(self, uid: int, function: Callable[..., T], args: tuple[object, ...], *, abandon: bool) -> T:
        self.hand_over()
        own = self._limiters.setdefault(uid, trio.CapacityLimiter(_MOST_THREADS_OF_ONE))
        try:
            async with own:
                return await trio.to_thread.run_sync(function, *args, limiter=self._limiter, abandon_on_cancel=abandon)
        finally:
            if not own.borrowed_tokens and not own.statistics().tasks_waiting:
                self._limiters.pop(uid, None)

    def abandon(self) -> None:
        """Leave behind what is parked until the end: this is the end."""
        self._ending = True
        for scope in self._to_abandon:
            scope.cancel()

    async def quiet(self, mountpoint: str) -> None:
        """Return when every request that the kernel has queued by now has been read and answered or parked.

        That is so when nothing is queued. Under traffic without a pause it is so when a request that was made after the
        call has been answered, as they are handed out in order.
        """
        await trio.lowlevel.checkpoint()
        begun = self._markers_begun
        if not self._requests.has_one():
            return
        async with self._marking:
            if self._marker_answered <= begun:  # else one that began after this call has served us too
                await self._mark(mountpoint)

    async def _mark(self, mountpoint: str) -> None:
        self._markers_begun += 1
        command = [sys.executable, "-S", "-c", _MARKER, mountpoint]
        null = subprocess.DEVNULL
        await trio.run_process(command, check=False, stdin=null, stdout=null, stderr=null)  # fails if the mount ends
        self._marker_answered = self._markers_begun

    def hand_over(self) -> None:
        """Have another task read on, before the handler that calls this waits for anything."""
        if self._reader is not trio.lowlevel.current_task():
            return
        self._reader = None
        if self._standby:
            (self._reader,) = self._standby.unpark(count=1)
        else:
            self._start_another()

    def give_way(self) -> None:
        """Have other tasks go on before the next request: who made this one waits for what they do about it."""
        self._requests.give_way()

    # --- what pyfuse3 calls ------------------------------------------------------------------------------------------

    def start(self, nursery: trio.Nursery, function: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        """Start a session loop, and remember how to start more."""
        self._start_another = lambda: self.start(nursery, function, args)
        nursery.start_soon(self._keep_going, function, args)

    async def _keep_going(self, function: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> None:
        while not await self._ended(function, args):
            pass
        # It was one idle loop too many, or the session has ended; whoever reads next sees which.
        self.hand_over()

    async def _ended(self, function: Callable[..., Awaitable[None]], args: tuple[object, ...]) -> bool:
        """Run a session loop; return whether it came to its end, or has to be started again."""
        try:
            await function(*args)
        except BlockingIOError:
            return False  # the caller was killed after poll had promised its request
        except OSError:
            raise  # of the descriptor itself
        except Exception:
            log.exception("pyfuse3 failed at a request, which stays without an answer")
            return False
        return True

    async def take_role(self) -> None:
        """Return when the calling task is the reader; at once if it is, or if nobody is."""
        task = trio.lowlevel.current_task()
        if self._reader is None:
            self._reader = task
        elif self._reader is not task:
            await self._standby.park()

    async def wait_readable(self, fd: int) -> None:
        """Return when a request waits."""
        await self._requests.wait()


class _Loop:
    """The module `trio` as far as pyfuse3 uses it."""

    ClosedResourceError = trio.ClosedResourceError

    def __init__(self, loop: FuseLoop) -> None:
        self._loop = loop
        self.lowlevel = _LowLevel(loop)

    def Lock(self) -> "_ReaderRole":  # noqa: N802 - the name is trio's
        return _ReaderRole(self._loop)

    def open_nursery(self) -> "_Nursery":
        return _Nursery(self._loop)


class _LowLevel:
    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self, loop: FuseLoop) -> None:
        self.wait_readable = loop.wait_readable


class _ReaderRole:
    """Stands where pyfuse3 expects a lock around waiting for the descriptor; the role outlasts the `with`."""

    def __init__(self, loop: FuseLoop) -> None:
        self._loop = loop

    async def __aenter__(self) -> None:
        await self._loop.take_role()

    async def __aexit__(self, *exc_info: object) -> None:
        pass


class _Nursery:
    def __init__(self, loop: FuseLoop) -> None:
        self._loop = loop
        self._manager = trio.open_nursery()
        self._nursery: trio.Nursery | None = None

    async def __aenter__(self) -> "_Nursery":
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._manager.__aexit__(kind, error, traceback)

    def start_soon(self, function: Callable[..., Awaitable[None]], *args: object, name: str | None = None) -> None:
        assert self._nursery is not None
        self._loop.start(self._nursery, function, args)
