"""Takes away what a test session leaves when it is killed: its processes, its mounts, its directory.

A process of its own, which waits for the end of the session on its standard input. It knows the session's processes by
a variable that they have inherited.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

VARIABLE: Final = "FUSENOTIFY_TEST_SESSION"
_ATTEMPTS: Final = 100  # to have every process end, a tenth of a second each


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


def _left_mounts(place: str) -> list[str]:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()]
    return [point for point in reversed(points) if point == place or point.startswith(f"{place}/")]


def _unmount(point: str) -> None:
    path = point.encode(errors="surrogateescape").decode("unicode_escape")  # mountinfo writes spaces as \040
    subprocess.run(["umount", "--lazy", "--no-canonicalize", path], check=False, stderr=subprocess.DEVNULL)


def _clear(place: str) -> None:
    for _ in range(_ATTEMPTS):
        left = list(_left_processes(place))
        if not left:
            break
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    for point in _left_mounts(place):
        _unmount(point)
    with contextlib.suppress(OSError):
        os.rmdir(place)


if __name__ == "__main__":
    if sys.stdin.read() != "done":
        _clear(sys.argv[1])
