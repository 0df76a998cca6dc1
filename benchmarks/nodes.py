"""What a large tree that the kernel knows costs the daemon."""

import json
import os
import subprocess
import time
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.table import OURS, Figures, print_table

FILES_PER_DIRECTORY = 1000


def bench(scratch: Path, count: int) -> None:
    """Walk a tree of so many files and look at the daemon."""
    source, mountpoint, state = (scratch / name for name in ("nodes", "nodes-mount", "nodes-state"))
    mountpoint.mkdir()
    for number in range(count):
        directory = source / f"directory{number // FILES_PER_DIRECTORY}"
        if number % FILES_PER_DIRECTORY == 0:
            directory.mkdir(parents=True)
        (directory / f"some-file-{number}").touch()
    with peers.ours(source, mountpoint, state=state):
        figures = measure(mountpoint)
    stored = (state / "store.sqlite").stat().st_size
    figures["bytes in the store per node"] = stored / figures["nodes that the kernel holds"]
    print_table(f"A walk of {count} files, with lstat of each", {OURS: [figures]})


def measure(mountpoint: Path) -> Figures:
    """Walk through a mount."""
    pid, known = daemon_of(mountpoint)
    before, descriptors = programs.resident(pid), 0
    start = time.perf_counter()
    for base, _, names in os.walk(mountpoint):
        for name in names:
            os.lstat(os.path.join(base, name))
        descriptors = max(descriptors, len(os.listdir(f"/proc/{pid}/fd")))
    took = time.perf_counter() - start
    nodes = daemon_of(mountpoint)[1] - known
    return {
        "nodes that the kernel holds": float(nodes),
        "walk s": took,
        "open descriptors at most": float(descriptors),
        "resident bytes per node": (programs.resident(pid) - before) / nodes,
    }


def daemon_of(mountpoint: Path) -> tuple[int, int]:
    """Return the process and the number of nodes of a mount's daemon."""
    done = subprocess.run([*peers.FUSENOTIFY, "status", mountpoint, "--json"], stdout=subprocess.PIPE, check=True)
    status = json.loads(done.stdout)
    return status["pid"], status["nodes"]
