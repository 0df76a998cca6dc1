"""Who watches the mount natively: which nodes have a mark of some program's inotify or fanotify descriptor.

Whatever is known to be watched is answered at once. Of anything else only a look at /proc that begins after the change
was read can tell that nobody watches it: every watch that could have expected the change was there by then. Looks are
made by a process of its own (`procmarks`), only when something has changed, and seldom enough to take a small part of
the time.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final

import trio

from fusenotify import procmarks
from fusenotify.mounting import has_capability

log = logging.getLogger(__name__)

_CAP_SYS_PTRACE: Final = 19
# The inode numbers of the first namespaces (include/uapi/linux/nsfs.h); whoever is in another one sees less.
_FIRST_PID_NAMESPACE: Final = "pid:[4026531836]"
_FIRST_USER_NAMESPACE: Final = "user:[4026531837]"
# A look is followed by so many times its own duration without one: while nobody watches, and while somebody does, who
# waits for what is to be told behind the change that made us look.
_SHARE_UNWATCHED: Final = 30
_SHARE_WATCHED: Final = 4
_LASTS: Final = 10.0  # seconds after which what is known to be watched is looked at again, if it is asked for
_PAUSE: Final = 1.0  # seconds until the next look after one that failed
_TO_ONLOOKERS: Final = "to those who watch"
_CHUNK: Final = 1 << 16


class Onlookers:
    """Answers whether anybody hears of changes of a node.

    Attributes:
        stamp: grows with each look that begins. What is made of a change keeps the stamp of when the change was told.
        reason: to whom changes are delivered, and why.
        on_look: called at the end of each look.
    """

    def __init__(self, native: str, left_out: Iterable[int]) -> None:
        """Know nothing yet; `native` is `auto`, `always` or `off`, and processes that are `left_out` are no matter."""
        self._left_out = tuple(left_out)
        self.stamp = 0
        self.on_look: Callable[[], None] = lambda: None
        self._program: _Program | None = None
        self._finished = 0  # the stamp of the last look that has ended
        self._watched: frozenset[int] = frozenset()
        self._is_everything = False
        self._asked = trio.Event()
        self._hurried = trio.Event()
        self._look_ended = trio.Event()
        self._not_before = 0.0
        self._old_at = 0.0
        hidden = what_hides_processes() if native == "auto" else "asked for"
        self._is_blind = hidden != ""  # nobody looks
        self.reason = f"to all: {hidden}" if hidden else _TO_ONLOOKERS

    def wanted(self, nodeids: Iterable[int], stamp: int) -> bool | None:
        """Return whether any of these nodes is watched, None if only a look that is still to come will tell.

        `stamp` is that of when the change was told.
        """
        if self._is_blind:
            return True
        if self._is_everything or not self._watched.isdisjoint(nodeids):
            if time.monotonic() >= self._old_at:
                self._asked.set()
            return True
        if self._finished > stamp:
            return False
        self._asked.set()
        return None

    def is_nobody(self, stamp: int) -> bool | None:
        """Return whether nobody watched anything when a change was told, None if that is not known yet."""
        if self._is_blind or self._is_everything or self._watched:
            if not self._is_blind and time.monotonic() >= self._old_at:
                self._asked.set()  # they may have gone
            return False
        if self._finished > stamp:
            return True
        self._asked.set()
        return None

    async def settled(self, stamp: int) -> None:
        """Return when `wanted` can tell of every node what held at this stamp."""
        while not self._is_blind and self._finished <= stamp:
            self._asked.set()
            await self._look_ended.wait()

    @contextlib.asynccontextmanager
    async def prepared(self) -> AsyncIterator[None]:
        """Have the process there that looks (`Replaying.prepared` says why so early)."""
        try:
            if not self._is_blind:
                with contextlib.suppress(OSError):  # `run` tries again, and tells
                    self._program = await _Program.start(self._left_out)
            yield
        finally:
            await self._end()

    async def run(self, device: str) -> None:
        """Look whenever it is asked for, until this is cancelled; `device` is the mount's in mountinfo, 0:NUMBER."""
        minor = int(device.partition(":")[2])
        while not self._is_blind:
            try:
                program = self._program = self._program or await _Program.start(self._left_out)
                while True:
                    await self._look(program, minor)
            except (OSError, trio.BrokenResourceError, EOFError) as error:
                await self._end()
                self._begin()
                reason = f"to all: the process that looks for watches has failed: {error!r}"
                self._take(frozenset(), True, reason, _PAUSE)
                await trio.sleep(_PAUSE)

    def hurry(self) -> None:
        """Look as soon as that is possible, if a look is asked for."""
        self._hurried.set()

    def _begin(self) -> None:
        self._asked = trio.Event()
        self._hurried = trio.Event()
        self.stamp += 1

    async def _end(self) -> None:
        if self._program is not None:
            await self._program.end()
            self._program = None

    async def _look(self, program: "_Program", minor: int) -> None:
        await self._asked.wait()
        if trio.current_time() < self._not_before:
            with trio.move_on_at(self._not_before):
                await self._hurried.wait()
        self._begin()
        seconds, is_everything, hidden, nodeids = await program.look(minor)
        reason = _TO_ONLOOKERS
        if hidden:
            reason = f"to all: {hidden} processes do not let themselves be looked at"
        elif is_everything:
            reason = "to all: somebody watches the whole filesystem"
        is_everything |= hidden > 0
        share = _SHARE_WATCHED if is_everything or nodeids else _SHARE_UNWATCHED
        self._take(nodeids, is_everything, reason, share * seconds)

    def _take(self, nodeids: frozenset[int], is_everything: bool, reason: str, pause: float) -> None:
        self._watched, self._is_everything, self.reason = nodeids, is_everything, reason
        self._finished = self.stamp
        self._not_before = trio.current_time() + pause
        self._old_at = time.monotonic() + max(pause, _LASTS)
        self._look_ended.set()
        self._look_ended = trio.Event()
        self.on_look()


def what_hides_processes() -> str:
    """Return why /proc does not show what every process watches, "" if it does."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):
            return "/proc is that of another container"
        if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
            return "processes outside of this container may watch"
        if os.readlink("/proc/self/ns/user") != _FIRST_USER_NAMESPACE or not has_capability(_CAP_SYS_PTRACE):
            return "processes of other users may watch"
    except OSError as error:
        return f"/proc cannot be read: {error.strerror}"
    return ""


class _Program:
    """The running `procmarks`."""

    def __init__(self, process: trio.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._requests = process.stdin
        self._answers = process.stdout
        self._buffer = bytearray()

    @classmethod
    async def start(cls, left_out: Iterable[int]) -> "_Program":
        command = [sys.executable, "-I", "-S", procmarks.__file__, *map(str, left_out)]
        pipe = subprocess.PIPE
        return cls(await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, cwd="/", start_new_session=True))

    async def end(self) -> None:
        self._process.kill()  # it has nothing to lose
        with trio.CancelScope(shield=True):
            await self._process.wait()
            await self._requests.aclose()
            await self._answers.aclose()

    async def look(self, minor: int) -> tuple[float, bool, int, frozenset[int]]:
        """Return how long a look took (seconds), whether everything is watched, how many processes hide, and nodeids.

        Raises:
            EOFError, trio.BrokenResourceError: it has ended.
        """
        await self._requests.send_all(procmarks.REQUEST.pack(minor))
        header = procmarks.HEADER
        seconds, is_everything, hidden, count = header.unpack(await self._read(header.size))
        nodeids = array("Q", await self._read(8 * count))
        return seconds, bool(is_everything), hidden, frozenset(nodeids)

    async def _read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            chunk = await self._answers.receive_some(_CHUNK)
            if not chunk:
                raise EOFError("it has ended")
            self._buffer += chunk
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data
