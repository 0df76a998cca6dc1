"""Who watches the mount natively, as /proc tells it."""

import ctypes
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import pytest
import trio
import trio.testing
from inotify_simple import INotify, flags

from fusenotify import backlog, onlookers, procmarks
from fusenotify.backlog import Backlog
from fusenotify.events import CREATE, EventRecord
from fusenotify.onlookers import Onlookers
from fusenotify.planning import Planner
from fusenotify.procmarks import Looker
from tests.harness import PATIENCE, Mount

_libc = ctypes.CDLL(None, use_errno=True)
_FAN_MARK_ADD, _FAN_MARK_MOUNT, _FAN_MARK_FILESYSTEM = 0x1, 0x10, 0x100
_FAN_REPORT_DFID_NAME = 0xC00
_FAN_MODIFY, _FAN_CLOSE_WRITE, _FAN_OPEN, _FAN_OPEN_PERM, _FAN_CREATE = 0x2, 0x8, 0x20, 0x10000, 0x100
_FAN_CLASS_CONTENT = 0x4


def minor_of(mount: Mount) -> int:
    return os.minor(os.stat(mount.mountpoint).st_dev)


def looked(mount: Mount) -> Looker:
    looker = Looker(minor_of(mount), frozenset({mount.pid}))
    looker.look()
    return looker


def nodeid_of(path: Path) -> int:
    """The backing's inode number, of whatever is not the root."""
    return path.stat().st_ino


@pytest.fixture
def fanotify() -> Iterator[Callable[[Path, int, int, int], int]]:
    """Mark a path in a new fanotify group, which is closed at the end."""
    groups: list[int] = []

    def mark(path: Path, kind: int, mask: int, group_flags: int = 0) -> int:
        group = _libc.fanotify_init(group_flags, os.O_RDONLY)
        assert group >= 0, os.strerror(ctypes.get_errno())
        groups.append(group)
        done = _libc.fanotify_mark(group, _FAN_MARK_ADD | kind, ctypes.c_uint64(mask), -100, os.fsencode(path))
        assert done == 0, os.strerror(ctypes.get_errno())
        return int(group)

    yield mark
    for group in groups:
        os.close(group)


def test_inotify_watches(mount: Mount) -> None:
    for name in ("watched", "used", "unwatched"):
        (mount.source / name).mkdir()
    (mount.source / "file").touch()
    with INotify() as inotify:
        inotify.add_watch(mount.mountpoint, flags.CREATE)  # its nodeid is 1, whatever stat(2) shows
        inotify.add_watch(mount.mountpoint / "watched", flags.MOVED_TO)
        inotify.add_watch(mount.mountpoint / "used", flags.OPEN | flags.ACCESS)  # a replay raises nothing for it
        watch = inotify.add_watch(mount.mountpoint / "file", flags.MODIFY)
        inotify.add_watch(mount.source, flags.CREATE)  # of another filesystem
        directory, file = nodeid_of(mount.mountpoint / "watched"), nodeid_of(mount.mountpoint / "file")
        assert looked(mount).nodeids == {1, directory, file}
        inotify.rm_watch(watch)
        assert looked(mount).nodeids == {1, directory}
    found = looked(mount)
    assert found.nodeids == set()
    assert not found.is_everything


def test_fanotify_marks_on_objects(mount: Mount, fanotify: Callable[..., int]) -> None:
    (mount.source / "directory").mkdir()
    (mount.source / "file").touch()
    fanotify(mount.mountpoint / "directory", 0, _FAN_CREATE, _FAN_REPORT_DFID_NAME)
    fanotify(mount.mountpoint / "file", 0, _FAN_MODIFY)
    fanotify(mount.mountpoint, 0, _FAN_OPEN)
    fanotify(mount.mountpoint, 0, _FAN_OPEN_PERM, _FAN_CLASS_CONTENT)
    found = looked(mount)
    assert found.nodeids == {nodeid_of(mount.mountpoint / name) for name in ("directory", "file")}
    assert not found.is_everything


@pytest.mark.parametrize("kind", [_FAN_MARK_MOUNT, _FAN_MARK_FILESYSTEM])
def test_fanotify_marks_on_everything(mount: Mount, fanotify: Callable[..., int], kind: int) -> None:
    fanotify(mount.mountpoint, kind, _FAN_OPEN)
    fanotify(mount.source, _FAN_MARK_MOUNT, _FAN_CLOSE_WRITE)
    assert not looked(mount).is_everything
    fanotify(mount.mountpoint, kind, _FAN_CLOSE_WRITE)
    assert looked(mount).is_everything


def test_the_daemon_and_its_groups_are_no_onlookers(mount: Mount, watching: Callable[..., object]) -> None:
    watching(mount.mountpoint)
    found = looked(mount)
    assert found.nodeids == set()
    assert not found.is_everything


def test_the_program_answers_and_ends_with_its_input(mount: Mount) -> None:
    command = [sys.executable, "-I", "-S", procmarks.__file__, str(mount.pid)]
    with (
        INotify() as inotify,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as program,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        for expected in (0, 1):
            program.stdin.write(procmarks.REQUEST.pack(minor_of(mount)))
            _, is_everything, _, count = procmarks.HEADER.unpack(program.stdout.read(procmarks.HEADER.size))
            assert (is_everything, count) == (0, expected)
            assert program.stdout.read(8 * count) == (b"", (1).to_bytes(8, sys.byteorder))[expected]
            inotify.add_watch(mount.mountpoint, flags.CREATE)
        program.stdin.close()
        assert program.wait(PATIENCE) == 0


# --- what is made of it --------------------------------------------------------------------------------------------


@asynccontextmanager
async def looking(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Onlookers]:
    """Onlookers that look, also on a machine on which a process cannot be looked at."""
    monkeypatch.setattr(onlookers, "what_hides_processes", lambda: "")
    found = Onlookers("auto", [mount.pid, 1])
    async with found.prepared(), trio.open_nursery() as nursery:
        nursery.start_soon(found.run, f"0:{minor_of(mount)}")
        with trio.fail_after(PATIENCE):
            yield found
        nursery.cancel_scope.cancel()


async def test_who_watches_is_known_after_a_look_only(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    async with looking(mount, monkeypatch) as found:
        stamp = found.stamp
        assert found.wanted([1], stamp) is None
        assert found.is_nobody(stamp) is None
        await found.settled(stamp)
        assert found.wanted([1], stamp) is False
        assert found.is_nobody(stamp) is True
        stamp = found.stamp
        with INotify() as inotify:
            inotify.add_watch(mount.mountpoint, flags.CREATE)
            assert found.wanted([1], stamp) is None  # there was no look since
            await found.settled(stamp)
            assert found.wanted([1, 5], stamp) is True
            assert found.wanted([5], stamp) is False
            assert found.wanted([1], found.stamp) is True  # at once, as it is known
            assert found.is_nobody(found.stamp) is False


async def test_what_is_not_watched_any_more_is_forgotten(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onlookers, "_LASTS", 0.0)
    async with looking(mount, monkeypatch) as found:
        with INotify() as inotify:
            inotify.add_watch(mount.mountpoint, flags.CREATE)
            await found.settled(found.stamp)
            assert found.wanted([1], found.stamp) is True
        stamp = found.stamp
        while found.wanted([1], stamp) is True:
            await trio.lowlevel.checkpoint()
        await found.settled(stamp)
        assert found.wanted([1], stamp) is False


async def test_nobody_looks_while_nothing_changes(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    async with looking(mount, monkeypatch) as found:
        await trio.testing.wait_all_tasks_blocked()
        assert found.stamp == 0
        await found.settled(0)
        await trio.testing.wait_all_tasks_blocked()
        assert found.stamp == 1


async def test_a_process_that_cannot_be_looked_at_may_watch_everything(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hidden(*_: object) -> tuple[float, bool, int, frozenset[int]]:
        return 0.0, False, 2, frozenset()

    monkeypatch.setattr(onlookers._Program, "look", hidden)
    async with looking(mount, monkeypatch) as found:
        stamp = found.stamp
        await found.settled(stamp)
        assert found.wanted([5], stamp) is True
        assert found.reason == "to all: 2 processes do not let themselves be looked at"


async def test_another_program_looks_when_one_has_failed(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onlookers, "_PAUSE", 0.0)
    monkeypatch.setattr(onlookers, "_LASTS", 0.0)
    look = onlookers._Program.look
    looks = iter([EOFError("it has ended")])

    async def fail_once(program: onlookers._Program, minor: int) -> tuple[float, bool, int, frozenset[int]]:
        for error in looks:
            raise error
        return await look(program, minor)

    monkeypatch.setattr(onlookers._Program, "look", fail_once)
    async with looking(mount, monkeypatch) as found:
        await found.settled(0)
        assert found.wanted([5], 0) is True
        assert "failed" in found.reason
        stamp = found.stamp
        while found.wanted([5], stamp) is True:
            await trio.lowlevel.checkpoint()
        assert found.reason == "to those who watch"


async def test_no_program_can_be_started(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    async with looking(mount, monkeypatch) as found:
        await found.settled(0)
        assert found.wanted([5], 0) is True
        assert "failed" in found.reason


@pytest.mark.parametrize("native", ["always", "off"])
async def test_without_auto_nobody_looks(native: str) -> None:
    found = Onlookers(native, ())
    assert found.reason == "to all: asked for"
    assert found.wanted([5], found.stamp) is True
    await found.settled(found.stamp)
    await found.run("0:0")


# --- what is held back ---------------------------------------------------------------------------------------------


class Told:
    """A backlog, and what it passes on or takes for unexpected, instead of a planner."""

    def __init__(self, found: Onlookers) -> None:
        self.paths: list[bytes | None] = []
        self.ignored: list[bytes | None] = []
        self.backlog = Backlog(found, cast(Planner, self))

    def follow(self, records: Sequence[EventRecord], stamp: int) -> None:
        self.paths += [record.path for record in records]

    def ignore(self, records: Iterable[EventRecord]) -> None:
        self.ignored += [record.path for record in records]

    def tell(self, path: bytes) -> None:
        self.backlog.follow([EventRecord(1, 0, CREATE, 0, path)])


async def test_what_nobody_can_have_expected_is_dropped(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    async with looking(mount, monkeypatch) as found:
        told = Told(found)
        told.tell(b"a")
        await found.settled(0)
        stamp = found.stamp
        told.tell(b"b")
        assert told.paths == []
        assert told.ignored == [b"a"]
        with INotify() as inotify:
            inotify.add_watch(mount.mountpoint, flags.CREATE)
            await found.settled(stamp)
            assert told.paths == [b"b"]  # it may have been watched by then
            told.tell(b"c")
            assert told.paths == [b"b", b"c"]


async def test_a_storm_that_nobody_watches_is_dropped(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look is due in a long time only, and would come too late."""
    monkeypatch.setattr(onlookers, "_SHARE_UNWATCHED", 1e9)
    async with looking(mount, monkeypatch) as found:
        told = Told(found)
        await found.settled(found.stamp)
        for _ in range(3):
            stamp = found.stamp
            for number in range(backlog._MANY_HELD + 1):
                told.tell(b"%d" % number)
            await found.settled(stamp)
        assert told.paths == []
        assert len(told.ignored) == 3 * (backlog._MANY_HELD + 1)


async def test_paths_that_become_wrong_are_passed_on(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    async with looking(mount, monkeypatch) as found:
        told = Told(found)
        told.tell(b"a")
        told.backlog.release()
        told.tell(b"b")
        await found.settled(0)
        assert told.paths == [b"a"]
