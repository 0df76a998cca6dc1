"""What changed since a cursor: in one run, and over clean restarts."""

import contextlib
import functools
import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from fusenotify import _linux, hearing, inbox, inventory, scribe
from fusenotify.answering import Named, looked_at
from fusenotify.backing import Backing, acting_as
from fusenotify.database import FILE_NAME, Database
from fusenotify.digest import Note
from fusenotify.entries import Entries
from fusenotify.errors import BadCursor, UsageError
from fusenotify.events import EventRecord
from fusenotify.filesystems import Filesystems
from fusenotify.history import SOUND_NAME
from fusenotify.identity import FileHandle
from fusenotify.rows import DIRECTORY, RACY, ROOT_ID, UNSEEN
from fusenotify.store import NodeRow
from tests.filesystems import filesystem
from tests.harness import PATIENCE
from tests.journalling import journalled, named
from tests.ordinary import NOBODY


async def test_changes_of_one_run(directory: Path) -> None:
    source = directory / "source"
    source.mkdir()
    (source / "old").write_text("old")
    (source / "kept").write_text("kept")
    async with journalled(source, directory / "state") as journal:
        start = await journal.cursor()
        assert await journal.since(start) == ([], False)
        (source / "new").write_text("new")
        (source / "old").unlink()
        (source / "a").mkdir()
        (source / "a/b").write_text("b")
        changes, fresh = await journal.since(start)
        assert not fresh
        assert named(changes) == {(b"new", True), (b"old", False), (b"a", True), (b"a/b", True)}
        assert all(change.handle for change in changes if change.exists)
        then = await journal.cursor()
        assert await journal.since(then) == ([], False)
        (source / "kept").write_text("changed")
        (source / "a").rename(source / "c")
        changes, _ = await journal.since(then)
        assert named(changes) == {(b"kept", True), (b"a", False), (b"c", True), (b"c/b", True)}
        assert named((await journal.since("0"))[0]) == {(b"new", True), (b"kept", True), (b"c", True), (b"c/b", True)}
        changes, _ = await journal.since(then, b"c")
        assert named(changes) == {(b"c", True), (b"c/b", True)}


async def test_what_changes_while_a_question_is_asked_is_in_the_next_answer(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = directory / "source"
    names = {f"{number}".encode() for number in range(3000)}
    monkeypatch.setattr(hearing, "_SLICE", 0.0)  # so that questions come whenever they may
    async with journalled(source, directory / "state") as journal, trio.open_nursery() as nursery:
        cursor = await journal.cursor()
        named_so_far: set[bytes] = set()
        is_made = trio.Event()

        def touch() -> None:
            for name in names:
                (source / os.fsdecode(name)).touch()

        async def make() -> None:
            await trio.to_thread.run_sync(touch)
            await journal.export.hearing.caught_up()
            is_made.set()

        nursery.start_soon(make)
        has_ended = False
        while not has_ended:
            has_ended = is_made.is_set()
            async with await journal.export.journal.since(cursor) as answer:
                cursor = answer.cursor
                while page := await answer.page():
                    named_so_far.update(change.path for change in page)
        assert named_so_far == names


async def test_changes_while_the_daemon_was_down(directory: Path) -> None:
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        for name in "abcd":
            (source / name).write_text(name)
        (source / "moved/below").mkdir(parents=True)
        (source / "moved/below/file").write_text("file")
        cursor = await journal.cursor()
    (source / "a").write_text("changed")
    (source / "b").unlink()
    status = (source / "c").stat()
    (source / "other").write_text("c")
    os.utime(source / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (source / "other").rename(source / "c")
    (source / "moved").rename(source / "there")
    async with journalled(source, state) as journal:
        changes, fresh = await journal.since(cursor)
    assert not fresh
    assert named(changes) == {
        (b".", True),
        (b"a", True), (b"b", False), (b"c", True), (b"moved", False),
        (b"there", True), (b"there/below", True), (b"there/below/file", True),
    }  # fmt: skip


async def test_a_directory_that_moves_to_where_the_comparison_has_been(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where it has not been yet: so it would be passed by, with what has been made in it before."""
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        for name in "ab":
            (source / name / "d").mkdir(parents=True)
        cursor = await journal.cursor()
    for name in "ab":
        (source / name / "d/new").touch()
    been: list[str] = []
    is_told = threading.Event()
    look, follow = inventory.Inventory.look, scribe.Scribe.follow

    def look_and_move(
        self: inventory.Inventory, directories: list[inventory.Directory]
    ) -> list[tuple[inventory.Directory, inventory.Listing]]:
        seen = look(self, directories)
        (one,) = directories
        if not been and one.path in (b"a", b"b"):
            been.append(one.path.decode())
            (source / {"a": "b", "b": "a"}[been[0]] / "d").rename(source / been[0] / "moved")
            assert is_told.wait(PATIENCE)
        return seen

    def follow_and_say(self: scribe.Scribe, records: Sequence[EventRecord]) -> None:
        follow(self, records)
        is_told.set()

    monkeypatch.setattr(inventory, "_DIRECTORIES_AT_ONCE", 1)
    monkeypatch.setattr(inventory.Inventory, "look", look_and_move)
    monkeypatch.setattr(scribe.Scribe, "follow", follow_and_say)
    async with journalled(source, state) as journal:
        changes, _ = await journal.since(cursor)
    assert (f"{been[0]}/moved/new".encode(), True) in named(changes)


async def test_nothing_is_named_after_a_clean_restart_that_was_before(directory: Path) -> None:
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        await journal.cursor()
        (source / "a/b").mkdir(parents=True)
        await journal.cursor()
        (source / "a/b/file").touch()
        (source / "a/other").touch()
        cursor = await journal.cursor()
    (source / "a").chmod(0o700)
    async with journalled(source, state) as journal:
        assert named((await journal.since(cursor))[0]) == {(b"a", True)}
    source.chmod(0o700)
    async with journalled(source, state) as journal:
        assert named((await journal.since(cursor))[0]) == {(b"a", True), (b".", True)}


async def test_cursors_that_are_none(directory: Path) -> None:
    async with journalled(directory / "source", directory / "state") as journal:
        cursor = await journal.cursor()
        for bad in ("", "c:", "1", "c:0123456789abcdef", "@nobody", f"c:{'0' * 12}:1"):
            with pytest.raises(BadCursor):
                await journal.since(bad)
        ahead = cursor.rpartition(":")[0] + ":999"
        assert (await journal.since(ahead))[1]
        assert (await journal.since(cursor[:8] + "0" * 6 + ":0"))[1]


async def test_files_with_names_outside_are_looked_at_again(directory: Path) -> None:
    source = directory / "source"
    async with journalled(source, directory / "state") as journal:
        (source / "file").write_text("file")
        os.link(source / "file", directory / "outside")
        cursors = [await journal.cursor()]
        (directory / "outside").write_text("changed")
        for _ in range(2):
            for cursor in cursors:
                changes, _ = await journal.since(cursor)
                assert (b"file", True) in named(changes)
            cursors.append(cursors[0])
        cursor = await journal.cursor()
        await trio.sleep(2 * RACY / 1e9)
        await journal.since(cursor)  # which finds it at rest
        assert await journal.since(await journal.cursor()) == ([], False)


async def test_a_file_that_is_changed_by_another_name_is_named_by_all(directory: Path) -> None:
    source = directory / "source"
    for name in "ab":
        (source / name).mkdir(parents=True)
    (source / "a/file").touch()
    async with journalled(source, directory / "state") as journal:
        await journal.cursor()
        os.link(source / "a/file", source / "b/link")
        await journal.since("0")
        cursor = await journal.cursor()
        (source / "b/link").write_text("changed")
        assert named((await journal.since(cursor))[0]) == {(b"a/file", True), (b"b/link", True)}


async def test_a_file_that_is_changed_as_soon_as_it_has_another_name_is_named_by_both(directory: Path) -> None:
    """A directory comes with what is in it, and nothing more is told of that."""
    source = directory / "source"
    async with journalled(source, directory / "state") as journal:
        (source / "file").touch()
        outside = directory / "outside"
        outside.mkdir()
        cursor = await journal.cursor()
        (outside / "link").hardlink_to(source / "file")
        (outside / "link").chmod(0o600)
        outside.rename(source / "dir")
        changes, _ = await journal.since(cursor)
        assert {(b"file", True), (b"dir/link", True)} <= named(changes)


async def test_what_is_given_up_while_a_question_is_asked_makes_the_answer_fresh(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = directory / "source"
    async with journalled(source, directory / "state") as journal:
        for name in ("file", "other"):
            (source / name).touch()
        cursor = await journal.cursor()
        (source / "file").unlink()
        await journal.cursor()
        history, snapshot = journal.export.journal._history, Database.snapshot

        def compact_before(database: Database) -> sqlite3.Connection:
            with database.transaction() as connection:
                history.compact(connection, 0)
            return snapshot(database)

        monkeypatch.setattr(Database, "snapshot", compact_before)
        changes, fresh = await journal.since(cursor)
        assert (named(changes), fresh) == ({(b"other", True)}, True)


async def test_a_file_that_was_not_seen_under_its_name_may_have_others(directory: Path) -> None:
    """It was told of where its directory is no longer."""
    source = directory / "source"
    (source / "a").mkdir(parents=True)
    async with journalled(source, directory / "state") as journal:
        await journal.cursor()
        (source / "a/file").touch()
        (source / "a").rename(source / "b")
        (source / "other").hardlink_to(source / "b/file")
        await journal.since("0")
        cursor = await journal.cursor()
        (source / "other").chmod(0o600)
        assert named((await journal.since(cursor))[0]) == {(b"b/file", True), (b"other", True)}


async def test_a_directory_takes_the_place_of_a_file_with_several_names(directory: Path) -> None:
    """Such files are looked at with each question, and what has come to the name of one is another object."""
    source = directory / "source"
    async with journalled(source, directory / "state") as journal:
        (source / "one").touch()
        (source / "other").hardlink_to(source / "one")
        cursor = await journal.cursor()
        (source / "one").unlink()
        (source / "one").mkdir()
        (source / "one/file").touch()
        changes, _ = await journal.since(cursor)
        assert {(b"one", True), (b"one/file", True)} <= named(changes)
        (source / "one/file").write_text("more")
        changes, _ = await journal.since(cursor)
        assert {(b"one", True), (b"one/file", True)} <= named(changes)


async def test_snapshots_keep_history(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scribe, "MOST_TOMBSTONES", 20)
    monkeypatch.setattr(scribe, "_HOUSEKEEPING", 1)
    source = directory / "source"
    async with journalled(source, directory / "state") as journal:
        early = await journal.cursor()
        (source / "first").touch()
        (source / "first").unlink()
        await journal.cursor()
        assert await journal.export.journal.create_snapshot("kept") == await journal.cursor()
        with pytest.raises(UsageError):
            await journal.export.journal.create_snapshot("no/name")
        for number in range(40):
            (source / f"{number}").touch()
            (source / f"{number}").unlink()
            await journal.cursor()
        assert await journal.since(early) == ([], True)
        changes, fresh = await journal.since("@kept")
        assert not fresh
        assert named(changes) == {(f"{number}".encode(), False) for number in range(40)}
        assert [row.name for row in await journal.export.journal.snapshots()] == ["kept"]
        await journal.export.journal.delete_snapshot("kept")
        with pytest.raises(UsageError):
            await journal.export.journal.delete_snapshot("kept")
        oldest = journal.export.journal.status().oldest
        assert not (await journal.since(oldest))[1]


async def test_too_many_events_at_once(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much to be kept until it is written is found by a comparison."""
    monkeypatch.setattr(inbox, "_MOST_BACKLOG", 10)
    source = directory / "source"
    async with journalled(source, directory / "state") as journal:
        (source / "a").mkdir()
        (source / "a/old").write_text("old")
        cursor = await journal.cursor()
        for number in range(100):
            (source / f"a/{number}").touch()
        (source / "a/old").unlink()
        changes, fresh = await journal.since(cursor)
        assert not fresh
        expected = {(f"a/{number}".encode(), True) for number in range(100)} | {(b"a/old", False)}
        assert named(changes) >= expected
        assert journal.export.journal.status().state == "ready"


async def test_a_full_disk(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the journal cannot be written, everything is named; afterwards what has changed is."""
    monkeypatch.setattr(scribe, "_RETRY", 0.05)
    source = directory / "source"
    with filesystem("ext4", tmp_path, size="8M") as disk:
        async with journalled(source, disk / "state") as journal:
            (source / "kept").touch()
            cursor = await journal.cursor()
            fill(disk / "filler")
            for number in range(3000):
                (source / f"{number}").touch()
            changes, fresh = await journal.since(cursor)
            assert fresh
            assert {path for path, _ in named(changes)} == {b"kept", *(f"{number}".encode() for number in range(3000))}
            assert journal.export.journal.status().state == "failing"
            (disk / "filler").unlink()
            while fresh:
                changes, fresh = await journal.since(cursor)
            assert {path for path, _ in named(changes)} == {f"{number}".encode() for number in range(3000)}


def fill(path: Path) -> None:
    """Write a file until its disk is full."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
                    os.fsync(file.fileno())


async def test_an_end_without_a_journal_is_told_to_the_next_run(directory: Path) -> None:
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        cursor = await journal.cursor()
    with contextlib.closing(sqlite3.connect(state / FILE_NAME)) as database, database:
        database.execute("UPDATE epoch SET is_clean = 0")
    (state / SOUND_NAME).unlink()
    async with journalled(source, state) as journal:
        assert (await journal.since(cursor))[1]
        later = await journal.cursor()
    async with journalled(source, state) as journal:
        assert not (await journal.since(later))[1]


async def test_names_that_were_not_looked_at_before_the_end(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who took a cursor while the tree was still being recorded may know names that no row tells of."""
    source, state = directory / "source", directory / "state"
    source.mkdir()
    (source / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(scribe.Scribe, "_compare", lambda _: time.sleep(0.01))
        async with journalled(source, state) as journal:
            await journal.export.journal._written(0)
            cursor = journal.export.journal._history.cursor_at(0)
            shutil.copytree(state, directory / "killed")
    (source / "file").unlink()
    async with journalled(source, directory / "killed") as journal:
        assert (await journal.since(cursor))[1]


async def test_changes_that_a_comparison_saw_and_nothing_told_of(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before it is told of them, the daemon has rows that do not differ from what is there."""
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        (source / "file").touch()
        await journal.cursor()
    compare = scribe.Scribe._compare

    def change_and_compare(self: scribe.Scribe) -> None:
        (source / "file").write_text("changed")
        time.sleep(2 * RACY / 1e9)  # what is looked at right after its time of change is in doubt anyway
        compare(self)

    with monkeypatch.context() as patch:
        patch.setattr(scribe.Scribe, "_compare", change_and_compare)
        patch.setattr(scribe.Scribe, "follow", lambda *_: None)
        async with journalled(source, state) as journal:
            await journal.export.journal.cursor()
            cursor = journal.export.journal._history.cursor_at(0)
            shutil.copytree(state, directory / "killed")
    async with journalled(source, directory / "killed") as journal:
        changes, fresh = await journal.since(cursor)
        assert not fresh
        assert (b"file", True) in named(changes)


async def test_an_older_database_is_brought_up_to_date(directory: Path) -> None:
    """One of version 1 knows of nodes only."""
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        journal.export.store.put(NodeRow(42, 7, FileHandle(7, 1, b"handle").packed(), 1, b"name"))
    with contextlib.closing(sqlite3.connect(state / FILE_NAME)) as database:
        for table in ("epoch", "entry", "orphan", "touched", "snapshot"):
            database.execute(f"DROP TABLE {table}")
        database.execute("DELETE FROM about WHERE key NOT IN ('tree', 'id', 'secret', 'living')")
        database.execute("PRAGMA user_version = 1")
        database.commit()
    (source / "file").touch()
    async with journalled(source, state) as journal:
        assert journal.export.store.row(42) is not None
        assert named((await journal.since("0"))[0]) == {(b"file", True)}
        cursor = await journal.cursor()
    async with journalled(source, state) as journal:
        assert await journal.since(cursor) == ([], False)


async def test_a_damaged_database_answers_fresh(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        (source / "file").touch()
        cursor = await journal.cursor()
    with (state / FILE_NAME).open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 8192)
    async with journalled(source, state) as journal:
        changes, fresh = await journal.since(cursor)
        assert fresh
        assert named(changes) == {(b"file", True)}
    assert "the history of changes is gone" in caplog.text


async def test_an_exclusive_tree_is_compared_where_something_may_have_changed(directory: Path) -> None:
    source, state = directory / "source", directory / "state"
    for name in ("a", "b"):
        (source / name).mkdir(parents=True)
        (source / name / "file").touch()
    async with journalled(source, state, is_exclusive=True) as journal:
        cursor = await journal.cursor()
    (source / "b/file").write_text("which nobody was to do")
    async with journalled(source, state, is_exclusive=True) as journal:
        assert await journal.since(cursor) == ([], False)
        journal.export.journal.record({(source / "a").stat().st_ino})
        with contextlib.closing(sqlite3.connect(state / FILE_NAME)) as database:
            assert database.execute("SELECT count(*) FROM touched").fetchone() == (1,)
        shutil.copytree(state, directory / "killed")
    (source / "a/new/below").mkdir(parents=True)
    async with journalled(source, directory / "killed", is_exclusive=True) as journal:
        changes, fresh = await journal.since(cursor)
        assert not fresh
        assert named(changes) == {(b"a/file", True), (b"a/new", True), (b"a/new/below", True)}


def test_what_cannot_be_seen_is_not_gone(directory: Path) -> None:
    directory.chmod(0o755)
    for name in ("closed", "open"):
        (directory / name).mkdir()
        (directory / name / "file").touch()
    (directory / "link").symlink_to("open")
    with contextlib.closing(Backing(str(directory))) as backing:
        (directory / "closed").chmod(0o700)
        look = functools.partial(looked_at, backing, Filesystems(str(directory)), lambda *_: "handle")

        def told(path: bytes, *, exists: bool = True) -> bool:
            with acting_as(NOBODY, NOBODY, ()):
                return look(Named(path, False, False, exists=exists)).exists

        assert told(b"open/file")
        assert told(b"closed/file")
        assert not told(b"closed/file", exists=False)
        for nothing in (b"open/other", b"open/file/below", b"link/file"):
            assert not told(nothing)


def test_a_look_that_finds_what_followed(directory: Path) -> None:
    """Who knows what was made first is told that a directory has come, though a look found that one already."""
    database = Database(directory, FileHandle(7, 1, b"tree"))
    made, replaced = 10, 20
    directory_there = UNSEEN._replace(inode=7, is_dir=True)
    with contextlib.closing(database), database.transaction() as connection:
        entries = Entries(connection)
        entries.note(b"name", Note(made, True, False), 0, directory_there)
        entries.note(b"name", Note(replaced, True, True), 0, directory_there)
        row = entries.find(ROOT_ID, b"name")
    assert row is not None
    assert (row.kind, row.inode, row.born) == (DIRECTORY, 7, replaced)


@pytest.mark.parametrize("above", [0, 7])
def test_what_a_directory_is_is_taken_over_only_where_that_can_be_doubted(directory: Path, above: int) -> None:
    """It may have been changed itself, which is still to be told: the next run has to look into what is above it."""
    database = Database(directory, FileHandle(7, 1, b"tree"))
    seen = UNSEEN._replace(inode=8, ctime=9, is_dir=True)
    with contextlib.closing(database), database.transaction() as connection:
        entries = Entries(connection)
        entries.note(b"above", Note(1, True, True), 0, UNSEEN._replace(inode=above, is_dir=True))
        entries.directory(b"above/below", 1)
        assert entries.renew(b"above/below", seen) == above
        assert entries.known_in(entries.directory(b"above", 1))[b"below"][-1] == (9 if above else 0)


async def test_a_filesystem_that_has_come_to_another_device_is_the_same(tmp_path: Path) -> None:
    """As disks do over a restart of the machine; xfs makes its id of the device's number."""
    state, other = tmp_path / "state", tmp_path / "other"
    with filesystem("xfs", tmp_path) as disk:
        async with journalled(disk / "source", state) as journal:
            (disk / "source/file").write_text("file")
            cursor = await journal.cursor()
        # Two of them at a time, so that the numbers differ.
        await trio.run_process(["cp", "--sparse=always", disk.parent / "image", tmp_path / "copy"])
        other.mkdir()
        await trio.run_process(["mount", "-t", "xfs", "-o", "loop,nouuid", tmp_path / "copy", other])
        try:
            assert os.stat(other).st_dev != os.stat(disk).st_dev
            (other / "source/new").write_text("new")
            async with journalled(other / "source", state) as journal:
                changes, fresh = await journal.since(cursor)
        finally:
            _linux.umount2(os.fsencode(other), _linux.MNT_DETACH)
    assert not fresh
    assert named(changes) == {(b".", True), (b"new", True)}
