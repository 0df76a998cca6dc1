"""Where nothing is heard, changes are found by looking: beyond the watch limit, and on filesystems of others."""

import itertools
import json
import os
import resource
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from fusenotify import Event, Group, Kind, Origin, open_group
from tests.harness import FUSENOTIFY, PATIENCE, Mount, mounted, run
from tests.mirror import Mirror, differences

LIMIT = 5
# A user namespace has limits of its own, and its mounts are seen by nobody else.
LIMITED = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec",
           f'echo {LIMIT} > /proc/sys/user/max_inotify_watches; exec "$@"', "sh", *FUSENOTIFY]  # fmt: skip

# A filesystem of others tells programs on it of no change behind it.
UNTOLD = ["--native", "off"]


@pytest.fixture
def limited(tmpfs: Path) -> Iterator[Mount]:
    """A mount whose daemon can watch fewer directories than there are."""
    with tempfile.TemporaryDirectory(dir=tmpfs) as name:
        for number in range(2 * LIMIT):
            (Path(name) / "source" / f"{number}" / "below").mkdir(parents=True)
            (Path(name) / "source" / f"{number}" / "below" / "file").touch()
        with mounted(Path(name), command=LIMITED) as mount:
            yield mount


@pytest.fixture
def distant(tmpfs: Path) -> Iterator[tuple[Path, Mount]]:
    """A mount whose backing is another FUSE mount, and the tree behind that."""
    with tempfile.TemporaryDirectory(dir=tmpfs) as name, mounted(Path(name), UNTOLD) as inner:
        (inner.source / "directory").mkdir()
        (inner.source / "directory" / "file").touch()
        outer = Path(name) / "outer"
        outer.mkdir()
        (outer / "source").symlink_to(inner.mountpoint)
        with mounted(outer) as mount:
            yield inner.source, mount


def status(mount: Mount) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(run("status", "--json", f"unix:{mount.socket}").stdout)
    return state


async def heard(group: Group, wanted: set[tuple[Kind, str | None]]) -> None:
    """Return when everything wanted has been told, as recovered and remote."""
    with trio.fail_after(PATIENCE):
        async for event in group:
            if (event.kind, event.path) in wanted:
                assert (event.recovered, event.origin) == (True, Origin.REMOTE)
                wanted.remove((event.kind, event.path))
                if not wanted:
                    return


async def test_directories_that_come_while_there_are_no_descriptors_are_heard_later(mount: Mount) -> None:
    async with open_group() as group:
        await group.mark(mount.mountpoint, kinds=Kind.CREATE)
        limits = resource.prlimit(mount.pid, resource.RLIMIT_NOFILE)
        used = set(map(int, os.listdir(f"/proc/{mount.pid}/fd")))
        first_free = next(number for number in itertools.count() if number not in used)
        resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, (first_free, limits[1]))
        (mount.source / "a" / "b").mkdir(parents=True)
        (mount.source / "a" / "b" / "early").touch()
        assert (await anext(group)).path == "a"
        resource.prlimit(mount.pid, resource.RLIMIT_NOFILE, limits)
        await heard(group, {(Kind.CREATE, path) for path in ("a/b", "a/b/early")})
        (mount.source / "a" / "b" / "late").touch()
        with trio.fail_after(PATIENCE):
            event = await anext(group)
        assert (event.path, event.recovered) == ("a/b/late", False)
    assert "changes below a are not heard: Too many open files" in mount.log


async def test_beyond_the_watch_limit_changes_are_found(limited: Mount) -> None:
    state = status(limited)
    assert 0 < state["watches"] <= LIMIT
    assert state["deaf"] == 4 * LIMIT + 1 - state["watches"]
    assert 0 < len(state["deaf_paths"]) <= 16
    assert "max_user_watches" in limited.log
    deaf = limited.source / state["deaf_paths"][0]
    place = state["deaf_paths"][0]
    async with open_group() as group:
        await group.mark(f"unix:{limited.socket}")
        (deaf / "new").touch()
        (deaf / "made").mkdir()
        (deaf / "made" / "file").touch()
        await heard(group, {(Kind.CREATE, f"{place}/{name}") for name in ("new", "made", "made/file")})
        (deaf / "new").write_text("text")
        await heard(group, {(Kind.MODIFY, f"{place}/new")})
        (deaf / "new").unlink()
        (deaf / "made").rename(deaf / "renamed")
        await heard(group, {(Kind.DELETE, f"{place}/new"), (Kind.RENAME, f"{place}/renamed")})


async def test_changes_behind_another_fuse_mount_are_found(distant: tuple[Path, Mount]) -> None:
    behind, mount = distant
    assert status(mount)["deaf_paths"] == ["."]
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        (behind / "directory" / "new").write_text("text")
        (behind / "directory" / "file").write_text("text")
        await heard(group, {(Kind.CREATE, "directory/new"), (Kind.MODIFY, "directory/file")})
        (behind / "directory" / "file").unlink()
        await heard(group, {(Kind.DELETE, "directory/file")})
        (behind / "directory").rename(behind / "renamed")
        await heard(group, {(Kind.RENAME, "renamed")})


async def test_a_mirror_of_a_distant_tree_converges(distant: tuple[Path, Mount]) -> None:
    behind, mount = distant
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}")
        mirror = Mirror(group, behind)
        for number in range(10):
            (behind / f"{number}").mkdir()
            (mount.mountpoint / f"{number}" / "local").write_text("local")
            (behind / f"{number}" / "remote").write_text("remote")
        for number in range(0, 10, 2):
            (behind / f"{number}").rename(behind / f"{number + 1}" / "moved")
        (behind / "directory" / "file").unlink()
        (behind / "directory").rmdir()
        with trio.fail_after(PATIENCE):
            await mirror.follow_until(lambda event: event.kind is Kind.DELETE and event.path == "directory")
    assert differences(mirror, behind, behind) == {}, mirror.story()


async def test_what_is_found_is_found_while_others_write_through_the_mount(distant: tuple[Path, Mount]) -> None:
    behind, mount = distant
    is_over = threading.Event()

    def write() -> None:
        number = 0
        while not is_over.is_set():
            (mount.mountpoint / f"local{number % 10}").write_text(f"{number}")
            number += 1

    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}", kinds=Kind.CREATE, origin=Origin.REMOTE)
        writer = threading.Thread(target=write)
        writer.start()
        try:
            (behind / "directory" / "new").touch()
            await heard(group, {(Kind.CREATE, "directory/new")})
        finally:
            is_over.set()
            await trio.to_thread.run_sync(writer.join)


async def test_what_is_made_through_the_mount_where_nothing_is_heard_is_told_once(distant: tuple[Path, Mount]) -> None:
    behind, mount = distant
    async with open_group() as group:
        await group.mark(f"unix:{mount.socket}", kinds=Kind.CREATE | Kind.DELETE | Kind.RENAME)
        (mount.mountpoint / "directory" / "local").touch()
        (mount.mountpoint / "directory" / "local").rename(mount.mountpoint / "renamed")
        (behind / "directory" / "remote").touch()
        events: list[Event] = []
        with trio.fail_after(PATIENCE):
            async for event in group:
                events.append(event)
                if event.path == "directory/remote":
                    break
    assert [(event.kind, event.path, event.origin) for event in events] == [
        (Kind.CREATE, "directory/local", Origin.LOCAL),
        (Kind.RENAME, "renamed", Origin.LOCAL),
        (Kind.CREATE, "directory/remote", Origin.REMOTE),
    ]
