"""A mirror that uses events alone ends up with the tree, in the cases that random changes have found."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from fusenotify import Kind, Origin, open_group
from tests.harness import PATIENCE, Mount, Restartable, mounted
from tests.mirror import Mirror, differences
from tests.workload import exchange


@pytest.fixture(scope="module", params=["inotify", "fanotify"])
def shared(tmpfs: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """One daemon for all tests of a watcher; every test leaves its tree empty."""
    arguments = ["--watcher", request.param]
    with tempfile.TemporaryDirectory(dir=tmpfs) as name, mounted(Path(name), arguments) as mount:
        yield mount


@pytest.fixture
def clean(shared: Mount) -> Iterator[Mount]:
    """The shared mount with an empty tree, and `outside` beside the tree."""
    outside = shared.source.parent / "outside"
    outside.mkdir()
    try:
        yield shared
    finally:
        shutil.rmtree(outside)
        for entry in os.scandir(shared.source):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


# Each in as few steps as it takes. The daemon is stopped meanwhile: it sees the outcome before it hears how that came
# about.


def a_directory_above_moves(source: Path, outside: Path) -> None:
    (source / "old" / "new").mkdir()
    (source / "old" / "new" / "file").touch()
    (source / "old").rename(source / "moved")


def another_directory_takes_the_name(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    (source / "new").rename(source / "moved")
    (source / "new").mkdir()
    (source / "new" / "other").touch()


def a_directory_moves_into_a_new_one(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "old" / "below").rename(source / "new" / "below")
    (source / "new" / "below" / "later").touch()


def a_directory_moves_in_between(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (outside / "coming").mkdir()
    (outside / "coming" / "file").touch()
    (outside / "coming").rename(source / "new" / "came")
    (source / "new" / "came").rename(source / "came")


def a_new_directory_overwrites_an_empty_one(source: Path, outside: Path) -> None:
    (source / "empty").mkdir()
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    (source / "new").rename(source / "empty")


def there_and_back(source: Path, outside: Path) -> None:
    (source / "old").rename(source / "between")
    (source / "between").rename(source / "old")
    (source / "between").mkdir()
    (source / "between" / "file").touch()


def an_exchange_and_on(source: Path, outside: Path) -> None:
    exchange(source / "old", source / "older")
    (source / "old").rename(source / "one")
    (source / "older").rename(source / "other")


def an_exchange_of_files_and_on(source: Path, outside: Path) -> None:
    exchange(source / "old" / "file", source / "older" / "file")
    (source / "old" / "file").unlink()
    (source / "old").rename(source / "one")


def an_exchange_with_the_outside(source: Path, outside: Path) -> None:
    (outside / "other").mkdir()
    (outside / "other" / "came").touch()
    exchange(outside / "other", source / "old")


def an_exchange_of_files_with_the_outside(source: Path, outside: Path) -> None:
    (outside / "other").write_bytes(b"came")
    exchange(outside / "other", source / "old" / "file")


def an_exchange_in_a_new_directory_and_on(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "a").write_bytes(b"a")
    (source / "new" / "b").mkdir()
    (source / "new" / "b" / "file").touch()
    exchange(source / "new" / "a", source / "new" / "b")
    (source / "new" / "b").rename(source / "new" / "c")


def an_exchange_of_a_new_directory_with_a_file(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    exchange(source / "new", source / "old" / "file")


def an_exchange_with_what_nobody_heard_of(source: Path, outside: Path) -> None:
    (source / "new" / "below").mkdir(parents=True)
    (source / "new" / "below" / "file").touch()
    exchange(source / "new" / "below", source / "old")
    (source / "old" / "on").touch()


def an_exchange_there_and_on(source: Path, outside: Path) -> None:
    an_exchange_with_what_nobody_heard_of(source, outside)
    (source / "new" / "below").rename(source / "one")
    (source / "old").rename(source / "older" / "other")


def a_directory_comes_over_an_empty_one_and_moves_on(source: Path, outside: Path) -> None:
    (outside / "other" / "below").mkdir(parents=True)
    held = os.open(source / "older" / "empty", os.O_RDONLY)  # so it does not say yet that it has gone
    (outside / "other").rename(source / "older" / "empty")
    (source / "older" / "empty").rename(source / "moved")
    os.close(held)


def a_directory_takes_the_name_of_a_file(source: Path, outside: Path) -> None:
    exchange(source / "old" / "file", source / "older" / "file")
    (source / "old" / "file").rename(source / "moved")
    (source / "old" / "file").mkdir()
    (source / "old" / "file" / "new").touch()


def an_exchange_of_two_new_directories(source: Path, outside: Path) -> None:
    (source / "old" / "new" / "below").mkdir(parents=True)
    (source / "older" / "new").mkdir()
    (source / "older" / "new" / "file").touch()
    exchange(source / "old" / "new" / "below", source / "older" / "new")


def there_and_back_and_another_file_there(source: Path, outside: Path) -> None:
    (source / "old" / "file").rename(source / "older" / "between")
    (source / "older" / "between").rename(source / "old" / "file")
    (source / "older" / "file").rename(source / "older" / "between")


# inotify merges the halves of two renames where one name is told of twice in a row.
def a_rename_and_an_exchange_with_what_nobody_heard_of(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    (source / "old" / "file").rename(source / "file")
    exchange(source / "new" / "file", source / "file")


def an_exchange_and_one_with_what_nobody_heard_of(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    exchange(source / "old", source / "older" / "file")
    exchange(source / "new" / "file", source / "old")


def an_exchange_with_the_outside_and_one_inside(source: Path, outside: Path) -> None:
    """The kernel merges the end of the first exchange with the beginning of the other."""
    (outside / "other").write_bytes(b"came")
    exchange(outside / "other", source / "old" / "file")
    exchange(source / "old" / "file", source / "older")


def two_exchanges_of_a_file_and_on(source: Path, outside: Path) -> None:
    exchange(source / "old" / "file", source / "older" / "file")
    exchange(source / "old" / "below", source / "older" / "file")
    (source / "older" / "file").rename(source / "moved")


def an_exchange_of_what_has_just_come_in(source: Path, outside: Path) -> None:
    """The kernel merges the coming of the first directory with that of the second."""
    for name in ("one", "other"):
        (outside / name / "below").mkdir(parents=True)
    (outside / "one").rename(source / "new")
    exchange(outside / "other", source / "new")


def an_exchange_of_what_has_just_come_in_and_on(source: Path, outside: Path) -> None:
    for name in ("one", "other"):
        (outside / name / "below").mkdir(parents=True)
    (outside / "one").rename(source / "old" / "new")
    exchange(outside / "other", source / "old" / "new")
    (source / "old").rename(source / "moved")


def an_exchange_of_what_has_just_been_moved(source: Path, outside: Path) -> None:
    (outside / "coming" / "other" / "below").mkdir(parents=True)
    (outside / "coming").rename(source / "came")
    (source / "old").rename(source / "new")
    exchange(source / "came" / "other", source / "new")


@pytest.mark.parametrize(
    "change",
    [
        a_directory_above_moves,
        another_directory_takes_the_name,
        a_directory_moves_into_a_new_one,
        a_directory_moves_in_between,
        a_new_directory_overwrites_an_empty_one,
        there_and_back,
        an_exchange_and_on,
        an_exchange_of_files_and_on,
        an_exchange_with_the_outside,
        an_exchange_of_files_with_the_outside,
        an_exchange_in_a_new_directory_and_on,
        an_exchange_of_a_new_directory_with_a_file,
        an_exchange_with_what_nobody_heard_of,
        an_exchange_there_and_on,
        a_directory_comes_over_an_empty_one_and_moves_on,
        a_directory_takes_the_name_of_a_file,
        an_exchange_of_two_new_directories,
        there_and_back_and_another_file_there,
        a_rename_and_an_exchange_with_what_nobody_heard_of,
        an_exchange_and_one_with_what_nobody_heard_of,
        an_exchange_with_the_outside_and_one_inside,
        two_exchanges_of_a_file_and_on,
        an_exchange_of_what_has_just_come_in,
        an_exchange_of_what_has_just_come_in_and_on,
        an_exchange_of_what_has_just_been_moved,
    ],
)
async def test_a_mirror_converges_although_the_daemon_is_late(
    clean: Mount, change: Callable[[Path, Path], None]
) -> None:
    source = clean.source
    async with open_group() as group:
        await group.mark(f"unix:{clean.socket}")
        for name in ("old", "older"):
            (source / name / "below").mkdir(parents=True)
            (source / name / "file").write_text(name)
            (source / name / "below" / "file").write_text(name)
        (source / "older" / "empty").mkdir()
        mirror = Mirror(group, source)
        (source / "begin").touch()
        with trio.fail_after(PATIENCE):
            await mirror.follow("begin")
        (source / "begin").unlink()
        os.kill(clean.pid, signal.SIGSTOP)
        try:
            change(source, source.parent / "outside")
        finally:
            os.kill(clean.pid, signal.SIGCONT)
        with trio.fail_after(PATIENCE):
            await group.sync()
            for directory in source.rglob("*/"):
                (directory / "later").touch()  # every directory is heard under its right name
            (source / "end").touch()
            await mirror.follow("end")
    (source / "end").unlink()
    assert differences(mirror, source, source) == {}, mirror.story()


# Changes of both sides, all made before the first of them is told: what is done before the `yield` finds the daemon
# stopped, and what comes behind it finds it with much to tell.


def an_exchange_in_a_directory_that_moves_on(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (source / "old" / "new" / "below").mkdir(parents=True)
    (source / "old" / "new" / "below" / "file").write_text("below")
    yield
    exchange(mount / "old" / "new" / "below", mount / "older")
    (mount / "old").rename(mount / "moved")


def an_exchange_with_a_file_in_a_directory_that_moves_on(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (source / "old" / "new" / "below").mkdir(parents=True)
    (source / "old" / "new" / "below" / "file").write_text("below")
    yield
    exchange(mount / "old" / "new" / "below", mount / "older" / "file")
    (mount / "old").rename(mount / "moved")


def a_new_name_in_a_directory_that_came_in(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (outside / "coming" / "directory" / "below").mkdir(parents=True)
    (outside / "coming").rename(source / "came")
    yield
    (mount / "came" / "link").symlink_to("nowhere")
    exchange(source / "came" / "link", source / "came" / "directory")


def a_rename_in_a_directory_that_came_in(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (outside / "coming" / "one").mkdir(parents=True)
    (outside / "coming").rename(source / "came")
    yield
    (mount / "came" / "one").rename(mount / "came" / "other")
    (mount / "older").rename(mount / "came" / "one")


@pytest.mark.parametrize(
    "change",
    [
        an_exchange_in_a_directory_that_moves_on,
        an_exchange_with_a_file_in_a_directory_that_moves_on,
        a_new_name_in_a_directory_that_came_in,
        a_rename_in_a_directory_that_came_in,
    ],
)
async def test_a_mirror_converges_although_the_daemon_is_busy(
    clean: Mount, change: Callable[[Path, Path, Path], Iterator[None]]
) -> None:
    source = clean.source
    async with open_group() as group, open_group() as other:
        await group.mark(f"unix:{clean.socket}")
        for _ in range(50):  # each is looked at with every event, which takes its time
            await other.mark(f"unix:{clean.socket}", origin=Origin.LOCAL)
        for name in ("old", "older"):
            (source / name / "below").mkdir(parents=True)
            (source / name / "file").write_text(name)
        mirror = Mirror(group, source)
        with trio.fail_after(PATIENCE):
            await group.sync()
            os.kill(clean.pid, signal.SIGSTOP)
            try:
                for number in range(16_000):  # the kernel would lose what is beyond 16384
                    (source / f"busy{number % 10}").touch()
                changes = change(source, source.parent / "outside", clean.mountpoint)
                next(changes)
            finally:
                os.kill(clean.pid, signal.SIGCONT)
            next(changes, None)
            await group.sync()
            (source / "end").touch()
            await mirror.follow("end")
    (source / "end").unlink()
    assert differences(mirror, source, source) == {}, mirror.story()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
async def test_a_mirror_that_looks_at_a_mount_looks_again_when_that_was_away(
    directory: Path, how: signal.Signals
) -> None:
    with closing(Restartable(directory)) as service:
        async with open_group(reconnect=True) as group:
            await group.mark(f"unix:{service.mount.socket}")
            mirror = Mirror(group, service.mountpoint)
            (service.source / "file").write_text("content")
            await group.sync()
            service.stop(how)
            with trio.fail_after(PATIENCE):
                await mirror.follow_until(lambda event: event.kind is Kind.CLOSE_WRITE)
                assert mirror.replica.snapshot() == {}
                service.start()
                for name in ("any event", "end"):  # the order in which they are told, also by a comparison
                    (service.source / name).touch()
                await mirror.follow("end")
        assert mirror.replica.snapshot()["file"].content == b"content"
