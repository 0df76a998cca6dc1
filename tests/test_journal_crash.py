"""The journal after a daemon was killed, and after a power failure: every change is named."""

import contextlib
import fcntl
import os
import signal
import sqlite3
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio

from fusenotify import _linux
from fusenotify.database import FILE_NAME
from fusenotify.rows import RACY
from tests.filesystems import filesystem
from tests.harness import Mount, changed
from tests.journalling import CONTROL, State, Workload, durable_cursor, journalled, missing, state_of
from tests.soak import SEED, examples

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
_WITHOUT_THE_LOG = struct.pack("I", 2)
_MS_BIND = 4096
# With few directories to a turn there are many ends of turns to be killed in.
_PATCH = CONTROL + "from fusenotify import intents\nintents.MOST = 2\n"
Taken = list[tuple[str, State]]  # cursors, each with what there was then


@contextlib.contextmanager
def running(source: Path, directory: Path, state_dir: Path, patch: str = _PATCH, *arguments: str) -> Iterator[Mount]:
    """Mount a tree; whatever becomes of the daemon, the mount is taken away."""
    for path in (source, directory / "mount", state_dir):
        path.mkdir(exist_ok=True)
    for name in ("store.control", "socket"):
        (state_dir / name).unlink(missing_ok=True)
    mount = Mount(source, directory / "mount", state_dir, arguments, changed(patch))
    try:
        yield mount
    finally:
        mount.close()
    assert "Traceback" not in mount.log, mount.log


def work_until_killed(mount: Mount, state_dir: Path, random: Random) -> Taken:
    """Change the tree from both sides, taking cursors at times, and kill the daemon."""
    workload = Workload(random, mount.source, mount.mountpoint)
    taken: Taken = [(durable_cursor(state_dir), state_of(mount.source))]
    for _ in range(random.randrange(5, 60)):
        workload.step()
        if random.random() < 0.1:
            taken.append((durable_cursor(state_dir), state_of(mount.source)))
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait()
    return taken


async def check(source: Path, state_dir: Path, taken: Taken, random: Random) -> int:
    """Start again, change more meanwhile, and check every answer; return how many named only what changed."""
    exact = 0
    async with journalled(source, state_dir) as journal:
        workload = Workload(random, source)
        for _ in range(random.randrange(10)):
            workload.step()
        for cursor, before in taken:
            changes, fresh = await journal.since(cursor)
            unnamed = missing(before, state_of(source), changes)
            assert fresh or not unnamed, (cursor, unnamed)
            exact += not fresh
    return exact


@pytest.mark.parametrize("number", range(examples(15, 300)))
async def test_killed(directory: Path, number: int) -> None:
    random = Random(f"{SEED} killed {number}")
    source, state_dir = directory / "source", directory / "state"
    taken: Taken = []
    for _ in range(2):
        with running(source, directory, state_dir) as mount:
            taken += work_until_killed(mount, state_dir, random)
        while_down = Workload(random, source)
        for _ in range(random.randrange(20)):
            while_down.step()
        assert await check(source, state_dir, taken, random) == len(taken)
        taken = taken[-2:]


@pytest.mark.parametrize("number", range(examples(15, 300)))
async def test_power_failure(tmp_path: Path, number: int) -> None:
    """The tree loses what was not synced; the journal's own filesystem loses it too, if it is the same one."""
    random = Random(f"{SEED} power {number}")
    with filesystem("ext4" if number % 2 else "xfs", tmp_path) as disk:
        source = disk / "source"
        state_dir = disk / "state" if number % 3 else tmp_path / "state"
        with running(source, tmp_path, state_dir) as mount:
            taken = work_until_powerless(mount, disk, state_dir, random)
        _mount_again(disk)
        assert await check(source, state_dir, taken, random) == len(taken)


async def test_a_disk_that_fails_before_what_has_happened_is_looked_at(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with filesystem("xfs", tmp_path) as disk:
        async with journalled(disk / "source", tmp_path / "state") as journal:
            await journal.cursor()  # by then the tree has been looked at
            (disk / "source/file").touch()
            await journal.export.hearing.caught_up()
            _shut_down(disk)
            await journal.cursor()
    assert "stumbled" not in caplog.text


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
@pytest.mark.parametrize("is_behind", [False, True])
async def test_contents_that_are_lost_behind_attributes_that_are_not(
    tmp_path: Path, kind: str, is_behind: bool
) -> None:
    """A sync of another file brings the times of a file to the disk, and not its pages: nothing shows what is lost."""
    with filesystem(kind, tmp_path) as disk:
        source, state_dir = disk / "source", tmp_path / "state"
        with running(source, tmp_path, state_dir) as mount:
            (source / "file").write_bytes(b"a" * 4096)
            await trio.run_process(["sync", "-f", source])
            with ((source if is_behind else mount.mountpoint) / "file").open("r+b") as file:
                file.write(b"b" * 4096)
                file.flush()
                # What is looked at right after its time of change is in doubt anyway: the close is heard later.
                await trio.sleep(2 * RACY / 1e9)
            cursor, before = durable_cursor(state_dir), state_of(source)
            with (source / "other").open("wb") as file:
                os.fsync(file.fileno())
            _fail_power(disk, mount)
        _mount_again(disk)
        assert (source / "file").read_bytes() == b"a" * 4096
        assert (source / "other").exists()
        async with journalled(source, state_dir) as journal:
            changes, fresh = await journal.since(cursor)
        assert not fresh
        assert not missing(before, state_of(source), changes)


async def test_a_clean_end_is_one_of_every_filesystem_of_the_tree(directory: Path, tmp_path: Path) -> None:
    """What it calls clean nothing can undo: the next start looks at no contents."""
    source, state_dir = directory / "source", directory / "state"
    (source / "inside").mkdir(parents=True)
    with filesystem("ext4", tmp_path) as disk, contextlib.ExitStack() as stack:
        _linux.mount(os.fsencode(disk), os.fsencode(source / "inside"), b"", _MS_BIND, b"")
        stack.callback(_linux.umount2, os.fsencode(source / "inside"), _linux.MNT_DETACH)
        async with journalled(source, state_dir) as journal:
            await journal.cursor()
            (source / "inside/file").write_text("changed")
        assert is_clean(state_dir)
        _shut_down(disk)
        _linux.umount2(os.fsencode(source / "inside"), 0)
        stack.pop_all()
        _mount_again(disk)
        assert (disk / "file").read_text() == "changed"


def is_clean(state_dir: Path) -> bool:
    with contextlib.closing(sqlite3.connect(state_dir / FILE_NAME)) as database:
        ((is_clean,),) = database.execute("SELECT is_clean FROM epoch")
        return bool(is_clean)


async def test_contents_that_are_not_lost_behind_attributes_that_are(tmp_path: Path) -> None:
    """What was changed by one of its names was changed by the others too, in directories that nobody compares."""
    with filesystem("ext4", tmp_path) as disk:
        source, state_dir = disk / "source", tmp_path / "state"
        for name in ("a", "b"):
            (source / name).mkdir(parents=True)
        (source / "a/file").write_bytes(b"a" * 4096)
        os.link(source / "a/file", source / "b/link")
        await trio.run_process(["sync", "-f", source])
        with running(source, tmp_path, state_dir, _PATCH, "-o", "exclusive") as mount:
            cursor, before, status = durable_cursor(state_dir), state_of(source), (source / "b/link").stat()
            with (mount.mountpoint / "a/file").open("r+b") as file:
                file.write(b"b" * 4096)
                file.flush()
                os.fdatasync(file.fileno())
            _fail_power(disk, mount)
        _mount_again(disk)
        assert (source / "b/link").read_bytes() == b"b" * 4096
        assert (source / "b/link").stat().st_ctime_ns == status.st_ctime_ns
        async with journalled(source, state_dir, is_exclusive=True) as journal:
            changes, fresh = await journal.since(cursor)
        assert not fresh
        assert not missing(before, state_of(source), changes)


async def test_an_exclusive_tree_where_a_file_had_another_name_for_a_moment(directory: Path) -> None:
    """Nothing tells of that name any more, and what was done by it was done to the file."""
    source, state_dir = directory / "source", directory / "state"
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
    (source / "b/file").write_text("before")
    silent = CONTROL + "from fusenotify import scribe\nscribe._GATHER = 1000\n"
    with running(source, directory, state_dir, silent, "-o", "exclusive") as mount:
        cursor, before = durable_cursor(state_dir), state_of(source)
        os.link(mount.mountpoint / "b/file", mount.mountpoint / "a/other")
        (mount.mountpoint / "a/other").write_text("after")
        (mount.mountpoint / "a/other").unlink()
        mount.process.send_signal(signal.SIGKILL)
        mount.process.wait()
    async with journalled(source, state_dir, is_exclusive=True) as journal:
        changes, fresh = await journal.since(cursor)
    assert not fresh
    assert not missing(before, state_of(source), changes)


def work_until_powerless(mount: Mount, disk: Path, state_dir: Path, random: Random) -> Taken:
    """Change the tree from both sides, taking cursors at times, until the power fails."""
    workload = Workload(random, mount.source, mount.mountpoint)
    taken: Taken = [(durable_cursor(state_dir), state_of(mount.source))]
    for _ in range(random.randrange(5, 60)):
        workload.step()
        if random.random() < 0.1:
            taken.append((durable_cursor(state_dir), state_of(mount.source)))
        if random.random() < 0.05:
            subprocess.run(["sync", "-f", mount.source], check=True)
    _fail_power(disk, mount)
    return taken


def _fail_power(disk: Path, mount: Mount) -> None:
    _shut_down(disk)
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait()


def _shut_down(disk: Path) -> None:
    fd = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_THE_LOG)
    finally:
        os.close(fd)


def _mount_again(disk: Path) -> None:
    """Mount a filesystem anew, so that it finds what its disk holds."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (kind,) = (kind for _, place, kind, *_ in mounts if place == str(disk))
    _linux.umount2(os.fsencode(disk), 0)
    subprocess.run(["mount", "-t", kind, "-o", "loop", disk.parent / "image", disk], check=True)
