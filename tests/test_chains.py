"""`mkdir -p` as fast as possible: what appears in a directory before it is watched is told all the same, and once."""

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import PATIENCE, Mount, Watch

CHAINS = 500
LEVELS = ("a", "b", "c", "d")
CREATES_ONLY = ("--kinds", "create,delete,rename")


def make_chains(root: Path) -> None:
    """Make the chains, a file at each level."""
    for number in range(CHAINS):
        path = root / str(number)
        path.mkdir()
        (path / "file").touch()
        for level in LEVELS:
            path /= level
            path.mkdir()
            (path / "file").touch()


def make_chains_at_full_speed(root: Path) -> None:
    """The same as a C program."""
    program = root.parent / "chains"
    source = Path(__file__).with_name("chains.c")
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, source], check=True)
    subprocess.run([program, str(CHAINS)], cwd=root, check=True, timeout=PATIENCE)


def chains() -> set[str]:
    """Every path there is then."""
    paths = set()
    for number in range(CHAINS):
        path = str(number)
        paths |= {path, f"{path}/file"}
        for level in LEVELS:
            path = f"{path}/{level}"
            paths |= {path, f"{path}/file"}
    return paths


def told(watch: Watch) -> list[dict[str, Any]]:
    """Everything up to the end mark, which is left out."""
    return watch.until("end")[:-1]


def check_complete(lines: list[dict[str, Any]]) -> None:
    """Nothing is missing, nothing is told twice, and parents come before their children."""
    paths = [line["path"] for line in lines]
    assert {line["kind"] for line in lines} == {"create"}
    assert [path for path, count in Counter(paths).items() if count > 1] == []
    assert set(paths) == chains()
    places = {path: place for place, path in enumerate(paths)}
    for path in paths:
        parent = path.rpartition("/")[0]
        assert parent == "" or places[parent] < places[path]
    assert all(line["is_dir"] != line["path"].endswith("file") for line in lines)


@pytest.mark.parametrize("make", [make_chains, make_chains_at_full_speed])
def test_chains_behind_the_mount(mount: Mount, watching: Callable[..., Watch], make: Callable[[Path], None]) -> None:
    watch = watching(*CREATES_ONLY, mount.mountpoint)
    make(mount.source)
    (mount.source / "end").touch()
    lines = told(watch)
    check_complete(lines)
    assert {line["origin"] for line in lines} == {"remote"}


@pytest.mark.parametrize("make", [make_chains, make_chains_at_full_speed])
def test_chains_through_the_mount(mount: Mount, watching: Callable[..., Watch], make: Callable[[Path], None]) -> None:
    watch = watching(*CREATES_ONLY, mount.mountpoint)
    make(mount.mountpoint)
    (mount.source / "end").touch()
    lines = told(watch)
    check_complete(lines)
    assert {(line["origin"], line["recovered"]) for line in lines} == {("local", False)}
