"""`fusenotify umount`."""

import argparse
import contextlib
import os
import select
import signal

import anyio

from fusenotify import client
from fusenotify.errors import EnvironmentProblem, FusenotifyError
from fusenotify.mounting import unmount

_PATIENCE = 10.0  # seconds


def run(options: argparse.Namespace) -> int:
    """Unmount, and wait for the end of the daemon."""
    daemon = _open_daemon(options.mountpoint)
    try:
        unmount(options.mountpoint, lazy=options.lazy)
        if daemon is not None:
            _await_end(daemon, options.mountpoint)
    finally:
        if daemon is not None:
            os.close(daemon)
    return 0


def _open_daemon(mountpoint: str) -> int | None:
    """Return a pidfd of the daemon; None when it is dead, or cannot be told."""

    async def ask() -> int | None:
        with anyio.move_on_after(_PATIENCE):
            return (await client.status(mountpoint)).pid
        return None

    with contextlib.suppress(FusenotifyError, OSError):
        pid = anyio.run(ask)
        return os.pidfd_open(pid) if pid is not None else None
    return None


def _await_end(daemon: int, mountpoint: str) -> None:
    """Wait for the daemon, which also has to be told when only its watchers keep the detached mount alive."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    if not poll.poll(_PATIENCE * 1000):
        raise EnvironmentProblem(f"{mountpoint} is unmounted, but its daemon has not ended within {_PATIENCE:.0f} s")
