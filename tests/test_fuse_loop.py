"""The concurrency contract: neither bugs, nor slow handlers, nor callers that die, stop the mount; and how it ends."""

import asyncio
import contextlib
import errno
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
import trio
import trio.testing

import fusenotify
from fusenotify import protocol
from fusenotify.mountinfo import mount_at, read_mounts
from fusenotify.session import FuseLoop
from tests.harness import FUSENOTIFY, PATIENCE, Mount, Watch, mounted, patched, run
from tests.ordinary import NOBODY

_BUG = """
from fusenotify.operations import Operations
from fusenotify.passthrough import Passthrough

def readlink(self, nodeid):
    raise ZeroDivisionError("a bug")

async def statfs(self, ctx):
    return None  # which pyfuse3 itself stumbles over

Passthrough.readlink = readlink
Operations.statfs = statfs
"""
# fsync says that it has begun in one FIFO, and waits for a writer of the other.
_SLOW = """
import os
from fusenotify.files import Files
os.environ["GATE"]

def sync(self, fh, datasync):
    with open(os.environ["BEGUN"], "wb", buffering=0) as begun:
        begun.write(b".")
    os.close(os.open(os.environ["GATE"], os.O_RDONLY))

Files.sync = sync
"""
# Somebody behind the mount makes the file between the kernel's lookup and its create.
_OVERTAKEN = """
import os
from fusenotify.files import Files
make = Files._make

def overtaken(self, parent, name, *args):
    if name.startswith(b"as-"):
        fd = self._nodes.directory_fd(parent)
        os.rename(b"prepared-" + name, name, src_dir_fd=fd, dst_dir_fd=fd)
    return make(self, parent, name, *args)

Files._make = overtaken
"""


def is_mounted(path: Path) -> bool:
    entry = mount_at(str(path), read_mounts())
    return entry is not None and entry.mountpoint == str(path)


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - whichever it is, the caller compares it
        function()
    return errno.errorcode[caught.value.errno or 0]


# --- bugs ------------------------------------------------------------------------------------------------------------


def test_a_bug_in_a_handler_costs_its_caller_an_error_and_no_more(directory: Path) -> None:
    with patched(directory, _BUG) as mount:
        (mount.mountpoint / "link").symlink_to("target")
        for _ in range(3):
            assert error_of(lambda: os.readlink(mount.mountpoint / "link")) == "EIO"
        (mount.mountpoint / "file").write_text("still there")
        assert (mount.source / "file").read_text() == "still there"
        assert mount.stop() == 0
    assert "ERROR: readlink failed; its caller got EIO" in mount.log
    assert "ZeroDivisionError: a bug" in mount.log


def test_a_failure_of_pyfuse3_does_not_end_the_mount(directory: Path) -> None:
    with patched(directory, _BUG) as mount:
        stuck = subprocess.Popen(["stat", "-f", mount.mountpoint], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        (mount.mountpoint / "file").write_text("still there")
        assert (mount.source / "file").read_text() == "still there"
        assert mount.process.poll() is None
        mount.stop()
        stuck.wait(PATIENCE)  # the kernel answers for a daemon that is gone


# --- waiting ---------------------------------------------------------------------------------------------------------


class SlowSync:
    """A mount whose fsyncs take until they are let go."""

    def __init__(self, mount: Mount, begun: Path, gate: Path) -> None:
        self.mount = mount
        self._gate = gate
        self._begun = os.open(begun, os.O_RDWR)
        self._threads: list[threading.Thread] = []

    def start(self, number: int, waiting: int) -> None:
        """Begin `number` fsyncs and return when `waiting` more of them are in the kernel."""
        for _ in range(number):
            self._threads.append(threading.Thread(target=self._sync, args=(len(self._threads),)))
            self._threads[-1].start()
        while waiting > 0:
            waiting -= len(os.read(self._begun, waiting))

    def _sync(self, number: int) -> None:
        fd = os.open(self.mount.mountpoint / f"slow{number}", os.O_CREAT | os.O_RDWR)
        os.fsync(fd)
        with contextlib.suppress(OSError):  # the daemon may end right after
            os.close(fd)

    def let_go(self) -> None:
        """Return when every fsync has."""
        while any(thread.is_alive() for thread in self._threads):
            with contextlib.suppress(OSError):  # nobody waits at the moment
                os.close(os.open(self._gate, os.O_WRONLY | os.O_NONBLOCK))
            self._threads[-1].join(0.01)
            self._threads = [thread for thread in self._threads if thread.is_alive()]


@pytest.fixture
def slow(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowSync]:
    for name in ("begun", "gate"):
        os.mkfifo(directory / name)
        monkeypatch.setenv(name.upper(), str(directory / name))
    with patched(directory, _SLOW) as mount:
        slow = SlowSync(mount, directory / "begun", directory / "gate")
        try:
            yield slow
        finally:
            slow.let_go()


def test_others_are_served_while_handlers_wait(slow: SlowSync, watching: Callable[..., Watch]) -> None:
    watch = watching(slow.mount.mountpoint)
    for number in (1, 60):
        slow.start(number, number)
        (slow.mount.mountpoint / f"served{number}").write_text("x")
        (slow.mount.source / f"behind{number}").touch()
        watch.until(f"behind{number}")
    slow.let_go()
    assert (slow.mount.mountpoint / "served60").read_text() == "x"
    # And again, with the tasks that came back.
    slow.start(20, 20)
    (slow.mount.mountpoint / "again").write_text("x")


def test_more_handlers_wait_than_there_are_threads(slow: SlowSync) -> None:
    slow.start(300, 256)
    (slow.mount.mountpoint / "served").write_text("x")
    assert len(os.listdir(slow.mount.mountpoint)) >= 257


async def test_one_user_cannot_use_up_the_threads_of_others() -> None:
    """As with 256 leases that are never let go of."""
    reading, writing = os.pipe()
    loop = FuseLoop(reading)
    gate = threading.Event()
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(300):
                nursery.start_soon(loop.park, 1000, gate.wait)
            await trio.testing.wait_all_tasks_blocked()
            with trio.fail_after(PATIENCE):
                assert await loop.park(1001, lambda: "served") == "served"
            gate.set()
    finally:
        gate.set()
        os.close(reading)
        os.close(writing)


def test_a_stop_waits_for_what_is_being_made_durable(slow: SlowSync) -> None:
    slow.start(3, 3)
    slow.mount.process.terminate()
    slow.let_go()
    assert slow.mount.process.wait(PATIENCE) == 0


# --- overtaken -------------------------------------------------------------------------------------------------------


def test_a_file_made_behind_between_lookup_and_create(directory: Path) -> None:
    with patched(directory, _OVERTAKEN, ("-o", "allow_other")) as mount:
        directory.chmod(0o755)
        source, mountpoint = mount.source, mount.mountpoint
        source.chmod(0o777)
        (source / "prepared-as-file").write_text("made behind")
        (mountpoint / "as-file").open("a").close()
        assert (mountpoint / "as-file").read_text() == "made behind"
        (source / "prepared-as-emptied").write_text("made behind")
        (mountpoint / "as-emptied").write_text("own")
        assert (source / "as-emptied").read_text() == "own"
        (source / "prepared-as-exclusive").touch()
        assert error_of(lambda: (mountpoint / "as-exclusive").touch(exist_ok=False)) == "EEXIST"
        (source / "prepared-as-link").symlink_to("as-file")
        (mountpoint / "as-link").write_text("through the link")
        assert (source / "as-file").read_text() == "through the link"
        (source / "prepared-as-directory").mkdir()
        assert error_of(lambda: (mountpoint / "as-directory").write_text("x")) == "EISDIR"
        os.mkfifo(source / "prepared-as-fifo")
        assert error_of(lambda: os.open(mountpoint / "as-fifo", os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK)) == "ENXIO"
        (source / "prepared-as-secret").write_text("of root")
        (source / "prepared-as-secret").chmod(0o600)
        command = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "sh", "-c", "cat <> as-secret"]
        said = subprocess.run(command, check=False, cwd=mountpoint, capture_output=True, text=True)
        assert "Permission denied" in said.stderr
        assert mount.stop() == 0
    assert "Traceback" not in mount.log


# --- half done -------------------------------------------------------------------------------------------------------

# chmod fails, after chown has succeeded.
_NO_CHMOD = """
import os

def chmod(path, mode):
    raise OSError(5, "Input/output error")

os.chmod = chmod
"""


def test_what_a_failed_operation_did_by_halves_is_not_told_as_remote(
    directory: Path, watching: Callable[..., Watch]
) -> None:
    limited = ["prlimit", "--fsize=1000000", *FUSENOTIFY]
    with mounted(directory, command=limited) as mount:
        (mount.source / "file").write_text("x")
        watch = watching(mount.mountpoint)
        assert (
            error_of(lambda: os.truncate(mount.mountpoint / "file", 10_000_000)) == "EFBIG"
        )  # but it was opened for it
        (mount.source / "end").mkdir()
        assert [line["kind"] for line in watch.until("end")] == ["create"]


def test_an_echo_of_a_failed_operation_is_local(directory: Path, watching: Callable[..., Watch]) -> None:
    with patched(directory, _NO_CHMOD) as mount:
        (mount.source / "file").touch()
        (mount.source / "file").chmod(0o4755)
        watch = watching(mount.mountpoint)
        # The kernel asks for two changes in one: another owner, and no set-user-id bit.
        assert error_of(lambda: os.chown(mount.mountpoint / "file", NOBODY, -1)) == "EIO"
        assert error_of(lambda: os.chmod(mount.mountpoint / "file", 0o600)) == "EIO"  # which changed nothing
        (mount.source / "end").mkdir()
        told = [(line["kind"], line["path"], line["origin"]) for line in watch.until("end")]
        assert told == [("attrib", "file", "local"), ("create", "end", "remote")]
        assert (mount.source / "file").stat().st_uid == NOBODY


# --- traffic without a pause -----------------------------------------------------------------------------------------

_HAMMER = """
import os, sys
print(flush=True)
try:
    while True:
        try:
            os.stat(sys.argv[1])
        except FileNotFoundError:
            pass
except OSError:
    pass  # the mount has ended
"""


# Whenever `quiet` looks, a request waits.
_NEVER_QUIET = """
import copy
from fusenotify.session import FuseLoop
quiet = FuseLoop.quiet

class Busy:
    has_one = staticmethod(lambda: True)

async def busy(self, *args):
    global twin
    if twin is None:
        twin = copy.copy(self)
        twin._requests = Busy
    await quiet(twin, *args)

twin = None
FuseLoop.quiet = busy
"""


def test_sync_is_a_barrier_while_others_never_stop_asking(directory: Path) -> None:
    async def sync(mount: Mount, side: Path, prefix: str) -> None:
        kinds = fusenotify.Kind.CREATE | fusenotify.Kind.CLOSE_WRITE
        async with fusenotify.open_group() as group:
            await group.mark(f"unix:{mount.socket}", kinds=kinds)
            for n in range(5):
                own = f"{prefix}{n}"
                (side / own).write_text("x")
                await group.sync()
                told: list[tuple[object, str | None]] = []
                while (fusenotify.Kind.CLOSE_WRITE, own) not in told:
                    with anyio.move_on_after(0) as scope:
                        told += [(event.kind, event.path) for event in await group.batch()]
                    assert not scope.cancelled_caught, "it was told after the sync"

    async def main(mount: Mount) -> None:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for n in range(20):  # at the same time
                    tasks.start_soon(sync, mount, mount.source if n % 2 else mount.mountpoint, f"{n}-")

    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(patched(directory, _NEVER_QUIET))
        command = [sys.executable, "-c", _HAMMER, str(mount.mountpoint / "none")]
        for _ in range(3):
            hammer = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE))
            stack.callback(hammer.kill)
            assert hammer.stdout is not None
            assert hammer.stdout.readline() == b"\n"
        anyio.run(main, mount, backend="trio")
        assert mount.stop() == 0
        assert "Traceback" not in mount.log


# The daemon is killed between reading the request of `quiet` and answering it.
_KILLED = """
import os, signal
from fusenotify.passthrough import Passthrough
Passthrough.statfs = lambda self: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_daemon_that_is_killed_in_a_sync_ends_at_once(directory: Path) -> None:
    with patched(directory, _NEVER_QUIET + _KILLED) as mount, socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(mount.socket))
        sock.sendall(protocol.encode(protocol.Hello(1)) + protocol.encode(protocol.Sync(1)))
        assert mount.process.wait(PATIENCE) == -signal.SIGKILL


# --- callers that die ------------------------------------------------------------------------------------------------

_VICTIMS = """
import os, signal, sys, time
os.chdir(sys.argv[1])
operations = [
    lambda: os.stat("file"), lambda: os.listdir("."), lambda: open("file").read(), lambda: open("own", "w").write("x"),
    lambda: os.rename("own", "other"), lambda: os.stat("none"), lambda: os.open(".fusenotify/queue", os.O_RDWR),
    lambda: os.fsync(os.open("own", os.O_CREAT | os.O_RDWR)),
]
for number in range(int(sys.argv[2])):
    victim = os.fork()
    if victim == 0:
        try:
            while True:
                try:
                    operations[number % len(operations)]()
                except OSError:
                    pass
        finally:
            os._exit(1)
    until = time.perf_counter() + number % 100 * 2e-5
    while time.perf_counter() < until:
        pass
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
"""


def test_callers_may_be_killed_at_any_moment(mount: Mount, watching: Callable[..., Watch]) -> None:
    (mount.source / "file").write_text("x" * 10_000)
    watch = watching(mount.mountpoint, "--kinds", "create")
    before = len(os.listdir(f"/proc/{mount.pid}/fd"))
    for piece in range(8):
        subprocess.run([sys.executable, "-c", _VICTIMS, mount.mountpoint, "400"], check=True, timeout=PATIENCE)
        (mount.source / f"behind{piece}").touch()  # nothing of the daemon is stuck: its events still flow
        watch.until(f"behind{piece}")
    assert (mount.mountpoint / "file").read_text() == "x" * 10_000
    assert len(os.listdir(f"/proc/{mount.pid}/fd")) < before + 100
    assert mount.stop() == 0


# --- an ordinary user ------------------------------------------------------------------------------------------------


_AS_USER = """
set -e
mkdir d; echo content > d/file; mv d/file d/moved; ln d/moved hard; ln -s d/moved link; cat link hard
chmod 640 hard; test "$(stat -c '%a %h %U' d/moved)" = "640 2 nobody"
rm hard; cp d/moved copy; echo more >> copy; test "$(wc -l < copy)" = 2
for i in $(seq 300); do echo $i > f$i; done; test "$(ls | wc -l)" = 305; rm f*
mkfifo fifo; exec 3<>fifo; rm fifo; stat -L -c %F /dev/fd/3; exec 3<&-
! cat secret 2>/dev/null; ! touch theirs/x 2>/dev/null
rm -r d copy link
ls -A
"""


def test_the_daemon_of_an_ordinary_user(directory: Path, nobody: list[str], watching: Callable[..., Watch]) -> None:
    """Mounted by fusermount3, without file handles."""
    directory.chmod(0o755)
    for name in ("source", "mount", "state"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    (directory / "source" / "secret").touch(0o600)
    (directory / "source" / "theirs").mkdir()
    with mounted(directory, command=[*nobody, "-m", "fusenotify"]) as mount:
        before = len(os.listdir(f"/proc/{mount.pid}/fd"))
        assert error_of(lambda: os.listdir(mount.mountpoint)) == "EACCES"  # it is the user's alone
        watch = watching(f"unix:{mount.socket}")
        script = f"cd {shlex.quote(str(mount.mountpoint))}\n{_AS_USER}"
        shell = [*nobody[:4], "env", "LC_ALL=C", "bash", "-c", script]
        done = subprocess.run(shell, check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.stderr, done.stdout) == ("", "content\ncontent\nfifo\nsecret\ntheirs\n")
        (mount.source / "end").touch()
        told = [(line["kind"], line["path"], line["origin"]) for line in watch.until("end")]
        assert told[:2] == [("create", "d", "local"), ("create", "d/file", "local")]
        assert told[-1] == ("create", "end", "remote")
        assert {origin for _, _, origin in told[:-1]} == {"local"}
        assert len(os.listdir(f"/proc/{mount.pid}/fd")) < before + 100  # each node that the kernel knows costs one
        command = [*nobody, "-m", "fusenotify", "umount", str(mount.mountpoint)]
        assert subprocess.run(command, check=False, timeout=PATIENCE).returncode == 0
        assert mount.process.wait(PATIENCE) == 0
        assert not is_mounted(mount.mountpoint)


def located(mount: Mount, handle: str) -> str:
    return asyncio.run(fusenotify.locate(f"unix:{mount.socket}", handle))


def test_an_ordinary_user_with_few_descriptors(directory: Path, nobody: list[str]) -> None:
    """Handles cannot be opened: what has no descriptor is walked to again, also by a handle from before a restart."""
    directory.chmod(0o755)
    for name in ("source", "mount", "state"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    for path in (directory / "source" / f"d{number % 30}" / f"f{number}" for number in range(900)):
        path.parent.mkdir(exist_ok=True)
        os.chown(path.parent, NOBODY, NOBODY)
        path.write_text(path.name)
    command = ["prlimit", "--nofile=128:128", *nobody, "-m", "fusenotify"]
    as_user = [*nobody[:4], "bash", "-c"]
    with mounted(directory, command=command) as mount:
        script = (
            f"set -e; cd {shlex.quote(str(mount.mountpoint))}/d7; exec 3<f7; mv f7 renamed; "
            "for i in 1 2; do cat ../d*/f* | wc -c; done; "
            "cat <&3; rm renamed; stat -L -c %h /dev/fd/3; ls | wc -l; cat f37"
        )
        done = subprocess.run([*as_user, script], check=True, capture_output=True, text=True, timeout=PATIENCE)
        assert done.stdout.split() == ["3488", "3488", "f70", "29", "f37"]
        assert len(os.listdir(f"/proc/{mount.pid}/fd")) < 100
        ask = "import asyncio, sys, fusenotify; print(asyncio.run(fusenotify.lookup(sys.argv[1])))"
        look = [*nobody, "-c", ask, str(mount.mountpoint / "d8" / "f8")]
        handle = subprocess.run(look, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.strip()
        assert located(mount, handle) == "d8/f8"
        assert mount.stop() == 0
    (directory / "source" / "d8" / "f8").rename(directory / "source" / "d9" / "moved")
    with mounted(directory, command=command) as mount:
        assert located(mount, handle) == "d9/moved"
        (mount.source / "d9" / "moved").unlink()
        with pytest.raises(fusenotify.StaleHandle):
            located(mount, handle)


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_clean_mountpoint(mount: Mount, how: signal.Signals) -> None:
    fd = os.open(mount.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
    assert mount.stop(how) == 0
    assert not is_mounted(mount.mountpoint)
    assert os.listdir(mount.mountpoint) == []
    assert error_of(lambda: os.fstat(fd)) in ("ENOTCONN", "ECONNABORTED")
    with contextlib.suppress(OSError):  # FLUSH comes to nobody
        os.close(fd)
    assert os.listdir(mount.source) == ["file"]


def test_a_killed_daemon_leaves_a_dead_mount_that_can_be_removed(mount: Mount) -> None:
    (mount.mountpoint / "file").write_text("x")
    assert mount.stop(signal.SIGKILL) == -signal.SIGKILL
    assert is_mounted(mount.mountpoint)
    assert error_of(mount.mountpoint.stat) == "ENOTCONN"
    result = run("umount", "--lazy", mount.mountpoint)
    assert (result.returncode, result.stderr) == (0, "")
    assert not is_mounted(mount.mountpoint)
    assert (mount.source / "file").read_text() == "x"


def test_a_busy_mount_stays(mount: Mount) -> None:
    with (mount.mountpoint / "file").open("w") as file:
        result = run("umount", mount.mountpoint)
        assert result.returncode == 4
        assert "busy" in result.stderr
        assert is_mounted(mount.mountpoint)
        file.write("goes on")
    assert (mount.source / "file").read_text() == "goes on"
    assert run("umount", mount.mountpoint).returncode == 0
    assert mount.process.wait(PATIENCE) == 0


def test_a_lazily_removed_mount_is_gone_for_those_who_hold_it_as_well(mount: Mount) -> None:
    fd = os.open(mount.mountpoint, os.O_RDONLY)
    assert run("umount", "--lazy", mount.mountpoint).returncode == 0
    assert mount.process.wait(0.1) == 0
    assert not is_mounted(mount.mountpoint)
    assert error_of(lambda: os.listdir(fd)) == "ENOTCONN"
    os.close(fd)
