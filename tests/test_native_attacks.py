"""What must not happen by a replay, whoever works against it."""

import contextlib
import ctypes
import fcntl
import mmap
import os
import select
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fusenotify import _linux
from tests.compare import assert_same, survey
from tests.harness import PATIENCE, Mount, mounted, run, wait_for
from tests.native import Barrier, Program, settle
from tests.ordinary import NOBODY
from tests.test_native_storm import replays, times_of

_FAN_CLASS_CONTENT, _FAN_OPEN_PERM, _FAN_ALLOW = 0x4, 0x10000, 1
_FAN_MARK_ADD, _FAN_MARK_FILESYSTEM = 0x1, 0x100
_MADV_POPULATE_READ = 22
_EVENT = struct.Struct("=IBBHQii")  # of fanotify: length, version, reserved, length of this header, mask, fd, pid
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def mount(directory: Path) -> Iterator[Mount]:
    """A mount on which everything is replayed."""
    with mounted(directory, ["--native", "always", "-o", "exec"]) as mount:
        yield mount


@pytest.fixture
def listening(mount: Mount) -> Iterator[Callable[..., tuple[Program, Barrier]]]:
    """A program that watches these paths of the mount."""
    with contextlib.ExitStack() as stack:

        def listen(*paths: str) -> tuple[Program, Barrier]:
            settle(mount)
            program = stack.enter_context(contextlib.closing(Program(mount.mountpoint)))
            for path in paths:
                program.watch(path)
            return program, Barrier(mount.source, program)

        yield listen


def kinds_of(barrier: Barrier) -> list[str]:
    return [event.kinds for event in barrier.heard()]


def test_names_that_become_links_lead_nowhere(mount: Mount, listening: Callable[..., Any], directory: Path) -> None:
    """While changes of files and directories are replayed, their names come to stand for links to the outside."""
    outside = directory / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (outside / "directory").mkdir()
    (outside / "directory" / "file").write_text("precious")
    before = times_of(outside), survey(outside)
    before = times_of(outside), survey(outside)
    source = mount.source
    for number in range(20):
        (source / f"f{number}").write_text("content")
        (source / f"d{number}").mkdir()
        (source / f"d{number}" / "file").write_text("content")
    _, barrier = listening(".", *(f"d{number}" for number in range(20)))
    for number in range(20):
        file, place = source / f"f{number}", source / f"d{number}"
        with mount.stopped() if number % 2 else contextlib.nullcontext():
            file.write_text("changed")
            file.chmod(0o600)
            (place / "file").write_text("changed")
            (place / "file").unlink()
            file.unlink()
            file.symlink_to(outside / "file")
            place.rename(source / f"was{number}")
            place.symlink_to(outside / "directory")
    assert len(barrier.heard()) > 20
    assert (times_of(outside), survey(outside)) == before
    assert_same(survey(mount.mountpoint), survey(source))


def test_a_reader_of_a_fifo_is_left_alone(mount: Mount, listening: Callable[..., Any]) -> None:
    os.mkfifo(mount.source / "fifo")
    _, barrier = listening(".")
    reader = os.open(mount.mountpoint / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        poll = select.poll()
        poll.register(reader, select.POLLIN)
        with open(mount.source / "fifo", "wb+", buffering=0):
            os.chmod(mount.source / "fifo", 0o640)
            os.utime(mount.source / "fifo")
        assert "ATTRIB" in kinds_of(barrier)
        assert poll.poll(0) == []  # no writer has come and gone
    finally:
        os.close(reader)


def test_a_file_with_a_lease(mount: Mount, listening: Callable[..., Any]) -> None:
    """A replay does not wait for whoever holds a lease to give it up (45 seconds)."""
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the holder is told
    (mount.source / "leased").write_text("content")
    _, barrier = listening(".")
    holder = os.open(mount.mountpoint / "leased", os.O_RDONLY)
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        with open(mount.source / "leased", "a") as stream:
            stream.write("more")
        assert "MODIFY" in kinds_of(barrier)
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, before)


def test_a_program_that_runs(mount: Mount, listening: Callable[..., Any]) -> None:
    program = mount.source / "sleep"
    shutil.copy(shutil.which("sleep") or "", program)
    _, barrier = listening(".")
    with subprocess.Popen([mount.mountpoint / "sleep", "1000"]) as running:
        os.utime(program)
        program.chmod(0o700)
        assert set(kinds_of(barrier)) == {"ATTRIB"}
        fd = os.open(program, os.O_RDONLY)
        os.close(fd)
        before = replays(mount)["fell_back"]
        replacement = mount.source / "new"
        shutil.copy(program, replacement)
        replacement.rename(program)
        assert kinds_of(barrier)[-2:] == ["MOVED_FROM", "MOVED_TO"]
        assert running.poll() is None
        assert replays(mount)["fell_back"] == before
        running.kill()


def test_a_mount_inside_stays_where_it_is(mount: Mount, listening: Callable[..., Any]) -> None:
    (mount.source / "covered").mkdir()
    (mount.source / "covered" / "f").touch()
    _, barrier = listening(".")
    covered = mount.mountpoint / "covered"
    _linux.mount(b"inside", os.fsencode(covered), b"tmpfs", 0, b"")
    try:
        (covered / "inside").touch()
        os.utime(mount.source / "covered")
        (mount.source / "covered" / "f").unlink()
        (mount.source / "covered").rmdir()
        (mount.source / "covered").mkdir()
        barrier.heard()
        assert f" {covered} " in Path("/proc/self/mountinfo").read_text()
    finally:
        # To look the name up is to have the kernel find that there is another directory now, so that the mount goes.
        with contextlib.suppress(OSError):
            _linux.umount2(os.fsencode(covered), _linux.MNT_DETACH)


class PermissionWatcher:
    """Decides, in a thread of its own, whether files of the mount may be opened, like a virus scanner."""

    def __init__(self, mount: Mount, decide: Callable[[int], object]) -> None:
        """`decide` is called with a descriptor of each file; then it may be opened."""
        self.asked = 0
        self._decide = decide
        self._group = _libc.fanotify_init(_FAN_CLASS_CONTENT, os.O_RDONLY | os.O_CLOEXEC)
        assert self._group >= 0, os.strerror(ctypes.get_errno())
        mask, path = ctypes.c_uint64(_FAN_OPEN_PERM), os.fsencode(mount.mountpoint)
        marked = _libc.fanotify_mark(self._group, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, mask, -100, path)
        assert marked == 0, os.strerror(ctypes.get_errno())
        self._end, self._wake = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while select.select([self._group, self._end], [], [])[0] == [self._group]:
            data = os.read(self._group, 4096)
            while data:
                length, _, _, _, _, fd, _ = _EVENT.unpack_from(data)
                data = data[length:]
                self._decide(fd)
                os.write(self._group, struct.pack("=iI", fd, _FAN_ALLOW))
                os.close(fd)
                self.asked += 1

    def close(self) -> None:
        """Let everything pass from now on."""
        os.write(self._wake, b".")
        self._thread.join(PATIENCE)
        for fd in (self._group, self._end, self._wake):
            os.close(fd)


def test_a_scanner_that_reads_and_is_slow(mount: Mount, listening: Callable[..., Any]) -> None:
    """It looks at the mount while it decides about our opening a file there; everybody else goes on meanwhile."""
    for number in range(3):
        (mount.source / f"f{number}").write_text("content")

    def decide(fd: int) -> None:
        assert os.stat(mount.mountpoint / "f0").st_size > 0
        if ".fusenotify/" not in os.readlink(f"/proc/self/fd/{fd}"):  # else it is a queue file
            assert os.pread(fd, 100, 0) in (b"content", b"changed", b"")
        time.sleep(0.1)  # it is slow

    _, barrier = listening(".")
    with contextlib.closing(PermissionWatcher(mount, decide)) as scanner:
        for number in range(3):
            (mount.source / f"f{number}").write_text("changed")
            assert run("status", mount.mountpoint).returncode == 0
        heard = barrier.heard()
        assert [event.name for event in heard if event.kinds == "CLOSE_WRITE"] == ["f0", "f1", "f2"]
        assert (mount.mountpoint / "f1").read_text() == "changed"
        assert scanner.asked >= 4
    assert replays(mount)["stuck"] == 0


def test_a_scanner_that_never_answers(mount: Mount, listening: Callable[..., Any]) -> None:
    """What is stuck is given up; what comes behind it is heard."""
    (mount.source / "f").write_text("content")
    _, barrier = listening(".")
    is_over = threading.Event()
    with contextlib.closing(PermissionWatcher(mount, lambda _: is_over.wait(PATIENCE))):
        try:
            (mount.source / "f").write_text("changed")
            (mount.source / "g").mkdir()
            assert "CREATE|ISDIR" in kinds_of(barrier)
            assert replays(mount)["stuck"] == 1
            assert (mount.mountpoint / "f").stat().st_size == len("changed")
        finally:
            is_over.set()
    (mount.source / "h").mkdir()
    assert kinds_of(barrier) == ["CREATE|ISDIR"]


def test_who_knows_that_a_file_has_grown_reads_it_to_its_end(mount: Mount) -> None:
    """However close the replay comes of what was written before, whose answer may be older."""
    full = b"x" * mmap.PAGESIZE
    with open(mount.source / "f", "ab", buffering=0) as behind, contextlib.ExitStack() as stack:
        behind.write(full)
        on_mount = stack.enter_context(open(mount.mountpoint / "f", "rb")).fileno()
        size = len(full)
        for _ in range(4000):
            behind.write(full)
            size += len(full)
            with mmap.mmap(on_mount, size, prot=mmap.PROT_READ) as mapped:  # refused, if it were too long
                mapped.madvise(_MADV_POPULATE_READ, size - len(full), len(full))  # fails where reading is a bus error
            if size > 50 * len(full):
                os.ftruncate(behind.fileno(), len(full))
                size = os.fstat(on_mount).st_size
                assert size == len(full)


def test_local_changes_are_heard_once(mount: Mount, listening: Callable[..., Any]) -> None:
    _, barrier = listening(".")
    for number in range(200):
        path = mount.mountpoint / f"f{number}"
        path.write_text("content")
        path.rename(mount.mountpoint / "renamed")
        (mount.mountpoint / "renamed").unlink()
    heard = barrier.heard()
    kinds = ["CREATE", "MODIFY", "CLOSE_WRITE", "MOVED_FROM", "MOVED_TO", "DELETE"]
    assert [event.kinds for event in heard] == kinds * 200


def test_an_ordinary_users_mount(directory: Path, nobody: list[str]) -> None:
    """There is nobody but the user to hear of it, and no privilege to replay it with."""
    directory.chmod(0o777)
    for name in ("source", "mount", "state"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    command = [*nobody, "-m", "fusenotify"]
    mount = Mount(directory / "source", directory / "mount", directory / "state", command=command)
    try:
        script = (
            "import os, sys; sys.path[:0] = sys.argv[2:]\n"
            "from inotify_simple import INotify, flags\n"
            "inotify = INotify(); inotify.add_watch(sys.argv[1], flags.CREATE | flags.MOVED_TO | flags.DELETE)\n"
            "print('ready', flush=True)\n"
            "heard = []\n"
            "while 'end' not in heard: heard += [event.name for event in inotify.read()]\n"
            "print(heard)"
        )
        listener = subprocess.Popen([*nobody, "-c", script, str(mount.mountpoint)], stdout=subprocess.PIPE, text=True)
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        (mount.source / "a").touch()
        (mount.source / "a").rename(mount.source / "b")
        (mount.source / "b").unlink()
        (mount.source / "end").mkdir()
        told, _ = listener.communicate(timeout=PATIENCE)
        assert told == "['a', 'b', 'b', 'end']\n"
        assert replays(mount)["fell_back"] == 0
        assert (
            '"native_reason": "to all: processes of other users may watch"'
            in run("status", "--json", f"unix:{mount.socket}").stdout
        )
    finally:
        mount.close()


def test_a_read_only_mount(directory: Path) -> None:
    """The kernel refuses what would raise the events; the mount shows what there is all the same."""
    arguments = ["--native", "always", "-o", "ro"]
    with mounted(directory, arguments) as mount, contextlib.closing(Program(mount.mountpoint)) as program:
        program.watch(".")
        (mount.source / "f").write_text("content")
        wait_for(lambda: replays(mount)["fell_back"] >= 3)
        assert (mount.mountpoint / "f").read_text() == "content"
        assert replays(mount)["delivered"] == 0
