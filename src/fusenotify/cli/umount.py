"""`fusenotify umount`."""

import argparse
import contextlib
import os
import select
import signal

import anyio

from fusenotify import client
from fusenotify.errors import EnvironmentProblem, FusenotifyError
from fusenotify.mountinfo import mount_of
from fusenotify.mounting import DEVICE, unmount

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
        if pid is not None:
            daemon = os.pidfd_open(pid)
            if _is_daemon_of(pid, mountpoint):
                return daemon
            os.close(daemon)
    return None


def _is_daemon_of(pid: int, mountpoint: str) -> bool:
    """Whether a process serves FUSE as the user who mounted; a mount could name any process, for us to end it."""
    mount = mount_of(os.path.realpath(mountpoint))
    try:
        owner = os.stat(f"/proc/{pid}").st_uid
        files = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
    except OSError:
        return False
    return mount is not None and f"user_id={owner}" in mount.super_options and DEVICE in files


def _await_end(daemon: int, mountpoint: str) -> None:
    """Wait for the daemon, which also has to be told when only its watchers keep the detached mount alive."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    poll = select.poll()
    poll.register(daemon, select.POLLIN)
    if not poll.poll(_PATIENCE * 1000):
        raise EnvironmentProblem(f"{mountpoint} is unmounted, but its daemon has not ended within {_PATIENCE:.0f} s")
