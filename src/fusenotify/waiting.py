"""Waits for requests, and has the event loop take a turn only where there is something for it to do.

A turn of trio's loop (epoll_ctl, epoll_wait, two switches of tasks) takes as long as a request does. While no other
task can go on there is no need for one: what the loop would wait for is waited for right here, by one system call.
"""

import contextlib
import math
import os
import select
import time
from typing import Final

import trio

_SLICE: Final = 0.001  # seconds of requests before other tasks get a turn
# So long the next request is awaited before other tasks get a turn: what they do for one takes longer than a request
# does, and hardly more for ten. Seconds.
_GRACE: Final = 0.0001
_FD_SETSIZE: Final = 1024  # select(2), which can wait for less than a millisecond, takes no larger descriptors


class Requests:
    """The descriptor that requests are read from, by one task at a time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._anything = select.poll()  # that could make the event loop go on
        self._anything.register(fd, select.POLLIN)
        self._descriptors = [fd]  # the same
        self._turns: _Turns | None = None
        self._slice_began = 0.0
        self._deadline = math.inf  # at which the loop goes on in any case, by its own clock

    def begin(self) -> None:
        """Take note of the event loop, which has to run."""
        trios_fd = _descriptor_of_trio()
        if trios_fd is not None and max(trios_fd, self._fd) < _FD_SETSIZE:
            self._anything.register(trios_fd, select.POLLIN)
            self._descriptors.append(trios_fd)
            self._turns = _Turns()
            trio.lowlevel.add_instrument(self._turns)

    def end(self) -> None:
        """Let go of the event loop."""
        if self._turns is not None:
            trio.lowlevel.remove_instrument(self._turns)
            self._turns = None

    def has_one(self) -> bool:
        """Return whether a request waits."""
        return bool(self._poll.poll(0))

    def give_way(self) -> None:
        """Have other tasks get their turns before the next request is awaited: somebody waits for what they do."""
        self._slice_began = -math.inf

    async def wait(self) -> None:
        """Return when a request waits."""
        if time.perf_counter() >= self._slice_began + _SLICE:
            await self._give_turn()
        # The last look comes right before the read: a request whose caller is killed in between costs a request buffer,
        # which pyfuse3 does not free when it finds nothing.
        while not self._comes_first():
            await self._give_turn()

    async def _give_turn(self) -> None:
        await trio.lowlevel.wait_readable(self._fd)
        self._slice_began = time.perf_counter()

    def _comes_first(self) -> bool:
        """Wait as the event loop would, and return whether it is a request that comes."""
        if self._turns is None:
            return self.has_one()
        if self._turns.are_wanted:
            return self.has_one() or select.select(self._descriptors, [], [], _GRACE)[0] == [self._fd]
        patience = self._milliseconds()
        if patience == 0:
            return False  # somebody's time has come, which requests without an end would keep from being seen
        ready = self._anything.poll(patience)
        self._slice_began = time.perf_counter()
        return len(ready) == 1 and ready[0][0] == self._fd

    def _milliseconds(self) -> float | None:
        """Return how long the loop would wait, None for ever; tasks set deadlines in their turns, for themselves."""
        assert self._turns is not None
        if self._turns.were_taken:
            self._turns.were_taken = False
            self._deadline = trio.current_time() + trio.lowlevel.current_statistics().seconds_to_next_deadline
        return None if self._deadline == math.inf else max(0.0, self._deadline - trio.current_time()) * 1000


class _Turns(trio.abc.Instrument):
    """Knows whether any task but the one that runs waits for its turn.

    Attributes:
        were_taken: whether there were any since this was last set to False.
    """

    def __init__(self) -> None:
        self.were_taken = True
        self._waiting: set[trio.lowlevel.Task] = set()
        self._knows_all = False  # those that waited when this began have had their turns

    @property
    def are_wanted(self) -> bool:
        """Whether there is a task that can go on, or may be."""
        return bool(self._waiting) or not self._knows_all

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        """Called by trio: a task can go on."""
        self._waiting.add(task)

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by trio: it does."""
        self._waiting.discard(task)
        self.were_taken = True

    def before_io_wait(self, timeout: float) -> None:
        """Called by trio: it is about to wait for so many seconds, 0 if there are tasks that can go on."""
        self._knows_all |= timeout > 0


def _descriptor_of_trio() -> int | None:
    """Return the descriptor by which trio waits for everything, None where that is not known for sure.

    It is readable when there is something for trio to do: input, output, results of threads, signals. Trio does not
    tell which it is, but there is no other one of its kind in a process of ours.
    """
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of this very listing
            if os.readlink(f"/proc/self/fd/{number}") == "anon_inode:[eventpoll]":
                found.append(int(number))
    return found[0] if len(found) == 1 else None
