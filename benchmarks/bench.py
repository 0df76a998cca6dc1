"""Measures fusenotify beside its peers, in turn, on one machine in the same minutes: `make bench`.

Prints Markdown tables. Every figure is the median of the rounds; compare within a row, not between machines.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import peers  # noqa: E402 - run as a script

Mounter = Callable[[Path, Path, Path], AbstractContextManager[Path]]
MOUNTS: dict[str, Mounter] = {
    "native": peers.native,
    "fusenotify": peers.ours,
    "passthrough_ll, no cache": peers.passthrough_ll,
    "bindfs": peers.bindfs,
}
STORM_FILES = 50_000
BLOCK = b"x" * (64 << 20)
TREE_DIRECTORIES, FILES_PER_DIRECTORY = 200, 20
FILES_PER_LARGE_DIRECTORY = 1000


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("events", "files", "nodes"))
    parser.add_argument("--watcher", choices=("inotify", "fanotify"), help="measure events with this one only")
    parser.add_argument("--nodes", type=int, default=200_000, help="files of the tree that is walked")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fusenotify-bench-") as name:
        scratch = Path(name)
        if options.only in (None, "events"):
            listeners = [name for name, watcher in WATCHERS.items() if options.watcher in (None, watcher)]
            bench_events(scratch, options.rounds, [*listeners, "inotifywait"])
        if options.only in (None, "files"):
            bench_files(scratch, options.rounds)
        if options.only in (None, "nodes"):
            bench_nodes(scratch, options.nodes)


# --- events ----------------------------------------------------------------------------------------------------------


@contextmanager
def fusenotify_listener(source: Path, scratch: Path, watcher: str) -> Iterator[peers.Listener]:
    """Listen through a mount."""
    command = [*peers.FUSENOTIFY, "watch", "--json", str(scratch / "mount")]
    with (
        peers.ours(source, scratch / "mount", scratch / "state", watcher),
        peers.listener(command, lambda line: '"ready"' in line, "stdout") as running,
    ):
        yield running


@contextmanager
def inotifywait_listener(source: Path, _: Path) -> Iterator[peers.Listener]:
    """Listen on the directory itself, with inotify-tools."""
    command = ["inotifywait", "-m", "-r", "-e", "create,modify,attrib,close_write,move,delete", str(source)]
    with peers.listener(command, lambda line: "established" in line, "stderr") as running:
        yield running


WATCHERS = {"fusenotify": "inotify", "fusenotify, fanotify": "fanotify"}
LISTENERS: dict[str, Callable[[Path, Path], AbstractContextManager[peers.Listener]]] = {
    **{name: partial(fusenotify_listener, watcher=watcher) for name, watcher in WATCHERS.items()},
    "inotifywait": inotifywait_listener,
}


def bench_events(scratch: Path, rounds: int, listeners: Sequence[str]) -> None:
    """Measure what arrives, how much of it, and when."""
    storm = scratch / "storm"
    subprocess.run(["gcc", "-O2", "-o", storm, HERE / "storm.c"], check=True)
    (scratch / "mount").mkdir()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in listeners}
    for _ in range(rounds):
        for name in listeners:
            start = LISTENERS[name]
            source = scratch / "source"
            source.mkdir()
            with start(source, scratch) as running:
                figures = measure_latency(running, source)
                figures |= measure_storm(running, source, storm)
            shutil.rmtree(source)
            results[name].append(figures)
    print_table(f"Events, {STORM_FILES} files created, renamed, deleted by a C program, then 200 changes/s", results)


def measure_storm(running: peers.Listener, source: Path, storm: Path) -> dict[str, float]:
    """Let the C program loose, and wait for the event of a last file."""
    before = len(running.lines)
    start = time.perf_counter()
    output = subprocess.run([storm, source, str(STORM_FILES)], capture_output=True, text=True, check=True)
    (source / "the-end").touch()
    running.wait_for(lambda line: "the-end" in line)
    took = float(output.stdout)
    told = [line for _, line in running.lines[before:]]
    deletes = sum(1 for line in told if '"kind":"delete"' in line or " DELETE " in line)
    return {
        "writer s": took,
        "drained after, times writer": (running.lines[-1][0] - start) / took,
        "lost %": 100 * (1 - deletes / STORM_FILES),
    }


def measure_latency(running: peers.Listener, source: Path) -> dict[str, float]:
    """Make 200 changes a second and see how long each takes to be printed."""
    made: list[float] = []
    before = len(running.lines)
    for index in range(400):
        made.append(time.perf_counter())
        os.mkdir(source / f"d{index}")
        time.sleep(0.005)
    running.wait_for(lambda line: "d399" in line)
    creates = [stamp for stamp, line in running.lines[before:] if '"create"' in line or "CREATE" in line]
    latencies = sorted(came - made_at for made_at, came in zip(made, creates, strict=False))
    return {
        "p50 ms": 1000 * latencies[len(latencies) // 2],
        "p99 ms": 1000 * latencies[len(latencies) * 99 // 100],
    }


# --- file operations -------------------------------------------------------------------------------------------------


def bench_files(scratch: Path, rounds: int) -> None:
    """Measure what programs on the mount pay."""
    source = scratch / "tree"
    make_tree(source)
    mountpoint = scratch / "files"
    mountpoint.mkdir()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in MOUNTS}
    for _ in range(rounds):
        for name, mount in MOUNTS.items():
            with mount(source, mountpoint, scratch / "scratch") as path:
                results[name].append(measure_files(path))
    files = TREE_DIRECTORIES * FILES_PER_DIRECTORY
    print_table(f"File operations, {TREE_DIRECTORIES} directories and {files} files", results)


def make_tree(root: Path) -> None:
    """Make a git repository of many small files."""
    (root.parent / "scratch").mkdir()
    for directory in range(TREE_DIRECTORIES):
        path = root / f"d{directory}"
        path.mkdir(parents=True)
        for file in range(FILES_PER_DIRECTORY):
            (path / f"f{file}").write_bytes(os.urandom(512))
    git = ["git", "-C", str(root), "-c", "user.name=b", "-c", "user.email=b@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "tree"], check=True)


def measure_files(root: Path) -> dict[str, float]:
    """Time some everyday uses, in milliseconds, and single calls, in microseconds."""
    big = root / "big"
    big.write_bytes(b"")
    return {
        "cold walk ms": 1e3 * timed(lambda: subprocess.run(["find", root, "-printf", ""], check=True)),
        "warm walk ms": 1e3 * timed(lambda: subprocess.run(["find", root, "-printf", ""], check=True)),
        "git status ms": 1e3 * timed(lambda: subprocess.run(["git", "-C", root, "status", "-s"], check=True)),
        "small file µs": 1e6 * timed(lambda: small_files(root, 500)) / 500,
        "stat µs": 1e6 * timed(lambda: stats(big, 2000)) / 2000,
        "open + close µs": 1e6 * timed(lambda: opens(big, 1000)) / 1000,
        "write 64 MiB ms": 1e3 * timed(lambda: big.write_bytes(BLOCK)),
        "read 64 MiB ms": 1e3 * timed(big.read_bytes),
    }


def timed(job: Callable[[], object]) -> float:
    """Return the seconds a job takes."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def small_files(root: Path, count: int) -> None:
    """Create, write, close and unlink."""
    for index in range(count):
        path = root / f"small{index}"
        path.write_bytes(bytes(4096))
        path.unlink()


def stats(path: Path, count: int) -> None:
    """Ask for attributes."""
    for _ in range(count):
        os.stat(path)


def opens(path: Path, count: int) -> None:
    """Open for reading and close."""
    for _ in range(count):
        os.close(os.open(path, os.O_RDONLY))


# --- nodes -----------------------------------------------------------------------------------------------------------


def bench_nodes(scratch: Path, count: int) -> None:
    """Measure what a large tree that the kernel knows costs the daemon."""
    source, mountpoint, state = (scratch / "nodes" / name for name in ("source", "mount", "state"))
    for path in (source, mountpoint, state):
        path.mkdir(parents=True)
    for number in range(count):
        if number % FILES_PER_LARGE_DIRECTORY == 0:
            (source / f"directory{number // FILES_PER_LARGE_DIRECTORY}").mkdir()
        (source / f"directory{number // FILES_PER_LARGE_DIRECTORY}" / f"some-file-{number}").touch()
    with peers.ours(source, mountpoint, state):
        before, most = daemon_of(mountpoint), 0
        start = time.perf_counter()
        for base, _, names in os.walk(mountpoint):
            for name in names:
                os.lstat(os.path.join(base, name))
            most = max(most, len(os.listdir(f"/proc/{before['pid']}/fd")))
        took = time.perf_counter() - start
        after = daemon_of(mountpoint)
        nodes = after["nodes"] - before["nodes"]
        figures = {
            "nodes that the kernel holds": float(nodes),
            "walk s": took,
            "open descriptors at most": float(most),
            "resident bytes per node": (after["resident"] - before["resident"]) / nodes,
        }
    figures["bytes in the store per node"] = (state / "store.sqlite").stat().st_size / nodes
    print_table(f"A walk of {count} files, with lstat of each", {"fusenotify": [figures]})


def daemon_of(mountpoint: Path) -> dict[str, int]:
    """Return the process, the nodes and the resident memory in bytes of a mount's daemon."""
    done = subprocess.run([*peers.FUSENOTIFY, "status", mountpoint, "--json"], stdout=subprocess.PIPE, check=True)
    status = json.loads(done.stdout)
    lines = Path(f"/proc/{status['pid']}/status").read_text().splitlines()
    resident = next(line for line in lines if line.startswith("VmRSS"))
    return {"pid": status["pid"], "nodes": status["nodes"], "resident": int(resident.split()[1]) * 1024}


# --- output ----------------------------------------------------------------------------------------------------------


def print_table(title: str, results: dict[str, list[dict[str, float]]]) -> None:
    """Print the medians, a column per program."""
    names = list(results)
    print(f"\n### {title}\n\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for figure in results[names[0]][0]:
        cells = [f"{statistics.median(round_[figure] for round_ in results[name]):.4g}" for name in names]
        print(f"| {figure} | {' | '.join(cells)} |")
    raw = json.dumps(results)
    print(f"\n<!-- {len(results[names[0]])} rounds: {raw} -->", file=sys.stderr)


if __name__ == "__main__":
    main()
