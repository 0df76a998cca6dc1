"""File operations: what programs on a mount pay, and on the backing tree itself."""

import os
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import peers, programs
from benchmarks.table import Figures, interleaved, print_table

DIRECTORIES, FILES_PER_DIRECTORY = 850, 20  # passthrough_hp keeps a descriptor for each, and 20 000 is a usual limit
SMALL_FILES = 5000
CALLS = 20_000
MIB = 512
AGAINST = ("native", "passthrough_hp")


def bench(scratch: Path, rounds: int, mounts: dict[str, peers.Mounter]) -> None:
    """Measure everyday uses of each of the mounts in turn."""
    source, mountpoint = scratch / "tree", scratch / "files"
    make_tree(source)
    mountpoint.mkdir()
    columns = {name: partial(measure_uses, mount, source, mountpoint) for name, mount in mounts.items()}
    title = f"File operations: {DIRECTORIES} directories, {DIRECTORIES * FILES_PER_DIRECTORY} files"
    print_table(title, interleaved(columns, rounds), against=AGAINST)


def bench_calls(scratch: Path, rounds: int, mounts: dict[str, peers.Mounter]) -> None:
    """Measure single calls on each of the mounts in turn."""
    source, mountpoint = scratch / "one", scratch / "calls"
    source.mkdir()
    (source / "file").touch()
    mountpoint.mkdir()
    calls = programs.compiled("calls", scratch)
    columns = {name: partial(measure_calls, mount, source, mountpoint, calls) for name, mount in mounts.items()}
    print_table("Single calls: medians", interleaved(columns, rounds), against=AGAINST)


def make_tree(root: Path) -> None:
    """Make a git repository of many small files, with a large one beside them that git ignores."""
    for directory in range(DIRECTORIES):
        path = root / f"d{directory}"
        path.mkdir(parents=True)
        for file in range(FILES_PER_DIRECTORY):
            (path / f"f{file}").write_bytes(os.urandom(512))
    (root / ".gitignore").write_text("big\nwritten\n")
    git: list[str | Path] = ["git", "-C", root, "-c", "user.name=b", "-c", "user.email=b@b", "-c", "gc.auto=0"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "tree"], check=True)
    subprocess.run([*git, "repack", "-qad"], check=True)
    subprocess.run(["dd", "if=/dev/urandom", f"of={root}/big", "bs=1M", f"count={MIB}", "status=none"], check=True)


def measure_uses(mount: peers.Mounter, source: Path, mountpoint: Path) -> Figures:
    """Mount, and time some everyday uses."""
    with mount(source, mountpoint) as root:
        walk: list[str | Path] = ["find", root, "-size", "+1G"]  # which asks for the attributes of everything
        status: list[str | Path] = ["git", "-C", root, "status", "-s"]
        figures = {"cold walk s": seconds(walk), "warm walk s": seconds(walk)}
        figures["tar of the tree s"] = seconds(["sh", "-c", 'tar -C "$0" --exclude ./big -c . | cat >/dev/null', root])
        seconds(status)
        figures["git status, warm s"] = seconds(status)
        read = ["dd", f"if={root}/big", "of=/dev/null", "bs=1M", "status=none"]
        figures[f"read {MIB} MiB, cold s"] = seconds(read)
        figures[f"read {MIB} MiB, warm s"] = seconds(read)
        write = ["dd", "if=/dev/zero", f"of={root}/written", "bs=1M", f"count={MIB}", "status=none"]
        figures[f"write {MIB} MiB s"] = seconds(write)
        (root / "written").unlink()
    return figures


def measure_calls(mount: peers.Mounter, source: Path, mountpoint: Path, calls: Path) -> Figures:
    """Mount, and time single calls."""
    with mount(source, mountpoint) as root:
        return {
            "getattr, uncached µs": per_call(calls, "getattr", root / "file", CALLS),
            "open + close µs": per_call(calls, "open", root / "file", CALLS),
            "create, write 4 KiB, close, unlink µs": per_call(calls, "small", root, SMALL_FILES),
        }


def seconds(command: Sequence[str | Path]) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def per_call(calls: Path, kind: str, path: Path, count: int) -> float:
    """Return what `calls.c` says of one kind of call: microseconds."""
    done = subprocess.run([calls, kind, path, str(count)], stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)
