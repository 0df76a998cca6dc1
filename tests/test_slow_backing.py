"""A backing filesystem that is slow or hangs keeps those waiting who want to change something there, and nobody else.

A frozen ext4 (`fsfreeze`) is one on which every change hangs in the kernel until it is thawed.
"""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fusenotify import _linux
from tests.filesystems import filesystem
from tests.harness import PATIENCE, Mount, Watch, run

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


@dataclass
class Freezer:
    """A mount of a tree on an ext4 that can be frozen, with a tmpfs `memory` in the tree that cannot."""

    mount: Mount
    _fd: int
    _waiting: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def freeze(self) -> None:
        fcntl.ioctl(self._fd, _FIFREEZE, 0)

    def thaw(self) -> None:
        with contextlib.suppress(OSError):  # EINVAL: it is not frozen
            fcntl.ioctl(self._fd, _FITHAW, 0)

    def start(self, script: str) -> "subprocess.Popen[bytes]":
        """Run a script in the mount and return when a request of its hangs."""
        process = subprocess.Popen(["sh", "-c", script], cwd=self.mount.mountpoint, stderr=subprocess.PIPE)
        self._waiting.append(process)
        awaited(lambda: self._hangs(process.pid))
        return process

    def _hangs(self, pid: int) -> bool:
        """Whether a process, or a child of its, waits for an answer of the daemon."""
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any("request_wait" in Path(f"/proc/{one}/wchan").read_text() for one in (pid, *children))

    def finish(self) -> None:
        """Thaw and see everything end well."""
        self.thaw()
        for process in self._waiting:
            _, errors = process.communicate(timeout=PATIENCE)
            assert (process.returncode, errors) == (0, b"")

    def end(self) -> None:
        self.thaw()
        for process in self._waiting:
            process.kill()
            process.communicate()
        os.close(self._fd)


def awaited(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@contextlib.contextmanager
def freezer_in(directory: Path) -> Iterator[Freezer]:
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(filesystem("ext4", directory))
        memory = source / "memory"
        memory.mkdir()
        _linux.mount(b"none", os.fsencode(memory), b"tmpfs", 0, b"")
        stack.callback(_linux.umount2, os.fsencode(memory), _linux.MNT_DETACH)
        (source / "file").write_bytes(bytes(100) * 10_000)
        (source / "uncached").write_bytes(b"x" * 300_000)
        (source / "directory").mkdir()
        for name in ("mount", "state"):
            (directory / name).mkdir()
        mount = Mount(source, directory / "mount", directory / "state")
        stack.callback(mount.close)
        freezer = Freezer(mount, os.open(source, os.O_RDONLY))
        stack.callback(freezer.end)
        yield freezer
    assert "Traceback" not in mount.log, mount.log


@pytest.fixture
def freezer(directory: Path) -> Iterator[Freezer]:
    with freezer_in(directory) as freezer:
        yield freezer


# Each makes one change first that hangs.
_CHANGES = {
    "create": "> new",
    "mkdir": "mkdir new",
    "mknod": "mkfifo new",
    "symlink": "ln -s target new",
    "link": "ln file new",
    "rename": "mv file new",
    "unlink": "rm file",
    "rmdir": "rmdir directory",
    "chmod": "chmod 600 file",
    "chown": "chown 1:1 file",
    "utimes": "touch -d 2001-01-01 file",
    "truncate": "truncate --size 10 file",
    "open-truncate": ": > file",
    "append": "echo more >> file",
    "large write": "dd if=/dev/zero of=file bs=1M count=1 conv=notrunc status=none",
    "setxattr": "setfattr -n user.a -v b file",
}


@pytest.mark.parametrize("change", _CHANGES)
def test_whoever_does_not_change_anything_is_served_while_a_change_hangs(
    freezer: Freezer, watching: Callable[..., Watch], change: str
) -> None:
    mount = freezer.mount
    watches = [watching(mount.mountpoint), watching(f"unix:{mount.socket}")]
    subprocess.run(["dd", f"of={mount.source}/uncached", "oflag=nocache", "conv=notrunc,fdatasync", "count=0"], check=True, stderr=subprocess.DEVNULL)
    freezer.freeze()
    freezer.start(_CHANGES[change])
    # Looking, reading, listing, and what it is told.
    assert (mount.mountpoint / "file").stat().st_size == 1_000_000
    assert set(os.listdir(mount.mountpoint)) >= {"file", "uncached", "directory", "memory"}
    assert (mount.mountpoint / "uncached").read_bytes() == b"x" * 300_000
    os.statvfs(mount.mountpoint)
    (mount.source / "memory" / "remote").mkdir()
    for watch in watches:
        assert watch.until("memory/remote")[-1]["origin"] == "remote"
    state = run("status", "--json", mount.mountpoint)
    assert json.loads(state.stdout)["pid"] == mount.pid, state.stderr
    freezer.finish()
    # And then it is told, as what it is.
    (mount.source / "memory" / "end").mkdir()
    told = watches[0].until("memory/end")[:-1]
    assert told
    assert {line["origin"] for line in told} == {"local"}
    kinds = [(line["kind"], line["path"]) for line in told]
    assert len(set(kinds)) == len(kinds)


def test_those_who_want_to_change_something_wait_in_line(
    freezer: Freezer, watching: Callable[..., Watch]
) -> None:
    mount = freezer.mount
    watch = watching(mount.mountpoint)
    freezer.freeze()
    for number in range(20):
        freezer.start(f"echo {number} > new{number}; mv new{number} old{number}; echo more >> old{number}")
    # Also where nothing hangs: operations do not overlap, or nobody could tell which one an event is an echo of.
    freezer.start("mkdir memory/new")
    (mount.source / "memory" / "remote").mkdir()
    watch.until("memory/remote")
    freezer.finish()
    (mount.source / "memory" / "end").mkdir()
    told = watch.until("memory/end")[:-1]
    assert {line["origin"] for line in told} == {"local"}
    for number in range(20):
        mine = [line["kind"] for line in told if f"{number}" == (line["path"] or "")[3:]]
        assert mine[:4] == ["create", "modify", "close_write", "rename"], (number, mine)
        assert (mount.source / f"old{number}").read_text() == f"{number}\nmore\n"
    assert (mount.source / "memory" / "new").is_dir()


def test_a_failing_change_that_hung_is_an_error_for_its_caller_and_no_event(
    freezer: Freezer, watching: Callable[..., Watch]
) -> None:
    mount = freezer.mount
    watch = watching(mount.mountpoint)
    freezer.freeze()
    process = freezer.start(f"chmod 600 file; exec rmdir {shlex.quote(str(mount.mountpoint / 'directory'))} 2>error")
    os.mkdir(mount.source / "memory" / "mark")
    freezer.thaw()
    assert process.wait(PATIENCE) in (0, 1, 2)
    (mount.source / "memory" / "end").mkdir()
    assert {line["origin"] for line in watch.until("memory/end")[:-1] if "memory" not in line["path"]} == {"local"}


def test_a_signal_takes_a_mount_away_while_a_change_hangs(freezer: Freezer) -> None:
    """The process itself ends when the kernel lets go of its thread."""
    mount = freezer.mount
    freezer.freeze()
    hanging = freezer.start("mkdir new")
    mount.process.terminate()
    awaited(lambda: not os.path.ismount(mount.mountpoint))
    assert hanging.wait(PATIENCE) != 0
    freezer.thaw()
    assert mount.process.wait(PATIENCE) == 0


def test_syncs_of_one_user_leave_room_for_anothers(freezer: Freezer) -> None:
    """fsync(2) of a frozen filesystem with something to write hangs as well, in a thread of its own each."""
    mount = freezer.mount
    files = [os.open(mount.mountpoint / f"sync{number}", os.O_CREAT | os.O_RDWR) for number in range(3)]
    try:
        for fd in files:
            os.write(fd, b"x")
            os.fsync(fd)
        freezer.freeze()
        for fd in files:
            with contextlib.suppress(OSError):
                os.pread(fd, 1, 0)
        (mount.mountpoint / "memory").stat()
    finally:
        freezer.thaw()
        for fd in files:
            os.close(fd)


def test_errno_names() -> None:
    assert errno.ENOSPC
