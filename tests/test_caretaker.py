"""A test session that is killed leaves nothing behind."""

import os
import subprocess
import sys
from pathlib import Path

from tests.caretaker import VARIABLE

# Ends in the middle of a test, with a mount in use and a daemon that is stopped.
_SESSION = """
import os
import signal
from pathlib import Path

from tests.harness import Mount


def test_that_is_killed(mount: Mount, tmpfs: Path) -> None:
    os.open(mount.mountpoint, os.O_RDONLY)
    print("PLACE", tmpfs, mount.pid, flush=True)
    os.kill(mount.pid, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_session_leaves_nothing(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    session = tmp_path / "test_session.py"
    session.write_text(_SESSION)
    (tmp_path / "conftest.py").write_text("from tests.conftest import *\n")
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    environment["PYTHONPATH"] = os.pathsep.join([str(root), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-s", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), "-c",
               str(root / "pyproject.toml"), str(session)]  # fmt: skip
    # The caretaker has inherited the pipe too, so the output ends when it has.
    done = subprocess.run(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    (line,) = [line for line in done.stdout.splitlines() if "PLACE" in line]
    place, pid = line.split()[-2:]
    assert not Path(place).exists()
    assert place not in Path("/proc/self/mountinfo").read_text()
    assert not is_running(pid)


def is_running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""  # of what has ended and nobody has asked about
    except FileNotFoundError:
        return False
