"""System calls that may hang run in threads, which are left behind when nobody waits for them any more."""

from collections.abc import Callable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def run_abandonable(
    work: Callable[[], T], close: Callable[[T], None], limiter: anyio.CapacityLimiter | None = None
) -> T:
    """Return what `work` makes in a thread. If this is cancelled the thread goes on, and what it makes is closed.

    Args:
        work: what may take long; runs in the thread.
        close: lets go of what nobody got; runs in either.
        limiter: how many threads there may be at a time.
    """
    made: list[T] = []
    is_abandoned = False

    def close_unless_taken() -> None:
        try:
            one = made.pop()
        except IndexError:  # there is nothing yet, or the other of the two was faster
            return
        close(one)

    def run() -> None:
        made.append(work())
        if is_abandoned:
            close_unless_taken()

    try:
        await anyio.to_thread.run_sync(run, abandon_on_cancel=True, limiter=limiter)
    except anyio.get_cancelled_exc_class():
        is_abandoned = True
        close_unless_taken()
        raise
    return made.pop()
