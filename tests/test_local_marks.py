"""Marks on what is on no fusenotify mount: heard by the client itself, with the same events."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from fusenotify import (
    DaemonGone,
    Event,
    Group,
    Kind,
    Mark,
    NotAMount,
    NotPermitted,
    Origin,
    Reason,
    Scope,
    UsageError,
    open_group,
    watch,
)
from tests.harness import PATIENCE, Mount, Watch, run
from tests.reading import Run, hear, until


def brief(events: list[Event]) -> list[tuple[str, str | None, str | None]]:
    return [(str(event.kind), event.old_path, event.path) for event in events]


def test_a_local_mark_has_absolute_paths_and_the_origin_local(directory: Path, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(directory) as events:
            (directory / "a").mkdir()
            await until(events, directory / "a")
            (directory / "a" / "b").touch()
            (directory / "a" / "b").rename(directory / "c")
            os.chmod(directory, 0o755)
            told = [*await until(events, directory / "c"), *await until(events, directory)]
            assert brief(told) == [
                ("create", None, f"{directory}/a/b"),
                ("close_write", None, f"{directory}/a/b"),
                ("rename", f"{directory}/a/b", f"{directory}/c"),
                ("attrib", None, str(directory)),
            ]
            assert {(event.origin, event.pid, event.uid) for event in told} == {(Origin.LOCAL, None, None)}

    go(main)


def test_what_appears_in_a_new_directory_before_its_watch_is_told_once(directory: Path, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(directory, kinds=Kind.CREATE) as events:
            for number in range(200):
                os.makedirs(directory / f"{number}" / "b" / "c")
            (directory / "end").touch()
            told = await until(events, directory / "end")
            paths = [event.path for event in told]
            assert len(paths) == len(set(paths)) == 601
            assert any(event.recovered for event in told)

    go(main)


def test_what_moves_in_and_out_says_so(directory: Path, go: Run[None]) -> None:
    inside, outside = directory / "inside", directory / "outside"
    inside.mkdir()
    os.makedirs(outside / "d" / "below")

    async def main() -> None:
        async with watch(inside) as events:
            (outside / "d").rename(inside / "d")
            assert brief(await until(events, inside / "d" / "below")) == [
                ("rename", None, f"{inside}/d"), ("create", None, f"{inside}/d/below")
            ]  # fmt: skip
            (inside / "d").rename(outside / "d")
            assert brief(await until(events, inside / "d")) == [("rename", f"{inside}/d", None)]

    go(main)


def test_a_directory_without_what_is_below_it(directory: Path, go: Run[None]) -> None:
    os.makedirs(directory / "there" / "below")

    async def main() -> None:
        async with watch(directory, recursive=False, kinds=Kind.CREATE | Kind.RENAME) as events:
            (directory / "there" / "below" / "x").touch()
            os.makedirs(directory / "new" / "below")
            (directory / "there").rename(directory / "moved")
            (directory / "moved" / "x").touch()
            (directory / "end").touch()
            assert brief(await until(events, directory / "end")) == [
                ("create", None, f"{directory}/new"),
                ("rename", f"{directory}/there", f"{directory}/moved"),
                ("create", None, f"{directory}/end"),
            ]

    go(main)


def test_a_file_is_followed_until_it_leaves_its_directory(directory: Path, go: Run[None]) -> None:
    """The mark is on the file, as it is on a mount: not on the name, which others may take."""
    file, other = directory / "file", directory / "other"
    file.touch()
    other.touch()

    async def main() -> None:
        async with watch(file, kinds=Kind.CREATE | Kind.MODIFY | Kind.RENAME | Kind.DELETE) as events:
            os.truncate(other, 1)
            os.truncate(file, 1)
            file.rename(directory / "moved")
            other.rename(file)
            os.truncate(directory / "moved", 2)
            file.rename(directory / "moved")
            (directory / "moved").unlink()
            told = await until(events, directory / "moved")
            while told[-1].kind is not Kind.IGNORED:
                told.append(await anext(events))
            assert brief(told) == [
                ("modify", None, str(file)),
                ("rename", str(file), f"{directory}/moved"),
                ("modify", None, f"{directory}/moved"),
                ("delete_self", None, f"{directory}/moved"),
                ("ignored", None, f"{directory}/moved"),
            ]
            assert {event.origin for event in told} == {Origin.LOCAL}
            mark = told[-1].mark
            assert isinstance(mark, Mark)
            with pytest.raises(UsageError, match="no such mark"):
                await events.unmark(mark)

    go(main)


def test_several_filesystems_come_by_one_iterator_in_order(mount: Mount, directory: Path, go: Run[None]) -> None:
    etc = directory / "etc"
    etc.mkdir()

    async def main() -> None:
        async with watch(mount.mountpoint, etc, kinds=Kind.CREATE) as events:
            expected: list[tuple[str, Origin]] = []
            for number in range(20):
                (mount.source / f"{number}").touch()
                await events.sync()
                (etc / f"{number}").touch()
                await events.sync()
                expected += [(f"{number}", Origin.REMOTE), (f"{etc}/{number}", Origin.LOCAL)]
            told = [await anext(events) for _ in expected]
            assert [(event.path, event.origin) for event in told] == expected
            assert [str(getattr(event.mark, "target", None)) for event in told[:2]] == [str(mount.mountpoint), str(etc)]

    go(main)


def test_mounts_of_ours_below_a_local_mark_are_left_alone(mount: Mount, directory: Path, go: Run[None]) -> None:
    (mount.source / "sub").mkdir()

    async def main() -> None:
        async with watch(directory, kinds=Kind.CREATE) as events:
            (mount.mountpoint / "sub" / "x").touch()
            (directory / "end").touch()
            told = [event.path for event in await until(events, directory / "end")]
            assert told == [f"{mount.source}/sub/x", f"{directory}/end"]

    go(main)


def test_an_overflow_of_the_kernel_is_told_once_and_repaired(directory: Path, go: Run[None]) -> None:
    (directory / "before").touch()
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def main() -> None:
        async with watch(directory, kinds=Kind.CREATE) as events:
            for number in range(limit + 100):  # nobody reads meanwhile
                (directory / f"{number % 100}").touch()
                (directory / f"{number % 100}").unlink()
            os.makedirs(directory / "new" / "below")
            told = await until(events, directory / "new" / "below")
            overflows = [event for event in told if event.kind is Kind.OVERFLOW]
            assert [(event.reason, event.path) for event in overflows] == [(Reason.KERNEL, str(directory))]
            recovered = {event.path for event in told[told.index(overflows[0]) + 1 :] if event.recovered}
            assert recovered >= {f"{directory}/new", f"{directory}/new/below"}
            assert f"{directory}/before" not in recovered  # nothing has happened to it

    go(main)


def test_a_full_queue_is_repaired_without_another_overflow(directory: Path, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group(limit=50) as group:
            await group.mark(directory, kinds=Kind.CREATE | Kind.DELETE)
            for number in range(20):
                os.makedirs(directory / f"{number}" / "b" / "c")
                for leaf in range(10):
                    (directory / f"{number}" / "b" / f"{leaf}").touch()
            await group.sync()
            shutil.rmtree(directory / "0")
            missing = {str(Path(top, name)) for top, names, files in os.walk(directory) for name in [*names, *files]}
            told: list[Event] = []
            while missing:
                told.append(await anext(group))
                missing.discard(told[-1].path or "")
            overflows = [event for event in told if event.kind is Kind.OVERFLOW]
            assert [(event.reason, event.path) for event in overflows] == [(Reason.QUEUE, str(directory))]
            assert (Kind.DELETE, f"{directory}/0") in [(event.kind, event.path) for event in told if event.recovered]

    go(main)


def test_the_end_of_the_directory_is_the_end_of_the_iteration(directory: Path, go: Run[None]) -> None:
    (directory / "d").mkdir()

    async def main() -> None:
        async with watch(directory / "d") as events:
            (directory / "d" / "x").touch()
            await until(events, directory / "d" / "x")
            (directory / "d" / "x").unlink()
            (directory / "d").rmdir()
            told: list[Event] = []
            with pytest.raises(DaemonGone, match="has been deleted"):
                await hear(events, told)
            assert [event.kind for event in told[-2:]] == [Kind.DELETE, Kind.UNMOUNT]

    go(main)


def test_marks_come_and_go_while_others_are_read(directory: Path, go: Run[None]) -> None:
    for name in "ab":
        (directory / name).mkdir()

    async def main() -> None:
        async with open_group() as group:
            first = await group.mark(directory / "a")
            second = await group.mark(directory / "b")
            told: list[Event] = []

            async def iterate() -> None:
                told.extend(await until(group, directory / "b" / "end"))

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(iterate)
                await anyio.wait_all_tasks_blocked()
                await group.unmark(first)
                (directory / "a" / "x").mkdir()
                (directory / "b" / "end").mkdir()
            assert [(event.mark, event.path) for event in told] == [(second, f"{directory}/b/end")]
            with pytest.raises(UsageError, match="no such mark"):
                await group.unmark(first)

    go(main)


def test_who_iterates_hears_of_what_is_marked_meanwhile(mount: Mount, directory: Path, go: Run[None]) -> None:
    (directory / "later").mkdir()

    async def main() -> None:
        async with watch(mount.mountpoint) as group, anyio.create_task_group() as tasks:
            told: list[Event] = []

            async def iterate() -> None:
                told.append(await anext(group))

            tasks.start_soon(iterate)
            await anyio.wait_all_tasks_blocked()
            await group.mark(directory / "later")
            (directory / "later" / "x").mkdir()
        assert [event.path for event in told] == [f"{directory}/later/x"]

    go(main)


def test_what_cannot_be_marked(directory: Path, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            with pytest.raises(NotAMount, match="nothing remote"):
                await group.mark(directory, origin=Origin.REMOTE)
            with pytest.raises(UsageError, match="mark a subtree"):
                await group.mark(directory, scope=Scope.FILESYSTEM)
            with pytest.raises(UsageError, match="no mark"):
                await group.batch()

    go(main)


def test_a_directory_that_may_not_be_read(directory: Path, nobody: list[str]) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    ended = subprocess.run(
        [*nobody, "-m", "fusenotify", "watch", closed], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == NotPermitted.exit_code
    assert "Permission denied" in ended.stderr


def test_an_ordinary_user_hears_of_what_may_be_read_and_is_told_of_the_rest(directory: Path, nobody: list[str]) -> None:
    os.chmod(directory, 0o755)
    (directory / "open").mkdir(mode=0o755)
    (directory / "closed").mkdir(mode=0o700)
    command = [*nobody, "-m", "fusenotify", "watch", "--kinds", "create", "--events", "1", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = [process.stderr.readline(), process.stderr.readline()]
        assert "changes below closed are not heard: Permission denied" in said[0]
        assert "watching" in said[1]
        (directory / "closed" / "x").touch()
        (directory / "open" / "x").touch()
        assert process.stdout.read() == f"local  create      {directory}/open/x\n"


def test_the_command_watches_what_is_on_no_mount(mount: Mount, directory: Path, watching: Callable[..., Watch]) -> None:
    etc = directory / "etc"
    etc.mkdir()
    (etc / "file").touch()
    watch = watching("--kinds", "create,modify", mount.mountpoint, etc, etc / "file")
    os.truncate(etc / "file", 1)
    first, second = watch.next(), watch.next()
    assert first is not None
    assert second is not None
    assert {first["target"], second["target"]} == {str(etc), str(etc / "file")}
    assert first["path"] == second["path"] == str(etc / "file")
    assert (first["origin"], first["recovered"]) == ("local", False)
    (mount.source / "x").touch()
    line = watch.next()
    assert line is not None
    assert (line["target"], line["path"], line["origin"]) == (str(mount.mountpoint), "x", "remote")


def test_only_remote_changes_of_what_is_on_no_mount_cannot_be_watched(directory: Path) -> None:
    ended = run("watch", "--origin", "remote", directory)
    assert (ended.returncode, ended.stdout) == (NotAMount.exit_code, "")
    assert "not on a fusenotify mount" in ended.stderr


# --- one-shot marks, uses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", [Scope.INODE, Scope.DIR, Scope.SUBTREE])
def test_a_oneshot_mark_ends_with_its_first_event(directory: Path, go: Run[None], scope: Scope) -> None:
    (directory / "a").mkdir()
    (directory / "b").mkdir()
    marked, end = directory / "a" / "marked", directory / "b" / "end"
    marked.touch()

    async def main() -> None:
        async with open_group() as group:
            target = marked if scope == Scope.INODE else marked.parent
            mark = await group.mark(target, scope=scope, kinds=Kind.MODIFY, oneshot=True)
            await group.mark(end.parent, kinds=Kind.CREATE)
            if scope == Scope.INODE:
                (directory / "a" / "beside it").write_text("of no interest")
            for _ in range(2):
                marked.write_text("x")
                await group.sync()
            end.touch()
            assert brief(await until(group, end)) == [("modify", None, str(marked)), ("create", None, str(end))]
            with pytest.raises(UsageError, match="no such mark"):
                await group.unmark(mark)

    go(main)


def test_who_iterates_waits_for_other_marks_when_the_last_has_gone(directory: Path, go: Run[None]) -> None:
    told: list[Event] = []

    async def iterate(group: Group) -> None:
        with pytest.raises(anyio.ClosedResourceError):
            await hear(group, told)

    async def main() -> None:
        async with anyio.create_task_group() as tasks, open_group() as group:
            mark = await group.mark(directory)
            tasks.start_soon(iterate, group)
            await anyio.wait_all_tasks_blocked()
            await group.unmark(mark)
            await anyio.wait_all_tasks_blocked()
            mark = await group.mark(directory)
            (directory / "a").mkdir()
            while not told:
                await anyio.lowlevel.checkpoint()
            await group.unmark(mark)
            await anyio.wait_all_tasks_blocked()

    go(main)
    assert brief(told) == [("create", None, f"{directory}/a")]


def test_uses_of_files_are_heard_of_by_local_marks(directory: Path, go: Run[None]) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "a").write_text("content")

    async def main() -> None:
        async with open_group() as group:
            await group.mark(directory, kinds=Kind.OPEN | Kind.ACCESS | Kind.CLOSE_NOWRITE | Kind.CREATE)
            (directory / "sub" / "a").read_text()
            await group.sync()
            (directory / "end").mkdir()
            told = brief(await until(group, directory / "end"))
            path = f"{directory}/sub/a"
            assert list(dict.fromkeys(told)) == [
                ("open", None, path),
                ("access", None, path),
                ("close_nowrite", None, path),
                ("create", None, f"{directory}/end"),
            ]

    go(main)
