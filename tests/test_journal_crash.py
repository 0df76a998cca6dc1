"""The journal after a daemon was killed, and after a power failure: every change is named."""

import contextlib
import fcntl
import os
import signal
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
import trio

from fusenotify import _linux
from fusenotify.rows import RACY
from tests.filesystems import filesystem
from tests.harness import Mount, changed
from tests.journalling import CONTROL, State, Workload, durable_cursor, journalled, missing, state_of
from tests.soak import SEED, examples

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, XFS_IOC_GOINGDOWN
_WITHOUT_THE_LOG = struct.pack("I", 2)
Taken = list[tuple[str, State]]  # cursors, each with what there was then


@contextlib.contextmanager
def running(source: Path, directory: Path, state_dir: Path) -> Iterator[Mount]:
    """Mount a tree; whatever becomes of the daemon, the mount is taken away."""
    for path in (source, directory / "mount", state_dir):
        path.mkdir(exist_ok=True)
    for name in ("store.control", "socket"):
        (state_dir / name).unlink(missing_ok=True)
    mount = Mount(source, directory / "mount", state_dir, command=changed(CONTROL))
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
    fd = os.open(disk, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_THE_LOG)
    finally:
        os.close(fd)
    mount.process.send_signal(signal.SIGKILL)
    mount.process.wait()


def _mount_again(disk: Path) -> None:
    """Mount a filesystem anew, so that it finds what its disk holds."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    (kind,) = (kind for _, place, kind, *_ in mounts if place == str(disk))
    _linux.umount2(os.fsencode(disk), 0)
    subprocess.run(["mount", "-t", kind, "-o", "loop", disk.parent / "image", disk], check=True)
