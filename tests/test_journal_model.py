"""Random changes, cursors, compaction and restarts: what is promised of every cursor holds."""

import os
import threading
from pathlib import Path
from random import Random

import pytest

from fusenotify import scribe
from tests import workload
from tests.journalling import Journalled, State, Workload, journalled, missing, state_of
from tests.soak import SEED, examples

Taken = list[tuple[str, State]]


async def _live(journal: Journalled, source: Path, random: Random, taken: Taken, snapshots: dict[str, State]) -> None:
    """Change the tree and ask, at random."""
    hiding, other = _workloads(random, source)
    names = _names(source)
    for _ in range(random.randrange(20, 80)):
        match random.randrange(12):
            case 0:
                taken.append((await journal.cursor(), state_of(source)))
            case 1:
                name = f"s{random.randrange(3)}"
                await journal.export.hearing.caught_up()
                await journal.export.journal.create_snapshot(name)
                snapshots[name] = state_of(source)
            case 2 if taken:
                cursor, before = random.choice([*taken, *((f"@{name}", state) for name, state in snapshots.items())])
                changes, fresh = await journal.since(cursor)
                assert not missing({} if fresh else before, state_of(source), changes), cursor
                assert not (fresh and cursor.startswith("@"))
            case 3 | 4 | 5:
                other.run(1, ("source",))
            case _:
                hiding.step()
        earlier, names = names, _names(source)
        if any(count > earlier.get(inode, 1) for inode, count in names.items()):
            await journal.cursor()  # by a name that goes before it is looked at, a file is changed unseen (journal.md)


def _names(source: Path) -> dict[int, int]:
    """Return how many names there are for each file, by its inode number."""
    files = [os.lstat(os.path.join(directory, name)) for directory, _, names in os.walk(source) for name in names]
    return {status.st_ino: status.st_nlink for status in files}


def _workloads(random: Random, source: Path) -> tuple[Workload, workload.Workload]:
    """Return changes that hide, and those that are made in every other way, to and from outside too."""
    outside = source.with_name("outside")
    outside.mkdir(exist_ok=True)
    every = workload.Workload(random, {"source": source}, {"source": outside}, True, threading.Lock())
    return Workload(random, source), every


@pytest.mark.parametrize("number", range(examples(8, 500)))
async def test_model(directory: Path, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(f"{SEED} model {number}")
    monkeypatch.setattr(scribe, "MOST_TOMBSTONES", random.choice((16, 4000)))
    monkeypatch.setattr(scribe, "_HOUSEKEEPING", 5)
    source, state_dir = directory / "source", directory / "state"
    taken: Taken = []
    snapshots: dict[str, State] = {}
    for _ in range(4):
        async with journalled(source, state_dir) as journal:
            await _live(journal, source, random, taken, snapshots)
            for cursor, before in random.sample(taken, min(3, len(taken))):
                changes, fresh = await journal.since(cursor)
                assert not missing({} if fresh else before, state_of(source), changes), cursor
        while_down, other = _workloads(random, source)
        for _ in range(random.randrange(10)):
            while_down.step()
            other.run(1, ("source",))
