"""Convergence of those who read late: a mirror whose queue is full again and again ends up with the tree."""

import itertools
import random
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fusenotify import Event, Group, Kind, open_group
from tests.harness import PATIENCE, Mount, patched
from tests.soak import SEED, examples
from tests.test_replica import Mirror, Workload, clean, differences, shared

__all__ = ["clean", "shared"]  # fixtures

STEPS = 150
# Of few paths only it is noted one by one that they are in doubt; directories stand for the others.
_FORGETFUL = """
from fusenotify.doubt import Doubt
Doubt.__init__.__defaults__ = (6, 4096)
"""


@pytest.fixture(scope="module")
def shared_forgetful(tmpfs: Path) -> Iterator[Mount]:
    with tempfile.TemporaryDirectory(dir=tmpfs) as name, patched(Path(name), _FORGETFUL) as mount:
        yield mount


@pytest.fixture
def forgetful(shared_forgetful: Mount) -> Iterator[Mount]:
    """A daemon that has little room for what a group has missed, and an empty tree."""
    outside = shared_forgetful.source.parent / "outside"
    outside.mkdir()
    yield shared_forgetful
    shutil.rmtree(outside)
    for entry in shared_forgetful.source.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


@pytest.mark.parametrize("seed", range(SEED, SEED + examples(30, 2000)))
async def test_a_mirror_that_reads_late_converges(clean: Mount, seed: int) -> None:
    await converge(clean, seed)


@pytest.mark.parametrize("seed", range(SEED, SEED + examples(30, 2000)))
async def test_a_mirror_converges_when_directories_stand_for_what_was_missed(forgetful: Mount, seed: int) -> None:
    await converge(forgetful, seed)
    assert "Traceback" not in forgetful.log


async def converge(clean: Mount, seed: int) -> None:
    dice = random.Random(seed)
    limit = dice.choice([1, 2, 10, 30, 100])
    sides = {"source": clean.source, "mount": clean.mountpoint}
    marked = dice.choice([".", "in"])
    if marked == "in":
        for name in ("in", "out"):
            (clean.source / name).mkdir()
        inside = {side: root / "in" for side, root in sides.items()}
        outside = {side: root / "out" for side, root in sides.items()}
    else:
        inside, outside = sides, {"source": clean.source.parent / "outside"}
    used = dice.choice([("source",), ("mount",), ("source", "mount")])
    workload = Workload(random.Random(f"{seed} work"), inside, outside, True, threading.Lock())

    async with open_group(limit=limit) as group:
        target = f"unix:{clean.socket}" if marked == "." and dice.random() < 0.5 else inside["mount"]
        await group.mark(target)
        mirror = Mirror(group, clean.source)
        with trio.fail_after(PATIENCE):
            for _ in range(dice.randrange(1, 4)):
                if dice.random() < 0.5:
                    await read_along(mirror, group, workload, used)
                else:
                    await read_some(mirror, group, workload, used, dice.randrange(2 * limit))
            await settle(mirror, group, inside["source"])
    wrong = differences(mirror, clean.source, inside["source"])
    wrong.pop(marked, None)  # the marked directory itself is told of by nobody
    done = "\n".join(workload.log)
    assert not wrong, f"(told, there): {wrong}\nlimit {limit}, {used}\n--- done\n{done}\n--- told\n{mirror.story()}"


async def read_along(mirror: Mirror, group: Group, workload: Workload, used: tuple[str, ...]) -> None:
    """Have changes made and read as they come, which may be too slow."""

    async def read() -> None:
        async for event in group:
            mirror.take(event)

    async with trio.open_nursery() as reading:
        reading.start_soon(read)
        await trio.to_thread.run_sync(workload.run, STEPS // 3, used)
        reading.cancel_scope.cancel()


async def read_some(mirror: Mirror, group: Group, workload: Workload, used: tuple[str, ...], count: int) -> None:
    """Have changes made, and read some of what they bring."""
    await trio.to_thread.run_sync(workload.run, STEPS // 3, used)
    for number in range(count):  # there has to be something, whatever is being told
        (workload.inside["source"] / f"tick {len(workload.log)} {number}").touch()
    for _ in range(count // 2):
        mirror.take(await anext(group))


async def settle(mirror: Mirror, group: Group, place: Path) -> None:
    """Apply events until a change is told as it happens: by then everything that was missed has been told."""
    for number in itertools.count():
        probe = place / f"probe{number}"
        probe.touch()
        told = await until(mirror, group, probe.name)
        probe.unlink()
        # Where everything is in doubt it is not said of each name that it has gone: an overflow event has to do.
        await until(mirror, group, probe.name, Kind.DELETE | Kind.OVERFLOW)
        if not told.recovered:
            return


async def until(mirror: Mirror, group: Group, name: str, kinds: Kind = ~Kind.OVERFLOW) -> Event:
    async for event in group:
        mirror.take(event)
        if event.kind in kinds and (event.kind is Kind.OVERFLOW or (event.path or "").rpartition("/")[2] == name):
            return event
    raise AssertionError
