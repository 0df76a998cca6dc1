"""Events are lost only with a word: overflows of the kernel's queue and of a group's own."""

import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from fusenotify import Event, Group, Kind, Reason, open_group
from tests.harness import PATIENCE, Mount, Watch
from tests.reading import until

LIMIT = 100


@contextlib.contextmanager
def blackout(mount: Mount) -> Iterator[None]:
    """Stop the daemon; nothing may touch the mount meanwhile."""
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, mount.pid, os.WSTOPPED)
        yield
    finally:
        os.kill(mount.pid, signal.SIGCONT)


def more_than_the_kernel_holds() -> int:
    return int(Path("/proc/sys/fs/inotify/max_queued_events").read_text()) + 4000


def test_an_overflow_of_the_kernel_reaches_every_group_once(mount: Mount, watching: Callable[..., Watch]) -> None:
    for name in ("kept", "renamed", "renamed/below", "deleted"):
        (mount.source / name).mkdir()
    kinds = ("--kinds", "create,delete,rename")
    watches = [watching(*kinds, mount.mountpoint), watching(*kinds, f"unix:{mount.socket}")]
    with blackout(mount):
        for number in range(more_than_the_kernel_holds()):
            (mount.source / "kept" / f"file{number}").touch()
        (mount.source / "made").mkdir()
        (mount.source / "made" / "below").mkdir()
        (mount.source / "renamed").rename(mount.source / "new name")
        (mount.source / "deleted").rmdir()
        (mount.source / "deleted").mkdir()
    for watch in watches:
        lines = until_overflow(watch)
        assert [line["path"] for line in lines[:-1]] == [f"kept/file{number}" for number in range(len(lines) - 1)]
        assert (lines[-1]["reason"], lines[-1]["path"]) == ("kernel", None)

    places = ["made/x", "made/below/x", "new name/x", "new name/below/x", "deleted/x", "kept/x"]
    for place in places:
        (mount.source / place).mkdir()
    (mount.source / "made").rename(mount.source / "made later")
    (mount.source / "end").touch()
    for watch in watches:
        told = [(line["kind"], line["path"]) for line in watch.until("end") if not line["recovered"]]
        assert told == [*(("create", place) for place in places), ("rename", "made later"), ("create", "end")]


def until_overflow(watch: Watch) -> list[dict[str, Any]]:
    """Return everything up to and including an overflow."""
    lines: list[dict[str, Any]] = []
    while not lines or lines[-1]["kind"] != "overflow":
        line = watch.next()
        assert line is not None, watch.errors()
        lines.append(line)
    return lines


async def test_a_full_queue_keeps_the_first_events_and_says_that_more_were_lost(mount: Mount) -> None:
    names = [f"file{number}" for number in range(3 * LIMIT)]
    async with open_group(limit=LIMIT) as group, open_group() as other:
        for one in (group, other):
            await one.mark(mount.mountpoint, kinds=Kind.CREATE)
        for name in names:
            (mount.source / name).touch()
        await other.sync()  # and with it, everything is in the queue of the group that does not read

        with trio.fail_after(PATIENCE):
            heard = [await anext(group) for _ in range(LIMIT + 1)]
        assert [event.path for event in heard[:-1]] == names[:LIMIT]
        assert (heard[-1].kind, heard[-1].reason, heard[-1].path) == (Kind.OVERFLOW, Reason.QUEUE, None)

        (mount.source / "last").touch()  # what is missed is told in the order of the names
        missed = await until(group, "last")
        assert {event.path for event in missed} == {*names[LIMIT:], "last"}
        assert all(event.recovered for event in missed[:-1])
        (mount.source / "end").touch()
        assert [event.path for event in await until(other, "end")] == [*names, "last", "end"]


async def live_again(group: Group, mount: Mount) -> list[Event]:
    """Read until a change is told as it happens, and return everything."""
    events: list[Event] = []
    for number in itertools.count():
        (mount.source / f"probe{number}").touch()
        events += await until(group, f"probe{number}")
        (mount.source / f"probe{number}").unlink()
        if not events[-1].recovered:
            return events
    raise AssertionError


async def test_every_time_a_queue_is_full_it_says_so(mount: Mount) -> None:
    async with open_group(limit=LIMIT) as group:
        await group.mark(mount.mountpoint, kinds=Kind.CREATE)
        for turn in range(3):
            for number in range(2 * LIMIT):
                (mount.source / f"{turn}-{number}").touch()
            await group.sync()
            with trio.fail_after(PATIENCE):
                heard = [await anext(group) for _ in range(LIMIT + 1)]
            assert [event.path for event in heard] == [*(f"{turn}-{number}" for number in range(LIMIT)), None]
            assert [event.kind for event in heard] == [*[Kind.CREATE] * LIMIT, Kind.OVERFLOW]
            missed = [event for event in await live_again(group, mount) if not (event.path or "").startswith("probe")]
            assert sorted(event.path or "" for event in missed) == sorted(
                f"{turn}-{number}" for number in range(LIMIT, 2 * LIMIT)
            )
            assert all(event.kind is Kind.CREATE and event.recovered for event in missed)
