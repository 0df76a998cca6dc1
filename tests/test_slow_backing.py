"""A backing filesystem that is slow or hangs keeps those waiting who want to change something there, and nobody else.

A frozen ext4 (`fsfreeze`) is one on which every change hangs in the kernel until it is thawed.
"""

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fusenotify import _linux, filesystems, protocol
from fusenotify.mountinfo import mount_of
from fusenotify.protocol import AddMark, Hello, Lookup
from tests.filesystems import filesystem
from tests.harness import PATIENCE, Mount, Watch, patched, run

_FIFREEZE, _FITHAW = 0xC0045877, 0xC0045878


# Thaws a filesystem when its standard input ends or the time is over: also when the test itself hangs, or is killed.
_GUARD = """
import fcntl, os, select, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print("ready", flush=True)
select.select([0], [], [], float(sys.argv[2]))
try:
    fcntl.ioctl(fd, 0xC0045878, 0)
except OSError:
    pass
"""


@dataclass
class Freezer:
    """A mount of a tree on an ext4 that can be frozen, with a tmpfs `memory` in the tree that cannot."""

    mount: Mount
    _fd: int
    _guard: "subprocess.Popen[str]"
    _waiting: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    def freeze(self) -> None:
        fcntl.ioctl(self._fd, _FIFREEZE, 0)

    def thaw(self) -> None:
        with contextlib.suppress(OSError):  # EINVAL: it is not frozen
            fcntl.ioctl(self._fd, _FITHAW, 0)

    def start(self, script: str) -> "subprocess.Popen[bytes]":
        """Run a script in the mount and return when a request of its hangs."""
        place = self.mount.mountpoint / "changed"
        process = subprocess.Popen(["sh", "-c", script], cwd=place, stderr=subprocess.PIPE)
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
        self._guard.communicate("")
        for process in self._waiting:
            process.kill()
            process.communicate()
        os.close(self._fd)


def awaited(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def drop_cache(path: Path) -> None:
    """Have nothing of a file in memory."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def freezer_in(directory: Path) -> Iterator[Freezer]:
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(filesystem("ext4", directory))
        memory = source / "memory"
        memory.mkdir()
        _linux.mount(b"none", os.fsencode(memory), b"tmpfs", 0, b"")
        stack.callback(_linux.umount2, os.fsencode(memory), _linux.MNT_DETACH)
        for name in ("changed/directory", "other"):
            (source / name).mkdir(parents=True)
        for file in ("changed/file", "other/file"):
            (source / file).write_bytes(b"x" * 300_000)
        for name in ("mount", "state"):
            (directory / name).mkdir()
        mount = Mount(source, directory / "mount", directory / "state")
        stack.callback(mount.close)
        guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(source), str(2 * PATIENCE)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        freezer = Freezer(mount, os.open(source, os.O_RDONLY), guard)
        stack.callback(freezer.end)
        assert guard.stdout is not None
        assert guard.stdout.readline() == "ready\n"
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
    "setxattr": f"exec {sys.executable} -c \"import os; os.setxattr('file', 'user.a', b'b')\"",
}


@pytest.mark.parametrize("change", _CHANGES)
def test_whoever_does_not_change_anything_is_served_while_a_change_hangs(
    freezer: Freezer, watching: Callable[..., Watch], change: str
) -> None:
    mount = freezer.mount
    watches = [watching(mount.mountpoint), watching(f"unix:{mount.socket}")]
    drop_cache(mount.source / "other" / "file")
    freezer.freeze()
    freezer.start(_CHANGES[change])
    # The kernel itself locks a directory while something in it is changed; so look at another one.
    other = mount.mountpoint / "other"
    assert os.listdir(other) == ["file"]
    assert (other / "file").stat().st_size == 300_000
    assert (other / "file").read_bytes() == b"x" * 300_000
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


def test_those_who_want_to_change_something_wait_in_line(freezer: Freezer, watching: Callable[..., Watch]) -> None:
    mount = freezer.mount
    for number in range(20):
        (mount.source / "changed" / f"{number}").mkdir()
    watch = watching(mount.mountpoint)
    freezer.freeze()
    for number in range(20):
        freezer.start(f"cd {number}; echo {number} > new; mv new old; echo more >> old")
    # Also where nothing hangs: operations do not overlap, or nobody could tell which one an event is an echo of.
    freezer.start("mkdir ../memory/new")
    (mount.source / "memory" / "remote").mkdir()
    watch.until("memory/remote")
    freezer.finish()
    (mount.mountpoint / "memory" / "end").mkdir()  # behind what the kernel has said of files that were closed
    told = watch.until("memory/end")[:-1]
    assert {line["origin"] for line in told} == {"local"}
    for number in range(20):
        mine = [line["kind"] for line in told if line["path"].startswith(f"changed/{number}/")]
        assert mine == ["create", "modify", "close_write", "rename", "modify", "close_write"]
        assert (mount.source / "changed" / f"{number}" / "old").read_text() == f"{number}\nmore\n"
    assert (mount.source / "memory" / "new").is_dir()


def test_a_change_that_hung_has_the_umask_of_who_made_it(freezer: Freezer) -> None:
    mount = freezer.mount
    freezer.freeze()
    freezer.start("umask 077; mkdir strict")
    freezer.start("umask 0; cd ../other; mkdir open")
    freezer.finish()
    assert (mount.source / "changed" / "strict").stat().st_mode & 0o777 == 0o700
    assert (mount.source / "other" / "open").stat().st_mode & 0o777 == 0o777


def test_a_signal_takes_a_mount_away_while_a_change_hangs(freezer: Freezer) -> None:
    """Whoever made the change, and the daemon, end when the kernel lets go of it, as they would without us."""
    mount = freezer.mount
    freezer.freeze()
    freezer.start("mkdir new || true")
    mount.process.terminate()
    awaited(lambda: mount_of(str(mount.mountpoint)) is None)
    freezer.finish()
    assert (mount.source / "changed" / "new").is_dir()
    assert mount.process.wait(PATIENCE) == 0


# --- a filesystem that is silent --------------------------------------------------------------------------------------


@contextlib.contextmanager
def nested(directory: Path) -> Iterator[tuple[Mount, Mount]]:
    """Yield a mount (outer), and another (inner) inside its backing tree, whose daemon can be stopped."""
    with contextlib.ExitStack() as stack:
        for name in ("source/inside", "source/other", "state", "mount", "inner", "inner-state"):
            (directory / name).mkdir(parents=True)
        (directory / "inner" / "file").write_text("inner")
        (directory / "source" / "other" / "file").write_text("outer")
        inner = Mount(directory / "inner", directory / "source" / "inside", directory / "inner-state")
        stack.callback(inner.close)
        yield Mount(directory / "source", directory / "mount", directory / "state"), inner


def test_a_silent_filesystem_inside_keeps_those_waiting_who_use_it(
    directory: Path, watching: Callable[..., Watch]
) -> None:
    with nested(directory) as (outer, inner), contextlib.ExitStack() as stack:
        stack.callback(outer.close)
        stack.callback(inner.process.send_signal, signal.SIGCONT)
        watches = [watching(outer.mountpoint), watching(f"unix:{outer.socket}")]
        inside = outer.mountpoint / "inside"
        assert (inside / "file").read_text() == "inner"
        time.sleep(2 * filesystems._TRUST)
        numbers = {entry.name: entry.inode() for entry in os.scandir(outer.mountpoint)}
        assert numbers["inside"] < (1 << 62) - 1000  # it has been looked at
        held = [
            subprocess.Popen(
                ["sh", "-c", command], cwd=outer.mountpoint, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            for command in (
                "exec 3< inside/file; echo ready; read go; cat <&3",
                "cd inside; echo ready; read go; ls file",
            )
        ]
        for holder in held:
            stack.callback(holder.communicate)
            stack.callback(holder.kill)
            assert holder.stdout is not None
            assert holder.stdout.readline() == "ready\n"
        inner.process.send_signal(signal.SIGSTOP)
        time.sleep(2 * filesystems._TRUST)  # the time for which an answer counts has to pass
        users = [
            subprocess.Popen(["sh", "-c", command], cwd=outer.mountpoint)
            for command in (
                "test -e inside", "test -e inside/file", "ls inside > /dev/null", "echo x > inside/new",
                "mkdir inside/made",
            )
        ]  # fmt: skip
        for user in users:
            stack.callback(user.wait)
            stack.callback(user.kill)
        for holder in held:
            assert holder.stdin is not None
            holder.stdin.write("go\n")
            holder.stdin.flush()
        for number in range(20):
            (outer.mountpoint / "other" / f"{number}").write_text("served")
            assert (outer.mountpoint / "other" / "file").read_text() == "outer"
            assert sorted(os.listdir(outer.mountpoint)) == ["inside", "other"]
            (outer.source / "other" / f"remote-{number}").mkdir()
            for watch in watches:
                watch.until(f"other/remote-{number}")
        assert run("status", outer.mountpoint).returncode == 0
        assert any(user.poll() is None for user in users)
        inner.process.send_signal(signal.SIGCONT)
        assert [user.wait(PATIENCE) for user in users] == [0] * len(users)
        assert [holder.communicate(timeout=PATIENCE)[0] for holder in held] == ["inner", "file\n"]
        assert (inner.source / "new").read_text() == "x\n"
        assert (inner.source / "made").is_dir()


@pytest.mark.parametrize(
    "request_", [Lookup(0, b"inside/file"), AddMark(0, 1, b"inside", "dir", 1, 3)], ids=["lookup", "mark"]
)
def test_what_a_client_asks_about_a_silent_filesystem_stops_nobody(
    directory: Path, watching: Callable[..., Watch], request_: Lookup | AddMark
) -> None:
    with nested(directory) as (outer, inner), contextlib.ExitStack() as stack:
        stack.callback(outer.close)
        stack.callback(inner.process.send_signal, signal.SIGCONT)
        watch = watching(outer.mountpoint)
        inner.process.send_signal(signal.SIGSTOP)
        client = stack.enter_context(socket.socket(socket.AF_UNIX))
        client.connect(os.fspath(outer.socket))
        client.sendall(protocol.encode(Hello(protocol.VERSION)) + protocol.encode(request_))
        for number in range(20):
            (outer.mountpoint / "other" / f"{number}").write_text("served")
            watch.until(f"other/{number}")
        inner.process.send_signal(signal.SIGCONT)


def test_a_daemon_starts_and_ends_beside_a_silent_filesystem(directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("source/inside", "source/other", "state", "mount", "inner", "inner-state"):
            (directory / name).mkdir(parents=True)
        inner = Mount(directory / "inner", directory / "source" / "inside", directory / "inner-state")
        stack.callback(inner.close)
        inner.process.send_signal(signal.SIGSTOP)
        outer = Mount(directory / "source", directory / "mount", directory / "state")
        stack.callback(outer.close)
        assert json.loads(run("status", "--json", outer.mountpoint).stdout)["deaf"] == 1
        assert sorted(os.listdir(outer.mountpoint)) == ["inside", "other"]
        user = subprocess.Popen(["ls", outer.mountpoint / "inside"], stderr=subprocess.DEVNULL)
        stack.callback(user.wait)
        stack.callback(user.kill)
        (outer.mountpoint / "other" / "file").write_text("served")
        assert outer.stop() == 0
        assert mount_of(str(outer.mountpoint)) is None
        assert user.wait(PATIENCE) != 0
    assert "changes below inside are not heard: that filesystem is silent" in outer.log


# A mkdir that hangs until somebody lets it go on, as on a disk that is slow.
_HANG = """
import os
make = os.mkdir
def mkdir(name, *args, **kwargs):
    if name == b"name":
        os.close(os.open({hangs!r}, os.O_WRONLY))
        os.close(os.open({goes_on!r}, os.O_RDONLY))
    make(name, *args, **kwargs)
os.mkdir = mkdir
"""


def test_what_another_makes_while_a_change_hangs_is_not_its_echo(
    directory: Path, watching: Callable[..., Watch]
) -> None:
    hangs, goes_on = directory / "hangs", directory / "goes-on"
    os.mkfifo(hangs)
    os.mkfifo(goes_on)
    with (
        filesystem("ext4", directory) as place,
        patched(place, _HANG.format(hangs=str(hangs), goes_on=str(goes_on))) as mount,
    ):
        watch = watching(mount.mountpoint)
        maker = subprocess.Popen(["mkdir", mount.mountpoint / "name"], stderr=subprocess.PIPE, text=True)
        os.close(os.open(hangs, os.O_RDONLY))
        (mount.source / "other").mkdir()
        assert [line["origin"] for line in watch.until("other")] == ["remote"]
        (mount.source / "name").mkdir()
        os.close(os.open(goes_on, os.O_WRONLY))
        _, errors = maker.communicate(timeout=PATIENCE)
        assert "File exists" in errors
        (mount.source / "end").mkdir()
        assert [(line["kind"], line["path"], line["origin"]) for line in watch.until("end")] == [
            ("create", "name", "remote"), ("create", "end", "remote")
        ]  # fmt: skip


def test_what_has_changed_on_a_silent_filesystem_is_not_told_as_gone(
    directory: Path, watching: Callable[..., Watch]
) -> None:
    """Nor is anybody kept waiting who asks, though files with several names have to be looked at."""
    with nested(directory) as (outer, inner), contextlib.ExitStack() as stack:
        stack.callback(outer.close)
        cursor = run("cursor", outer.mountpoint).stdout.strip()
        (outer.mountpoint / "inside" / "file").write_text("changed")
        os.link(outer.mountpoint / "inside" / "file", outer.mountpoint / "inside" / "link")
        run("cursor", outer.mountpoint)
        with inner.stopped():
            time.sleep(2 * filesystems._TRUST)  # the time for which an answer counts has to pass
            lines = map(json.loads, run("since", "--json", outer.mountpoint, cursor).stdout.splitlines())
            told = {line["path"]: line["exists"] for line in lines if line["type"] == "change"}
            assert told["inside/file"]
            assert told["inside/link"]
            watch = watching(outer.mountpoint, "--since", cursor)
            kinds = {line["path"]: line["kind"] for line in watch.until("inside/link")}
            assert "delete" not in kinds.values()


def test_what_changed_while_a_filesystem_was_not_heard_is_named_when_it_answers(directory: Path) -> None:
    with nested(directory) as (outer, inner), contextlib.ExitStack() as stack:
        stack.callback(outer.close)
        cursor = run("cursor", outer.mountpoint).stdout.strip()
        outer.stop()
        (inner.source / "file").write_text("changed")
        with inner.stopped():
            again = Mount(outer.source, outer.mountpoint, directory / "state")
            stack.callback(again.close)
            assert changed_since(again, cursor).isdisjoint({"inside", "inside/file"})
        assert "inside/file" in changed_since(again, cursor)


def changed_since(mount: Mount, cursor: str) -> set[str]:
    """The paths that are named to have changed."""
    told = run("since", "--json", mount.mountpoint, cursor)
    assert told.returncode == 0, told.stderr
    lines = map(json.loads, told.stdout.splitlines())
    return {line["path"] for line in lines if line["type"] == "change"}
