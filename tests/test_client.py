"""The library on real mounts, under trio and under asyncio."""

import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

import fusenotify
from fusenotify import (
    DaemonGone,
    Event,
    Group,
    Kind,
    NotAMount,
    NotPermitted,
    Origin,
    Reason,
    Scope,
    client,
    errors,
    protocol,
)
from fusenotify.client import open_group, watch
from fusenotify.events import EventRecord
from fusenotify.targets import Target
from tests.harness import FUSENOTIFY, PATIENCE, Mount, Watch, mounted, run
from tests.reading import Run, hear, until

OTHER_UID = 4711


@pytest.fixture
def second(tmp_path: Path, tmpfs: Path) -> Iterator[Mount]:
    """Another mount, of another daemon."""
    directory = tmpfs / f"second-{tmp_path.name}"
    directory.mkdir()
    with mounted(directory) as mount:
        yield mount


def brief(events: list[Event]) -> list[tuple[str, str | None]]:
    return [((event.kind.name or "").lower(), event.path) for event in events]


async def count_of_groups(mount: Mount, count: int) -> None:
    """Return when the daemon has so many groups."""
    while (await client.status(mount.mountpoint)).groups != count:
        await anyio.lowlevel.checkpoint()


# --- watching ------------------------------------------------------------------------------------------------------


def test_watch(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(mount.mountpoint) as events:
            (mount.source / "a").mkdir()
            (mount.mountpoint / "a" / "b").mkdir()
            assert brief(await until(events, "a/b")) == [("create", "a"), ("create", "a/b")]

    go(main)


@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_a_group_hears_what_happens_from_the_return_of_mark_on(mount: Mount, go: Run[None], way: str) -> None:
    target = f"unix:{mount.socket}" if way == "socket" else mount.mountpoint

    async def main() -> None:
        async with open_group() as group:
            (mount.source / "before").mkdir()
            mark = await group.mark(target)
            (mount.source / "after").mkdir()
            told = await until(group, "after")
            assert brief(told) == [("create", "after")]
            assert told[0].mark is mark
            assert (mark.target, mark.scope, mark.kinds, mark.origin) == (
                str(target), Scope.SUBTREE, Kind.DEFAULT, Origin.ANY,
            )  # fmt: skip
            assert re.fullmatch(r"c:[0-9a-f]+:[0-9]+", mark.cursor)

    go(main)


def test_not_recursive_kinds_and_origin(mount: Mount, go: Run[None]) -> None:
    (mount.source / "sub").mkdir()

    async def main() -> None:
        async with watch(
            mount.mountpoint, recursive=False, kinds=Kind.CREATE | Kind.DELETE, origin=Origin.LOCAL
        ) as events:
            (mount.mountpoint / "sub" / "below").mkdir()
            (mount.mountpoint / "file").write_text("x")
            (mount.source / "behind").mkdir()
            (mount.mountpoint / "end").mkdir()
            assert brief(await until(events, "end")) == [("create", "file"), ("create", "end")]

    go(main)


def test_a_mark_on_a_subdirectory_has_paths_relative_to_the_root(mount: Mount, go: Run[None]) -> None:
    (mount.source / "a" / "b").mkdir(parents=True)
    (mount.source / "c").mkdir()

    async def main() -> None:
        async with open_group() as group:
            mark = await group.mark(mount.mountpoint / "a")
            (mount.source / "c" / "x").mkdir()
            (mount.source / "c" / "x").rename(mount.source / "a" / "b" / "x")
            (mount.source / "a" / "b" / "x").rename(mount.source / "c" / "x")
            told = await until(group, "a/b/x") + await until(group, "a/b/x")
            assert [(event.kind, event.old_path, event.path) for event in told] == [
                (Kind.RENAME, None, "a/b/x"), (Kind.RENAME, "a/b/x", None)
            ]  # fmt: skip
            assert all(event.mark is mark for event in told)

    go(main)


def test_several_marks_and_unmark(mount: Mount, go: Run[None]) -> None:
    for name in "abc":
        (mount.source / name).mkdir()

    async def main() -> None:
        async with open_group() as group:
            marks = [await group.mark(mount.mountpoint / name) for name in "ab"]
            for name in "cab":
                (mount.source / name / "x").mkdir()
            told = await until(group, "b/x")
            assert [(event.mark, event.path) for event in told] == [(marks[0], "a/x"), (marks[1], "b/x")]
            (mount.source / "a" / "y").mkdir()
            await group.sync()  # so that it waits
            await group.unmark(marks[0])
            (mount.source / "a" / "z").mkdir()
            (mount.source / "b" / "z").mkdir()
            assert brief(await until(group, "b/z")) == [("create", "b/z")]
            with pytest.raises(errors.UsageError, match="no such mark"):
                await group.unmark(marks[0])

    go(main)


def test_marks_come_change_and_go_while_somebody_iterates(mount: Mount, go: Run[None]) -> None:
    for name in "abc":
        (mount.source / name).mkdir()

    async def main() -> None:
        told: list[str | None] = []
        async with open_group() as group, anyio.create_task_group() as tasks:
            first = await group.mark(mount.mountpoint / "a")

            async def iterate() -> None:
                async for event in group:
                    told.append(event.path)
                    if event.path == "c/end":
                        return

            tasks.start_soon(iterate)
            second = await group.mark(mount.mountpoint / "b")
            (mount.source / "b" / "1").mkdir()
            await group.sync()
            await group.unmark(first)
            (mount.source / "a" / "1").mkdir()
            await group.unmark(second)
            (mount.source / "b" / "2").mkdir()
            await group.sync()
            await group.mark(mount.mountpoint / "c")  # after a while without any
            (mount.source / "c" / "end").mkdir()
        assert set(told) <= {"b/1", "c/end"}  # the first was queued when its mark was removed, or had been read
        assert told[-1] == "c/end"

    go(main)


def test_marks_on_one_object_are_two_and_each_ends_by_itself(mount: Mount, go: Run[None]) -> None:
    file = mount.source / "file"
    file.touch()

    async def main() -> None:
        async with open_group() as group:
            target = mount.mountpoint / "file"
            first = await group.mark(target, scope=Scope.INODE, kinds=Kind.ATTRIB, oneshot=True)
            second = await group.mark(target, scope=Scope.INODE, kinds=Kind.ATTRIB)
            for mode in (0o600, 0o640):
                file.chmod(mode)
                await group.sync()  # or the kernel makes one event of both
            events = [await anext(group), await anext(group)]
            assert [event.mark for event in events] == [first, second]
            with pytest.raises(errors.UsageError, match="no such mark"):
                await group.unmark(first)
            file.unlink()
            events = [await anext(group) for _ in range(2)]
            assert [(str(event.kind), event.mark) for event in events] == [
                ("delete_self", second), ("ignored", second)
            ]  # fmt: skip
            with pytest.raises(errors.UsageError, match="no such mark"):
                await group.unmark(second)

    go(main)


def test_events_of_a_mark_that_was_removed_do_not_hold_up_others(mount: Mount, go: Run[None]) -> None:
    for name in "ab":
        (mount.source / name).mkdir()

    async def main() -> None:
        async with open_group() as group:
            first = await group.mark(mount.mountpoint / "a")
            await group.mark(mount.mountpoint / "b")
            (mount.source / "a" / "x").mkdir()
            (mount.source / "b" / "x").mkdir()
            (mount.source / "a" / "y").mkdir()
            await group.sync()
            await group.unmark(first)
            assert brief(await until(group, "b/x")) == [("create", "b/x")]

    go(main)


@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_sync_is_a_barrier_for_both_sides(mount: Mount, go: Run[None], way: str) -> None:
    target = f"unix:{mount.socket}" if way == "socket" else mount.mountpoint

    async def main() -> None:
        async with open_group() as group:
            await group.mark(target)
            names = [f"{n}" for n in range(40)]
            for name in names:
                ((mount.source if int(name) % 2 else mount.mountpoint) / name).mkdir()
            await group.sync()
            told: list[Event] = []
            with anyio.move_on_after(0) as scope:
                while len(told) < len(names):
                    # Nothing here may have to wait for anything that was not there before.
                    told += await group.batch()
            assert [event.path for event in told] == names
            assert not scope.cancelled_caught
            assert sorted(os.listdir(mount.source)) == sorted(names)

    go(main)


def test_two_mounts_in_one_group(mount: Mount, second: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            marks = [await group.mark(mount.mountpoint), await group.mark(second.mountpoint)]
            heard: dict[object, list[str | None]] = {mark: [] for mark in marks}
            for n in range(20):
                (mount.source / f"{n}").mkdir()
                (second.mountpoint / f"{n}").mkdir()
            await group.sync()
            async for event in group:
                heard[event.mark].append(event.path)
                if all(len(paths) == 20 for paths in heard.values()):
                    break
            assert list(heard.values()) == [[f"{n}" for n in range(20)]] * 2

    go(main)


def test_two_clients_hear_the_same(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(mount.mountpoint) as one, watch(f"unix:{mount.socket}") as other:
            (mount.source / "a").write_text("x")
            (mount.source / "b").mkdir()
            assert brief(await until(one, "b")) == brief(await until(other, "b"))

    go(main)


def test_what_an_event_says(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        before = datetime.now(UTC)
        async with watch(mount.mountpoint) as events:
            (mount.source / "a").mkdir()
            os.mkdir(os.fsencode(mount.mountpoint) + b"/\xff")
            (mount.source / "a").rename(mount.source / "b")
            (mount.source / "end").touch()
            made, odd, renamed, end = (await until(events, "end"))[:4]
            assert (made.kind, made.path, made.old_path, made.is_dir) == (Kind.CREATE, "a", None, True)
            assert (made.origin, made.pid, made.uid) == (Origin.REMOTE, None, None)
            assert (made.exchange, made.recovered, made.reason) == (False, False, None)
            assert (odd.path, odd.origin) == ("\udcff", Origin.LOCAL)
            assert (renamed.kind, renamed.path, renamed.old_path, renamed.is_dir) == (Kind.RENAME, "b", "a", True)
            assert not end.is_dir
            cursors = [re.fullmatch(r"c:([0-9a-f]+):([0-9]+)", event.cursor) for event in (made, odd, renamed, end)]
            assert all(cursors)
            assert len({cursor[1] for cursor in cursors if cursor}) == 1
            numbers = [int(cursor[2]) for cursor in cursors if cursor]
            assert numbers == sorted(set(numbers))
            assert before - timedelta(seconds=1) < made.time <= datetime.now(UTC)
            assert "rename 'a' -> 'b' remote" in repr(renamed)

    go(main)


# --- who did it ----------------------------------------------------------------------------------------------------


def test_local_events_carry_the_process_and_its_user(mount: Mount, go: Run[None]) -> None:
    """Also when a thread other than the main one did it, and with the rest of a file's life."""

    async def main() -> None:
        async with watch(mount.mountpoint) as events:
            thread = threading.Thread(target=(mount.mountpoint / "thread").write_text, args=("x",))
            thread.start()
            thread.join()
            await anyio.run_process(["touch", mount.mountpoint / "other"])
            told = await until(events, "other")
            assert brief(told) == [
                ("create", "thread"), ("modify", "thread"), ("close_write", "thread"), ("create", "other")
            ]  # fmt: skip
            assert [(event.pid, event.uid) for event in told[:-1]] == [(os.getpid(), os.getuid())] * 3
            assert told[-1].pid not in (os.getpid(), mount.pid, None)

    go(main)


def test_exclude_self(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint, exclude_self=True)
            (mount.mountpoint / "mine").mkdir()
            thread = threading.Thread(target=(mount.mountpoint / "mine too").mkdir)
            thread.start()
            thread.join()
            (mount.source / "behind").mkdir()
            await anyio.run_process(["mkdir", mount.mountpoint / "theirs"])
            assert brief(await until(group, "theirs")) == [("create", "behind"), ("create", "theirs")]

    go(main)


def test_uids(directory: Path, go: Run[None]) -> None:
    directory.chmod(0o755)

    async def main(mount: Mount) -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint, uids=[OTHER_UID])
            (mount.mountpoint / "mine").mkdir()
            (mount.source / "behind").mkdir()
            await anyio.run_process(["mkdir", mount.mountpoint / "theirs"], user=OTHER_UID, cwd="/")
            told = await until(group, "theirs")
            assert [(event.path, event.uid) for event in told] == [("theirs", OTHER_UID)]

    with mounted(directory, ["-o", "allow_other"]) as mount:
        mount.source.chmod(0o777)
        go(lambda: main(mount))


# --- several tasks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_many_tasks_use_one_group(mount: Mount, go: Run[None], way: str) -> None:
    """More than the daemon takes at once, while events come; each event goes to one of those that iterate."""
    target = f"unix:{mount.socket}" if way == "socket" else mount.mountpoint
    heard: list[str | None] = []

    async def main() -> None:
        async with open_group() as group:
            await group.mark(target)
            async with anyio.create_task_group() as tasks:

                async def listen() -> None:
                    while True:
                        heard.extend([event.path for event in await group.batch()])
                        if len(heard) >= 100:
                            tasks.cancel_scope.cancel()

                for _ in range(3):
                    tasks.start_soon(listen)
                async with anyio.create_task_group() as syncs:
                    for _ in range(600):
                        syncs.start_soon(group.sync)
                for n in range(100):
                    (mount.source / f"{n}").mkdir()
            assert sorted(heard, key=lambda path: int(path or -1)) == [f"{n}" for n in range(100)]

    go(main)


def test_marks_made_while_another_task_iterates_lose_nothing(mount: Mount, go: Run[None]) -> None:
    """The task that reads may come to an event before the task that marked has come to the answer."""
    for n in range(50):
        (mount.source / f"{n}").mkdir()

    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint, kinds=Kind.ATTRIB)
            heard: list[tuple[str | None, object]] = []
            marks: list[client.Mark] = []

            async def mark_and_change() -> None:
                for n in range(50):
                    mark = await group.mark(mount.mountpoint / f"{n}")
                    marks.append(mark)
                    (mount.source / f"{n}" / "x").mkdir()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(mark_and_change)
                async for event in group:
                    heard.append((event.path, event.mark))
                    if len(heard) == 50:
                        break
            assert heard == [(f"{n}/x", mark) for n, mark in enumerate(marks)]

    go(main)


class Scripted:
    """A daemon that answers the first request for a mark, and tells its first event in the same breath."""

    shares_processes = True

    def __init__(self) -> None:
        self.asked = anyio.Event()

    async def send(self, data: bytes) -> None:
        self.asked.set()

    async def receive(self) -> bytes:
        await self.asked.wait()
        self.asked = anyio.Event()
        record = EventRecord(6, 0, int(Kind.CREATE), 0, b"x")
        return protocol.encode(protocol.Done(1, 5)) + protocol.encode(protocol.Events(1, [record]))

    async def aclose(self) -> None:
        pass


def test_the_task_that_reads_an_answer_and_the_first_event_behind_it_knows_the_mark(go: Run[None]) -> None:
    """Although it is another task that has asked for the mark, and that one has not had a turn yet."""

    async def main() -> None:
        connection = client.Connection(Target("x", "x", b"."), Scripted(), 10, lambda _: None)
        told: list[Event] = []

        def make(done: protocol.Done) -> client.Mark:
            return client.Mark("x", Scope.DIR, Kind.DEFAULT, Origin.ANY, f"c:e:{done.seq}", 1, "x")

        async def iterate() -> None:
            await connection.read()
            told.extend(connection.pop())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(iterate)
            mark = await connection.mark(protocol.AddMark(0, 1, b".", "dir", 1, 3), make)
        assert [(event.path, event.mark) for event in told] == [("x", mark)]
        assert mark.cursor == "c:e:5"

    go(main)


def test_a_cancelled_wait_loses_nothing(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint)
            heard: list[str | None] = []
            made = 0
            while len(heard) < 300:
                if made < 300:
                    (mount.source / f"{made}").mkdir()
                made += 1
                with anyio.move_on_after(0.0005 * (made % 3)):
                    heard += [event.path for event in await group.batch()]
            assert heard == [f"{n}" for n in range(300)]

    go(main)


def test_a_cancelled_request_leaves_the_group_as_it_was(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint)
            connection = next(iter(group._sources))
            for _ in range(20):
                with anyio.move_on_after(0):
                    await group.sync()
                with anyio.move_on_after(0):
                    await group.mark(mount.mountpoint, kinds=Kind.CREATE)
            await group.sync()
            (mount.source / "x").mkdir()
            await group.sync()
            assert brief(await until(group, "x")) == [("create", "x")]
            assert len(connection.marks) == 1
            assert isinstance(connection, client.Connection)
            assert connection._answers == {}
            assert connection._marking == {}

    go(main)


def test_leaving_the_group_ends_those_who_iterate(mount: Mount, go: Run[None]) -> None:
    ended: list[type[BaseException]] = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks, open_group() as group:
            await group.mark(mount.mountpoint)

            async def iterate() -> None:
                try:
                    await group.batch()
                except Exception as error:
                    ended.append(type(error))

            tasks.start_soon(iterate)
            await anyio.wait_all_tasks_blocked()
        await count_of_groups(mount, 0)

    go(main)
    assert ended == [anyio.ClosedResourceError]


# --- limits --------------------------------------------------------------------------------------------------------


def test_a_full_queue_has_one_overflow_in_its_place(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group(limit=10) as group, open_group() as witness:
            mark = await group.mark(mount.mountpoint)
            await witness.mark(mount.mountpoint)
            for n in range(30):
                (mount.source / f"{n}").mkdir()
            await witness.sync()
            told = [event async for event in first(group, 11)]
            assert [event.path for event in told] == [f"{n}" for n in range(10)] + [None]
            assert (told[10].kind, told[10].reason, told[10].mark) == (Kind.OVERFLOW, Reason.QUEUE, mark)
            assert told[10].cursor == told[9].cursor
            (mount.source / "after").mkdir()
            missed = brief(await until(group, "after"))
            assert set(missed) >= {("create", name) for name in [*(f"{n}" for n in range(10, 30)), "after"]}
            assert len(await until(witness, "after")) == 31

    async def first(group: Group, count: int) -> Any:
        for _ in range(count):
            yield await group.__anext__()

    go(main)


def test_what_was_received_and_found_no_room_is_made_good(
    mount: Mount, go: Run[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for answers receives what comes before them, and the daemon has room again for more."""
    monkeypatch.setattr("fusenotify.client.connection.DEFAULT_LIMIT", 30)
    names = [f"{n}" for n in range(40)]

    async def main() -> None:
        async with open_group(limit=30) as group:
            await group.mark(mount.mountpoint, kinds=Kind.CREATE)
            for name in names:
                (mount.source / name).touch()
                await group.sync()
            for name in names[:20]:
                (mount.source / name).unlink()
            told = [await anext(group) for _ in range(31)]
            assert [event.path for event in told] == [*names[:30], None]
            assert (told[30].kind, told[30].reason) == (Kind.OVERFLOW, Reason.QUEUE)
            missing = set(names[20:])
            while missing:
                event = await anext(group)
                assert event.kind is Kind.CREATE
                missing.discard(event.path or "")
            (mount.source / "after").touch()
            await until(group, "after")

    go(main)


@pytest.mark.parametrize("limit", [0, -5])
def test_a_group_without_room_is_refused(limit: int) -> None:
    with pytest.raises(errors.UsageError, match="at least one event"):
        open_group(limit=limit)


# --- what goes wrong -----------------------------------------------------------------------------------------------


def test_wrong_targets(mount: Mount, go: Run[None], tmp_path: Path) -> None:
    (mount.source / "file").touch()
    (tmp_path / "no-socket").touch()
    wrong: list[tuple[str | Path, type[Exception], str]] = [
        ("", errors.UsageError, "an empty text"),
        (tmp_path / "no-socket", errors.UsageError, "no directory"),
        (tmp_path / "no-socket" / "below", errors.UsageError, "does not exist"),
        (tmp_path / "nothing", errors.UsageError, "does not exist"),
        (mount.mountpoint / "nothing", errors.UsageError, "does not exist"),
        (mount.mountpoint / "file", errors.UsageError, "is no directory"),
        ("http://localhost", errors.UsageError, "no target"),
        ("unix:", errors.UsageError, "no address"),
        (f"unix:{tmp_path}/nothing", DaemonGone, "nobody listens"),
        (f"unix:{tmp_path}/no-socket", DaemonGone, "nobody listens"),
    ]

    async def main() -> None:
        async with open_group() as group:
            for target, error, text in wrong:
                with pytest.raises(error, match=text):
                    await group.mark(target)
            with pytest.raises(NotAMount, match="not on a fusenotify mount"):
                await group.mark(tmp_path, origin=Origin.REMOTE)
            (mount.source / "file").touch()
            for scope in (Scope.DIR, Scope.SUBTREE):
                with pytest.raises(errors.UsageError, match="files have the scope inode"):
                    await group.mark(mount.mountpoint / "file", scope=scope)
            await group.mark(mount.mountpoint)  # none of this was the end of it
            (mount.source / "x").mkdir()
            assert brief(await until(group, "x")) == [("create", "x")]

    go(main)


def test_a_group_that_is_not_open_says_so(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        group = open_group()
        with pytest.raises(errors.UsageError, match="not open"):
            await group.mark(mount.mountpoint)
        async with group:
            mark = await group.mark(mount.mountpoint)
        for use in (group.mark(mount.mountpoint), group.unmark(mark), group.sync(), group.batch()):
            with pytest.raises(errors.UsageError, match="not open"):
                await use
        await count_of_groups(mount, 0)

    go(main)


def test_a_busy_daemon_does_not_keep_others_from_being_heard(mount: Mount, second: Mount, go: Run[None]) -> None:
    """Although there is always more of it when the consumer comes back."""

    async def main() -> None:
        async with watch(mount.mountpoint, second.mountpoint) as group, open_group() as witness:
            await witness.mark(mount.mountpoint)
            (second.source / "seldom").mkdir()
            told: list[str | None] = []
            for number in range(20):
                for name in range(5):
                    (mount.source / f"{number} {name}").mkdir()
                await witness.sync()
                told += [event.path for event in await group.batch()]
            assert "seldom" in told

    go(main)


def test_a_group_without_marks_has_nothing_to_wait_for(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            with pytest.raises(errors.UsageError, match="no mark"):
                await group.batch()
        with pytest.raises(errors.UsageError, match="nothing to watch"):
            async with watch():
                pass

    go(main)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL", "umount"])
@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_a_daemon_that_ends_is_told(mount: Mount, go: Run[None], how: str, way: str) -> None:
    target = f"unix:{mount.socket}" if way == "socket" else mount.mountpoint
    told: list[Event] = []

    def end() -> None:
        if how == "umount":
            assert run("umount", mount.mountpoint).returncode == 0
        else:
            mount.stop(signal.Signals[how])

    async def main() -> None:
        async with open_group() as group:
            await group.mark(target)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.to_thread.run_sync, end)
                with pytest.raises(DaemonGone, match="gone"):
                    await hear(group, told)
            for _ in range(2):  # and it stays so
                with pytest.raises(DaemonGone):
                    await group.batch()
            with pytest.raises(DaemonGone):
                await group.sync()
        with pytest.raises((DaemonGone, NotAMount)):
            await client.status(target)

    go(main)
    assert [event.kind for event in told] == ([] if how == "SIGKILL" else [Kind.UNMOUNT])


def test_what_was_told_before_the_end_is_read_before_the_error(mount: Mount, second: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint)
            await group.mark(second.mountpoint)
            (mount.source / "a").mkdir()
            (second.source / "b").mkdir()
            await group.sync()
            await anyio.to_thread.run_sync(second.stop, signal.SIGKILL)
            told: list[Event] = []
            with pytest.raises(DaemonGone):
                await hear(group, told)
            assert {event.path for event in told} == {"a", "b"}
            (mount.source / "c").mkdir()
            await client.status(mount.mountpoint)

    go(main)


def test_a_dead_mount_says_what_to_do(mount: Mount, go: Run[None]) -> None:
    mount.stop(signal.SIGKILL)

    async def main() -> None:
        async with open_group() as group:
            with pytest.raises(DaemonGone, match="umount --lazy"):
                await group.mark(mount.mountpoint)

    go(main)


@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_a_client_that_is_killed_leaves_nothing(mount: Mount, go: Run[None], way: str) -> None:
    target = f"unix:{mount.socket}" if way == "socket" else mount.mountpoint
    watches = [Watch(target) for _ in range(3)]
    for one in watches:
        one.process.kill()

    async def main() -> None:
        await count_of_groups(mount, 0)
        async with watch(mount.mountpoint) as events:
            (mount.source / "x").mkdir()
            assert brief(await until(events, "x")) == [("create", "x")]
            assert (await client.status(mount.mountpoint)).groups == 1

    try:
        go(main)
    finally:
        for one in watches:
            one.close()


def test_a_client_that_is_killed_in_the_middle_of_a_flood_leaves_nothing(mount: Mount, go: Run[None]) -> None:
    with subprocess.Popen([*FUSENOTIFY, "watch", "--json", mount.mountpoint], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert b"ready" in process.stdout.readline()
        for n in range(2000):
            (mount.source / f"{n}").touch()
        process.kill()
    go(lambda: count_of_groups(mount, 0))


# --- the socket ----------------------------------------------------------------------------------------------------


def test_the_socket_is_for_this_user_only(mount: Mount, go: Run[None]) -> None:
    found = mount.socket.stat()
    assert stat.S_ISSOCK(found.st_mode)
    assert stat.S_IMODE(found.st_mode) == 0o600


def test_a_socket_client_that_sends_rubbish_is_told_and_hung_up_on(mount: Mount, go: Run[None]) -> None:
    for rubbish in (b"GET / HTTP/1.1\r\n\r\n", b"\x03\0\0\0\xc1\xc1\xc1", b"\x07\0\0\0\x92\xa5\xff\xff\xff\xff\xff"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(mount.socket))
            sock.sendall(rubbish)
            told = b""
            while data := sock.recv(4096):
                told += data
            assert b"error" in told
            assert b"protocol" in told

    async def main() -> None:
        assert (await client.status(mount.mountpoint)).groups == 0

    go(main)
    assert "hung up on" in mount.log


def test_the_socket_is_removed_at_the_end_and_replaced_after_a_crash(directory: Path) -> None:
    with mounted(directory) as mount:
        mount.stop(signal.SIGKILL)
        assert mount.socket.exists()
    with mounted(directory) as mount:
        assert run("status", f"unix:{mount.socket}").returncode == 0
        mount.stop()
        assert not mount.socket.exists()


# --- the example ---------------------------------------------------------------------------------------------------


def test_the_raw_client_of_the_documentation(mount: Mount) -> None:
    script = Path(__file__).parent.parent / "examples" / "raw_client.py"
    # -I -S: without our library, or any other
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", script, mount.mountpoint], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout as lines:
        assert re.fullmatch(r"welcome 1 [0-9a-f]+\n", lines.readline())
        assert lines.readline() == "done 1 0 None\n"
        (mount.source / "a").mkdir()
        (mount.mountpoint / "a").rename(mount.mountpoint / ("b" * 200))
        for n in range(20):
            (mount.source / f"{n}").mkdir()
        expected = ["remote create None b'a'\n", f"local rename b'a' {b'b' * 200!r}\n"]
        expected += [f"remote create None {b'%d' % n!r}\n" for n in range(20)]
        assert [lines.readline() for _ in expected] == expected
        process.kill()


def test_the_public_names_are_there() -> None:
    assert all(hasattr(fusenotify, name) for name in fusenotify.__all__)
    assert issubclass(NotPermitted, fusenotify.FusenotifyError)


def test_a_refused_request_concerns_no_other(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        async with open_group() as group:
            with pytest.raises(fusenotify.FusenotifyError, match="Expected `int`"):
                await group.mark(mount.mountpoint, uids=["root"])  # type: ignore[list-item]
            await group.mark(mount.mountpoint)
            await group.mark(mount.mountpoint)
            (mount.source / "a").mkdir()
            assert [event.path for event in await until(group, "a")] == ["a"]

    go(main)
