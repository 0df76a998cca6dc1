"""The processes that native delivery takes: when they are born, what they are told, and what is done without them."""

import errno
import os
import signal
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from fusenotify import events, replaying
from fusenotify.identity import InodeKey, InodeNumber
from fusenotify.orders import REMOVE
from fusenotify.plans import Pending, Place, Plan
from fusenotify.references import NowhereReference
from fusenotify.replaying import Replaying
from tests.harness import PATIENCE, Mount, Watch, patched
from tests.onlooker import onlooking
from tests.test_plans import Followed
from tests.test_replay import await_condition

# While the mount is there, a replayer is born when the file `conceive` is there only, and keeps its copies of the
# daemon's descriptors until the file `go` is. The file `born` tells of it.
_SLOW_BIRTHS = """
import os, subprocess, time
os.chdir({directory!r})
_begin = subprocess.Popen.__init__

def await_while_mounted(name):
    while {directory!r} + "/mount" in open("/proc/self/mountinfo").read() and not os.path.exists(name):
        time.sleep(0.01)

def linger():
    open("born", "w").close()
    await_while_mounted("go")

def begin(self, command, cwd=None, **kwargs):
    if any("replayer" in word for word in command):
        await_while_mounted("conceive")
        kwargs["preexec_fn"] = linger
    _begin(self, command, **kwargs)

subprocess.Popen.__init__ = begin
"""


@pytest.fixture
def slow_births(directory: Path) -> Iterator[Mount]:
    """A mount whose daemon's replayer is slow to close what it inherits."""
    with patched(directory, _SLOW_BIRTHS.format(directory=str(directory))) as mount:
        try:
            yield mount
        finally:
            (directory / "go").touch()


def conceive(directory: Path) -> None:
    """Return when there is a replayer, which keeps what it inherits if it is not older than the mount."""
    (directory / "conceive").touch()
    await_condition((directory / "born").exists)


def test_no_child_puts_off_the_close_of_a_file(
    directory: Path, slow_births: Mount, watching: Callable[..., Watch]
) -> None:
    watch = watching(slow_births.mountpoint, "--kinds", "close_write,rename")
    with (slow_births.mountpoint / "file").open("w"):
        conceive(directory)
    (directory / "go").touch()
    with onlooking(slow_births) as onlooker:
        onlooker.events()  # which the replayer makes: it has closed everything
    (slow_births.mountpoint / "file").rename(slow_births.mountpoint / "end")
    assert [(one["kind"], one["origin"], one["pid"]) for one in watch.until("end")] == [
        ("close_write", "local", os.getpid()), ("rename", "local", os.getpid())
    ]  # fmt: skip


def test_no_child_keeps_the_mount_of_a_daemon_that_is_killed(directory: Path, slow_births: Mount) -> None:
    conceive(directory)
    slow_births.stop(signal.SIGKILL)
    looked = subprocess.run(
        ["stat", str(slow_births.mountpoint)], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert os.strerror(errno.ENOTCONN) in looked.stderr


_NONE_AT_FIRST = """
import errno
from fusenotify import replaying
start, attempts = replaying._Replayer.start, iter("12")

async def fail_twice():
    for _ in attempts:
        raise OSError(errno.EAGAIN, "no more processes")
    return await start()

replaying._Replayer.start, replaying._RETRY = fail_twice, 0.0
"""
_DEAD_AT_FIRST = """
from fusenotify import replaying
introduce, attempts = replaying._Replayer.introduce, iter("12")

async def die_twice(self, *args):
    for _ in attempts:
        self._process.kill()
        await self._process.wait()
        break
    await introduce(self, *args)

replaying._Replayer.introduce, replaying._RETRY = die_twice, 0.0
"""


@pytest.mark.parametrize("patch", [_NONE_AT_FIRST, _DEAD_AT_FIRST])
def test_it_is_tried_again_when_no_replayer_can_be_started(directory: Path, patch: str) -> None:
    with patched(directory, patch) as mount, onlooking(mount) as onlooker:
        onlooker.watch(".")
        (mount.source / "heard").mkdir()
        assert onlooker.events() == [".: CREATE|ISDIR heard"]
        assert "no replayer can be started" in mount.log
        assert "Traceback" not in mount.log


def test_what_stands_for_outside_is_there_for_the_replayer_only(directory: Path) -> None:
    """Somebody else who knows the name finds nothing, also while the replayer works in it."""
    known = "from fusenotify import replay\nreplay.secrets.token_hex = lambda size: 'known'"
    with patched(directory, known) as mount, onlooking(mount) as onlooker:
        onlooker.watch(".")
        onlooker.events()
        outside = mount.mountpoint / ".fusenotify-known"
        for number in range(50):
            (mount.source / "a").mkdir()
            (mount.source / "a").rename(directory / f"out{number}")
            for use in (os.lstat, os.listdir, os.rmdir, lambda path: os.rename(path, mount.mountpoint / "b")):
                with pytest.raises(FileNotFoundError):
                    use(outside)
        heard = onlooker.events()
        assert heard == [".: CREATE|ISDIR a", ".: MOVED_FROM|ISDIR a"] * 50


# --- a filesystem that is silent -----------------------------------------------------------------------------------

_SILENT = 2  # its device number


class Silence:
    """Filesystems of which one is distant, and does not answer before it is told to.

    Attributes:
        asked: the devices that were asked, in order.
        speaks: set when it answers.
    """

    distant = {_SILENT: "/somewhere"}  # noqa: RUF012 - as the real ones have it

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.speaks = threading.Event()

    def answers(self, device: int) -> bool:
        return device != _SILENT or self.speaks.is_set()

    def is_silent(self, device: int) -> bool:
        return device in self.asked and not self.answers(device)

    def ask(self, device: int) -> None:
        self.asked.append(device)
        self.speaks.wait(PATIENCE)


class Finished:
    """Stands where plans are taken back, and notes how they went."""

    def __init__(self) -> None:
        self.errors: list[tuple[Plan, int]] = []

    def finish(self, plan: Plan, error: int) -> None:
        self.errors.append((plan, error))


class Ways:
    """Knows of every directory that it is in the root."""

    def way_to(self, plan: Plan, place: Place) -> bytes:
        return place.way


def on_two_filesystems() -> list[Plan]:
    """Return plans of a removal from a filesystem that answers, and of one from the silent one."""
    followed, pending = Followed(), Pending()
    key = InodeKey(_SILENT, 7)
    below = followed.table.remember(InodeNumber(_SILENT, 7, 0), key, NowhereReference, stat.S_IFDIR)
    for directory, name in (followed.root, b"here"), (below, b"there"):
        pending.add(events.DELETE, 0, Place(directory, name), None)
    return pending.take(2)


async def test_what_is_on_a_silent_filesystem_is_given_up() -> None:
    silence, finished = Silence(), Finished()
    fakes: list[Any] = [Followed().planner, None, finished, Ways(), silence, None, "/mount"]
    replays = Replaying(*fakes)
    here, there = on_two_filesystems()
    try:
        for _ in range(2):  # it is asked once, and no other thread waits for it
            assert [plan for plan, _ in await replays._orders([here, there])] == [here]
            assert finished.errors.pop() == (there, errno.ETIMEDOUT)
        assert silence.asked == [_SILENT]
    finally:
        silence.speaks.set()
    orders = await replays._orders([here, there])
    assert [(order.what, order.name.name) for _, order in orders] == [
        (REMOVE, b"here"), (REMOVE, b"there")
    ]  # fmt: skip
    assert not finished.errors


async def test_a_filesystem_that_takes_its_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replaying, "_PATIENCE", PATIENCE)
    silence, finished = Silence(), Finished()
    fakes: list[Any] = [Followed().planner, None, finished, Ways(), silence, None, "/mount"]
    plans = on_two_filesystems()
    ordered: list[Plan] = []

    async def order() -> None:
        ordered.extend(plan for plan, _ in await Replaying(*fakes)._orders(plans))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(order)
        await trio.testing.wait_all_tasks_blocked()
        assert not ordered
        silence.speaks.set()
    assert ordered == plans
    assert not finished.errors
