"""What the journal costs: events with and without it, a question, bytes per file, and the comparison at the start.

    python -m benchmarks.journal [--files 1000000] [--events 60000] [--compared 100000]

Needs no mount. The tree and the database lie in a temporary directory (TMPDIR).
"""

import argparse
import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio

from fusenotify.config import JournalRules
from fusenotify.database import FILE_NAME
from fusenotify.events import EventRecord
from fusenotify.export import Export
from fusenotify.rows import DIRECTORY, IS_PRESENT, ROOT_ID

_STORM = """
import os, sys
os.chdir(sys.argv[1])
for number in range(int(sys.argv[2]) // 3):  # create, modify, close_write
    with open(f"d{number % 100}/{number}", "w") as file:
        file.write("x")
"""
_IN_ONE_DIRECTORY = 1000


@contextlib.asynccontextmanager
async def heard(source: Path, state_dir: Path, *, has_journal: bool = True) -> AsyncIterator[Export]:
    """Hear a tree in this process."""
    os.makedirs(state_dir, exist_ok=True)
    with contextlib.ExitStack() as stack:
        export = Export(source, state_dir, stack, rules=JournalRules())
        if not has_journal:
            export.hearing.followers.clear()
            export.journal.begin = lambda: None  # type: ignore[method-assign]
        await export.crawl()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.hearing.run)
            yield export
            export.hearing.end()
            nursery.cancel_scope.cancel()


async def storm(place: Path, events: int, *, has_journal: bool) -> tuple[float, float]:
    """Return how many events are told per second, and per second of our processor time, while somebody makes them."""
    source = place / "source"
    for number in range(100):
        (source / f"d{number}").mkdir(parents=True)
    async with heard(source, place / "state", has_journal=has_journal) as export:
        if has_journal:
            await export.journal.since("0")
        told = 0

        def count(records: Sequence[EventRecord]) -> None:
            nonlocal told
            told += len(records)

        export.hearing.followers.append(count)
        began, worked = time.perf_counter(), time.process_time()
        await trio.run_process([sys.executable, "-c", _STORM, str(source), str(events)])
        await export.hearing.caught_up()
        elapsed = time.perf_counter() - began
        if has_journal:
            await export.journal.cursor()  # what is still to be written has its price too
        return told / elapsed, told / (time.process_time() - worked)


async def question(place: Path, files: int) -> tuple[float, float]:
    """Return how long it takes to name 1000 changes of so many files (seconds), and the bytes for each file."""
    source = place / "source"
    source.mkdir()
    async with heard(source, place / "state"):
        pass
    await trio.to_thread.run_sync(_fill, place / "state" / FILE_NAME, files)
    async with heard(source, place / "state", has_journal=False) as export:
        journal = export.journal
        journal._scribe.is_ready, journal._scribe.written = True, 0
        cursor = journal.epoch
        cursor = f"c:{cursor}:0"
        with journal._database.transaction() as connection:
            start = journal._history.start
            step = files // 1000
            connection.execute("UPDATE entry SET changed = ? WHERE kind = 2 AND id % ? = 0", (start + 1, step))
        times, named = [], 0
        for _ in range(5):
            began = time.perf_counter()
            named = 0
            async with await journal.since(cursor) as answer:
                while page := await answer.page():
                    named += len(page)
            times.append(time.perf_counter() - began)
        assert named >= 900, named
        return min(times), journal._database.size / files


def _fill(path: Path, files: int) -> None:
    """Write rows as those of a tree with names of 20 bytes."""
    now = time.time_ns()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        number = ROOT_ID + 1
        for directory in range(files // _IN_ONE_DIRECTORY):
            above = number
            rows = [(above, ROOT_ID, f"directory-{directory:010}".encode(), DIRECTORY)]
            number += 1
            for name in range(_IN_ONE_DIRECTORY):
                rows.append((number, above, f"a-file-name-{name:08}".encode(), IS_PRESENT))
                number += 1
            database.executemany(
                "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?, ?, 1, ?, ?, 0)",
                [(*row, 1 << 30 | row[0], 123456, now, now, 1 << 40, 1 << 40) for row in rows],
            )
        database.execute("UPDATE epoch SET is_clean = 1")


async def comparison(place: Path, files: int) -> tuple[float, float]:
    """Return how long find(1) takes for a tree, and how long the comparison at the start (seconds)."""
    source = place / "source"
    for directory in range(files // 100):
        (source / f"{directory}").mkdir(parents=True)
        for name in range(100):
            (source / f"{directory}/{name}").touch()
    async with heard(source, place / "state") as export:
        await export.journal.since("0")
        await export.journal.settle(export.hearing.caught_up)
    find = ["find", str(source), "-printf", "%i %s %T@ %C@ %p\\n"]
    times = []
    for _ in range(3):
        began = time.perf_counter()
        await trio.run_process(find, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    async with heard(source, place / "state") as export:
        began = time.perf_counter()
        while export.journal.status().state != "ready":
            await export.journal._progress.wait()
        return min(times), time.perf_counter() - began


async def measure(arguments: argparse.Namespace) -> None:
    """Print everything."""
    rates: dict[bool, list[tuple[float, float]]] = {False: [], True: []}
    for _ in range(3):
        for has_journal in (False, True):
            with tempfile.TemporaryDirectory() as place:
                rates[has_journal].append(await storm(Path(place), arguments.events, has_journal=has_journal))
    for index, what in enumerate(("second", "second of processor time")):
        without, with_it = (max(rate[index] for rate in rates[has_journal]) for has_journal in (False, True))
        print(f"events per {what}: {without:,.0f} without, {with_it:,.0f} with ({with_it / without:.0%})")
    with tempfile.TemporaryDirectory() as place:
        seconds, size = await question(Path(place), arguments.files)
    print(f"1000 changes of {arguments.files:,} files: {seconds * 1000:.0f} ms; {size:.0f} bytes for each file")
    with tempfile.TemporaryDirectory() as place:
        find, compared = await comparison(Path(place), arguments.compared)
    print(
        f"comparison of {arguments.compared:,} files: {compared:.2f} s, find {find:.2f} s ({compared / find:.1f} times)"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=60_000)
    parser.add_argument("--compared", type=int, default=100_000)
    trio.run(measure, parser.parse_args())


if __name__ == "__main__":
    main()
