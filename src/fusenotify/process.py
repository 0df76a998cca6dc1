"""The process that a daemon is: what it asks of the machine at its start, and what ends it."""

import faulthandler
import gc
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import trio

from fusenotify import _linux

log = logging.getLogger(__name__)

_CAP_SYS_RESOURCE: Final = 24
_MOST_DESCRIPTORS: Final = 1 << 20
_NICE: Final = -10
_ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # the last: its terminal has been closed


def prepare() -> None:
    """Make this process a daemon's."""
    faulthandler.register(signal.SIGUSR1)
    _raise_descriptor_limit()
    _take_precedence()
    # With it, quotas and the blocks reserved for root would not hold for anybody who writes through us.
    _linux.drop_capability(_CAP_SYS_RESOURCE)


@contextmanager
def made_for_good() -> Iterator[None]:
    """Keep garbage collection from stopping the world while the kernel's queue fills, in the block and ever after.

    What is made in the block stays for good, and events come by the hundred thousand without a cycle among them.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
        gc.set_threshold(50_000, 20, 50)


@contextmanager
def ending() -> Iterator[Callable[[], Awaitable[None]]]:
    """Yield what returns when a signal asks the daemon to end; from the beginning of the block on none is missed.

    Behind the block such signals are ignored: by then we are ending anyway.
    """
    for ours in _ENDING:
        signal.signal(ours, signal.SIG_IGN)  # what the receiver leaves behind
    with trio.open_signal_receiver(*_ENDING) as signals:

        async def told_to_end() -> None:
            number = await anext(signals)
            log.info("stopping at %s", signal.Signals(number).name)

        yield told_to_end


def _take_precedence() -> None:
    """Run before ordinary programs where that is allowed: writers fill the kernel's queue of 16384 events in 0.2 s."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)


def _raise_descriptor_limit() -> None:
    """Let many files be open at once, each of which is a descriptor of ours: all that root may have, or the user."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(int(Path("/proc/sys/fs/nr_open").read_text()), _MOST_DESCRIPTORS)
    for limit in (hard, most):
        with suppress(OSError, ValueError):  # going beyond the hard limit takes CAP_SYS_RESOURCE
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
