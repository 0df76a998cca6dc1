"""Measures native delivery: `python benchmarks/native.py [--rounds N]`.

A program watches the mount with inotify while another one changes the backing tree: how long a change takes to be heard
at 200 changes a second, and how many can be replayed in a second. Then, with nobody watching, what the daemon's work
costs with native delivery and without. Prints Markdown tables. Changes with nobody watching
alone: `--only unwatched`.
"""

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from inotify_simple import INotify, flags  # noqa: E402 - run as a script

from tests.harness import Mount, mounted, patched  # noqa: E402
from tests.native import LOOKING, settle  # noqa: E402
from tests.test_native_storm import replays  # noqa: E402

RATE = 200  # changes a second
PROBES = 1000
BURST = 3000  # files at a time, each of which is made, changed and removed: less than the kernel's queues hold
UNWATCHED = 20_000  # changes, in bursts that the kernel's queue holds
BURSTS = 4


@contextlib.contextmanager
def mount_of(native: str) -> Iterator[Mount]:
    """Mount a tree on a tmpfs; with `auto` as on a machine on which every process may be looked at."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", ignore_cleanup_errors=True) as name:
        mounting = patched(Path(name), LOOKING) if native == "auto" else mounted(Path(name), ["--native", native])
        with mounting as mount:
            (mount.source / "d").mkdir()
            yield mount


class Listener:
    """Notes when it hears of each name."""

    def __init__(self, directory: Path, kinds: int) -> None:
        self.heard: dict[str, float] = {}
        self._inotify = INotify()
        self._inotify.add_watch(directory, kinds)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while "end" not in self.heard:
            for event in self._inotify.read():
                self.heard[event.name] = time.perf_counter()

    def join(self) -> None:
        """Wait for the name `end`."""
        self._thread.join()
        self._inotify.close()


def latencies(native: str) -> list[float]:
    """Return how long each of some changes took to be heard on the mount, milliseconds."""
    with mount_of(native) as mount:
        settle(mount)
        listener = Listener(mount.mountpoint / "d", flags.CREATE)
        made: dict[str, float] = {}
        begin = time.perf_counter()
        for number in range(PROBES):
            time.sleep(max(0.0, begin + number / RATE - time.perf_counter()))
            made[str(number)] = time.perf_counter()
            os.mknod(mount.source / "d" / str(number))
        os.mknod(mount.source / "d" / "end")
        listener.join()
        return [(listener.heard[name] - at) * 1000 for name, at in made.items()]


def replays_per_second(native: str) -> float:
    """Return how many events are heard on the mount in a second, as long as there are enough."""
    with mount_of(native) as mount:
        settle(mount)
        listener = Listener(mount.mountpoint / "d", flags.CREATE | flags.MODIFY | flags.DELETE)
        before = replays(mount)["delivered"]
        begin = time.perf_counter()
        for _ in range(2):
            change(mount.source / "d", BURST)
        os.mknod(mount.source / "d" / "end")
        listener.join()
        seconds = listener.heard["end"] - begin
        return (replays(mount)["delivered"] - before) / seconds


def change(directory: Path, files: int) -> None:
    """Make so many files, change and remove them."""
    names = [directory / str(number) for number in range(files)]
    for name in names:
        os.mknod(name)
    for name in names:
        os.truncate(name, 1)
    for name in names:
        os.unlink(name)


def unwatched(native: str) -> tuple[float, float]:
    """Return the CPU time (user + system) of the daemon, and of its helpers, for changes nobody hears of; seconds."""
    with mount_of(native) as mount:
        os.listdir(mount.mountpoint / "d")
        wait_until_idle(mount.pid)
        daemon, helpers = cpu_of(mount.pid), helpers_of(mount.pid)
        for _ in range(BURSTS):
            change(mount.source / "d", UNWATCHED // BURSTS // 3)
            wait_until_idle(mount.pid)
        return cpu_of(mount.pid) - daemon, helpers_of(mount.pid) - helpers


def cpu_of(pid: int) -> float:
    """Return the CPU time of a process so far, seconds."""
    return time.clock_gettime(~pid << 3 | 2)  # clock_getcpuclockid(3), which Python does not have


def helpers_of(pid: int) -> float:
    """Return the CPU time of the processes that a process has started and that still run, seconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(cpu_of(int(child)) for task in tasks for child in (task / "children").read_text().split())


def wait_until_idle(pid: int) -> None:
    """Return when a process has used no CPU time for a while."""
    before = -1.0
    while (now := cpu_of(pid)) != before:
        before = now
        time.sleep(0.05)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("watched", "unwatched"))
    options = parser.parse_args()
    rounds = range(options.rounds)
    if options.only != "unwatched":
        print(f"| one program watches | always | auto |\n|---|---|---|\n{table_of_watched(rounds)}\n")
    if options.only != "watched":
        print(f"| nobody watches, {UNWATCHED} changes | off | auto | ratio |\n|---|---|---|---|")
        print(table_of_unwatched(rounds))


def table_of_unwatched(rounds: range) -> str:
    """Return the rows of the second table; the rounds of both modes take turns, as the machine has its moods."""
    runs = [(unwatched("off"), unwatched("auto")) for _ in rounds]
    off, auto = ([round[mode][0] for round in runs] for mode in (0, 1))
    ratios = sorted(with_it / without for without, with_it in zip(off, auto, strict=True))
    helpers = statistics.median(round[1][1] for round in runs)
    return (
        f"| CPU time of the daemon, s | {statistics.median(off):.3f} | {statistics.median(auto):.3f} "
        f"| {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f}) |\n"
        f"| least of all rounds, s | {min(off):.3f} | {min(auto):.3f} | {min(auto) / min(off):.3f} |\n"
        f"| of the processes for it, s | 0 | {helpers:.2f} | |"
    )


def table_of_watched(rounds: range) -> str:
    """Return the rows of the first table."""
    times = {native: sorted(ms for _ in rounds for ms in latencies(native)) for native in ("always", "auto")}
    rates = {native: statistics.median(replays_per_second(native) for _ in rounds) for native in ("always", "auto")}
    rows = []
    for name, part in ("p50", 0.5), ("p99", 0.99):
        row = (f"{one[int(len(one) * part)]:.1f}" for one in times.values())
        rows.append(f"| {RATE} changes/s, {name} ms | {' | '.join(row)} |")
    rows.append(f"| replays/s | {' | '.join(f'{rate:.0f}' for rate in rates.values())} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
