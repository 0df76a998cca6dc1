"""What has changed since a cursor: asked for once, and as the beginning of a stream that goes on live."""

import contextlib
import itertools
import json
import os
import random
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

import fusenotify
from fusenotify import BadCursor, Event, HistoryGone, Kind, NotAMount, Scope, UsageError, open_group, protocol, watch
from fusenotify.protocol import Changes, FrameBuffer, More, Refusal, Since
from tests.filesystems import filesystem
from tests.harness import FUSENOTIFY, Mount, Restartable, Watch, mounted, patched, run
from tests.names import Names, follow_until, survey
from tests.reading import Run
from tests.soak import SEED, examples


class Told(NamedTuple):
    """What `fusenotify since --json` said."""

    changes: list[dict[str, Any]]
    cursor: str
    fresh: bool
    code: int

    @property
    def paths(self) -> set[str]:
        """Everything that was named."""
        return {change["path"] for change in self.changes}

    def of(self, path: str) -> list[bool]:
        """Whether there was something, each time that a path was named."""
        return [change["exists"] for change in self.changes if change["path"] == path]


def since(target: Path | str, cursor: str) -> Told:
    done = run("since", target, cursor, "--json")
    *changes, last = map(json.loads, done.stdout.splitlines())
    assert all(change["type"] == "change" for change in changes)
    assert last["type"] == "cursor"
    return Told(changes, last["cursor"], last["fresh"], done.returncode)


def cursor_of(target: Path | str) -> str:
    done = run("cursor", target)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def restart(directory: Path) -> Iterator[Callable[[signal.Signals], Mount]]:
    """Start a daemon, after the one that runs, if there is one, has been ended by a signal."""
    services: list[Restartable] = []

    def start(how: signal.Signals) -> Mount:
        if services:
            services[0].stop(how)
            return services[0].start()
        services.append(Restartable(directory))
        return services[0].mount

    yield start
    services[0].close()


# --- what is named ---------------------------------------------------------------------------------------------------


def test_what_changed_on_either_side_is_named(mount: Mount) -> None:
    for name in ("kept", "written", "mode", "gone", "old"):
        (mount.source / name).write_text("before")
    cursor = cursor_of(mount.mountpoint)
    for top, name in ((mount.source, "behind"), (mount.mountpoint, "before")):
        (top / name).mkdir()
        (top / name / "file").touch()
    (mount.source / "written").write_text("after")
    (mount.mountpoint / "mode").chmod(0o600)
    (mount.mountpoint / "gone").unlink()
    (mount.source / "old").rename(mount.source / "new")
    told = since(mount.mountpoint, cursor)
    assert (told.code, told.fresh) == (0, False)
    made = {"behind", "behind/file", "before", "before/file"}
    assert told.paths >= made | {"written", "mode", "gone", "old", "new"}
    assert "kept" not in told.paths
    assert {change["path"] for change in told.changes if change["is_dir"]} >= {"behind", "before"}
    assert [told.of(name) for name in ("gone", "old", "new", "written")] == [[False], [False], [True], [True]]
    (handle,) = [change["handle"] for change in told.changes if change["path"] == "new"]
    assert handle == anyio.run(fusenotify.lookup, mount.mountpoint / "new")
    (mount.source / "later").touch()
    again = since(mount.mountpoint, told.cursor)
    assert "later" in again.paths
    assert not again.paths & {"written", "mode", "gone", "old", "new"}


def test_a_directory_that_was_renamed_names_all_that_is_in_it(mount: Mount) -> None:
    os.makedirs(mount.source / "old" / "deep")
    (mount.source / "old" / "deep" / "file").touch()
    cursor = cursor_of(mount.mountpoint)
    (mount.source / "old").rename(mount.source / "new")
    told = since(mount.mountpoint, cursor)
    assert told.paths == {"old", "new", "new/deep", "new/deep/file"}
    assert told.of("old") == [False]
    assert told.of("new/deep/file") == [True]


def test_a_directory_that_came_in_or_went_out_says_so(mount: Mount, directory: Path) -> None:
    os.makedirs(directory / "outside" / "deep")
    (directory / "outside" / "deep" / "file").touch()
    os.makedirs(mount.source / "inside" / "deep")
    cursor = cursor_of(mount.mountpoint)
    (directory / "outside").rename(mount.source / "came")
    (mount.source / "inside").rename(directory / "went")
    told = since(mount.mountpoint, cursor)
    assert told.paths == {"inside", "came", "came/deep", "came/deep/file"}
    assert told.of("inside") == [False]


def test_what_was_in_a_directory_whose_name_is_used_again_is_gone(mount: Mount) -> None:
    """Who goes by the order of the answer forgets what was below the name, and learns what is below it now."""
    os.makedirs(mount.source / "name" / "lost")
    cursor = cursor_of(mount.mountpoint)
    known = set(survey(mount.source))
    (mount.source / "name").rename(mount.source / "other")
    os.makedirs(mount.source / "name" / "made")
    (mount.source / "name").chmod(0o700)
    told = since(mount.mountpoint, cursor)
    assert told.of("name") == [False, True]
    assert applied(known, told.changes) == set(survey(mount.source))


def applied(known: set[str], changes: list[dict[str, Any]]) -> set[str]:
    """Return the paths that there are to who knew some and goes by an answer, in its order."""
    for change in changes:
        path = change["path"]
        if change["exists"]:
            known = known | {path}
        else:
            known = {one for one in known if one != path and not one.startswith(f"{path}/")}
    return known


def test_a_file_that_had_another_name_for_a_moment_is_named(mount: Mount) -> None:
    """Nobody has seen what the name stood for by which it was changed."""
    (mount.source / "file").touch()
    cursor = cursor_of(mount.mountpoint)
    link = mount.mountpoint / "link"
    link.hardlink_to(mount.mountpoint / "file")
    link.write_text("changed")
    link.unlink()
    assert "file" in since(mount.mountpoint, cursor).paths


def test_only_what_is_below_the_target_is_named(mount: Mount) -> None:
    os.makedirs(mount.source / "a" / "b")
    os.makedirs(mount.source / "ab")
    cursor = cursor_of(mount.mountpoint)
    for name in ("top", "a/in", "a/b/deep", "ab/beside"):
        (mount.source / name).touch()
    (mount.source / "a" / "in").rename(mount.source / "out")
    (mount.source / "top").rename(mount.source / "a" / "from_top")
    told = since(mount.mountpoint / "a", cursor)
    assert {"a/in", "a/from_top", "a/b/deep"} <= told.paths
    assert all(path.startswith("a/") for path in told.paths)
    assert since(f"unix:{mount.socket}", cursor).paths >= {"top", "out", "ab/beside"} | told.paths


def test_of_a_file_only_that_is_named(mount: Mount) -> None:
    for name in ("file", "file2"):
        (mount.source / name).touch()
    cursor = cursor_of(mount.mountpoint)
    for name in ("file", "file2"):
        (mount.source / name).write_text("x")
    assert since(mount.mountpoint / "file", cursor).paths == {"file"}


def test_names_of_any_bytes(mount: Mount) -> None:
    cursor = cursor_of(mount.mountpoint)
    for name in (b"\xff\xfe", "ü".encode(), b"line\nfeed"):
        os.close(os.open(os.fsencode(mount.source) + b"/" + name, os.O_CREAT))
    assert since(mount.mountpoint, cursor).paths == {"\udcff\udcfe", "ü", "line\nfeed"}
    plain = run("since", mount.mountpoint, cursor).stdout
    assert "\n     line\\nfeed\n" in "\n" + plain


def test_plain_output_ends_with_the_cursor(mount: Mount) -> None:
    (mount.source / "gone").mkdir()
    cursor = cursor_of(mount.mountpoint)
    (mount.source / "gone").rmdir()
    (mount.source / "made").mkdir()
    *lines, last = run("since", mount.mountpoint, cursor).stdout.splitlines()
    assert sorted(lines) == ["     made/", "gone gone/"]
    assert since(mount.mountpoint, last).paths == set()


def test_a_long_answer_comes_whole(mount: Mount) -> None:
    cursor = cursor_of(mount.mountpoint)
    names = {f"{number:05}{'x' * 200}" for number in range(3000)}
    for name in names:
        (mount.source / name).touch()
    told = since(mount.mountpoint, cursor)
    assert told.paths == names
    assert len(told.changes) == len(names)


def test_zero_names_all_there_is(mount: Mount) -> None:
    os.makedirs(mount.source / "a" / "b")
    (mount.source / "a" / "gone").touch()
    (mount.source / "a" / "gone").unlink()
    told = since(mount.mountpoint, "0")
    assert (told.code, told.fresh) == (0, False)
    assert {change["path"] for change in told.changes if change["exists"]} == {"a", "a/b"}


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_what_changed_while_nobody_was_there_is_named(
    restart: Callable[[signal.Signals], Mount], how: signal.Signals
) -> None:
    mount = restart(how)
    source = mount.source
    os.makedirs(source / "old" / "below")
    for name in ("kept/file", "gone", "written"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).touch()
    cursor = cursor_of(mount.mountpoint)
    (source / "while").touch()
    mount.stop(how)
    (source / "old").rename(source / "new")
    (source / "gone").unlink()
    (source / "written").write_text("x")
    os.makedirs(source / "made" / "deep")
    mount = restart(how)
    (mount.mountpoint / "after").touch()
    told = since(mount.mountpoint, cursor)
    assert (told.code, told.fresh) == (0, False)
    assert told.paths >= {"while", "old", "new", "new/below", "gone", "written", "made", "made/deep", "after"}
    assert "kept/file" not in told.paths or how == signal.SIGKILL
    assert told.of("old") == [False]


@pytest.mark.parametrize("number", range(5))
def test_what_was_told_and_not_written_down_yet_is_not_forgotten(
    restart: Callable[[signal.Signals], Mount], watching: Callable[..., Watch], number: int
) -> None:
    """Whoever has heard of a name that was made right before the daemon was killed hears that it is gone, somehow."""
    mount = restart(signal.SIGKILL)
    watch = watching(mount.mountpoint)
    for name in range(number):
        (mount.source / f"{name}").touch()
    (mount.source / "brief").mkdir()
    cursor = watch.until("brief")[-1]["cursor"]
    mount.stop(signal.SIGKILL)
    (mount.source / "brief").rmdir()
    told = since(restart(signal.SIGKILL).mountpoint, cursor)
    assert told.fresh or told.of("brief") == [False]


# --- cursors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cursor", ["", "c:", "1", "c:x:y", "c:0123456789ab:-1", "c:0123456789ab:1:2", "@", "@none", "ü"]
)
def test_what_is_no_cursor_is_refused(mount: Mount, cursor: str) -> None:
    for command in (("since", mount.mountpoint, cursor), ("watch", "--since", cursor, mount.mountpoint)):
        done = run(*command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "cursor" in done.stderr or "snapshot" in done.stderr


def test_a_cursor_of_another_tree_is_refused(mount: Mount, directory: Path) -> None:
    (directory / "other").mkdir()
    with mounted(directory / "other") as other:
        (other.source / "x").touch()
        foreign = cursor_of(other.mountpoint)
    for command in (("since", mount.mountpoint, foreign), ("watch", "--since", foreign, mount.mountpoint)):
        done = run(*command)
        assert (done.returncode, done.stdout) == (2, "")


def lost(cursor: str) -> list[str]:
    """Return cursors like one of this run that nobody can have been given."""
    head, epoch, seq = cursor.split(":")
    return [f"{head}:{epoch}:{int(seq) + 1000}"]


def test_a_lost_cursor_gets_everything_and_is_told_so(mount: Mount) -> None:
    os.makedirs(mount.source / "a" / "b")
    for cursor in lost(cursor_of(mount.mountpoint)):
        told = since(mount.mountpoint, cursor)
        assert (told.code, told.fresh) == (6, True)
        assert told.paths == {"a", "a/b"}
        assert cursor in run("since", mount.mountpoint, cursor).stderr
        done = run("watch", "--json", "--since", cursor, mount.mountpoint)
        assert (done.returncode, done.stdout) == (6, "")


def test_nobody_keeps_a_history_off_our_mounts(directory: Path) -> None:
    for command in (("since", directory, "0"), ("cursor", directory), ("watch", "--since", "0", directory)):
        done = run(*command)
        assert (done.returncode, done.stdout) == (4, "")
        assert "not on a fusenotify mount" in done.stderr


def test_a_daemon_that_has_gone(directory: Path) -> None:
    for command in (("since", f"unix:{directory}/none", "0"), ("cursor", f"unix:{directory}/none")):
        assert run(*command).returncode == 5


def test_snapshots_stand_for_cursors(restart: Callable[[signal.Signals], Mount]) -> None:
    mount = restart(signal.SIGTERM)
    made = run("snapshot", "create", mount.mountpoint, "one")
    assert made.returncode == 0
    (mount.source / "a").touch()
    run("snapshot", "create", mount.mountpoint, "two")
    mount = restart(signal.SIGKILL)
    assert run("snapshot", "list", mount.mountpoint).stdout.splitlines()[0] == f"one\t{made.stdout.strip()}"
    (mount.source / "b").touch()
    assert since(mount.mountpoint, "@one").paths >= {"a", "b"}
    assert "b" in since(mount.mountpoint, "@two").paths
    assert run("snapshot", "delete", mount.mountpoint, "one").returncode == 0
    assert "one" not in run("snapshot", "list", mount.mountpoint).stdout
    for command in (("since", mount.mountpoint, "@one"), ("snapshot", "delete", mount.mountpoint, "one")):
        assert run(*command).returncode == 2


@pytest.mark.parametrize("arguments", [["create"], ["delete"], ["list", "name"], ["create", "a/b"], ["create", "@a"]])
def test_what_makes_no_sense_of_a_snapshot(mount: Mount, arguments: list[str]) -> None:
    action, *name = arguments
    assert run("snapshot", action, mount.mountpoint, *name).returncode == 2


# --- who may ask -----------------------------------------------------------------------------------------------------


def test_who_may_not_watch_a_subtree_is_not_told_of_it(directory: Path, nobody: list[str]) -> None:
    directory.chmod(0o755)
    with mounted(directory, ["-o", "allow_other"]) as mount:
        (mount.source / "file").touch()
        codes = {
            " ".join(map(str, arguments[:2])): ask(nobody, *arguments)
            for arguments in (
                ("since", mount.mountpoint, "0"),
                ("snapshot", "create", mount.mountpoint, "x"),
                ("watch", "--since", "0", mount.mountpoint),
            )
        }
        assert set(codes.values()) == {4}, codes
        assert ask(nobody, "since", mount.mountpoint / "file", "0") == 0
        (mount.source / "file").chmod(0o600)
        assert ask(nobody, "since", mount.mountpoint / "file", "0") == 4


def ask(nobody: list[str], *arguments: object) -> int:
    command = [*nobody, *FUSENOTIFY[1:], *map(str, arguments)]
    return subprocess.run(command, capture_output=True, check=False, timeout=30).returncode


def test_a_queue_file_in_a_directory_tells_of_that_only(mount: Mount) -> None:
    os.makedirs(mount.source / "a" / "b")
    cursor = cursor_of(mount.mountpoint)
    for name in ("top", "a/b/x"):
        (mount.source / name).touch()
    fd = os.open(mount.mountpoint / "a" / ".fusenotify" / "queue", os.O_RDWR | os.O_NONBLOCK)
    try:
        answer = ask_raw(fd, Since(1, b".", cursor))
    finally:
        os.close(fd)
    assert isinstance(answer, Changes)
    assert [record.path for record in answer.records] == [b"b/x"]


# --- the library -----------------------------------------------------------------------------------------------------


def test_the_library_asks(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        cursor = await fusenotify.cursor(mount.mountpoint)
        (mount.source / "dir").mkdir()
        answer = await fusenotify.since(mount.mountpoint, cursor)
        assert not answer.fresh
        (change,) = answer.changes
        handle = await fusenotify.lookup(mount.mountpoint / "dir")
        assert (change.path, change.exists, change.is_dir, change.handle) == ("dir", True, True, handle)
        assert not (await fusenotify.since(mount.mountpoint, answer.cursor)).changes
        kept = await fusenotify.create_snapshot(mount.mountpoint, "x")
        assert [(one.name, one.cursor) for one in await fusenotify.list_snapshots(mount.mountpoint)] == [("x", kept)]
        await fusenotify.delete_snapshot(mount.mountpoint, "x")
        assert await fusenotify.list_snapshots(mount.mountpoint) == []
        for cursor in lost(kept):
            assert (await fusenotify.since(mount.mountpoint, cursor)).fresh

    go(main)


def test_the_library_raises(mount: Mount, directory: Path, go: Run[None]) -> None:
    async def main() -> None:
        for cursor in ("rubbish", "@none"):
            with pytest.raises(BadCursor):
                await fusenotify.since(mount.mountpoint, cursor)
            with pytest.raises(BadCursor):
                async with watch(mount.mountpoint, since=cursor):
                    pass
        (gone,) = lost(await fusenotify.cursor(mount.mountpoint))
        async with open_group() as group:
            with pytest.raises(HistoryGone):
                await group.mark(mount.mountpoint, since=gone)
            mark = await group.mark(mount.mountpoint)  # which the failure has left nothing of
            assert mark.live == mark.cursor
            (mount.source / "x").mkdir()
            event = await anext(group)
            assert (event.path, event.recovered, event.mark) == ("x", False, mark)
            with pytest.raises(NotAMount):
                await group.mark(directory, since="0")
        with pytest.raises(NotAMount):
            await fusenotify.since(directory, "0")
        with pytest.raises(UsageError):
            await fusenotify.since(mount.mountpoint / "none", "0")

    go(main)


# --- recorded, then live ---------------------------------------------------------------------------------------------


def test_recorded_changes_come_first_and_live_ones_behind(mount: Mount, watching: Callable[..., Watch]) -> None:
    for name in ("written", "gone"):
        (mount.source / name).touch()
    cursor = cursor_of(mount.mountpoint)
    (mount.source / "written").write_text("x")
    (mount.source / "gone").unlink()
    (mount.source / "made").mkdir()
    watch = watching("--since", cursor, mount.mountpoint)
    assert watch.ready == {"type": "ready", "cursor": cursor}
    recorded = []
    while (line := watch.next()) is not None and line["type"] == "event":
        recorded.append(line)
    assert {(line["kind"], line["path"]) for line in recorded} == {
        ("modify", "written"), ("delete", "gone"), ("create", "made")
    }  # fmt: skip
    assert {(line["recovered"], line["cursor"]) for line in recorded} == {(True, cursor)}
    assert line is not None
    assert line["type"] == "live"
    assert since(mount.mountpoint, line["cursor"]).paths == set()
    (mount.source / "later").mkdir()
    event = watch.next()
    assert event is not None
    assert (event["kind"], event["path"], event["recovered"]) == ("create", "later", False)
    assert since(mount.mountpoint, event["cursor"]).paths == set()


def test_recorded_changes_count_as_events(mount: Mount) -> None:
    cursor = cursor_of(mount.mountpoint)
    (mount.source / "x").mkdir()
    done = run("watch", "--json", "--since", cursor, "--events", "1", mount.mountpoint)
    assert done.returncode == 0
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["ready", "event"]


@pytest.mark.parametrize(("scope", "paths"), [("subtree", {"d/a", "d/e/b"}), ("dir", {"d/a"}), ("inode", {"d"})])
def test_a_mark_is_told_of_what_it_reaches(mount: Mount, go: Run[None], scope: str, paths: set[str]) -> None:
    os.makedirs(mount.source / "d" / "e")

    async def main() -> None:
        cursor = await fusenotify.cursor(mount.mountpoint)
        for name in ("top", "d/a", "d/e/b"):
            (mount.source / name).touch()
        (mount.source / "d").chmod(0o700)
        async with open_group() as group:
            mark = await group.mark(mount.mountpoint / "d", scope=Scope(scope), since=cursor)
            told: set[str | None] = set()
            while mark.live is None:
                told |= {event.path for event in await group.batch()}
            assert told - {"d/e"} == paths  # a directory in which something was made may be named

    go(main)


def churn(top: Path, rounds: int, seed: int) -> None:
    """Make, write, rename and remove, directories as well."""
    dice = random.Random(seed)
    for number in range(rounds):
        paths = sorted(survey(top))
        path = top / dice.choice([*paths, "."])
        match dice.randrange(4):
            case 0:
                (path if path.is_dir() else path.parent).joinpath(f"d{seed}_{number}").mkdir()
            case 1:
                (path if path.is_dir() else path.parent).joinpath(f"f{seed}_{number}").write_text("x")
            case 2 if path != top:
                path.rename(top / f"r{seed}_{number}")
            case 3 if path.is_dir() and path != top and not any(path.iterdir()):
                path.rmdir()
            case 3 if not path.is_dir():
                path.unlink()


@pytest.mark.parametrize("limit", [None, 40], ids=["long queue", "short queue"])
def test_there_is_no_hole_at_the_seam(mount: Mount, go: Run[None], limit: int | None) -> None:
    churn(mount.source, 50, SEED)

    async def main() -> None:
        cursor = await fusenotify.cursor(mount.mountpoint)
        mirror = Names(mount.source)
        churn(mount.source, 200, SEED + 1)
        writer = threading.Thread(target=churn, args=(mount.source, 400, SEED + 2))
        writer.start()
        async with watch(mount.mountpoint, since=cursor, limit=limit) as group:
            while writer.is_alive():
                with anyio.move_on_after(0.05):
                    mirror.follow(await anext(group))
            await follow_until(group, mirror, mount.source)

    go(main)


@pytest.mark.parametrize("limit", [None, 20], ids=["long queue", "short queue"])
def test_each_event_has_a_cursor_to_go_on_from(mount: Mount, go: Run[None], limit: int | None) -> None:
    """Whoever stops after any event, and goes on from its cursor, ends up with what there is."""

    async def main() -> None:
        mirror = Names(mount.source)
        stops: list[tuple[str, set[str]]] = []
        async with watch(mount.mountpoint, limit=limit) as group:
            churn(mount.source, 200, SEED)
            while mirror.paths != set(survey(mount.source)):
                event = await anext(group)
                mirror.follow(event)
                stops.append((event.cursor, set(mirror.paths)))
        dice = random.Random(SEED)
        for cursor, known in dice.sample(stops, min(examples(4, 100), len(stops))):
            await check_going_on(mount, cursor, known)

    go(main)


def test_a_directory_that_comes_to_a_mark_is_not_lost_half_way(mount: Mount, go: Run[None]) -> None:
    """Its contents follow the rename: who stops between the two goes on from before it."""
    os.makedirs(mount.source / "out" / "dir" / "a")
    os.makedirs(mount.source / "out" / "dir" / "b")
    (mount.source / "in").mkdir()

    async def main() -> None:
        mirror = Names(mount.source / "in")
        async with watch(mount.mountpoint / "in") as group:
            (mount.source / "out" / "dir").rename(mount.source / "in" / "dir")
            (mount.source / "in" / "dir" / "c").mkdir()
            (mount.source / "in" / "last").mkdir()
            await group.sync()
            cursors = []
            while "in/last" not in mirror.paths:
                event = await anext(group)
                mirror.follow(event)
                cursors.append((event.cursor, set(mirror.paths)))
        for cursor, known in cursors:
            answer = await fusenotify.since(mount.mountpoint / "in", cursor)
            assert known | {change.path for change in answer.changes} >= {
                "in/dir", "in/dir/a", "in/dir/b", "in/dir/c", "in/last"
            }  # fmt: skip

    go(main)


async def check_going_on(mount: Mount, cursor: str, known: set[str]) -> None:
    mirror = Names(mount.source)
    mirror.paths = known
    async with watch(mount.mountpoint, since=cursor) as group:
        (mount.source / "end").mkdir(exist_ok=True)
        with anyio.fail_after(10):
            await follow_until(group, mirror, mount.source)


def test_everything_comes_through_a_short_queue(mount: Mount, go: Run[None]) -> None:
    """What was recorded waits for room: it is no reason for an overflow."""
    for number in range(300):
        (mount.source / f"{number}").touch()

    async def main() -> None:
        async with open_group(limit=10) as group:
            mark = await group.mark(mount.mountpoint, since="0")
            told: list[Event] = []
            while mark.live is None:
                told += await group.batch()
            assert {event.path for event in told} == {f"{number}" for number in range(300)}
            assert {event.kind for event in told} == {Kind.CREATE}

    go(main)


def test_a_mark_that_goes_while_it_is_told_leaves_the_others(mount: Mount, go: Run[None]) -> None:
    for number in range(300):
        (mount.source / f"{number}").touch()
    (mount.source / "dir").mkdir()

    async def main() -> None:
        async with open_group(limit=10) as group:
            kept = await group.mark(mount.mountpoint / "dir")
            mark = await group.mark(mount.mountpoint, since="0")
            await group.batch()
            await group.unmark(mark)
            (mount.source / "dir" / "x").mkdir()
            while (event := await anext(group)).path != "dir/x":
                pass
            assert event.mark is kept

    go(main)


async def recorded(mount: Mount, cursor: str) -> list[tuple[Kind, str | None, str | None]]:
    """What is told of the time since a cursor: kind, old path, path; but for directories that are named themselves."""
    async with open_group() as group:
        mark = await group.mark(mount.mountpoint, since=cursor)
        told: list[Event] = []
        while mark.live is None:
            told += await group.batch()
        return [(event.kind, event.old_path, event.path) for event in told if event.kind is not Kind.MODIFY]


def fill_for_renames(source: Path) -> None:
    for name in ("file", "dir/below/file", "chain", "over", "other"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)


def rename_all(source: Path) -> None:
    """Rename a file, a directory, something twice, and something to a name that was used."""
    (source / "file").rename(source / "new")
    (source / "dir/below/file").unlink()
    (source / "dir/made").touch()
    (source / "dir").rename(source / "moved")
    (source / "chain").rename(source / "link")
    (source / "link").rename(source / "end")
    (source / "over").rename(source / "other")


RENAMED = {
    (Kind.RENAME, "file", "new"), (Kind.RENAME, "dir", "moved"), (Kind.CREATE, None, "moved/below"),
    (Kind.CREATE, None, "moved/made"), (Kind.RENAME, "chain", "end"), (Kind.RENAME, "over", "other"),
}  # fmt: skip
GONE = {(Kind.DELETE, None, "moved/below/file"), (Kind.DELETE, None, "link")}  # which nobody knew by these names


def test_renames_are_recorded_as_such(mount: Mount, go: Run[None]) -> None:
    async def main() -> None:
        fill_for_renames(mount.source)
        cursor = await fusenotify.cursor(mount.mountpoint)
        rename_all(mount.source)
        told = await recorded(mount, cursor)
        # What was renamed twice at once has not been seen under the name between.
        twice = {(Kind.DELETE, None, "chain"), (Kind.CREATE, None, "end")}
        assert set(told) - GONE in (RENAMED, RENAMED - {(Kind.RENAME, "chain", "end")} | twice)
        assert len(told) == len(set(told))

    go(main)


def test_renames_while_nobody_was_there_are_found(restart: Callable[[signal.Signals], Mount], go: Run[None]) -> None:
    mount = restart(signal.SIGTERM)
    fill_for_renames(mount.source)
    cursor = cursor_of(mount.mountpoint)
    mount = restart(signal.SIGTERM)  # by an end everything has been seen as it is
    mount.stop()
    rename_all(mount.source)
    mount = restart(signal.SIGTERM)

    async def main() -> None:
        assert set(await recorded(mount, cursor)) - GONE == RENAMED

    go(main)


def made_in(directory: Path, name: str) -> int:
    """Make a file and return its inode number."""
    (directory / name).touch()
    return (directory / name).stat().st_ino


def test_what_has_the_number_of_something_that_is_gone_was_not_renamed(tmp_path: Path, go: Run[None]) -> None:
    with filesystem("ext4", tmp_path) as disk:
        service = Restartable(disk)
        try:
            (service.source / "old").touch()
            cursor = cursor_of(service.mount.mountpoint)
            number = (service.source / "old").stat().st_ino
            service.stop(signal.SIGTERM)
            service.start()
            service.stop(signal.SIGTERM)
            (service.source / "old").unlink()
            names = itertools.takewhile(lambda name: made_in(service.source, name) != number, map(str, range(100)))
            assert len(list(names)) < 100
            service.start()

            async def main() -> None:
                told = await recorded(service.mount, cursor)
                assert (Kind.DELETE, None, "old") in told
                assert {kind for kind, _, path in told if path != "old"} == {Kind.CREATE}

            go(main)
        finally:
            service.close()


# Run before the daemon: a mark is answered when all that was recorded before it waits to be sent.
ANSWERING_LATE = """
import trio
from fusenotify.group import Group
from fusenotify.recall import Recalls
_begin, _catch_up = Recalls.begin, Group.catch_up
caught_up = trio.Event()
def catch_up(self, *arguments):
    _catch_up(self, *arguments)
    caught_up.set()
async def begin(self, *arguments):
    await _begin(self, *arguments)
    await caught_up.wait()
Group.catch_up, Recalls.begin = catch_up, begin
"""


def test_what_is_told_of_a_mark_comes_behind_its_answer(directory: Path, go: Run[None]) -> None:
    """Who reads while another task makes a mark knows nothing of that before."""
    with patched(directory, ANSWERING_LATE) as mount:
        (mount.source / "dir").mkdir()

        async def main() -> None:
            told: set[str | None] = set()
            async with open_group() as group:
                await group.mark(mount.mountpoint / "dir")

                async def read() -> None:
                    async for event in group:
                        told.add(event.path)
                        if event.path == "dir/end":
                            return

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(read)
                    await group.mark(mount.mountpoint, since="0")
                    (mount.source / "dir" / "end").touch()
            assert "dir" in told

        go(main)


# --- answers that nobody fetches -------------------------------------------------------------------------------------

IMPATIENT = "import fusenotify.answering as a; a._PATIENCE = a._PATIENCE_FOR_PAGE = 0.2"


def test_an_answer_that_is_not_fetched_is_given_up(directory: Path) -> None:
    """It keeps what is written meanwhile from being tidied up, and one of few places from others."""
    with patched(directory, IMPATIENT) as mount, contextlib.ExitStack() as stack:
        for number in range(3000):
            (mount.source / f"{number:0200}").touch()
        queues = [os.open(mount.mountpoint / ".fusenotify" / "queue", os.O_RDWR | os.O_NONBLOCK) for _ in range(20)]
        for fd in queues:
            stack.callback(os.close, fd)
        assert {type(ask_raw(fd, Since(1, b".", "0"))) for fd in queues[:16]} == {Changes}
        while isinstance(answer := ask_raw(queues[16], Since(1, b".", "0")), Refusal):
            assert answer.code == "limit-reached"
        answer = ask_raw(queues[0], More(2))
        assert isinstance(answer, Refusal)
        assert answer.code == "history-gone"


def test_a_reader_who_is_too_slow_for_what_was_recorded_is_told_everything(directory: Path, go: Run[None]) -> None:
    with patched(directory, IMPATIENT) as mount:
        paths = {f"{number}" for number in range(3000)}
        for path in paths:
            (mount.source / path).touch()

        async def main() -> None:
            async with open_group(limit=100) as group:
                mark = await group.mark(mount.mountpoint, since="0")
                told: list[Event] = []
                while Kind.OVERFLOW not in {event.kind for event in told}:
                    await anyio.sleep(0.3)  # what is slow here is the reader
                    told = await group.batch()
                while mark.live is None:
                    told += await group.batch()
                overflow = [event.kind for event in told].index(Kind.OVERFLOW)
                assert {event.path for event in told[overflow + 1 :]} == paths

        go(main)


def ask_raw(fd: int, request: protocol.Request) -> protocol.Reply:
    os.write(fd, protocol.encode(request))
    select.select([fd], [], [])
    return protocol.decode_reply(FrameBuffer().feed(os.read(fd, 1 << 17))[0])
