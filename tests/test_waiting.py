"""The reader of requests waits on its own where it may, and never where anybody else could go on."""

import contextlib
import itertools
import math
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import trio

from fusenotify import waiting
from fusenotify.waiting import Requests
from tests.harness import Mount


class Pipe(NamedTuple):
    reading: int
    writing: int


@pytest.fixture
def pipes() -> Iterator[tuple[Pipe, Pipe]]:
    pipes = Pipe(*os.pipe()), Pipe(*os.pipe())
    yield pipes
    for fd in (*pipes[0], *pipes[1]):
        os.close(fd)


@pytest.fixture(params=["alone", "beside another event loop"], autouse=True)
def others(request: pytest.FixtureRequest) -> Iterator[None]:
    """The descriptor by which trio waits is not known where there is another one of its kind."""
    with select.epoll() if request.param != "alone" else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def begun(fd: int) -> Iterator[Requests]:
    requests = Requests(fd)
    requests.begin()
    try:
        yield requests
    finally:
        requests.end()


async def test_others_have_turns_while_requests_never_end(pipes: tuple[Pipe, Pipe]) -> None:
    os.write(pipes[0].writing, b"x")
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while turns < 20:
            await trio.lowlevel.checkpoint()
            turns += 1

    with begun(pipes[0].reading) as requests:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_turns)
            while turns < 20:
                await requests.wait()


async def test_who_sleeps_is_woken_while_requests_never_end(
    pipes: tuple[Pipe, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    # By this clock we never lose the processor, which would be a reason to give a turn.
    ticks = itertools.count(0, 0.000_001)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    os.write(pipes[0].writing, b"x")
    due, is_awake = math.inf, False

    async def sleep() -> None:
        nonlocal due, is_awake
        due = trio.current_time() + 0.1
        await trio.sleep_until(due)
        is_awake = True

    with begun(pipes[0].reading) as requests:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep)
            overslept = 0
            while not is_awake:
                await requests.wait()
                overslept += trio.current_time() > due
                assert overslept < 5000


async def test_others_go_on_at_once_behind_a_request_that_gives_way(
    pipes: tuple[Pipe, Pipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=lambda: 1.0))  # so no turn is due
    monkeypatch.setattr(waiting, "_GRACE", 10.0)
    os.write(pipes[0].writing, b"x")

    async def request() -> None:
        os.write(pipes[0].writing, b"x")

    with begun(pipes[0].reading) as requests:
        await requests.wait()
        os.read(pipes[0].reading, 1)
        async with trio.open_nursery() as nursery:
            began = trio.current_time()
            nursery.start_soon(request)
            requests.give_way()
            await requests.wait()
            assert trio.current_time() < began + 10


async def test_who_can_go_on_is_not_kept_waiting(pipes: tuple[Pipe, Pipe]) -> None:
    """Whoever has a turn to come: in this round or in the next, after a thread, after input, after a while."""
    requested, other = pipes

    async def after_turns() -> None:
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        os.write(requested.writing, b"x")

    async def after_a_thread() -> None:
        await trio.to_thread.run_sync(lambda: None)
        os.write(requested.writing, b"x")

    async def after_input() -> None:
        await trio.lowlevel.wait_readable(other.reading)
        os.write(requested.writing, b"x")

    async def after_a_while() -> None:
        await trio.sleep(0.01)
        await trio.to_thread.run_sync(os.write, other.writing, b"x")
        os.write(requested.writing, b"x")

    with begun(requested.reading) as requests:
        async with trio.open_nursery() as nursery:
            for task in (after_turns, after_a_thread, after_input, after_a_while):
                nursery.start_soon(task)
            for _ in range(4):
                await requests.wait()
                os.read(requested.reading, 1)


async def test_a_deadline_ends_it(pipes: tuple[Pipe, Pipe]) -> None:
    with begun(pipes[0].reading) as requests, trio.move_on_after(0.01) as scope:
        await requests.wait()
    assert scope.cancelled_caught


def test_an_idle_mount_sleeps(mount: Mount) -> None:
    (mount.mountpoint / "directory").mkdir()
    os.listdir(mount.mountpoint)
    before = _naps(mount.pid)
    time.sleep(1)  # that nothing happens meanwhile is what is tested
    # What that raised is told and written down, and others mount and unmount on this machine, which it hears.
    assert _naps(mount.pid) - before < 50


def _naps(pid: int) -> int:
    """Return how often the main thread of a process has gone to sleep of its own accord."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))
