"""After an overflow of the kernel's queue everything that was missed is told: by names, by identity, by times."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from fusenotify import Event, Group, Kind, Origin, Reason, _linux, open_group
from tests.harness import PATIENCE, Mount, patched, run
from tests.mirror import Mirror, differences, tree
from tests.reading import until
from tests.soak import SEED, SOAK, examples
from tests.workload import NOISE, Workload, exchange, overflow_inotify

STEPS = 24


@contextlib.contextmanager
def deafened(mount: Mount) -> Iterator[None]:
    """Stop the daemon and fill the kernel's queue; what is done in the block is lost."""
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, mount.pid, os.WSTOPPED)
        overflow_inotify(mount.source)
        yield
    finally:
        os.kill(mount.pid, signal.SIGCONT)


@pytest.mark.parametrize("number", range(examples(8, 400)))
async def test_a_mirror_converges_through_overflows(mount: Mount, number: int) -> None:
    dice = random.Random(f"{SEED} {number}")
    outside = mount.source.parent / "outside"
    outside.mkdir()
    inside = {"source": mount.source / "in", "mount": mount.mountpoint / "in"}
    inside["source"].mkdir()
    for directory in range(dice.choice([0, 1500])):  # with these, looking takes long enough for much to happen
        (mount.source / "crowd" / f"{directory}").mkdir(parents=True)
    threads = dice.choice([1, 2])
    lock = threading.Lock()
    workloads = [
        Workload(random.Random(f"{SEED} {number} {one}"), inside, {"source": outside}, threads == 1, lock)
        for one in range(threads)
    ]
    first, sides = workloads[0], dice.choice([("source",), ("source", "mount")])

    def work() -> None:
        for _ in range(dice.choice([1, 2])):
            first.run(STEPS, sides)
            os.kill(mount.pid, signal.SIGSTOP)
            try:
                first.run(STEPS // 4, ("source",))  # these are heard, and late
                overflow_inotify(mount.source)
                first.run(STEPS, ("source",))
            finally:
                os.kill(mount.pid, signal.SIGCONT)
            if not SOAK:  # there changes go on while it recovers
                trio.from_thread.run(group.sync)
            together = [threading.Thread(target=one.run, args=(STEPS, sides)) for one in workloads]
            for thread in together:
                thread.start()
            for thread in together:
                thread.join()

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        mirror = Mirror(group, mount.source)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as reading:
                reading.start_soon(mirror.follow, "end")
                await trio.to_thread.run_sync(work)
                await group.sync()
                (mount.source / "end").touch()
    told = {path: seen for path, seen in mirror.replica.snapshot().items() if path.startswith("in/")}
    there = tree(mount.source, inside["source"])
    wrong = {path: (told.get(path), there.get(path)) for path in told | there if told.get(path) != there.get(path)}
    done = "\n".join(line for workload in workloads for line in workload.log)
    assert any(event.reason is Reason.KERNEL for event in mirror.events)
    assert not wrong, f"(told, there): {wrong}\n--- done\n{done}\n--- told\n{mirror.story()}"


async def until_settled(group: Group) -> None:
    """Return when what has been made until now is older than whatever may still be on its way."""
    made = time.monotonic()
    while time.monotonic() < made + 1.1:
        await group.sync()
    await group.sync()


def recovered(events: list[Event]) -> set[tuple[Kind, str | None, str | None]]:
    """Return what was told as recovered of anything but the directories in which names have changed."""
    told = [event for event in events if event.recovered]
    return {
        (one.kind, one.old_path, one.path)
        for one in told
        if not (one.kind is Kind.MODIFY and one.is_dir) and one.path not in NOISE
    }


async def lost(mount: Mount, group: Group, change: Callable[[Path], None]) -> list[Event]:
    """Return what is told of a change that was lost, from the overflow on."""
    with deafened(mount):
        change(mount.source)
    with trio.fail_after(PATIENCE):
        await group.sync()
        (mount.source / "end").touch()
        events = await until(group, "end")
    kinds = [event.kind for event in events]
    return events[kinds.index(Kind.OVERFLOW) : -1]


async def test_what_is_recovered_is_what_has_changed(mount: Mount) -> None:
    for name in ("a", "a/below", "b", "deleted", "deleted/below"):
        (mount.source / name).mkdir()
    for name in ("a/written", "a/chmodded", "a/moved", "a/left alone", "a/gone", "a/below/left alone", "swapped"):
        (mount.source / name).touch()

    def change(source: Path) -> None:
        (source / "a" / "written").write_text("new")
        (source / "a" / "chmodded").chmod(0o600)
        (source / "a" / "moved").rename(source / "b" / "moved")
        (source / "a" / "gone").unlink()
        (source / "a" / "below").rename(source / "b" / "new name")
        (source / "b" / "new name" / "made").touch()
        (source / "made").mkdir()
        (source / "made" / "file").touch()
        (source / "deleted" / "below").rmdir()
        (source / "deleted").rmdir()
        (source / "deleted").touch()

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        await until_settled(group)
        events = await lost(mount, group, change)
    assert recovered(events) == {
        (Kind.MODIFY, None, "a/written"),
        (Kind.MODIFY, None, "a/chmodded"),
        (Kind.RENAME, "a/moved", "b/moved"),
        (Kind.MODIFY, None, "b/moved"),
        (Kind.DELETE, None, "a/gone"),
        (Kind.RENAME, "a/below", "b/new name"),
        (Kind.CREATE, None, "b/new name/made"),
        (Kind.CREATE, None, "made"),
        (Kind.CREATE, None, "made/file"),
        (Kind.DELETE, None, "deleted"),
        (Kind.CREATE, None, "deleted"),
    }
    assert [event.reason for event in events if event.kind is Kind.OVERFLOW] == [Reason.KERNEL]


async def test_what_was_made_after_the_start_is_known_too(mount: Mount) -> None:
    def move(source: Path) -> None:
        for name in ("one", "other"):
            (source / name).rename(source / "directory" / name)

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        (mount.source / "directory").mkdir()
        (mount.mountpoint / "one").touch()
        (mount.source / "other").touch()
        await until_settled(group)
        events = await lost(mount, group, move)
    renames = {(one.old_path, one.path) for one in events if one.kind is Kind.RENAME}
    assert renames == {("one", "directory/one"), ("other", "directory/other")}


async def test_a_file_with_two_names(mount: Mount) -> None:
    (mount.source / "file").touch()

    def change(source: Path) -> None:
        os.link(source / "file", source / "link")
        (source / "file").unlink()

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        await until_settled(group)
        events = await lost(mount, group, change)
    assert (Kind.RENAME, "file", "link") in recovered(events)


async def test_two_directories_that_were_exchanged(mount: Mount) -> None:
    for name in ("one/one", "above/other/other"):
        (mount.source / name).mkdir(parents=True)

    def change(source: Path) -> None:
        exchange(source / "one", source / "above" / "other")
        (source / "above" / "other" / "one" / "made").touch()

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        events = await lost(mount, group, change)
        (swap,) = (event for event in events if event.kind is Kind.RENAME)
        assert (swap.exchange, swap.is_dir, swap.recovered) == (True, True, True)
        assert {swap.old_path, swap.path} == {"one", "above/other"}
        assert recovered([event for event in events if event is not swap]) == {
            (Kind.CREATE, None, "above/other/one/made"),
        }
        (mount.source / "one" / "other" / "later").touch()
        (mount.source / "above" / "other" / "one" / "later").touch()
        told = await until(group, "above/other/one/later")
    assert "one/other/later" in [event.path for event in told]


async def test_an_overflow_while_it_recovers(mount: Mount) -> None:
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        mirror = Mirror(group, mount.source)
        for number in range(300):
            (mount.source / f"{number}" / "below").mkdir(parents=True)
        with trio.fail_after(PATIENCE):
            await group.sync()
            for turn in range(3):
                with deafened(mount):
                    (mount.source / f"{turn}" / "below").rename(mount.source / f"{turn + 100}" / "moved")
                    (mount.source / f"{turn + 200}" / "below").rmdir()
                    (mount.source / f"made {turn}").mkdir()
                await mirror.follow_until(lambda event: event.kind is Kind.OVERFLOW)
            await group.sync()
            (mount.source / "end").touch()
            await mirror.follow("end")
    (mount.source / "end").unlink()
    assert differences(mirror, mount.source, mount.source) == {}
    state = json.loads(run("status", "--json", mount.mountpoint).stdout)
    assert state["overflows"] >= 2  # how many are still in the queue together is up to the scheduler
    assert 1 <= state["recoveries"] <= state["overflows"]


def prepare(source: Path) -> None:
    for name in ("above/place", "other/place/new/other", "place/deep", "gone/kept"):
        (source / name).mkdir(parents=True)


def make_new(source: Path) -> None:
    (source / "above" / "place" / "new").mkdir()
    (source / "above" / "place" / "new" / "file").touch()


def come_back_below(source: Path) -> None:
    """Have a directory told as gone, with the one above it, before it is told where it is now."""
    (source / "gone" / "kept").rename(source / "place" / "kept")
    (source / "gone").rmdir()
    (source / "gone").mkdir()


def come_back_below_and_make(path: str) -> Callable[[Path], None]:
    def change(source: Path) -> None:
        come_back_below(source)
        (source / path / "below").mkdir(parents=True)

    return change


@pytest.mark.parametrize(
    ("missed", "step", "one", "flags", "other"),
    [
        (make_new, "comparison.Comparison._meet", "above", 0, "elsewhere"),
        (make_new, "comparison.Comparison._meet", "above", _linux.RENAME_EXCHANGE, "other"),
        (make_new, "comparison.Comparison._new", "above", 0, "elsewhere"),
        (come_back_below_and_make("place/deep/made"), "repair.Repair.tell", "place/deep/made", 0, "place/kept/made"),
        (come_back_below_and_make("made"), "repair.Repair.tell", "made", 0, "place/kept/made"),
    ],
    ids=["before it is met", "exchanged", "before it is listed", "into what is told anew", "and back to what is above"],
)
async def test_what_moves_while_it_is_compared_is_found(
    directory: Path, missed: Callable[[Path], None], step: str, one: str, flags: int, other: str
) -> None:
    source = directory / "source"
    patch = RENAME_BEFORE.format(
        step=step, one=os.fsencode(source / one), other=os.fsencode(source / other), flags=flags
    )
    with patched(directory, patch) as mount:
        async with open_group() as group:
            await group.mark(f"unix:{mount.socket}")
            mirror = Mirror(group, source)
            prepare(source)
            await group.sync()
            with deafened(mount):
                missed(source)
            with trio.fail_after(PATIENCE):
                await group.sync()
                for path in [path for path in source.rglob("*") if path.is_dir()]:
                    (path / "later").touch()
                await group.sync()
                (source / "end").touch()
                await mirror.follow("end")
        (source / "end").unlink()
        assert differences(mirror, source, source) == {}, mirror.story()


RENAME_BEFORE = """
from fusenotify import _linux, comparison, repair
original = {step}
def moved_first(self, *arguments):
    {step} = original
    _linux.renameat2(-100, {one}, -100, {other}, {flags})
    return original(self, *arguments)
{step} = moved_first
"""


async def test_an_idle_tree_stays_idle_after_a_recovery(mount: Mount) -> None:
    for number in range(100):
        (mount.source / f"{number}").mkdir()
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}", kinds=Kind.DEFAULT)
        await lost(mount, group, lambda source: None)
        await group.sync()
        before = json.loads(run("status", "--json", mount.mountpoint).stdout)
        await until_settled(group)
        after = json.loads(run("status", "--json", mount.mountpoint).stdout)
    assert (after["overflows"], after["recoveries"]) == (1, 1)
    assert after["cursor"] == before["cursor"]


async def test_operations_through_the_mount_that_were_lost_are_told_as_local(mount: Mount) -> None:
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        with deafened(mount):
            pass
        (mount.mountpoint / "made").touch()  # the queue is still full, or being recovered from
        with trio.fail_after(PATIENCE):
            await group.sync()
            (mount.source / "end").touch()
            events = await until(group, "end")
    creates = [(event.origin, event.pid) for event in events if event.kind is Kind.CREATE and event.path == "made"]
    assert (Origin.LOCAL, os.getpid()) in creates
