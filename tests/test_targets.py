"""What a target is, where only the daemon can tell: a path behind TLS."""

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import fusenotify
from fusenotify import Mark, Scope, UsageError
from tests.certificates import Authority, listening, options
from tests.harness import Watch, mounted

Run = Callable[[Callable[[], Awaitable[None]]], None]


def test_a_file_is_watched_by_itself(directory: Path, authority: Authority, go: Run) -> None:
    with mounted(directory, listening(authority.daemon)) as mount:
        file = mount.source / "sub" / "file"
        file.parent.mkdir()
        file.touch()

        async def main() -> None:
            async with fusenotify.watch(f"{mount.tls}/sub/file", tls=authority.client) as events:
                (mount.source / "sub" / "other").mkdir()
                file.rename(mount.source / "renamed")
                event = await anext(events)
                assert (event.kind.name, event.old_path, event.path) == ("RENAME", "sub/file", "renamed")
                assert isinstance(event.mark, Mark)
                assert event.mark.scope is Scope.INODE
            (mount.source / "renamed").rename(file)
            async with fusenotify.watch(f"{mount.tls}/sub", recursive=False, tls=authority.client) as events:
                (mount.source / "sub" / "new").mkdir()
                event = await anext(events)
                assert event.path == "sub/new"
                assert isinstance(event.mark, Mark)
                assert event.mark.scope is Scope.DIR
            with pytest.raises(UsageError, match="there is no 'nothing'"):
                async with fusenotify.watch(f"{mount.tls}/nothing", tls=authority.client):
                    pass

        go(main)


def test_the_command_too(directory: Path, authority: Authority) -> None:
    with mounted(directory, listening(authority.daemon)) as mount:
        file = mount.source / "file"
        file.touch()
        with contextlib.closing(Watch(f"{mount.tls}/file", *options(authority.client), "--events", "2")) as watch:
            (mount.source / "other").mkdir()
            file.chmod(0o600)
            file.unlink()
            assert [(line["kind"], line["path"]) for line in watch.rest()] == [("attrib", "file"), ("delete", "file")]


def test_patterns_are_not_letters(go: Run, directory: Path) -> None:
    """`ignore="*.tmp"` would leave out everything, by the pattern `*`."""

    async def main() -> None:
        with pytest.raises(UsageError, match=r"ignore=\['\*\.tmp'\]"):
            async with fusenotify.watch(directory, ignore="*.tmp"):
                pass

    go(main)
