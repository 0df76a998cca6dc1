"""The log that groups share: who follows it has as good a queue as its own, and what all have read is forgotten."""

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fusenotify.batch import Batch
from fusenotify.events import CREATE, OVERFLOW, EventRecord, Reason
from fusenotify.ledger import Ledger
from fusenotify.queue import Queue
from fusenotify.sharedlog import SharedLog


def batch(first: int, count: int) -> Batch:
    return Batch([EventRecord(seq, 10 * seq, CREATE, 0, b"%d" % seq) for seq in range(first, first + count)])


def drain(queue: Queue, count: int) -> list[tuple[int, EventRecord]]:
    told = []
    while (waiting := queue.peek(count)) is not None:
        queue.pop()
        told += [(waiting[0], one) for one in waiting[1].records]
    return told


class Twins(RuleBasedStateMachine):
    """Each queue that follows the log has a twin to which everything is pushed."""

    def __init__(self) -> None:
        super().__init__()
        self.log = SharedLog()
        self.twins: list[tuple[Queue, Queue]] = []
        self.seq = 0

    queues = Bundle("queues")

    @rule(target=queues, limit=st.integers(1, 12))
    def follow(self, limit: int) -> tuple[Queue, Queue]:
        twins = Queue(limit), Queue(limit)
        twins[0].follow(1, self.log)
        self.twins.append(twins)
        return twins

    @rule(count=st.integers(1, 6))
    def publish(self, count: int) -> None:
        one = batch(self.seq + 1, count)
        self.seq += count
        self.log.append(one)
        for follower, twin in self.twins:
            if not twin.overflow_waits and twin not in self.full:
                twin.push(1, Batch(one.records))
            assert follower.overflow_waits == twin.overflow_waits

    @property
    def full(self) -> list[Queue]:
        """Those that have lost something: nothing more is pushed to them, as nobody follows any more."""
        return [twin for _, twin in self.twins if twin.overflows]

    @rule(twins=queues, count=st.integers(1, 9))
    def read(self, twins: tuple[Queue, Queue], count: int) -> None:
        follower, twin = twins
        expected = twin.peek(count)
        seen = follower.peek(count)
        assert (seen is None) == (expected is None)
        if seen is None or expected is None:
            return
        # The batches may be cut in other places.
        common = min(len(seen[1]), len(expected[1]))
        follower.peek(common)
        twin.peek(common)
        assert list(seen[1].records)[:common] == list(expected[1].records)[:common]
        follower.pop()
        twin.pop()

    @invariant()
    def they_agree(self) -> None:
        for follower, twin in self.twins:
            assert (len(follower), follower.dropped, follower.overflows) == (len(twin), twin.dropped, twin.overflows)

    def teardown(self) -> None:
        for follower, twin in self.twins:
            assert drain(follower, 5) == drain(twin, 5)
            follower.clear()
        assert self.log.size == 0


TestTwins = Twins.TestCase


def test_who_is_too_far_behind_gives_way_and_others_lose_nothing() -> None:
    log, slow, fast = SharedLog(most_bytes=5000), Queue(), Queue()
    for queue in (slow, fast):
        queue.follow(1, log)
    told = []
    for seq in range(1, 101):
        log.append(batch(seq, 1))
        told += drain(fast, 10)
        assert log.size <= 5000 + 1000
    assert [record.seq for _, record in told] == list(range(1, 101))
    assert [(mark, record.kind, record.seq) for mark, record in drain(slow, 10)] == [(0, OVERFLOW, 0)]
    assert slow.dropped > 0


def test_an_overflow_of_the_kernel_keeps_its_place_in_a_queue_that_follows() -> None:
    log, queue = SharedLog(), Queue()
    queue.follow(3, log)
    log.append(batch(1, 2))
    queue.push_overflow(2, 20, Reason.KERNEL)
    log.append(batch(3, 1))
    assert [(mark, record.seq, record.kind) for mark, record in drain(queue, 10)] == [
        (3, 1, CREATE), (3, 2, CREATE), (0, 2, OVERFLOW), (3, 3, CREATE)
    ]  # fmt: skip


def test_the_user_who_takes_most_gives_way() -> None:
    ledger = Ledger(most_bytes=10_000, most_bytes_per_uid=6_000)
    users = [ledger.of(uid) for uid in (1, 2)]
    queues = [Queue(usage=user) for user in users]
    for user in users:
        user.groups += 1
    queues[0].push(1, batch(1, 1000))
    assert ledger.excess() == (1, users[0].bytes - 6_000 + 750)
    queues[0].give_up()
    assert users[0].bytes == 0
    assert ledger.excess() is None
    assert [record.kind for _, record in drain(queues[0], 10)] == [OVERFLOW]
