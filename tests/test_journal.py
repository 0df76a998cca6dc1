"""What changed since a cursor: in one run, and over clean restarts."""

import os
from pathlib import Path

import pytest

from fusenotify.errors import BadCursor
from tests.journalling import journalled, named


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
    assert named(changes) - {(b".", True)} == {
        (b"a", True), (b"b", False), (b"c", True), (b"moved", False),
        (b"there", True), (b"there/below", True), (b"there/below/file", True),
    }  # fmt: skip


async def test_cursors_that_are_none(directory: Path) -> None:
    async with journalled(directory / "source", directory / "state") as journal:
        cursor = await journal.cursor()
        for bad in ("", "c:", "1", "c:0123456789abcdef", "@nobody", f"c:{'0' * 16}:1"):
            with pytest.raises(BadCursor):
                await journal.since(bad)
        ahead = cursor.rpartition(":")[0] + ":999"
        assert (await journal.since(ahead))[1]
        assert (await journal.since(cursor[:10] + "0" * 8 + ":0"))[1]
