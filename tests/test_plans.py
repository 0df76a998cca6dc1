"""The order of replays, what overtakes them, and what the kernel knows under a name: without a mount."""

import stat

import pytest

from fusenotify import events
from fusenotify.dentries import Dentries
from fusenotify.echoes import STILL_OPEN, Expectation, LocalOperation, Name
from fusenotify.events import EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, EventRecord
from fusenotify.identity import InodeKey, InodeNumber
from fusenotify.inodes import FIRST_GHOST, InodeTable, Node
from fusenotify.onlookers import Onlookers
from fusenotify.planning import Planner
from fusenotify.plans import MOST_PENDING, Pending, Place, Plan
from fusenotify.references import NowhereReference
from fusenotify.status import Replays
from fusenotify.tree import Tree

_ROOT = InodeKey(1, 1)
_BELOW = InodeKey(1, 2)


class Followed:
    """A planner on a tree with the directory `d`, both of which the kernel holds."""

    def __init__(self) -> None:
        self.table = InodeTable(1)
        self.root = self.table.add_root(InodeNumber(1, 1, 0), _ROOT, NowhereReference())
        self.below = self.table.remember(InodeNumber(1, 2, 0), _BELOW, NowhereReference, stat.S_IFDIR)
        self.table.entries.put(self.below, _ROOT, b"d")
        tree = Tree(_ROOT)
        tree.attach(tree.root, b"d", 1, _BELOW)
        self.pending, self.counts, self.position = Pending(), Replays(), 0
        self.planner = Planner(
            self.table, tree, self.pending, Onlookers("always", ()), lambda: self.position, self.counts
        )
        self.planner.is_on = True

    def tell(self, *told: tuple[int, bytes | None, bytes | None, int]) -> list[Plan]:
        """Tell of (kind, path, old path, flags) and return the plans that are made."""
        self.planner.follow([EventRecord(1, 0, kind, flags, path, old) for kind, path, old, flags in told], 0)
        return self.pending.take(MOST_PENDING)

    def file(self, number: int, name: bytes) -> Node:
        """Have the kernel told of a file in the root."""
        node = self.table.remember(InodeNumber(1, number, 0), InodeKey(1, number), NowhereReference, stat.S_IFREG)
        self.table.entries.put(node, _ROOT, name)
        return node


def test_paths_become_places() -> None:
    followed = Followed()
    made, moved, root = followed.tell(
        (events.CREATE, b"d/a", None, 0), (events.RENAME, b"b", b"d/a", 0), (events.ATTRIB, b".", None, IS_DIR)
    )
    assert made.old == Place(followed.below, b"a", b"d")
    assert (moved.old, moved.new) == (made.old, Place(followed.root, b"b"))
    assert root.old == Place(followed.root, b"")


def test_what_the_kernel_does_not_hold_has_no_plan() -> None:
    followed = Followed()
    assert followed.tell((events.CREATE, b"x/a", None, 0), (events.CREATE, b"a", None, LOCAL)) == []
    (moved_in,) = followed.tell((events.RENAME, b"a", b"x/a", 0))
    assert (moved_in.old, moved_in.new) == (None, Place(followed.root, b"a"))


def test_half_an_exchange_is_a_departure_and_an_arrival() -> None:
    followed = Followed()
    out, into = followed.tell((events.RENAME, b"x/b", b"a", EXCHANGE | OTHER_IS_DIR))
    assert (out.old, out.new, out.flags) == (Place(followed.root, b"a"), None, 0)
    assert (into.old, into.new, into.flags) == (None, Place(followed.root, b"a"), IS_DIR)


def test_equal_changes_in_a_row_are_one() -> None:
    followed = Followed()
    plans = followed.tell(
        *[(events.MODIFY, b"a", None, 0)] * 3, (events.MODIFY, b"b", None, 0), (events.MODIFY, b"a", None, 0)
    )
    assert [plan.old.name for plan in plans if plan.old] == [b"a", b"b", b"a"]


def test_a_local_operation_voids_what_waits_and_what_is_told_later_of_before() -> None:
    followed = Followed()
    followed.planner.follow([EventRecord(1, 0, events.CREATE, 0, b"a")], 0)
    operation = LocalOperation(5, STILL_OPEN, None, None, [Expectation(events.DELETE, Name(_ROOT, 1, b"a"))])
    followed.planner.note(operation)
    (waiting,) = followed.pending.take(1)
    assert waiting.void
    operation.end, followed.position = 20, 10
    (late,) = followed.tell((events.MODIFY, b"a", None, 0))
    assert late.void
    followed.position = 20
    (newer,) = followed.tell((events.CREATE, b"a", None, 0))
    assert not newer.void


def test_a_local_operation_that_fails_voids_nothing() -> None:
    followed = Followed()
    failing = LocalOperation(5, STILL_OPEN, None, None, [Expectation(events.DELETE, Name(_ROOT, 1, b"a"))])
    followed.planner.note(failing)
    (plan,) = followed.tell((events.MODIFY, b"a", None, 0))
    under_way = plan.void
    failing.expectations.clear()
    assert (under_way, plan.void) == (True, False)
    done = LocalOperation(6, 20, None, None, [Expectation(events.DELETE, Name(_ROOT, 1, b"a"))])
    followed.planner.note(done)
    failing = LocalOperation(20, 20, None, None, [Expectation(events.DELETE, Name(_ROOT, 1, b"a"))])
    followed.planner.note(failing)
    failing.expectations.clear()
    (late,) = followed.tell((events.ATTRIB, b"a", None, 0))
    assert late.void


def test_within_a_batch_it_is_the_order_that_counts() -> None:
    followed = Followed()
    before, behind = followed.tell(
        (events.CREATE, b"a", None, 0), (events.DELETE, b"a", None, LOCAL), (events.CREATE, b"a", None, 0)
    )
    assert (before.void, behind.void) == (True, False)


def test_a_later_plan_takes_a_name_away() -> None:
    pending, node = Pending(), Followed().root
    made = pending.add(events.CREATE, 0, Place(node, b"a"), None)
    assert not pending.is_taken_later(made, (_ROOT, b"a"))
    gone = pending.add(events.RENAME, 0, Place(node, b"a"), Place(node, b"b"))
    assert pending.is_taken_later(made, (_ROOT, b"a"))
    pending.finish(gone)
    assert not pending.is_taken_later(made, (_ROOT, b"a"))
    assert len(pending) == 1


def test_what_is_too_much_falls_back_and_is_taken_note_of() -> None:
    followed = Followed()
    old = followed.file(7, b"a")
    for number in range(MOST_PENDING):
        followed.pending.add(events.CREATE, 0, Place(followed.root, b"%d" % number), None)
    followed.planner.follow([EventRecord(1, 0, events.RENAME, 0, b"b", b"a")], 0)
    assert followed.counts.fell_back == 1
    assert list(followed.table.entries.at(_ROOT, b"b")) == [old]
    assert not followed.table.entries.at(_ROOT, b"a")


def test_of_what_nobody_watches_only_known_names_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed()
    entries, old = followed.table.entries, followed.file(7, b"a")
    ignore = followed.planner.ignore
    ignore([EventRecord(1, 0, events.RENAME, 0, b"d/b", b"a")])
    assert (list(entries.at(_BELOW, b"b")), list(entries.at(_ROOT, b"a"))) == ([old], [])
    ignore([EventRecord(1, 0, events.RENAME, 0, b"d/b", b"unknown"), EventRecord(2, 0, events.DELETE, 0, b"d/b")])
    assert not old.entries
    monkeypatch.delattr(Planner, "_places")
    ignore([EventRecord(3, 0, events.DELETE, 0, b"d/b"), EventRecord(4, 0, events.RENAME, 0, b"x/b", b"d/c")])


def test_a_name_has_had_several_nodes() -> None:
    followed = Followed()
    first, second = followed.file(7, b"a"), followed.file(8, b"a")
    assert list(followed.table.entries.at(_ROOT, b"a")) == [first, second]
    followed.file(7, b"a")  # looked up again: it is the newest now
    assert list(followed.table.entries.at(_ROOT, b"a")) == [second, first]
    followed.table.forget(first.nodeid, 2)
    assert list(followed.table.entries.at(_ROOT, b"a")) == [second]
    entries: Dentries[Node] = followed.table.entries
    entries.take(second, _ROOT, b"a")
    assert second.entries == ()


def test_ghosts_have_numbers_of_their_own() -> None:
    table = Followed().table
    one, other = table.add_ghost(stat.S_IFREG), table.add_ghost(stat.S_IFDIR)
    assert FIRST_GHOST <= one.nodeid < other.nodeid
    assert other.is_dir
