"""Marks on single objects where it is hard: numbers used again, lost events, other users, what must not be opened."""

import json
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from fusenotify import Kind, NotPermitted, Scope, errors, open_group
from tests.filesystems import filesystem
from tests.harness import PATIENCE, Mount, mounted


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(bounded, backend="trio")


def stop(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, mount.pid, os.WSTOPPED)


def go_on(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGCONT)


def descriptors_on(mount: Mount, name: str) -> int:
    """Return how many descriptors the daemon has of something that is called so, or was."""
    place = Path(f"/proc/{mount.pid}/fd")
    links = [os.readlink(place / fd) for fd in os.listdir(place)]
    return sum(link.removesuffix(" (deleted)").endswith(f"/{name}") for link in links)


def test_the_number_of_a_marked_file_is_not_used_again_before_its_end(directory: Path) -> None:
    """ext4 gives a number that has become free to the next file that is made."""
    with filesystem("ext4", directory) as source:
        (directory / "source").symlink_to(source)
        (source / "file").touch()
        with mounted(directory) as mount:

            async def main() -> None:
                async with open_group() as group:
                    await group.mark(mount.mountpoint / "file", scope=Scope.INODE, kinds=Kind.CLOSE_WRITE)
                    number = (source / "file").stat().st_ino
                    await anyio.to_thread.run_sync(stop, mount)
                    (source / "file").unlink()
                    (source / "other").write_text("x")
                    assert (source / "other").stat().st_ino != number
                    go_on(mount)
                    events = [await anext(group), await anext(group)]
                    assert [(str(event.kind), event.path) for event in events] == [
                        ("delete_self", "file"), ("ignored", "file")
                    ]  # fmt: skip

            run(main)


def test_the_end_is_told_after_an_overflow_of_the_kernels_queue(mount: Mount) -> None:
    for name in ("kept", "gone", "flood"):
        (mount.source / name).mkdir()
    for name in ("kept/file", "gone/file", "lost", "stays"):
        (mount.source / name).touch()
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    def change() -> None:
        stop(mount)
        for number in range(most + 1000):
            os.mknod(mount.source / "flood" / str(number))
        (mount.source / "lost").unlink()
        (mount.source / "gone" / "file").unlink()
        (mount.source / "gone").rmdir()
        go_on(mount)

    async def main() -> None:
        async with open_group() as group:
            for name in ("kept/file", "gone/file", "lost", "stays", "gone"):
                await group.mark(mount.mountpoint / name, scope=Scope.INODE, kinds=Kind.ATTRIB)
            await anyio.to_thread.run_sync(change)
            events = [await anext(group) for _ in range(7)]
            assert str(events[0].kind) == "overflow"
            ended = [event.path for event in events if event.kind == Kind.IGNORED]
            assert sorted(map(str, ended)) == ["gone", "gone/file", "lost"]
            (mount.source / "stays").chmod(0o600)
            event = await anext(group)
            assert (str(event.kind), event.path) == ("attrib", "stays")

    run(main)


def test_a_marked_file_is_let_go_with_its_mark_its_group_or_itself(mount: Mount) -> None:
    for name in "abc":
        (mount.source / name).touch()

    async def main() -> None:
        async with open_group() as group, open_group() as other:
            marks = [await group.mark(mount.mountpoint / name, scope=Scope.INODE) for name in "ab"]
            await other.mark(mount.mountpoint / "c", scope=Scope.INODE)
            assert [descriptors_on(mount, name) for name in "abc"] == [1, 1, 1]
            await group.unmark(marks[0])
            (mount.source / "b").unlink()
            await group.sync()
            assert [descriptors_on(mount, name) for name in "abc"] == [0, 0, 1]
            with pytest.raises(errors.UsageError, match="no"):
                await group.unmark(marks[1])
        async with open_group() as group:  # by now the daemon has closed what was before
            await group.mark(mount.mountpoint)
            await group.sync()
            assert descriptors_on(mount, "c") == 0

    run(main)


def test_what_is_marked_is_not_opened(mount: Mount) -> None:
    os.mkfifo(mount.source / "fifo")

    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint / "fifo", scope=Scope.INODE, kinds=Kind.ATTRIB)
            with pytest.raises(OSError, match="No such device or address"):
                os.open(mount.source / "fifo", os.O_WRONLY | os.O_NONBLOCK)  # nobody reads it
            (mount.source / "fifo").chmod(0o600)
            event = await anext(group)
            assert (str(event.kind), event.path) == ("attrib", "fifo")

    run(main)


_AS_ANOTHER_USER = """
import anyio, json, os, sys
from fusenotify import Scope, errors, open_group

async def main():
    told = {}
    async with open_group() as group:
        for name, scope in json.loads(sys.argv[2]):
            try:
                await group.mark(os.path.join(sys.argv[1], name), scope=Scope(scope))
                told[f"{name} {scope}"] = "marked"
            except errors.FusenotifyError as error:
                told[f"{name} {scope}"] = type(error).__name__
    print(json.dumps(told))

anyio.run(main)
"""


def test_another_user_may_mark_what_is_readable(directory: Path, nobody: list[str]) -> None:
    directory.chmod(0o755)
    source = directory / "source"
    for name, mode in (("open", 0o755), ("closed", 0o700), ("search", 0o711)):
        (source / name).mkdir(parents=True)
        for file, rights in (("readable", 0o644), ("secret", 0o600)):
            (source / name / file).touch()
            (source / name / file).chmod(rights)
        (source / name).chmod(mode)
    wanted = [
        (f"{name}/{file}", "inode") for name in ("open", "search", "closed") for file in ("readable", "secret")
    ] + [("open", "inode"), ("search", "inode"), ("open/readable", "filesystem")]  # fmt: skip
    with mounted(directory, ["-o", "allow_other"]) as mount:
        command = [*nobody, "-c", _AS_ANOTHER_USER, str(mount.mountpoint), json.dumps(wanted)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    refused = NotPermitted.__name__
    assert {what: answer for what, answer in told.items() if not what.startswith("closed")} == {
        "open/readable inode": "marked",
        "open/secret inode": refused,
        "search/readable inode": "marked",
        "search/secret inode": refused,
        "open inode": "marked",
        "search inode": refused,
        "open/readable filesystem": refused,
    }
    assert "marked" not in {answer for what, answer in told.items() if what.startswith("closed")}
