"""`fusenotify umount`."""

import argparse
import contextlib
import os
import select
import signal
import sys

from fusenotify.cli.asking import ask_status
from fusenotify.errors import EnvironmentProblem, FusenotifyError
from fusenotify.mountinfo import mount_of, mounted_anywhere
from fusenotify.mounting import DEVICE, unmount

_PATIENCE = 10.0  # seconds
_HURRY = 2.0  # seconds that a daemon gets whose mount is to be taken away in any case


def run(options: argparse.Namespace) -> int:
    """Unmount, and wait for the end of the daemon if that was the last place where its mount is seen."""
    daemon = _open_daemon(options.mountpoint, _HURRY if options.lazy else _PATIENCE)
    try:
        mount = unmount(options.mountpoint, lazy=options.lazy)
        if elsewhere := mounted_anywhere(mount.device):
            print(f"fusenotify: its daemon goes on, for it is also mounted at {elsewhere[0]}", file=sys.stderr)
        elif daemon is not None:
            _await_end(daemon, options.mountpoint)
    finally:
        if daemon is not None:
            os.close(daemon)
    return 0


def _open_daemon(mountpoint: str, patience: float) -> int | None:
    """Return a pidfd of the daemon; None when it is dead, hangs, or cannot be told."""
    with contextlib.suppress(FusenotifyError, OSError):
        pid = ask_status(mountpoint, patience).pid
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
