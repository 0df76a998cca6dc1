"""Takes away what a test session leaves when it is killed: its processes, its mounts, its directory.

A process of its own, which waits for the end of the session on its standard input. It knows the session's processes by
a variable that they have inherited.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fusenotify import _linux
from fusenotify.mountinfo import read_mounts

VARIABLE: Final = "FUSENOTIFY_TEST_SESSION"
_ATTEMPTS: Final = 3  # to have every process end
_PATIENCE: Final = 10.0  # seconds that one gets to end


@contextlib.contextmanager
def watched_over(place: Path) -> Iterator[None]:
    """Have what is in `place` and every process that is started in the block taken away if we are killed meanwhile."""
    os.environ[VARIABLE] = str(place)
    # Not by Ctrl-C, which goes to the whole group, and not among those that it ends.
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    caretaker = subprocess.Popen(
        [sys.executable, __file__, str(place)], stdin=subprocess.PIPE, start_new_session=True, env=environment
    )
    assert caretaker.stdin is not None
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        caretaker.communicate(b"done")


def _left_processes(place: str) -> Iterator[int]:
    marker = f"{VARIABLE}={place}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if marker in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):  # empty once it has ended
                    yield int(entry)


def _end(pid: int) -> None:
    """Kill a process and return when it has ended, or when the kernel has kept it for too long."""
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            select.select([pidfd], [], [], _PATIENCE)
        finally:
            os.close(pidfd)


def _clear(place: str) -> None:
    for _ in range(_ATTEMPTS):  # those that have just been started are found the next time
        for pid in _left_processes(place):
            _end(pid)
    for mount in reversed(read_mounts()):
        if mount.mountpoint == place or mount.mountpoint.startswith(f"{place}/"):
            with contextlib.suppress(OSError):
                _linux.umount2(os.fsencode(mount.mountpoint), _linux.MNT_DETACH)
    with contextlib.suppress(OSError):
        os.rmdir(place)


if __name__ == "__main__":
    if sys.stdin.read() != "done":
        _clear(sys.argv[1])
