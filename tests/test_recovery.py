"""After an overflow of the kernel's queue everything that was missed is told: by names, by identity, by times."""

import contextlib
import json
import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from fusenotify import Event, Group, Kind, Reason, open_group
from tests.harness import PATIENCE, Mount, run
from tests.soak import SEED, examples
from tests.test_replica import Mirror, Workload, differences, exchange

STEPS = 24


def overflow(directory: Path) -> None:
    """Raise more events than the kernel's queue holds, so that what follows is lost unless somebody reads them."""
    files = [directory / "noise", directory / "more noise"]
    for file in files:
        file.touch()
    for number in range(int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) + 2):
        os.utime(files[number % 2])
    for file in files:
        file.unlink()


@contextlib.contextmanager
def deafened(mount: Mount) -> Iterator[None]:
    """Stop the daemon and fill the kernel's queue; what is done in the block is lost."""
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, mount.pid, os.WSTOPPED)
        overflow(mount.source)
        yield
    finally:
        os.kill(mount.pid, signal.SIGCONT)


@pytest.mark.parametrize("number", range(examples(24, 400)))
async def test_a_mirror_converges_through_overflows(mount: Mount, number: int) -> None:
    dice = random.Random(f"{SEED} {number}")
    outside = mount.source.parent / "outside"
    outside.mkdir()
    inside = {"source": mount.source, "mount": mount.mountpoint}
    workload = Workload(random.Random(f"{SEED} {number} work"), inside, {"source": outside}, True, threading.Lock())
    sides = dice.choice([("source",), ("source", "mount")])

    def work() -> None:
        for _ in range(dice.choice([1, 2])):
            workload.run(STEPS, sides)
            os.kill(mount.pid, signal.SIGSTOP)
            try:
                workload.run(STEPS // 4, ("source",))  # these are heard, and late
                overflow(mount.source)
                workload.run(STEPS, ("source",))
            finally:
                os.kill(mount.pid, signal.SIGCONT)
            workload.run(STEPS, sides)  # while it recovers

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        mirror = Mirror(group, mount.source)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as reading:
                reading.start_soon(mirror.follow, "end")
                await trio.to_thread.run_sync(work)
                await group.sync()
                (mount.source / "end").touch()
    (mount.source / "end").unlink()
    wrong = differences(mirror, mount.source, mount.source)
    done = "\n".join(workload.log)
    assert any(event.reason is Reason.KERNEL for event in mirror.events)
    assert not wrong, f"(told, there): {wrong}\n--- done\n{done}\n--- told\n{mirror.story()}"
