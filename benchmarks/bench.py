"""Measures fusenotify beside its peers, in turn, on one machine in the same minutes: `make bench`.

Prints Markdown tables. Every figure is the median of the rounds; compare within a row, not between machines. A peer
that is not installed has no column.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import TypeVar

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from benchmarks import deliveries, files, listeners, nodes, peers  # noqa: E402 - run as a script

T = TypeVar("T")
TABLES = ("calls", "files", "events", "start", "nodes")


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=TABLES, action="append", help="may be given several times")
    parser.add_argument("--columns", help="measure these only, with commas between them")
    parser.add_argument("--passthrough-hp", type=Path, metavar="PROGRAM", help="libfuse's example, as built by you")
    parser.add_argument("--watcher", choices=("inotify", "fanotify"), default="inotify", help="what hears for us")
    parser.add_argument("--nodes", type=int, default=200_000, help="files of the tree that is walked")
    options = parser.parse_args()
    tables = options.only or TABLES
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fusenotify-bench-") as name:
        scratch = Path(name)
        if {"calls", "files"}.intersection(tables):
            mounts = chosen(peers.mounts(scratch, options.passthrough_hp), options.columns)
            if "calls" in tables:
                files.bench_calls(scratch, options.rounds, mounts)
            if "files" in tables:
                files.bench(scratch, options.rounds, mounts)
        listening = chosen(listeners.listeners(options.watcher), options.columns)
        if "events" in tables:
            deliveries.bench(scratch, options.rounds, listening)
        if "start" in tables:
            deliveries.bench_start(scratch, options.rounds, listening)
        if "nodes" in tables:
            nodes.bench(scratch, options.nodes)


def chosen(columns: dict[str, T], names: str | None) -> dict[str, T]:
    """Return the columns that are to be measured."""
    if names is None:
        return columns
    return {name: column for name, column in columns.items() if name in names.split(",")}


if __name__ == "__main__":
    main()
