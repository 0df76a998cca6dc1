"""Ignore patterns: what they match, and what becomes of renames between names that are seen and names that are not."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fusenotify import Event, Kind, Scope, UsageError, events, open_group, watch
from fusenotify.client.ignoring import Ignore
from fusenotify.events import EXCHANGE, IS_DIR, OTHER_IS_DIR, EventRecord
from tests.harness import Mount, Watch
from tests.reading import until

PATTERNS = ["*.tmp", "build/", "/cache", "!keep.tmp", "docs/*.html"]


def record(kind: int, path: bytes | None, old_path: bytes | None = None, flags: int = 0) -> EventRecord:
    return EventRecord(1, 2, kind, flags, path, old_path)


@pytest.mark.parametrize(
    ("path", "is_dir", "is_seen"),
    [
        ("a.tmp", False, False),
        ("a/b/c.tmp", False, False),
        ("keep.tmp", False, True),
        ("a/keep.tmp", False, True),
        ("build", True, False),
        ("build", False, True),
        ("a/build/x", False, False),
        ("a/build/keep.tmp", False, False),  # what is in a directory that is ignored cannot be brought back
        ("x.tmp/keep.tmp", False, False),
        ("cache", False, False),
        ("a/cache", False, True),
        ("docs/a.html", False, False),
        ("docs/deep/a.html", False, True),
        (".", True, True),
    ],
)
def test_what_the_patterns_match(path: str, is_dir: bool, is_seen: bool) -> None:
    ignore = Ignore(PATTERNS, b"")
    flags = IS_DIR if is_dir else 0
    event = record(events.CREATE, path.encode(), flags=flags)
    assert ignore.apply(event) == ([event] if is_seen else [])
    assert Ignore(PATTERNS, b"at/some place").apply(event) == [event]  # they are about what is below there
    if path != ".":
        below = record(events.CREATE, b"at/some place/" + path.encode(), flags=flags)
        assert Ignore(PATTERNS, b"at/some place").apply(below) == ([below] if is_seen else [])


@pytest.mark.parametrize(
    ("old_path", "path", "told"),
    [
        (b"a", b"b", [(b"a", b"b")]),
        (b"a", b"b.tmp", [(b"a", None)]),
        (b"a.tmp", b"b", [(None, b"b")]),
        (b"a.tmp", b"b.tmp", []),
        (None, b"b.tmp", []),
        (b"a.tmp", None, []),
        (b"a", None, [(b"a", None)]),
    ],
)
def test_a_rename_across_the_border_comes_in_or_goes_out(
    old_path: bytes | None, path: bytes | None, told: list[tuple[bytes | None, bytes | None]]
) -> None:
    seen = Ignore(PATTERNS, b"").apply(record(events.RENAME, path, old_path))
    assert [(event.old_path, event.path) for event in seen] == told


def test_an_exchange_across_the_border_is_one_that_goes_and_one_that_comes() -> None:
    swap = record(events.RENAME, b"b", b"a.tmp", EXCHANGE | OTHER_IS_DIR)
    assert [(one.old_path, one.path, one.flags) for one in Ignore(["*.tmp"], b"").apply(swap)] == [
        (b"b", None, IS_DIR), (None, b"b", 0)
    ]  # fmt: skip
    assert Ignore(["*.o"], b"").apply(swap) == [swap]
    assert Ignore(["a.tmp", "b"], b"").apply(swap) == []


def test_overflow_and_unmount_are_never_ignored() -> None:
    for kind in (events.OVERFLOW, events.UNMOUNT):
        assert len(Ignore(["*"], b"").apply(record(kind, None))) == 1


def test_a_pattern_that_makes_no_sense() -> None:
    with pytest.raises(UsageError, match="cannot read the ignore patterns"):
        Ignore(["!"], b"")


def brief(told: list[Event]) -> list[tuple[str, str | None, str | None, bool]]:
    return [(str(event.kind), event.old_path, event.path, event.recovered) for event in told]


@pytest.mark.parametrize("place", ["mount", "elsewhere"])
async def test_a_directory_that_loses_its_ignored_name_is_told_with_what_is_in_it(mount: Mount, place: str) -> None:
    os.makedirs(mount.source / "build" / "deep")
    (mount.source / "build" / "deep" / "x.tmp").touch()
    (mount.source / "build" / "deep" / "y").touch()
    target, prefix = (mount.mountpoint, "") if place == "mount" else (mount.source, f"{mount.source}/")
    async with watch(target, ignore=["build/", "*.tmp"]) as group:
        (mount.source / "build" / "deep" / "z").touch()
        (mount.source / "build").rename(mount.source / "lib")
        told = await until(group, f"{prefix}lib/deep/y")
        while f"{prefix}lib/deep/z" not in [event.path for event in told]:
            told.append(await anext(group))
        assert brief(told[:2]) == [
            ("rename", None, f"{prefix}lib", False), ("create", None, f"{prefix}lib/deep", True)
        ]  # fmt: skip
        assert {(event.path, event.recovered) for event in told[2:]} == {
            (f"{prefix}lib/deep/y", True), (f"{prefix}lib/deep/z", True)
        }  # fmt: skip
        (mount.source / "lib").rename(mount.source / "build")
        (mount.source / "build" / "after").touch()
        (mount.source / "end").mkdir()
        assert brief(await until(group, f"{prefix}end")) == [
            ("rename", f"{prefix}lib", None, False), ("create", None, f"{prefix}end", False)
        ]  # fmt: skip


async def test_a_directory_whose_new_name_makes_more_of_it_seen_is_looked_at(mount: Mount) -> None:
    (mount.source / "a").mkdir()
    (mount.source / "a" / "secret").touch()
    async with watch(mount.mountpoint, ignore=["a/secret"]) as group:
        (mount.source / "a").rename(mount.source / "b")
        assert brief(await until(group, "b/secret")) == [
            ("rename", "a", "b", False), ("create", None, "b/secret", True)
        ]  # fmt: skip


def test_the_command(mount: Mount, directory: Path, watching: Callable[..., Watch]) -> None:
    watch = watching("--ignore", "*.tmp", "--ignore", "build/", "--kinds", "create", mount.mountpoint)
    for name in ("x.tmp", "build", "build/x", "y"):
        (mount.source / name).mkdir()
    assert [line["path"] for line in watch.until("y")] == ["y"]


async def test_what_is_ignored_does_not_end_a_oneshot_mark(mount: Mount) -> None:
    for name in ("a", "b"):
        (mount.source / name).mkdir()
    async with open_group() as group:
        mark = await group.mark(
            mount.mountpoint / "a", scope=Scope.DIR, kinds=Kind.CREATE, ignore=["*.tmp"], oneshot=True
        )
        await group.mark(mount.mountpoint / "b", kinds=Kind.CREATE)
        for path in ("a/ignored.tmp", "a/first", "a/second", "b/end"):
            (mount.source / path).touch()
        assert [event.path for event in (await anext(group), await anext(group))] == ["a/first", "b/end"]
        with pytest.raises(UsageError, match="no such mark"):
            await group.unmark(mark)


@pytest.mark.parametrize("place", ["mount", "source"])
@pytest.mark.parametrize("oneshot", [False, True])
async def test_what_a_mark_leaves_out_is_told_by_another_one(mount: Mount, place: str, oneshot: bool) -> None:
    target = mount.mountpoint if place == "mount" else mount.source
    async with open_group() as group:
        await group.mark(target, kinds=Kind.CREATE, ignore=["*.tmp"], oneshot=oneshot)
        await group.mark(target, kinds=Kind.CREATE, ignore=["*.log"])
        every = await group.mark(target, kinds=Kind.CREATE | Kind.DELETE)
        names = ["x.tmp", "y.log", "z", "a.tmp", "b.log", "c", "end"]
        for name in names:
            (mount.source / name).mkdir()
        told: list[Event] = []
        while not told or told[-1].path != str(target / "end" if place == "source" else "end"):
            told.append(await anext(group))
        assert [os.path.basename(event.path or "") for event in told] == names  # and each of them once
        (mount.source / "x.tmp").rmdir()
        assert (await anext(group)).mark is every


@pytest.mark.parametrize("place", ["mount", "source"])
async def test_what_comes_behind_the_end_of_a_oneshot_mark_is_told_by_another_one(mount: Mount, place: str) -> None:
    target = mount.mountpoint if place == "mount" else mount.source
    async with open_group() as group:
        await group.mark(target, kinds=Kind.CREATE, ignore=["*.tmp"], oneshot=True)
        for number in range(20):
            (mount.source / f"{number}").mkdir()
        await group.sync()  # so that they are told at once
        await group.mark(target, kinds=Kind.CREATE | Kind.DELETE)
        for number in range(20, 40):
            (mount.source / f"{number}").mkdir()
        await group.sync()
        told = [os.path.basename((await anext(group)).path or "") for _ in range(21)]
        assert told == ["0", *map(str, range(20, 40))]
