"""The fanotify watcher: who did what, what merges while it is unread, and what is none of the tree's business."""

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from fusenotify import Kind, Origin, Scope, _fanotify, _linux, open_group
from tests.filesystems import filesystem
from tests.harness import PATIENCE, Mount, Watch, mounted, patched, run
from tests.mirror import Mirror, differences
from tests.reading import until
from tests.test_overflow import blackout
from tests.workload import exchange

WRITES = 300
FANOTIFY = ["--watcher", "fanotify"]
SIZES = {"ext4": "64M", "xfs": "320M"}


@pytest.fixture
def mount(directory: Path) -> Iterator[Mount]:
    """A mounted, empty backing tree that fanotify hears."""
    with mounted(directory, FANOTIFY) as mount:
        yield mount


def what_the_kernel_holds() -> int:
    return int(Path("/proc/sys/fs/fanotify/max_queued_events").read_text())


@contextmanager
def child(*arguments: str | Path) -> "Iterator[subprocess.Popen[bytes]]":
    """Run some Python that reads and writes lines, until the end of the block."""
    command = [sys.executable, "-c", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        yield process
        process.communicate()


# --- who -------------------------------------------------------------------------------------------------------------


async def test_every_change_says_who_made_it(mount: Mount) -> None:
    for place in (mount.source.parent, mount.source):
        place.chmod(0o777)
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        with child(TOUCH_AS_NOBODY, mount.source / "theirs") as other:
            assert other.stdout is not None
            await trio.to_thread.run_sync(other.stdout.readline)
            await group.sync()
        (mount.source / "mine").mkdir()
        (mount.mountpoint / "through the mount").mkdir()
        await group.sync()
        (mount.source / "end").mkdir()
        *events, _ = await until(group, "end")
    assert [(event.path, event.kind, event.pid, event.uid, event.origin) for event in events] == [
        ("theirs", Kind.CREATE, other.pid, 65534, Origin.REMOTE),
        ("theirs", Kind.CLOSE_WRITE, other.pid, 65534, Origin.REMOTE),
        ("mine", Kind.CREATE, os.getpid(), 0, Origin.REMOTE),
        ("through the mount", Kind.CREATE, os.getpid(), 0, Origin.LOCAL),
    ]


TOUCH_AS_NOBODY = """
import os, sys
os.setuid(65534)
open(sys.argv[1], "w").close()
print(flush=True)
sys.stdin.read()
"""


def hammer(path: Path) -> None:
    """Write to a file again and again, and close it each time."""
    for number in range(WRITES):
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"%d" % number)
        os.close(fd)


async def test_no_change_of_the_other_side_is_lost_while_both_hammer_one_file(mount: Mount) -> None:
    (mount.source / "file").touch()
    async with open_group() as group:
        await group.mark(mount.mountpoint)
        with child(HAMMER, mount.source / "file") as other:
            assert other.stdin is not None
            assert other.stdout is not None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, hammer, mount.mountpoint / "file")
                for _ in range(WRITES):  # each is told before the next is made, or two of them might merge
                    other.stdin.write(b"\n")
                    await trio.to_thread.run_sync(other.stdout.readline)
                    await group.sync()
        (mount.source / "end").mkdir()
        *events, _ = await until(group, "end")
    by_others = [event.kind for event in events if event.origin is Origin.REMOTE]
    assert by_others == [Kind.MODIFY, Kind.CLOSE_WRITE] * WRITES
    assert {event.pid for event in events if event.origin is Origin.REMOTE} == {other.pid}
    local = [event.kind for event in events if event.origin is Origin.LOCAL]
    assert local.count(Kind.MODIFY) == WRITES
    assert {event.pid for event in events if event.origin is Origin.LOCAL} == {os.getpid()}


HAMMER = """
import os, sys
for line in sys.stdin:
    fd = os.open(sys.argv[1], os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    print(flush=True)
"""


# --- what merges -----------------------------------------------------------------------------------------------------


def there_back_and_there(source: Path) -> None:
    (source / "a").rename(source / "b")
    (source / "b").rename(source / "a")
    (source / "a").rename(source / "b")


def deleted_after_there_and_back(source: Path) -> None:
    (source / "new").touch()
    (source / "new").rename(source / "other")
    (source / "other").rename(source / "new")
    (source / "new").unlink()


def linked_back(source: Path) -> None:
    (source / "new").touch()
    (source / "new").rename(source / "other")
    os.link(source / "other", source / "new")


def unlinked_and_linked(source: Path) -> None:
    os.link(source / "file", source / "link")
    (source / "file").unlink()
    os.link(source / "link", source / "file")


def exchanged_three_times(source: Path) -> None:
    for _ in range(3):
        exchange(source / "a", source / "c")


def out_in_and_out(source: Path) -> None:
    outside = source.parent / "outside"
    (source / "a").rename(outside)
    outside.rename(source / "a")
    (source / "a").rename(outside)


def mode_after_there_and_back(source: Path) -> None:
    (source / "a").chmod(0o700)
    (source / "a").rename(source / "b")
    (source / "b").rename(source / "a")
    (source / "a").chmod(0o711)


@pytest.mark.parametrize(
    "change",
    [
        there_back_and_there,
        deleted_after_there_and_back,
        linked_back,
        unlinked_and_linked,
        exchanged_three_times,
        out_in_and_out,
        mode_after_there_and_back,
    ],
)
async def test_a_mirror_converges_although_unread_changes_merge(mount: Mount, change: Callable[[Path], None]) -> None:
    source = mount.source
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        for name in ("a", "c"):
            (source / name / "below").mkdir(parents=True)
            (source / name / "below" / name).write_text(name)
        (source / "file").write_text("file")
        mirror = Mirror(group, source)
        await group.sync()
        with blackout(mount):
            change(source)
        with trio.fail_after(PATIENCE):
            await group.sync()
            for directory in source.rglob("*/"):
                (directory / "later").touch()  # every directory is heard under its right name
            (source / "end").touch()
            await mirror.follow("end")
    (source / "end").unlink()
    assert differences(mirror, source, source) == {}, mirror.story()


async def test_what_is_certain_is_not_looked_at_again(mount: Mount) -> None:
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        with blackout(mount):
            (mount.source / "temporary").write_text("new")
            (mount.source / "temporary").rename(mount.source / "file")
            (mount.source / "gone").touch()
            (mount.source / "gone").unlink()
        await group.sync()
        (mount.source / "end").touch()
        *events, _ = await until(group, "end")
    assert not [event for event in events if event.recovered]
    assert [event.kind for event in events if event.path == "gone"] == [Kind.CREATE, Kind.CLOSE_WRITE, Kind.DELETE]


async def test_a_new_directory_tells_of_itself_before_it_has_been_listed(mount: Mount) -> None:
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        with blackout(mount):
            (mount.source / "new").mkdir()
            (mount.source / "new").chmod(0o711)
        await group.sync()
        (mount.source / "end").touch()
        *events, _ = await until(group, "end")
    assert [(event.kind, event.path) for event in events] == [(Kind.CREATE, "new"), (Kind.ATTRIB, "new")]


# --- the rest of the filesystem --------------------------------------------------------------------------------------


async def test_nothing_outside_the_tree_is_told_and_much_of_it_loses_nothing(mount: Mount) -> None:
    outside = mount.source.parent / "outside"
    (outside / "below").mkdir(parents=True)
    limit = what_the_kernel_holds()
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        for number in range(2 * limit):
            (outside / "below" / f"noise{number % 100}").touch()
            if number % 1000 == 0:
                (mount.source / f"signal{number}").touch()
                await group.sync()
        (outside / "below").rename(outside / "renamed")
        (outside / "renamed").rename(mount.source / "in")
        (mount.source / "in").rename(outside / "out")
        (outside / "out" / "noise").touch()
        await group.sync()
        (mount.source / "end").touch()
        *events, _ = await until(group, "end")
    named = {path for event in events for path in (event.path, event.old_path) if path is not None}
    assert {name for name in named if not name.startswith(("signal", "in"))} == set()
    assert [event.path for event in events if event.path is None or event.kind is Kind.OVERFLOW] == [None]
    assert sum(event.kind is Kind.CREATE and event.path.startswith("signal") for event in events if event.path) == (
        2 * limit // 1000 + 1
    )


async def test_a_directory_that_takes_the_place_of_another_is_heard(mount: Mount) -> None:
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        for number in range(5):
            (mount.source / "again").mkdir()
            await group.sync()
            (mount.source / "again" / f"file{number}").touch()
            await group.sync()
            (mount.source / "again" / f"file{number}").unlink()
            (mount.source / "again").rmdir()
        (mount.source / "end").touch()
        *events, _ = await until(group, "end")
    made = [event.path for event in events if event.kind is Kind.CREATE and not event.is_dir]
    assert made == [f"again/file{number}" for number in range(5)]
    status = run("status", "--json", f"unix:{mount.socket}")
    assert '"watches": 1,' in status.stdout


async def test_an_overflow_of_the_kernel_is_told(mount: Mount) -> None:
    limit = what_the_kernel_holds()
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}", kinds=Kind.CREATE)
        with blackout(mount):
            for number in range(limit + 100):
                (mount.source / f"file{number}").mkdir()
        await group.sync()
        (mount.source / f"file{limit + 50}" / "below").mkdir()
        *events, _ = await until(group, f"file{limit + 50}/below")
    assert [event.path for event in events if event.kind is Kind.OVERFLOW] == [None]
    assert [event.path for event in events[:limit]] == [f"file{number}" for number in range(limit)]


# --- which watcher ---------------------------------------------------------------------------------------------------


def test_status_says_which_watcher_and_why(mount: Mount) -> None:
    status = run("status", "--json", f"unix:{mount.socket}").stdout
    assert '"watcher": "fanotify"' in status
    assert '"watcher_reason": "asked for"' in status


def test_a_small_tree_is_heard_by_inotify(directory: Path) -> None:
    with mounted(directory) as mount:
        status = run("status", "--json", f"unix:{mount.socket}").stdout
    assert '"watcher": "inotify"' in status
    assert "directories" in status


def test_a_large_tree_is_heard_by_fanotify(directory: Path) -> None:
    (directory / "source" / "one" / "other").mkdir(parents=True)
    with patched(directory, "from fusenotify.watchers import choosing; choosing._MANY = 1") as mount:
        status = run("status", "--json", f"unix:{mount.socket}").stdout
    assert '"watcher": "fanotify"' in status
    assert "more than 1 directories" in status


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
async def test_filesystems_on_disk_are_heard_and_those_below_are_deaf(
    directory: Path, kind: str, watching: Callable[..., Watch]
) -> None:
    with filesystem(kind, directory, SIZES[kind]) as place:
        (place / "source" / "below").mkdir(parents=True)
        with filesystem("ext4", place / "source" / "below", "8M"), mounted(place, FANOTIFY) as mount:
            watch = watching(f"unix:{mount.socket}")
            for number in range(3):  # ext4 uses the number again at once
                (mount.source / "again").mkdir()
                (mount.source / "again" / "before").mkdir()
                watch.until("again/before")  # what comes and goes before it is looked at is never told of
                (mount.source / "again").rename(mount.source / "other")
                (mount.mountpoint / "other" / "before").rmdir()
                (mount.source / "other").rmdir()
                (mount.source / f"end{number}").touch()
                lines = [(line["kind"], line["path"], line["origin"]) for line in watch.until(f"end{number}")]
                assert ("delete", "other", "remote") in lines
                assert ("delete", "other/before", "local") in lines
            deaf = json.loads(run("status", "--json", f"unix:{mount.socket}").stdout)["deaf"]
    assert deaf >= 1


def test_fanotify_is_refused_where_there_are_no_handles(directory: Path) -> None:
    for name in ("lower", "upper", "work", "source", "mount", "state"):
        (directory / name).mkdir()
    layers = f"lowerdir={directory}/lower,upperdir={directory}/upper,workdir={directory}/work"
    _linux.mount(b"overlay", os.fsencode(directory / "source"), b"overlay", 0, layers.encode())
    try:
        places = [str(directory / name) for name in ("source", "mount")]
        outcome = run("mount", *places, "--state-dir", directory / "state", "--daemon", *FANOTIFY)
    finally:
        _linux.umount2(os.fsencode(directory / "source"), 0)
    assert outcome.returncode == 4
    assert "Take --watcher inotify" in outcome.stderr


def test_fanotify_is_refused_to_users_with_what_to_do(directory: Path, nobody: list[str]) -> None:
    directory.chmod(0o755)
    places = [directory / name for name in ("source", "mount", "state")]
    for place in places:
        place.mkdir()
        os.chown(place, 65534, 65534)
    source, mountpoint, state_dir = places
    command: list[str | Path] = [*nobody, "-m", "fusenotify", "mount", source, mountpoint, "--state-dir", state_dir]
    outcome = subprocess.run([*command, *FANOTIFY], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert outcome.returncode == 4
    assert "CAP_SYS_ADMIN" in outcome.stderr
    assert "inotify" in outcome.stderr


# --- uses ------------------------------------------------------------------------------------------------------------


def is_hearing(mount: Mount, mask: int) -> bool:
    """Whether a fanotify mark of the daemon has these bits."""
    masks: list[int] = []
    for descriptor in Path(f"/proc/{mount.process.pid}/fdinfo").iterdir():
        with contextlib.suppress(FileNotFoundError):  # one that was about to be closed
            found = re.findall(r"^fanotify sdev.* mask:(\w+)", descriptor.read_text(), re.M)
            masks += [int(one, 16) for one in found]
    assert masks
    return any(one & mask == mask for one in masks)


async def test_uses_are_heard_only_while_somebody_asks(mount: Mount) -> None:
    (mount.source / "asked").mkdir()
    (mount.source / "asked" / "file").touch()
    (mount.source / "file").touch()
    assert not is_hearing(mount, _fanotify.FAN_OPEN)
    async with open_group() as group:
        await group.mark(mount.mountpoint, kinds=Kind.CREATE)
        first = await group.mark(mount.mountpoint / "asked", kinds=Kind.OPEN)
        second = await group.mark(mount.mountpoint / "asked" / "file", scope=Scope.INODE, kinds=Kind.CLOSE_NOWRITE)
        assert is_hearing(mount, _fanotify.FAN_OPEN | _fanotify.FAN_CLOSE_NOWRITE)
        for path in ("file", "asked/file"):
            (mount.source / path).read_text()
        (mount.source / "end").mkdir()
        *events, _ = await until(group, "end")
        assert [(event.path, event.kind) for event in events] == [
            ("asked/file", Kind.OPEN),
            ("asked/file", Kind.CLOSE_NOWRITE),
        ]
        await group.unmark(first)
        await group.unmark(second)
        assert not is_hearing(mount, _fanotify.FAN_OPEN)
        assert not is_hearing(mount, _fanotify.FAN_CLOSE_NOWRITE)
