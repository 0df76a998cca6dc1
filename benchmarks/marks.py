"""Measures what an event costs a group by the number of its marks: `python benchmarks/marks.py`.

The fan-out alone, without a mount, in batches of 256 events that are all told: by one mark, and by each in turn.
"""

import gc
import statistics
import time

from fusenotify.events import CREATE, DEFAULT, EventRecord
from fusenotify.group import Group
from fusenotify.groups import Groups
from fusenotify.identity import InodeKey
from fusenotify.protocol import AddMark
from fusenotify.tree import Tree

DIRECTORIES = 8000
EVENTS = 80_000
BATCH = 256
ROUNDS = 5


class Object:
    """What is marked, as `Groups.mark` is shown it."""

    links = 1

    def __init__(self, number: int) -> None:
        self.key = InodeKey(1, number)

    def copy(self) -> "Object":
        return self

    def close(self) -> None:
        """Keep nothing, so there is nothing to do."""


def main() -> None:
    """Print a Markdown table."""
    gc.disable()  # the daemon does very little of it (see `daemon`)
    print("| marks | µs per event, all of one mark | µs per event, each of another mark |\n|---|---|---|")
    for marks in (1, 80, DIRECTORIES):
        one, each = (statistics.median(measured(marks, used) for _ in range(ROUNDS)) for used in (1, marks))
        print(f"| {marks} | {one:.1f} | {each:.1f} |")


def measured(marks: int, used: int) -> float:
    """Return the microseconds that one event takes with so many marks on directories, of which some get events."""
    tree = Tree(InodeKey(1, 1))
    for number in range(DIRECTORIES):
        tree.attach(tree.root, b"%d" % number, number + 1, InodeKey(1, number + 2))
    groups = Groups(tree, owner=0, watch_other=False, look=lambda _: None)
    group = groups.open(0, tree.root, EVENTS)
    for number in range(marks):
        add(groups, group, number)
    records = [EventRecord(number, 0, CREATE, 0, b"%d/name" % (number % used)) for number in range(EVENTS)]
    start = time.perf_counter()
    for first in range(0, len(records), BATCH):
        groups.publish(records[first : first + BATCH])
    spent = time.perf_counter() - start
    assert len(group.queue) == EVENTS
    return spent / EVENTS * 1e6


def add(groups: Groups, group: Group, number: int) -> None:
    """Mark one directory."""
    request = AddMark(0, number + 1, b"%d" % number, "dir", DEFAULT, 3)
    assert groups.mark(group, request, Object(number + 2))


if __name__ == "__main__":
    main()
