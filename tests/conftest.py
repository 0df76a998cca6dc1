"""Fixtures: a tmpfs of the session's own, and mounts on it. The tests need root and /dev/fuse, and fail without."""

import contextlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from fusenotify import _linux
from tests.caretaker import watched_over
from tests.certificates import Authority
from tests.harness import PATIENCE, Mount, Watch, mounted
from tests.ordinary import commands_of_nobody
from tests.reading import Run, T
from tests.soak import SEED, SOAK


def pytest_report_header() -> str:
    """Tell how to have the same random tests again."""
    return f"random tests: FUSENOTIFY_SOAK={int(SOAK)} FUSENOTIFY_SEED={SEED}"


@pytest.fixture(scope="session")
def tmpfs() -> Iterator[Path]:
    """A tmpfs that only this session uses."""
    place = Path(tempfile.mkdtemp(prefix="fusenotify-test-"))
    _linux.mount(b"fusenotify-test", os.fsencode(place), b"tmpfs", 0, b"mode=755")
    try:
        with watched_over(place):
            yield place
    finally:
        _linux.umount2(os.fsencode(place), _linux.MNT_DETACH)
        place.rmdir()


@pytest.fixture
def directory(tmpfs: Path) -> Iterator[Path]:
    """An empty directory on the tmpfs."""
    with tempfile.TemporaryDirectory(dir=tmpfs, ignore_cleanup_errors=True) as name:
        yield Path(name)


@pytest.fixture
def mount(directory: Path) -> Iterator[Mount]:
    """A mounted, empty backing tree."""
    with mounted(directory) as mount:
        yield mount


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority, whose certificates daemons and clients show each other."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def nobody() -> Iterator[list[str]]:
    """The beginning of a command that runs this interpreter with our packages as an ordinary user."""
    with commands_of_nobody() as command:
        yield command


@pytest.fixture
def watching() -> Iterator[Callable[..., Watch]]:
    """Start `fusenotify watch --json` with these arguments; it is in force when this returns."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: str | Path) -> Watch:
            watch = Watch(*arguments)
            stack.callback(watch.close)
            return watch

        yield start


@pytest.fixture(params=["asyncio", "trio"])
def go(request: pytest.FixtureRequest) -> Run[Any]:
    """Run an async function under one of the two, for so long at most."""

    def go(function: Callable[[], Awaitable[T]]) -> T:
        async def guarded() -> T:
            with anyio.fail_after(PATIENCE):
                return await function()

        return anyio.run(guarded, backend=request.param)

    return go
