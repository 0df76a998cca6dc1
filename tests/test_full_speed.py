"""A C program that changes the tree behind the mount as fast as it can does not outrun us."""

import contextlib
import json
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from tests.harness import FUSENOTIFY, PATIENCE, Mount

COUNT = 50_000
KINDS = ["create", "close_write", "rename", "delete"]


@pytest.fixture
def writer(directory: Path) -> Path:
    """The compiled program."""
    program = directory / "full_speed"
    subprocess.run(["cc", "-O2", "-Wall", "-o", program, Path(__file__).with_name("full_speed.c")], check=True)
    return program


@contextlib.contextmanager
def watching_into(output: Path, *arguments: str | Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `fusenotify watch --json` into a file; it is in force when the block is entered."""
    with output.open("wb") as file, INotify() as written:
        written.add_watch(str(output), flags.MODIFY)
        with subprocess.Popen([*FUSENOTIFY, "watch", "--json", *map(str, arguments)], stdout=file) as watch:
            try:
                assert written.read(timeout=PATIENCE * 1000), "watch does not get ready"
                yield watch
            finally:
                watch.kill()


@pytest.mark.parametrize("mode", ["interleaved", "loops"])
def test_nothing_is_lost_at_full_speed(mount: Mount, directory: Path, writer: Path, mode: str) -> None:
    output = directory / "events"
    count = len(KINDS) * COUNT
    with watching_into(output, "--events", str(count), "--timeout", str(PATIENCE), mount.mountpoint) as watch:
        began = time.monotonic()
        subprocess.run([writer, mode, str(COUNT)], cwd=mount.source, check=True, timeout=PATIENCE)
        written = time.monotonic() - began
        assert watch.wait(PATIENCE) == 0
        drained = time.monotonic() - began
    print(f"{mode}: {COUNT} files written in {written:.2f} s, {count} events printed after {drained:.2f} s")

    ready, *lines = map(json.loads, output.read_bytes().splitlines())
    assert ready["type"] == "ready"
    told = defaultdict(list)
    for line in lines:
        told[(line["old_path"] or line["path"])[1:]].append((line["kind"], line["old_path"], line["path"]))
    assert told == {
        str(number): [
            ("create", None, f"a{number}"),
            ("close_write", None, f"a{number}"),
            ("rename", f"a{number}", f"b{number}"),
            ("delete", None, f"b{number}"),
        ]
        for number in range(COUNT)
    }
