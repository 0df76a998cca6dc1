"""The handles that events carry where a mark asks for them: those that `lookup` gives, or none."""

import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from fusenotify import Kind, Scope, _linux, lookup, open_group
from fusenotify.client import Group
from fusenotify.events import Event
from tests.harness import PATIENCE, Mount


async def told(group: Group, mount: Mount) -> list[Event]:
    """Return what has happened until now."""
    await group.sync()
    end = mount.source / ".end"
    end.mkdir(exist_ok=True)
    mark = await group.mark(mount.mountpoint / end.name, scope=Scope.DIR, kinds=Kind.CREATE)
    (end / str(len(os.listdir(end)))).touch()
    events: list[Event] = []
    async for event in group:
        if (event.path or "").startswith(".end/"):
            break
        if event.path != ".end":
            events.append(event)
    await group.unmark(mark)
    return events


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with anyio.fail_after(PATIENCE):
            await main()

    anyio.run(bounded, backend="trio")


def shown(events: list[Event]) -> list[tuple[str, str | None, str | None, str | None]]:
    return [(str(event.kind), event.handle, event.parent, event.old_parent) for event in events]


@pytest.mark.parametrize("side", ["behind", "in front"])
def test_events_carry_the_handles_that_lookup_gives(mount: Mount, side: str) -> None:
    place = mount.source if side == "behind" else mount.mountpoint
    for name in "ab":
        (mount.source / name).mkdir()

    async def main() -> None:
        async with open_group() as group:
            await group.mark(
                mount.mountpoint, handles=True, kinds=Kind.CREATE | Kind.RENAME | Kind.DELETE | Kind.ATTRIB
            )
            a, b = [await lookup(mount.mountpoint / name) for name in "ab"]
            os.mknod(place / "a" / "f")
            events = await told(group, mount)
            f = await lookup(mount.mountpoint / "a" / "f")
            assert shown(events) == [("create", f, a, None)]
            os.rename(place / "a" / "f", place / "b" / "g")
            os.chmod(place / "b" / "g", 0o600)
            os.unlink(place / "b" / "g")
            assert shown(await told(group, mount)) == [
                ("rename", f, b, a), ("attrib", f, b, None), ("delete", f, b, None)
            ]  # fmt: skip
            os.mkdir(place / "d")
            os.rename(place / "d", place / "a" / "e")
            events = await told(group, mount)
            d = await lookup(mount.mountpoint / "a" / "e")
            root = await lookup(mount.mountpoint)
            assert shown(events)[-1] == ("rename", d, a, root)
            os.rmdir(place / "a" / "e")
            assert shown(await told(group, mount)) == [("delete", d, a, None)]

    run(main)


def test_an_exchange_carries_the_handle_of_what_came_to_the_path(mount: Mount) -> None:
    for name in ("a/f", "b/g"):
        (mount.source / name).parent.mkdir()
        (mount.source / name).touch()

    async def main() -> None:
        async with open_group() as whole, open_group() as part:
            await whole.mark(mount.mountpoint, handles=True)
            await part.mark(mount.mountpoint / "a", handles=True)
            f, g = [await lookup(mount.mountpoint / name) for name in ("a/f", "b/g")]
            a, b = [await lookup(mount.mountpoint / name) for name in "ab"]
            old, new = (os.fsencode(mount.source / name) for name in ("a/f", "b/g"))
            _linux.renameat2(_linux.AT_FDCWD, old, _linux.AT_FDCWD, new, _linux.RENAME_EXCHANGE)
            events = [event for event in await told(whole, mount) if event.kind == Kind.RENAME]
            assert shown(events) == [("rename", f, b, a)]
            events = [event for event in await told(part, mount) if event.kind == Kind.RENAME]
            assert shown(events) == [("rename", f, None, a), ("rename", g, a, None)]

    run(main)


def test_what_was_gone_before_it_was_known_has_no_handle_and_never_that_of_its_successor(mount: Mount) -> None:
    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint, handles=True, kinds=Kind.CREATE | Kind.DELETE | Kind.RENAME)
            root = await lookup(mount.mountpoint)
            mount.process.send_signal(signal.SIGSTOP)
            await anyio.to_thread.run_sync(os.waitid, os.P_PID, mount.pid, os.WSTOPPED)
            for _ in range(2):
                os.mknod(mount.source / "f")
                os.unlink(mount.source / "f")
            os.mknod(mount.source / "f")
            os.mknod(mount.source / "g")
            os.rename(mount.source / "g", mount.source / "f")
            mount.process.send_signal(signal.SIGCONT)
            events = await told(group, mount)
            f = await lookup(mount.mountpoint / "f")
            assert shown(events) == [
                ("create", None, root, None), ("delete", None, root, None),
                ("create", None, root, None), ("delete", None, root, None),
                ("create", None, root, None), ("create", None, root, None),
                ("rename", f, root, root),
            ]  # fmt: skip

    run(main)


def test_only_marks_that_ask_get_handles(mount: Mount) -> None:
    for name in "ab":
        (mount.source / name).mkdir()

    async def main() -> None:
        async with open_group() as group, open_group() as other:
            await group.mark(mount.mountpoint / "a", handles=True)
            await group.mark(mount.mountpoint / "b")
            await other.mark(mount.mountpoint)
            for name in "ab":
                os.mknod(mount.source / name / "f")
            first, second = await told(group, mount)
            assert (first.handle is None, first.parent is None) == (False, False)
            assert (second.handle, second.parent) == (None, None)
            assert {event.handle for event in await told(other, mount)} == {None}

    run(main)


def test_the_end_of_a_marked_object_carries_its_handle(mount: Mount) -> None:
    (mount.source / "f").touch()

    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint / "f", scope=Scope.INODE, handles=True, kinds=Kind.ATTRIB)
            f = await lookup(mount.mountpoint / "f")
            os.unlink(mount.source / "f")
            events = [event for event in await told(group, mount) if event.kind != Kind.ATTRIB]
            assert [(str(event.kind), event.handle) for event in events] == [("delete_self", f), ("ignored", f)]

    run(main)


def test_what_comes_in_with_a_directory_has_handles(mount: Mount, directory: Path) -> None:
    outside = directory / "outside"
    outside.mkdir()
    (outside / "f").touch()

    async def main() -> None:
        async with open_group() as group:
            await group.mark(mount.mountpoint, handles=True)
            root = await lookup(mount.mountpoint)
            outside.rename(mount.source / "d")
            events = await told(group, mount)
            d, f = [await lookup(mount.mountpoint / name) for name in ("d", "d/f")]
            assert shown(events) == [("rename", d, root, None), ("create", f, d, None)]

    run(main)
