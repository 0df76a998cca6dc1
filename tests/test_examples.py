"""The examples do what they say: a backup by what has changed, and a mirror that follows."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PATIENCE, Mount
from tests.names import survey
from tests.soak import SEED

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def places(directory: Path) -> tuple[Path, Path, Path]:
    """A backing tree, a mountpoint and a state directory."""
    names = directory / "source", directory / "mount", directory / "state"
    for path in names:
        path.mkdir()
    return names


@contextlib.contextmanager
def running(places: tuple[Path, Path, Path], how: signal.Signals = signal.SIGTERM) -> Iterator[Mount]:
    """A daemon, which is ended by a signal."""
    mount = Mount(*places)
    try:
        yield mount
        mount.stop(how)
    finally:
        mount.close()


def churn(top: Path, seed: int) -> None:
    """Make, write, rename and remove; put a directory where a file was, and the other way round."""
    dice = random.Random(seed)
    for number in range(60):
        name = top / dice.choice("abcd") / dice.choice("abcd") / dice.choice("abcd")
        target = dice.choice([name, name.parent])
        what = dice.randrange(5)
        if what == 0:
            with contextlib.suppress(OSError):
                os.makedirs(target)
        elif what in (1, 2):
            with contextlib.suppress(OSError):
                os.makedirs(target.parent, exist_ok=True)
                target.write_text(f"{number}")
        elif what == 3:
            with contextlib.suppress(OSError):
                target.rename(top / dice.choice("abcd") / dice.choice("efgh"))
        elif os.path.lexists(target):
            subprocess.run(["rm", "-r", target], check=True)


def back_up(mount: Path, destination: Path) -> str:
    """Run the backup, which checks itself, and return what it said."""
    command = [sys.executable, str(EXAMPLES / "incremental_backup.py"), "--check", str(mount), str(destination)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_a_backup_copies_what_has_changed_and_nothing_else(places: tuple[Path, Path, Path], directory: Path) -> None:
    source, mountpoint, _ = places
    destination = directory / "backup"
    for number in range(4):
        for name in "abcd":
            os.makedirs(source / f"{number}" / name)
            (source / f"{number}" / name / "file").write_text("x")
    for round_, how in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGTERM)):
        with running(places, how) as mount:
            said = back_up(mountpoint, destination)
            assert ("everything" in said) == (round_ == 0)
            if round_ == 0:
                (source / "3" / "d" / "file").write_text("y")
                assert "1 paths" in back_up(mountpoint, destination)
            churn(mount.mountpoint, SEED + round_)
            churn(source, SEED + 100 + round_)
            back_up(mountpoint, destination)
        churn(source, SEED + 200 + round_)
    with running(places):
        back_up(mountpoint, destination)


def test_a_mirror_follows_through_restarts_of_either_side(places: tuple[Path, Path, Path], directory: Path) -> None:
    source, mountpoint, _ = places
    destination = directory / "copy"
    churn(source, SEED)
    command = [sys.executable, str(EXAMPLES / "mirror.py"), str(mountpoint), str(destination)]
    with contextlib.ExitStack() as stack:
        for round_ in range(3):
            with running(places, signal.SIGKILL):
                follower = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                stack.callback(follower.wait)
                stack.callback(follower.kill)
                churn(source, SEED + 10 + round_)
                await_equal(source, destination)
                if round_ == 0:
                    follower.kill()
                    follower.wait()
                    churn(source, SEED + 20)
                    follower = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                    stack.callback(follower.wait)
                    stack.callback(follower.kill)
                    await_equal(source, destination)
            churn(source, SEED + 30 + round_)
            assert set(survey(destination)), "what is not there while nothing is mounted is not gone"
            follower.kill()


def await_equal(source: Path, destination: Path) -> None:
    """Return when both are the same; the mirror says nothing about itself, so there is nothing else to wait for."""
    deadline = time.monotonic() + PATIENCE
    while contents(source) != contents(destination):
        assert time.monotonic() < deadline, set(survey(source)) ^ set(survey(destination))
        time.sleep(0.1)


def contents(top: Path) -> dict[str, bytes | None]:
    """Return what a tree holds, None for directories and what vanishes meanwhile."""
    found: dict[str, bytes | None] = {}
    for path in survey(top):
        found[path] = None
        with contextlib.suppress(OSError):
            found[path] = (top / path).read_bytes()
    return found
