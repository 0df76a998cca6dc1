"""The bounded queue of a group, against a model of a few lines."""

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fusenotify.batch import Batch
from fusenotify.events import CREATE, OVERFLOW, EventRecord, Reason
from fusenotify.ledger import Ledger
from fusenotify.queue import End, Queue
from fusenotify.sharedlog import SharedLog


def record(seq: int) -> EventRecord:
    return EventRecord(seq, 10 * seq, CREATE, 0, b"%d" % seq)


def batch(*seqs: int) -> Batch:
    return Batch([record(seq) for seq in seqs])


def drain(queue: Queue, count: int = 1000) -> list[tuple[int, EventRecord]]:
    told = []
    while (waiting := queue.peek(count)) is not None:
        queue.pop()
        told += [(waiting[0], one) for one in waiting[1].records]
    return told


def test_what_is_given_up_leaves_the_ends_of_marks() -> None:
    queue = Queue(2, Ledger().of(0))
    queue.push(1, batch(1))
    queue.push(2, End([record(2), record(3)]))
    queue.push(1, batch(4))
    queue.push(3, End([record(5)]))
    queue.give_up()
    assert (queue.dropped, queue.overflows, queue.ends, queue.size) == (2, 1, 2, 0)
    # Who goes on from one of them has to hear of what was given up.
    assert [(mark, one.seq) for mark, one in drain(queue, 1)] == [(0, 0), (2, 0), (2, 0), (3, 0)]
    queue.push(2, End([record(6), record(7)]))
    queue.push(1, batch(8))
    assert queue.peek(1) is not None
    queue.pop()
    queue.give_up()
    assert [(mark, one.seq) for mark, one in drain(queue)] == [(0, 6), (2, 6)]
    assert (len(queue), queue.ends) == (0, 0)


def test_nothing_comes_after_the_last_event() -> None:
    queue, log = Queue(3, Ledger().of(0)), SharedLog()
    queue.push(1, batch(1))
    queue.push_last(record(2))
    queue.follow(1, log)
    log.append(batch(3))
    queue.push(1, batch(4))
    queue.push(1, End([record(5)]))
    queue.push_overflow(6, 60, Reason.KERNEL)
    assert len(queue) == 2
    queue.give_up()
    assert [(mark, one.path, one.kind) for mark, one in drain(queue)] == [(0, None, OVERFLOW), (0, b"2", CREATE)]


class Model(RuleBasedStateMachine):
    """What waits is a list of (mark, seq); the overflow event is one of mark 0."""

    def __init__(self) -> None:
        super().__init__()
        self.limit = 5
        self.queue = Queue(self.limit)
        self.waiting: list[tuple[int, int]] = []
        self.seq = 0
        self.dropped = 0
        self.overflows = 0

    def overflow(self, seq: int) -> None:
        if not any(mark == 0 for mark, _ in self.waiting):
            self.waiting.append((0, seq))
            self.overflows += 1

    @rule(mark=st.integers(1, 3), size=st.integers(1, 8))
    def push(self, mark: int, size: int) -> None:
        seqs = range(self.seq + 1, self.seq + size + 1)
        self.seq += size
        self.queue.push(mark, batch(*seqs))
        for seq in seqs:
            if sum(mark != 0 for mark, _ in self.waiting) < self.limit:
                self.waiting.append((mark, seq))
            else:
                self.dropped += 1
                self.overflow(seq - 1)

    @rule()
    def push_overflow(self) -> None:
        self.seq += 1
        self.queue.push_overflow(self.seq, 10 * self.seq, Reason.KERNEL)
        self.overflow(self.seq)

    @rule(counts=st.lists(st.integers(1, 7), min_size=1, max_size=3))
    def peek_and_pop(self, counts: list[int]) -> None:
        seen = None
        for count in counts:  # a reader whose buffer is too small asks again for less
            seen = self.queue.peek(count)
            assert (seen is None) == (not self.waiting)
            if seen is not None:
                assert 1 <= len(seen[1]) <= count
                told = [(seen[0], one.seq) for one in seen[1].records]
                assert told == self.waiting[: len(told)]
        if seen is not None:
            self.queue.pop()
            del self.waiting[: len(seen[1])]

    @precondition(lambda self: self.waiting)
    @rule()
    def peek_only(self) -> None:
        first, second = self.queue.peek(3), self.queue.peek(3)
        assert first is not None
        assert second is not None
        assert first[1].records == second[1].records

    @invariant()
    def figures_agree(self) -> None:
        assert len(self.queue) == len(self.waiting) <= self.limit + 1
        assert sum(mark == 0 for mark, _ in self.waiting) <= 1
        assert (self.queue.dropped, self.queue.overflows) == (self.dropped, self.overflows)

    def teardown(self) -> None:
        told = drain(self.queue, 3)
        assert [(mark, one.seq) for mark, one in told] == self.waiting
        assert len(self.queue) == 0
        assert all((mark == 0) == (one.kind == OVERFLOW) for mark, one in told)


TestModel = Model.TestCase


def test_the_overflow_event_says_what_it_is() -> None:
    queue = Queue(2)
    queue.push(7, batch(11, 12, 13, 14))
    overflow = drain(queue)[-1]
    # Its position is the one before the first event that was dropped: going on from there misses nothing.
    assert overflow == (0, EventRecord(12, 130, OVERFLOW, 0, None, reason="queue"))
    assert (queue.dropped, queue.overflows) == (2, 1)


def test_a_kernel_overflow_keeps_its_own_position_and_reason() -> None:
    queue = Queue(2)
    queue.push_overflow(5, 50, Reason.KERNEL)
    queue.push_overflow(6, 60, Reason.KERNEL)
    assert drain(queue) == [(0, EventRecord(5, 50, OVERFLOW, 0, None, reason="kernel"))]


def test_a_full_queue_with_a_waiting_overflow_tells_of_what_comes_after_only_when_there_is_room() -> None:
    queue = Queue(2)
    queue.push(1, batch(1, 2, 3))
    assert queue.peek(1) is not None
    queue.pop()
    queue.push(1, batch(4, 5))
    assert [one.seq for _, one in drain(queue)] == [2, 2, 4]  # 2, the overflow, 4; 5 found no room and is covered
    assert queue.overflows == 1
    queue.push(1, batch(6, 7, 8))
    assert [(mark, one.seq) for mark, one in drain(queue)] == [(1, 6), (1, 7), (0, 7)]
    assert queue.overflows == 2


def test_a_batch_is_encoded_once() -> None:
    one = batch(1, 2)
    assert one.encoded() is one.encoded()
    assert msgspec.msgpack.decode(one.encoded(), type=list[EventRecord]) == one.records


@pytest.mark.parametrize("is_packed", [False, True])
def test_a_part_leaves_the_batch_alone(is_packed: bool) -> None:
    one = batch(1, 2, 3)
    if is_packed:
        one.pack()
    assert [[r.seq for r in one.part(*which).records] for which in ((0, 1), (1, 5), (1, 1))] == [[1], [2, 3], [2]]
    assert len(one) == 3
    assert one.part(0, 3) is one


@pytest.mark.parametrize("limit", [0, -1])
def test_a_queue_without_room_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="at least one event"):
        Queue(limit)
