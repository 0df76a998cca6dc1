"""Native delivery: what is done behind the mount is heard by programs that watch it with inotify."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pyfuse3
import pytest
import trio
import trio.testing

from fusenotify import _linux, events, operations
from fusenotify.attributes import answer_of
from fusenotify.operations import Operations, Served
from fusenotify.orders import Progress
from fusenotify.plans import Place
from fusenotify.replay import Replay
from fusenotify.status import Replays
from tests.harness import PATIENCE, Mount, Watch, mounted, patched, run
from tests.onlooker import Onlooker, onlooking, tree_of
from tests.test_plans import Followed

_FD = -100  # AT_FDCWD


@pytest.fixture
def mount(directory: Path) -> Iterator[Mount]:
    """A mounted, empty backing tree, whose daemon is patient with a replayer that is halted."""
    with patched(directory, "from fusenotify import replaying\nreplaying.STUCK_AFTER = 60") as mount:
        yield mount
    assert "Traceback" not in mount.log, mount.log


@pytest.fixture
def onlooker(mount: Mount) -> Iterator[Onlooker]:
    """A program that watches the root of the mount."""
    with onlooking(mount) as one:
        one.watch(".")
        yield one


def replays(mount: Mount) -> dict[str, int]:
    """Return the daemon's figures."""
    figures: dict[str, int] = json.loads(run("status", mount.mountpoint, "--json").stdout)["replays"]
    return figures


def replayer_of(mount: Mount) -> int:
    """Return the process that replays on a mount."""
    children = " ".join(path.read_text() for path in Path(f"/proc/{mount.pid}/task").glob("*/children")).split()
    (pid,) = [int(pid) for pid in children if b"replayer" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    return pid


@contextlib.contextmanager
def halted(pid: int) -> Iterator[None]:
    """Keep a process from doing anything."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def await_condition(condition: Callable[[], bool]) -> None:
    """Return when a condition that nothing tells of has come true."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.01)


@contextlib.contextmanager
def storm(directory: Path) -> Iterator[None]:
    """Have files made, changed, renamed and removed in a directory all the time."""
    done = threading.Event()

    def rage() -> None:
        number = 0
        while not done.is_set():
            number += 1
            path = directory / f"storm-{number % 50}"
            path.write_text(str(number))
            path.rename(path.with_suffix(".new"))
            path.with_suffix(".new").unlink()

    thread = threading.Thread(target=rage)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


# --- each kind of change --------------------------------------------------------------------------------------------


def test_a_file_is_made_and_written_to(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").write_text("content")
    assert onlooker.events() == [".: CREATE file", ".: MODIFY file", ".: CLOSE_WRITE file"]
    assert (mount.mountpoint / "file").read_text() == "content"


@pytest.mark.parametrize("make", [os.mkfifo, os.mknod, lambda path: path.symlink_to("nowhere")])
def test_whatever_is_made_is_heard(mount: Mount, onlooker: Onlooker, make: Callable[[Path], None]) -> None:
    make(mount.source / "made")
    assert onlooker.events() == [".: CREATE made"]
    kinds = [stat.S_IFMT((root / "made").lstat().st_mode) for root in (mount.source, mount.mountpoint)]
    assert kinds[0] == kinds[1]


def test_a_change_is_heard_by_the_directory_and_by_the_file(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").write_text("a")
    onlooker.watch("file")
    onlooker.events()
    with (mount.source / "file").open("a") as file:
        file.write("b")
    assert onlooker.events() == [
        ".: MODIFY file", "file: MODIFY", ".: CLOSE_WRITE file", "file: CLOSE_WRITE"
    ]  # fmt: skip
    (mount.source / "file").chmod(0o640)
    assert onlooker.events() == [".: ATTRIB file", "file: ATTRIB"]


def test_who_hears_of_a_change_finds_it(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").write_text("old")
    with (mount.mountpoint / "file").open() as file:
        assert file.read() == "old"
        onlooker.events()
        (mount.source / "file").write_text("new, and longer")
        onlooker.events()
        file.seek(0)
        assert file.read() == "new, and longer"


def test_a_renamed_file_is_one_pair_with_one_cookie(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "a").touch()
    (mount.source / "other").mkdir()
    onlooker.watch("a", "other")
    onlooker.events()
    (mount.source / "a").rename(mount.source / "b")
    (mount.source / "b").rename(mount.source / "other" / "c")
    first, second = onlooker.raw()[:2], onlooker.raw()
    assert not second
    assert [one.what for one in first] == ["MOVED_FROM", "MOVED_TO"]
    assert first[0].cookie == first[1].cookie != 0


def test_the_moved_file_hears_it_itself(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "a").touch()
    (mount.source / "other").mkdir()
    onlooker.watch("a", "other")
    onlooker.events()
    (mount.source / "a").rename(mount.source / "other" / "c")
    assert onlooker.events() == [".: MOVED_FROM a", "other: MOVED_TO c", "a: MOVE_SELF"]


def test_a_removed_file_is_gone_for_its_own_watch(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").touch()
    onlooker.watch("file")
    onlooker.events()
    (mount.source / "file").unlink()
    assert onlooker.events() == [
        "file: ATTRIB", "file: DELETE_SELF", "file: IGNORED", ".: DELETE file"
    ]  # fmt: skip
    assert not (mount.mountpoint / "file").exists()


def test_directories_come_and_go(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "d").mkdir()
    assert onlooker.events() == [".: CREATE|ISDIR d"]
    onlooker.watch("d")
    (mount.source / "d" / "x").touch()
    assert onlooker.events() == ["d: CREATE x", "d: CLOSE_WRITE x"]
    (mount.source / "d" / "x").unlink()
    (mount.source / "d").rmdir()
    assert onlooker.events() == ["d: DELETE x", "d: DELETE_SELF", "d: IGNORED", ".: DELETE|ISDIR d"]


def test_a_renamed_directory_takes_its_content_and_its_watches_along(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "d" / "e").mkdir(parents=True)
    (mount.source / "to").mkdir()
    onlooker.watch("d", "d/e", "to")
    onlooker.events()
    (mount.source / "d").rename(mount.source / "to" / "d2")
    assert onlooker.events() == [".: MOVED_FROM|ISDIR d", "to: MOVED_TO|ISDIR d2", "d: MOVE_SELF"]
    (mount.source / "to" / "d2" / "e" / "x").touch()
    assert onlooker.events() == ["d/e: CREATE x", "d/e: CLOSE_WRITE x"]
    assert (mount.mountpoint / "to" / "d2" / "e" / "x").exists()


def test_a_directory_is_renamed_and_changed_at_once(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "d0").mkdir()
    onlooker.watch("d0")
    onlooker.events()
    with halted(replayer_of(mount)):
        for number in range(3):
            (mount.source / f"d{number}").rename(mount.source / f"d{number + 1}")
            os.mknod(mount.source / f"d{number + 1}" / f"file{number}")
    assert [event for event in onlooker.events() if event.startswith("d0")] == [
        "d0: MOVE_SELF", "d0: CREATE file0", "d0: MOVE_SELF", "d0: CREATE file1", "d0: MOVE_SELF", "d0: CREATE file2"
    ]  # fmt: skip


def test_a_directory_that_the_kernel_has_met_under_its_new_name(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "d" / "e").mkdir(parents=True)
    (mount.source / "to").mkdir()
    onlooker.watch("d", "d/e", "to")
    onlooker.events()
    with halted(replayer_of(mount)):
        (mount.source / "d").rename(mount.source / "to" / "d2")
        assert os.listdir(mount.mountpoint / "to" / "d2") == ["e"]
    assert onlooker.events() == [".: MOVED_FROM|ISDIR d", "to: MOVED_TO|ISDIR d2", "d: MOVE_SELF"]
    assert os.listdir(mount.mountpoint / "to" / "d2") == ["e"]


def test_what_is_moved_out_and_in(directory: Path, mount: Mount, onlooker: Onlooker) -> None:
    outside = directory / "outside"
    (mount.source / "d").mkdir()
    onlooker.watch("d")
    onlooker.events()
    (mount.source / "d").rename(outside)
    assert onlooker.events() == [".: MOVED_FROM|ISDIR d", "d: MOVE_SELF"]
    outside.rename(mount.source / "back")
    assert ".: MOVED_TO|ISDIR back" in onlooker.events()
    assert (mount.mountpoint / "back").is_dir()


def test_an_exchange_is_heard_as_two_renames(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").touch()
    (mount.source / "d").mkdir()
    onlooker.watch("file", "d")
    onlooker.events()
    _linux.renameat2(_FD, bytes(mount.source / "file"), _FD, bytes(mount.source / "d"), _linux.RENAME_EXCHANGE)
    assert onlooker.events() == [
        ".: MOVED_FROM file", ".: MOVED_TO d", "file: MOVE_SELF",
        ".: MOVED_FROM|ISDIR d", ".: MOVED_TO|ISDIR file", "d: MOVE_SELF",
    ]  # fmt: skip
    assert (mount.mountpoint / "file").is_dir()


def test_the_root_itself(mount: Mount, onlooker: Onlooker) -> None:
    mount.source.chmod(0o750)
    assert onlooker.events() == [".: ATTRIB|ISDIR"]


# --- what is gone already -------------------------------------------------------------------------------------------


def test_what_came_and_went_meanwhile_is_heard_in_order(mount: Mount, onlooker: Onlooker) -> None:
    onlooker.events()
    with halted(replayer_of(mount)):
        for _ in range(3):
            (mount.source / "file").touch()
            (mount.source / "file").unlink()
        (mount.source / "d").mkdir()
        (mount.source / "d").rmdir()
    assert onlooker.events() == [
        *[".: CREATE file", ".: CLOSE_WRITE file", ".: DELETE file"] * 3, ".: CREATE|ISDIR d", ".: DELETE|ISDIR d"
    ]  # fmt: skip
    assert os.listdir(mount.source) == os.listdir(mount.mountpoint)


def test_a_file_that_is_replaced(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").write_text("old")
    onlooker.watch("file")
    onlooker.events()
    with halted(replayer_of(mount)):
        (mount.source / "new").write_text("new")
        (mount.source / "new").rename(mount.source / "file")
    assert onlooker.events() == [
        ".: CREATE new", ".: MODIFY new", ".: CLOSE_WRITE new", ".: MOVED_FROM new", ".: MOVED_TO file",
        "file: ATTRIB", "file: DELETE_SELF", "file: IGNORED",
    ]  # fmt: skip
    assert (mount.mountpoint / "file").read_text() == "new"


def test_a_name_that_is_used_again_at_once(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "file").touch()
    onlooker.watch("file")
    onlooker.events()
    with halted(replayer_of(mount)):
        (mount.source / "file").unlink()
        (mount.source / "file").write_text("another")
        descriptor = (mount.mountpoint / "file").open()  # so the kernel knows both
    with descriptor:
        assert onlooker.events()[:4] == [
            "file: ATTRIB", "file: DELETE_SELF", "file: IGNORED", ".: DELETE file"
        ]  # fmt: skip
        assert descriptor.read() == "another"
        assert os.fstat(descriptor.fileno()).st_nlink == 1


def test_a_file_with_another_link_lives_on(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "a").touch()
    onlooker.watch("a")
    onlooker.events()
    (mount.source / "b").hardlink_to(mount.source / "a")
    (mount.source / "a").unlink()
    assert onlooker.events() == [".: CREATE b", "a: ATTRIB", ".: DELETE a"]
    assert (mount.mountpoint / "b").stat().st_nlink == 1
    with (mount.source / "b").open("w"):
        pass
    assert "a: CLOSE_WRITE" in onlooker.events()


def test_the_kernel_has_forgotten_all_but_the_watch(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "a" / "b" / "c").mkdir(parents=True)
    onlooker.watch("a/b/c")
    Path("/proc/sys/vm/drop_caches").write_text("2")
    with halted(replayer_of(mount)):
        (mount.source / "a" / "b" / "c" / "file").touch()
        (mount.source / "a").rename(mount.source / "d")
    assert onlooker.events()[-4:] == [
        "a/b/c: CREATE file", "a/b/c: CLOSE_WRITE file", ".: MOVED_FROM|ISDIR a", ".: MOVED_TO|ISDIR d"
    ]  # fmt: skip
    assert os.listdir(mount.mountpoint / "d" / "b" / "c") == ["file"]


def test_a_directory_of_another_user(mount: Mount, onlooker: Onlooker) -> None:
    """The kernel asks for its access control list before it lets the replayer write in it."""
    place = mount.source / "place"
    place.mkdir(mode=0o755)
    os.chown(place, 1000, 1000)
    onlooker.watch("place")
    onlooker.events()
    before = replays(mount)["fell_back"]
    os.mknod(place / "file")
    (place / "file").rename(place / "other")
    (place / "other").unlink()
    assert onlooker.events() == [
        "place: CREATE file", "place: MOVED_FROM file", "place: MOVED_TO other", "place: DELETE other"
    ]  # fmt: skip
    assert replays(mount)["fell_back"] == before


# --- both sides -----------------------------------------------------------------------------------------------------


def test_a_local_operation_that_fails_overtakes_nothing(
    mount: Mount, onlooker: Onlooker, watching: Callable[..., Watch]
) -> None:
    watch = watching(mount.mountpoint)
    onlooker.events()
    with halted(replayer_of(mount)):
        (mount.source / "place" / "inside").mkdir(parents=True)
        watch.until("place")
        with pytest.raises(OSError, match="not empty"):
            (mount.mountpoint / "place").rmdir()
    assert onlooker.events() == [".: CREATE|ISDIR place"]


def test_what_is_done_through_the_mount_is_heard_once(mount: Mount, onlooker: Onlooker) -> None:
    (mount.mountpoint / "file").write_text("local")
    (mount.mountpoint / "file").rename(mount.mountpoint / "other")
    (mount.mountpoint / "other").unlink()
    assert onlooker.events() == [
        ".: CREATE file", ".: MODIFY file", ".: CLOSE_WRITE file",
        ".: MOVED_FROM file", ".: MOVED_TO other", ".: DELETE other",
    ]  # fmt: skip


def test_a_local_operation_overtakes_what_is_not_replayed_yet(
    mount: Mount, onlooker: Onlooker, watching: Callable[..., Watch]
) -> None:
    watch = watching(mount.mountpoint)
    onlooker.events()
    before = replays(mount)["fell_back"]
    with halted(replayer_of(mount)):
        (mount.source / "file").mkdir()
        watch.until("file")
        (mount.mountpoint / "file").rmdir()
    assert onlooker.events() == [".: DELETE|ISDIR file"]
    assert replays(mount)["fell_back"] == before + 1


def test_names_that_both_sides_fight_for_end_as_they_are(mount: Mount, onlooker: Onlooker) -> None:
    for number in range(200):
        name = f"file{number % 20}"
        os.mknod(mount.source / name)
        (mount.mountpoint / name).unlink()
    last: dict[str, str] = defaultdict(str)
    for heard in onlooker.raw():
        last[heard.name] = heard.what
    assert set(last.values()) == {"DELETE"}


def test_nothing_behind_the_mount_changes_by_a_replay(mount: Mount, onlooker: Onlooker) -> None:
    (mount.source / "d").mkdir()
    onlooker.watch("d")
    onlooker.events()
    with halted(replayer_of(mount)):
        for number in range(50):
            for place in (mount.source, mount.source / "d"):
                path = place / f"file{number}"
                path.write_text(str(number))
                path.chmod(0o600)
                if number % 2:
                    path.rename(place / f"renamed{number}")
                if number % 3 == 0:
                    (place / f"gone{number}").mkdir()
                    (place / f"gone{number}").rmdir()
                if number % 5 == 0:
                    (place / f"link{number}").hardlink_to(path if number % 2 == 0 else place / f"renamed{number}")
        before = tree_of(mount.source)
    assert len(onlooker.events()) > 500
    after = tree_of(mount.source)
    for tree in before, after:
        del tree["onlooker-end/."]
    assert {path: after[path] for path in before} == before


def test_nobody_else_is_taken_for_a_replayer(mount: Mount, onlooker: Onlooker) -> None:
    onlooker.events()
    with storm(mount.source):
        for number in range(100):
            path = mount.mountpoint / f"local{number}"
            os.mknod(path)
            assert (mount.source / path.name).exists()
            with pytest.raises(FileExistsError):
                os.mknod(path)
            path.unlink()
            assert not (mount.source / path.name).exists()


def test_a_mount_that_cannot_be_cloned(directory: Path) -> None:
    patch = "from fusenotify import replaying\nreplaying.CAP_SYS_ADMIN = 64"  # which nobody has
    with patched(directory, patch) as mount, onlooking(mount) as onlooker:
        (mount.source / "a" / "b").mkdir(parents=True)
        onlooker.watch(".", "a", "a/b")
        onlooker.events()
        (mount.source / "a" / "b" / "file").touch()
        (mount.source / "a" / "b" / "file").rename(mount.source / "a" / "file")
        (mount.source / "a").rename(mount.source / "c")
        assert onlooker.events() == [
            "a/b: CREATE file", "a/b: CLOSE_WRITE file", "a/b: MOVED_FROM file", "a: MOVED_TO file",
            ".: MOVED_FROM|ISDIR a", ".: MOVED_TO|ISDIR c", "a: MOVE_SELF",
        ]  # fmt: skip
        (mount.source / "c" / "b").rmdir()
        assert onlooker.events() == ["a/b: DELETE_SELF", "a/b: IGNORED", "a: DELETE|ISDIR b"]
        held = Path(f"/proc/{replayer_of(mount)}/fd")
        await_condition(lambda: not any(Path(os.readlink(fd)) == mount.mountpoint for fd in held.iterdir()))
        _linux.umount2(os.fsencode(mount.mountpoint), 0)


# --- the end, and what goes wrong -----------------------------------------------------------------------------------


def test_a_stuck_replayer_is_replaced(directory: Path) -> None:
    with (
        patched(directory, "from fusenotify import replaying\nreplaying.STUCK_AFTER = 1") as mount,
        onlooking(mount) as onlooker,
    ):
        onlooker.watch(".")
        before = replays(mount)
        stuck = replayer_of(mount)
        os.kill(stuck, signal.SIGSTOP)
        (mount.source / "unheard").mkdir()
        await_condition(lambda: replays(mount)["stuck"] > before["stuck"])
        (mount.source / "heard").mkdir()
        assert onlooker.events() == [".: CREATE|ISDIR heard"]
        assert replayer_of(mount) != stuck
        assert replays(mount)["fell_back"] == before["fell_back"] + 1


def test_a_replayer_that_dies_is_replaced(mount: Mount, onlooker: Onlooker) -> None:
    onlooker.events()
    os.kill(replayer_of(mount), signal.SIGKILL)
    (mount.source / "one").mkdir()
    (mount.source / "two").mkdir()
    assert ".: CREATE|ISDIR two" in onlooker.events()


# The first replayer dies with orders that it has not read: its connection is reset then.
_DIES_WITH_ORDERS = """
import os, signal
from fusenotify import replaying
give = replaying._Replayer.give

async def give_a_dying_one(self, orders):
    replaying._Replayer.give = give
    os.kill(self.pid, signal.SIGSTOP)
    await give(self, orders)
    os.kill(self.pid, signal.SIGKILL)

replaying._Replayer.give = give_a_dying_one
"""


def test_a_replayer_that_dies_with_orders_unread_is_replaced(directory: Path) -> None:
    with patched(directory, _DIES_WITH_ORDERS) as mount, onlooking(mount) as onlooker:
        onlooker.watch(".")
        (mount.source / "heard").mkdir()
        assert onlooker.events() == [".: CREATE|ISDIR heard"]
        assert replays(mount)["stuck"] == 1


def test_a_busy_mount_can_be_unmounted(mount: Mount) -> None:
    with storm(mount.source):
        await_condition(lambda: replays(mount)["delivered"] > 100)
        replayer = replayer_of(mount)
        assert run("umount", mount.mountpoint).returncode == 0
        assert mount.process.wait(PATIENCE) == 0
    await_condition(lambda: not Path(f"/proc/{replayer}").exists())
    assert not os.path.ismount(mount.mountpoint)


def test_a_plain_umount_ends_the_daemon(mount: Mount) -> None:
    with onlooking(mount) as onlooker:
        onlooker.events()  # something of ours holds the filesystem now
    _linux.umount2(os.fsencode(mount.mountpoint), 0)
    assert mount.process.wait(PATIENCE) == 0


def test_a_killed_daemon_leaves_a_mount_that_can_be_removed(mount: Mount) -> None:
    with storm(mount.source):
        await_condition(lambda: replays(mount)["delivered"] > 100)
        replayer = replayer_of(mount)
        mount.stop(signal.SIGKILL)
        await_condition(lambda: not Path(f"/proc/{replayer}").exists())
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mount.mountpoint)
    _linux.umount2(os.fsencode(mount.mountpoint), 0)


def test_what_is_mounted_on_the_mount_stays(mount: Mount, onlooker: Onlooker) -> None:
    onlooker.events()
    before = replays(mount)["fell_back"]
    place = mount.mountpoint / "d"
    with halted(replayer_of(mount)):
        (mount.source / "d").mkdir()
        _linux.mount(b"none", os.fsencode(place), b"tmpfs", 0, b"")  # before the kernel is told that it has been made
    try:
        assert onlooker.events() == []
        assert os.path.ismount(place)
        assert replays(mount)["fell_back"] == before + 1
    finally:
        _linux.umount2(os.fsencode(place), _linux.MNT_DETACH)


def test_native_delivery_can_be_off(directory: Path) -> None:
    with mounted(directory, ["--native", "off"]) as mount:
        script = (
            "import sys; from inotify_simple import INotify, flags\n"
            "inotify = INotify(); inotify.add_watch(sys.argv[1], flags.CREATE); print('ready', flush=True)\n"
            "print([event.name for event in inotify.read()])\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", script, str(mount.mountpoint)], stdout=subprocess.PIPE, text=True
        ) as program:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            (mount.source / "remote").touch()
            (mount.mountpoint / "local").touch()
            assert program.stdout.readline() == "['local']\n"
        assert replays(mount) == {"delivered": 0, "fell_back": 0, "stuck": 0}
        assert json.loads(run("status", mount.mountpoint, "--json").stdout)["native"] == "off"


# --- attributes that the kernel takes from a replay ------------------------------------------------------------------


class Taking:
    """A file that a replayer tells the kernel of, and operations that others ask about it, without a mount."""

    def __init__(self, file: BinaryIO) -> None:
        fd, followed = file.fileno(), Followed()
        node = followed.file(7, b"file")
        for name in (b"file", b"other"):
            followed.pending.add(events.MODIFY, 0, Place(followed.root, name), None)
        nodes: Any = SimpleNamespace(table=followed.table, descriptor=lambda _: contextlib.nullcontext(fd))
        tree: Any = SimpleNamespace(getattr=lambda _: answer_of(node, os.fstat(fd)))
        nothing: Any = SimpleNamespace(distant={}, hand_over=lambda: None)
        replay = Replay(nodes, followed.pending, nothing, Replays())
        self.plan, self._next = replay.hand_out(2)
        progress_fd = Progress.new_fd()
        self.progress = Progress(progress_fd)
        os.close(progress_fd)
        self.progress.begin(self.plan.number)
        replay.employ(1, self.progress)
        self._nodeid = pyfuse3.InodeT(node.nodeid)
        self._operations = Operations(
            Served(nodes, tree, nothing, nothing, nothing), nothing, nothing, nothing, nothing, replay
        )

    async def size(self, pid: int) -> int:
        """Return the size that a process is told; the replayer's number is 1."""
        context: Any = SimpleNamespace(pid=pid)
        return (await self._operations.getattr(self._nodeid, context)).st_size

    async def goes_on(self) -> bool:
        """Return whether the replayer's first request of the next plan is answered."""
        self.progress.begin(self._next.number)
        try:
            await self.size(1)
        except pyfuse3.FUSEError:
            return False
        return True

    async def has_to_ask_again(self) -> bool:
        """Return whether the replayer has to, as far as it is told."""
        self.progress.begin(self.plan.number)
        context: Any = SimpleNamespace(pid=1)
        return bool((await self._operations.statfs(context)).f_files)


@pytest.fixture
def growing(directory: Path) -> Iterator[BinaryIO]:
    """An empty file that grows by what is written to it."""
    with open(directory / "file", "wb", buffering=0) as file:
        yield file


@contextlib.asynccontextmanager
async def overtaken(growing: BinaryIO) -> AsyncIterator[Taking]:
    """Have somebody wait for a replay that was told of a file before it grew."""
    taking = Taking(growing)
    assert await taking.size(1) == 0
    growing.write(b"x")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taking.size, 2)
        await trio.testing.wait_all_tasks_blocked()
        yield taking


async def test_who_asks_for_what_a_replay_was_told_is_answered_at_once(
    growing: BinaryIO, mock_clock: trio.testing.MockClock
) -> None:
    taking = Taking(growing)
    assert await taking.size(1) == 0
    assert await taking.size(2) == 0  # no time passes
    assert not await taking.has_to_ask_again()
    growing.write(b"x")
    assert await taking.size(2) == 1  # it is over


async def test_who_asks_for_what_has_changed_since_waits_for_the_replay(
    growing: BinaryIO, mock_clock: trio.testing.MockClock
) -> None:
    taking = Taking(growing)
    assert await taking.size(1) == 0
    growing.write(b"x")
    told: list[int] = []

    async def ask() -> None:
        told.append(await taking.size(2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert await taking.has_to_ask_again()
        assert await taking.size(1) == 1
        await trio.testing.wait_all_tasks_blocked()
        assert told == []  # the kernel has not taken it yet
        assert not await taking.has_to_ask_again()
    assert told == [1]


async def test_the_next_replay_says_that_the_kernel_has_taken_the_one_before(
    growing: BinaryIO, mock_clock: trio.testing.MockClock
) -> None:
    taking = Taking(growing)
    assert await taking.size(1) == 0
    assert await taking.goes_on()
    assert taking.progress.to_look_at() == 0


async def test_a_file_that_others_have_asked_for_is_looked_at_again_before_the_next_replay(
    growing: BinaryIO, autojump_clock: trio.testing.MockClock
) -> None:
    async with overtaken(growing) as taking:
        for _ in range(2):  # the kernel tries once more by itself
            assert not await taking.goes_on()
        assert taking.progress.to_look_at() == taking.plan.number
        assert await taking.has_to_ask_again()
        assert await taking.size(1) == 1
        assert not await taking.has_to_ask_again()
        assert await taking.goes_on()


async def test_a_file_that_cannot_be_looked_at_again_keeps_no_replay_from_going_on(
    growing: BinaryIO, autojump_clock: trio.testing.MockClock
) -> None:
    async with overtaken(growing) as taking:
        assert not await taking.goes_on()
        assert taking.progress.to_look_at() == taking.plan.number
        assert await taking.goes_on()


async def test_nobody_waits_for_a_replay_for_long(growing: BinaryIO, autojump_clock: trio.testing.MockClock) -> None:
    taking = Taking(growing)
    assert await taking.size(1) == 0
    growing.write(b"x")
    begin = trio.current_time()
    assert await taking.size(2) == 1
    assert trio.current_time() == begin + operations._OVERTAKING_PATIENCE
