"""What becomes of marks, debts and queues of a group that has fallen behind; no daemon and no time are involved."""

from collections.abc import Iterator

import pytest

from fusenotify import events
from fusenotify.batch import Batch
from fusenotify.events import CREATE, MODIFY, OPEN, OVERFLOW, RECOVERED, RENAME, EventRecord
from fusenotify.group import Group
from fusenotify.ledger import Ledger
from fusenotify.queue import Queue
from fusenotify.sharedlog import SharedLog
from tests.test_groups import World, drained, heard


@pytest.fixture
def world() -> World:
    return World(b"a", b"b")


def missed(group: Group) -> dict[bytes, int]:
    """Take what is in doubt; return by which mark."""
    assert group.lag.doubt is not None
    return {path: what.mark for path, what in group.lag.doubt.take()}


def flood(world: World, group: Group, path: bytes = b"a/%d") -> None:
    """Fill the queue of a group that hears of a directory, and read it."""
    world.publish(*[world.record(path % number) for number in range(group.queue.limit + 1)])
    assert drained(group)[-1][1].kind == OVERFLOW
    assert group.lag.doubt is not None
    group.lag.due.clear()
    group.lag.doubt.take()


def found(group: Group, mark: int, path: bytes) -> Iterator[tuple[int, EventRecord]]:
    yield mark, EventRecord(9, 9, CREATE, RECOVERED, path)


def test_a_mark_for_one_event_lives_until_it_is_told_of_one(world: World) -> None:
    group = world.open(limit=2)
    world.mark(group, b"a")
    world.mark(group, b"b", 2, oneshot=True)
    flood(world, group)
    world.publish(world.record(b"b/x"), world.record(b"b/y"))
    assert group.marks == 2
    assert missed(group) == {b"b/x": 2, b"b/y": 2}
    group.tell([*found(group, 2, b"b/x"), *found(group, 2, b"b/y")])
    assert heard(group) == [(2, b"b/x", None)]
    assert group.marks == 1
    assert group.mark_over(b"b/x", 2) is None


def test_what_happens_to_a_marked_object_is_told_as_a_change_of_it(world: World) -> None:
    world.file(b"a/f")
    group = world.open(limit=2)
    world.mark(group, b"b")
    world.mark(group, b"a/f", 2, scope="inode", kinds=MODIFY | RENAME)
    flood(world, group, b"b/%d")
    world.publish(world.record(b"a/g", RENAME, old=b"a/f"))
    assert missed(group) == {b"a/g": 2}
    assert group.mark_over(b"a/g", 2) == 2
    assert group.mark_over(b"a/f", 2) is None
    assert group.mark_over(b"a/g", 2, below=True) is None


def test_what_is_in_a_directory_is_told_by_marks_above_and_on_it(world: World) -> None:
    group = world.open()
    world.mark(group, b".", scope="dir")
    world.mark(group, b"a", 2, scope="dir")
    assert [group.mark_over(b"a", 2), group.mark_over(b"a/x", 1)] == [1, 2]
    assert [group.reaches_below(path) for path in (b"a", b"b", b"a/x")] == [True, False, False]


def test_the_end_of_a_mark_is_told_to_who_has_fallen_behind(world: World) -> None:
    file = world.file(b"a/f")
    group = world.open(limit=2)
    world.mark(group, b"b")
    world.mark(group, b"a/f", 2, scope="inode")
    flood(world, group, b"b/%d")
    file.links = 0
    world.publish(world.record(b"a/f", events.DELETE))
    assert [(mark, one.kind) for mark, one in drained(group)] == [(2, events.DELETE_SELF), (2, events.IGNORED)]
    assert group.mark_over(b"a/f", 2) is None


def test_uses_are_not_told_later(world: World) -> None:
    group = world.open(limit=2)
    world.mark(group, b"a", kinds=CREATE | OPEN)
    flood(world, group)
    world.publish(world.record(b"a/x", OPEN))
    assert missed(group) == {}


def test_who_asks_for_nothing_misses_nothing(world: World) -> None:
    group = world.open(limit=2)
    world.mark(group, b"a")
    flood(world, group)
    group.remove(1)
    assert group.lag.doubt is None
    world.mark(group, b"a")
    world.publish(world.record(b"a/x"))
    assert heard(group) == [(1, b"a/x", None)]


def test_debts_wait_until_what_was_missed_has_been_told(world: World) -> None:
    group = world.open(limit=2)
    world.mark(group)
    flood(world, group)
    group.recount(1, b"b", world.seq, 0)
    debt = world.groups.debts.popleft()
    assert group.defer(debt, 1)
    group.note_room()
    assert not world.groups.debts
    group.lag.end()
    assert list(world.groups.debts) == [debt]


def test_who_comes_to_take_everything_hears_nothing_twice(world: World) -> None:
    group = world.open()
    world.mark(group)
    world.mark(group, b"a", 2, oneshot=True)
    group.remove(1)
    world.mark(group)
    world.publish(world.record(b"a/x"), world.record(b"a/y"))
    world.publish(world.record(b"a/z"))
    assert heard(group) == [(2, b"a/x", None), (1, b"a/y", None), (1, b"a/z", None)]


def test_what_a_group_alone_is_told_comes_behind_what_all_were_told(world: World) -> None:
    world.below = {b"a": [(b"there", False)]}
    group = world.open()
    world.mark(group)
    world.publish(world.record(b"x"))
    group.recount(1, b"a", world.seq, 0)
    world.publish(world.record(b"y"))
    assert heard(group) == [(1, b"x", None), (1, b"y", None), (1, b"a/there", None)]


def test_dropping_what_waits_for_a_mark_gives_its_memory_back() -> None:
    usage, log = Ledger().of(1000), SharedLog()
    queue = Queue(100, usage)
    usage.groups = 1
    batches = [Batch([EventRecord(n, n, CREATE, 0, b"%d" % (n + m)) for m in range(3)]) for n in range(4)]
    queue.push(1, batches[0])
    queue.push(2, batches[1])
    queue.follow(1, log)
    log.append(batches[2])
    queue.push(2, batches[3])
    log.append(batches[2])
    assert len(queue) == 15
    assert queue.peek(1) is not None
    queue.pop()
    queue.drop(1)
    assert len(queue) == 6
    assert log.size == 0
    log.append(batches[2])
    queue.drop(2)
    assert len(queue) == usage.bytes == queue.size == 0
    assert queue.peek(1) is None
