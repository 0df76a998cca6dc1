"""Events: what arrives of what is done to a tree, and when; and how soon a large tree is watched."""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks import programs
from benchmarks.listeners import PATIENCE, Listener, Starter
from benchmarks.table import Figures, interleaved, print_table

STORM_FILES = 50_000
CHANGES, RATE = 400, 200  # and how many of them in a second
CHAINS = 500
LOST_FILES = 20_000  # more than the kernel's queue holds
_REPAIR = 10  # seconds that a listener gets to find out what it has lost
TREE_DIRECTORIES, TREE_FILES = 20_420, 100_000


def bench(scratch: Path, rounds: int, listeners: dict[str, Starter]) -> None:
    """Measure each of the listeners in turn."""
    storm = programs.compiled("storm", scratch)
    columns = {name: partial(measure, start, storm, scratch) for name, start in listeners.items()}
    title = f"Events: {STORM_FILES} x create, rename, delete at full speed; {RATE} changes/s; {CHAINS} chains"
    print_table(title, interleaved(columns, rounds), against=["inotify_simple", "inotifywait"])


def measure(start: Starter, storm: Path, scratch: Path) -> Figures:
    """Listen to an empty tree and do one thing after the other to it."""
    with listening(start, scratch) as (listener, source):
        figures = measure_latency(listener, source)
        figures |= measure_chains(listener, source)
        figures |= measure_storm(listener, source, storm)
        return figures | measure_overflow(listener, source)


@contextlib.contextmanager
def listening(start: Starter, scratch: Path) -> Iterator[tuple[Listener, Path]]:
    """Listen to a new directory."""
    with tempfile.TemporaryDirectory(dir=scratch) as name:
        source, beside = Path(name, "source"), Path(name, "beside")
        source.mkdir()
        beside.mkdir()
        with start(source, beside) as listener:
            yield listener, source


def finish(listener: Listener, source: Path) -> float:
    """Return when all that happened before this has been told; what tells that is made again if it was lost."""
    deadline = time.monotonic() + PATIENCE
    for number in itertools.count():
        mark = source / f"mark-{time.monotonic_ns()}-{number}"
        mark.touch()
        if listener.wait_for(mark.name, 2.0):
            return time.perf_counter()
        if time.monotonic() > deadline:
            break
    raise TimeoutError("nothing is told any more")


def measure_latency(listener: Listener, source: Path) -> Figures:
    """Make so many changes a second and see how long each takes to be printed."""
    made: dict[str, float] = {}
    begin = time.perf_counter()
    for number in range(CHANGES):
        time.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
        made[f"d{number}"] = time.perf_counter()
        os.mkdir(source / f"d{number}")
    finish(listener, source)
    heard: dict[str, float] = {}
    for stamp, is_there, path in listener.told():
        if is_there:
            heard.setdefault(path, stamp)
    latencies = sorted(heard[name] - at for name, at in made.items() if name in heard)
    return {
        f"{RATE} changes/s: p50 ms": 1e3 * latencies[len(latencies) // 2],
        f"{RATE} changes/s: p99 ms": 1e3 * latencies[len(latencies) * 99 // 100],
    }


def measure_chains(listener: Listener, source: Path) -> Figures:
    """Make chains of directories with a file at their ends as fast as Python can."""
    paths = [f"chain{number}/a/b/c/file" for number in range(CHAINS)]
    for path in paths:
        os.makedirs((source / path).parent)
        (source / path).touch()
    finish(listener, source)
    heard = {path for _, is_there, path in listener.told() if is_there}
    return {f"{CHAINS} chains: files lost %": 100 * (1 - len(heard.intersection(paths)) / CHAINS)}


def measure_storm(listener: Listener, source: Path, storm: Path) -> Figures:
    """Let the C program loose."""
    start = time.perf_counter()
    output = subprocess.run([storm, source, str(STORM_FILES)], capture_output=True, text=True, check=True)
    took = float(output.stdout)
    drained = finish(listener, source) - start
    gone = {path for _, is_there, path in listener.told() if not is_there and path.startswith("g")}
    return {
        "storm: writer s": took,
        "storm: drained after, times the writer": drained / took,
        "storm: removals lost %": 100 * (1 - len(gone) / STORM_FILES),
    }


def measure_overflow(listener: Listener, source: Path) -> Figures:
    """Stop the listener while more happens than the kernel's queue holds; see whether it knows what is there then."""
    for number in range(1000):
        (source / f"early{number}").touch()
    finish(listener, source)
    os.kill(listener.pid, signal.SIGSTOP)
    for number in range(LOST_FILES):
        (source / f"late{number}").touch()
    for number in range(0, 1000, 2):
        (source / f"early{number}").unlink()
    os.kill(listener.pid, signal.SIGCONT)
    deadline = time.monotonic() + _REPAIR
    while (wrong := _wrong_names(listener, source)) and time.monotonic() < deadline:
        pass
    return {f"overflow: names that are wrong {_REPAIR} s later": float(wrong)}


def _wrong_names(listener: Listener, source: Path) -> int:
    """Return how many names in a directory are there against what was told of them, or the other way round."""
    finish(listener, source)
    believed = {path: is_there for _, is_there, path in listener.told() if "/" not in path and path != "."}
    there = set(os.listdir(source))
    wrong = [path for path, is_there in believed.items() if is_there != (path in there)]
    return len(wrong) + len(there.difference(believed))


# --- start -----------------------------------------------------------------------------------------------------------


def bench_start(scratch: Path, rounds: int, listeners: dict[str, Starter]) -> None:
    """Measure how long it takes to watch a large tree, and how much memory."""
    source = scratch / "large"
    for number in range(TREE_DIRECTORIES - 420):
        (source / f"a{number % 420}" / f"b{number}").mkdir(parents=True)
    directories = list(source.glob("*/*"))
    for number in range(TREE_FILES):
        (directories[number % len(directories)] / f"file{number}").touch()
    columns = {name: partial(measure_start, start, source, scratch) for name, start in listeners.items()}
    title = f"Start: {TREE_DIRECTORIES} directories, {TREE_FILES} files"
    print_table(title, interleaved(columns, rounds), against=["watchfiles", "inotifywait"])
    shutil.rmtree(source)


def measure_start(start: Starter, source: Path, scratch: Path) -> Figures:
    """Listen to a large tree."""
    with tempfile.TemporaryDirectory(dir=scratch) as beside, start(source, Path(beside)) as listener:
        return {"watching after s": listener.ready_after, "memory MiB": programs.memory_of(listener.pid) / (1 << 20)}
