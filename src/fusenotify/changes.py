"""Changes of the backing tree are made by one thread, so that one that hangs holds up no more than the next change.

A filesystem that is frozen, whose disk is slow or whose dirty pages have to be written first keeps a `write` or a
`mkdir` waiting in the kernel. Handlers run on the thread of the event loop, one after the other (docs/architecture.md),
so there all would wait with it. Therefore a handler that changes something is run by a thread of its own, *while the
event loop waits for it*: as before only one of them is at work, and nothing needs a lock. Only when the thread has not
come back after `_PATIENCE` and the kernel keeps it in a system call of its `slow_calls`, the loop goes on without it:
it answers whoever wants to look, read or listen. Who wants to change something waits in line. When the system call is
over the thread asks the loop to wait for it again, and finishes.
"""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import trio

from fusenotify._linux import SYS_FUTEX, unshare_umask

T = TypeVar("T")

_PATIENCE: Final = 0.002  # seconds


class _Job:
    """One change: `in_call` while it may be left alone, `left` while it is."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.in_call = False
        self.left = False
        self.done = threading.Semaphore(0)
        self.called_back = threading.Semaphore(0)
        self.ended: trio.Event | None = None


class Changes:
    """Runs what changes the backing tree, one at a time."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []  # for the event loop, as soon as it goes on
        self._turn = trio.Lock()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._job: _Job | None = None
        self._mutex = threading.Lock()

    async def here(self, hand_over: Callable[[], None], function: Callable[..., T], *args: object) -> T:
        """Make a change on this very thread, as it cannot take long, when no other is under way.

        `hand_over` is called before anything is waited for.
        """
        if not self._turn.locked():
            return function(*args)
        hand_over()
        async with self._turn:
            return function(*args)

    async def run(self, hand_over: Callable[[], None], function: Callable[..., T], *args: object) -> T:
        """Make a change that may take long, when no other is under way."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            hand_over()
            await self._turn.acquire()
        try:
            job = _Job(lambda: function(*args))
            self._start(job)
            if self._has_left(job):
                job.ended = trio.Event()
                hand_over()
                await job.ended.wait()
        finally:
            self._turn.release()
        if job.error is not None:
            raise job.error
        result: T = job.result
        return result

    def slow_calls(self) -> contextlib.AbstractContextManager[None]:
        """Let everybody else go on while the system calls of the block are made, if they take their time.

        The block touches nothing but descriptors that are closed by nobody else, or used by its first system call.
        """
        job = self._job
        if job is None or threading.current_thread() is not self._thread:
            return contextlib.nullcontext()
        return self._slow_calls(job)

    @contextlib.contextmanager
    def _slow_calls(self, job: _Job) -> Iterator[None]:
        job.in_call = True
        try:
            yield
        finally:
            with self._mutex:
                job.in_call = False
            if job.left:
                self._come_back(job)

    def on_loop(self, function: Callable[[], None]) -> Callable[[], None]:
        """Return what a change can call in place of a function that is for the event loop's thread, as trio's are."""

        def call() -> None:
            if threading.current_thread() is self._thread:
                self._calls.append(function)
            else:
                function()

        return call

    # --- the event loop's side ---------------------------------------------------------------------------------------

    def _start(self, job: _Job) -> None:
        if self._thread is None:
            self._token = trio.lowlevel.current_trio_token()
            # A daemon thread: nobody can interrupt it, and the process has to end.
            self._thread = threading.Thread(target=self._work, name="changes", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _has_left(self, job: _Job) -> bool:
        """Wait until the thread is done and return False, or until the kernel keeps it, and return True."""
        while not job.done.acquire(timeout=_PATIENCE):
            with self._mutex:
                if job.in_call and self._is_kept_by_the_kernel():
                    job.left = True
                    break
        calls, self._calls = self._calls, []
        for call in calls:
            call()
        return job.left

    def _is_kept_by_the_kernel(self) -> bool:
        """Whether the thread sleeps in a system call, other than to wait for the interpreter (proc(5))."""
        assert self._thread is not None
        try:
            number = Path(f"/proc/self/task/{self._thread.native_id}/syscall").read_text().split()[0]
        except OSError:
            return False  # a kernel that does not tell: then everybody waits
        return number.isdecimal() and int(number) != SYS_FUTEX

    def _take_back(self, job: _Job) -> None:
        job.left = False
        job.called_back.release()
        if not self._has_left(job):
            assert job.ended is not None
            job.ended.set()

    # --- the thread's side -------------------------------------------------------------------------------------------

    def _work(self) -> None:
        with contextlib.suppress(OSError):  # where a sandbox forbids it, all threads have one
            unshare_umask()  # which a change sets to its caller's: others may do so while it hangs
        while True:
            self._job = job = self._jobs.get()
            try:
                job.result = job.work()
            except BaseException as error:
                job.error = error
            self._job = None
            job.done.release()

    def _come_back(self, job: _Job) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._take_back, job)
        job.called_back.acquire()  # for ever, where the daemon has ended meanwhile
