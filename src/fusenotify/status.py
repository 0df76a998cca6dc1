"""How a daemon is, as it tells its clients."""

import bisect
from typing import Final

import msgspec

MOST_DEAF_PATHS: Final = 16
MOST_QUEUES: Final = 256
# Seconds; what took longer than the last one is counted behind it.
LATENCY_BOUNDS: Final = (0.0001, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class Replays(msgspec.Struct):
    """Native delivery in figures.

    Attributes:
        delivered: changes that programs which know nothing of us heard.
        fell_back: changes that they did not hear of, as they could not be replayed.
        stuck: how often the process that replays had to be given up.
    """

    delivered: int = 0
    fell_back: int = 0
    stuck: int = 0


class Histogram(msgspec.Struct):
    """How long something took, how often.

    Attributes:
        counts: how often it took at most each of LATENCY_BOUNDS, and more than the one before; at the end, longer.
        total: seconds that all of it took together.
    """

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    total: float = 0.0

    def note(self, seconds: float, times: int) -> None:
        """Count something that took so long, so many times."""
        self.counts[bisect.bisect_left(LATENCY_BOUNDS, seconds)] += times
        self.total += seconds * times


class Latency(msgspec.Struct):
    """How long events took on their way.

    Attributes:
        queued: from being read from the kernel until queued.
        sent: from being told until handed to a client.
    """

    queued: Histogram = msgspec.field(default_factory=Histogram)
    sent: Histogram = msgspec.field(default_factory=Histogram)


class QueueStatus(msgspec.Struct):
    """One group's queue in figures.

    Attributes:
        uid: the user who opened the group.
        marks: how many marks it has.
        waiting: how many events it has not read.
        limit: how many it may leave unread.
        dropped: how many found no room so far.
        overflows: how many overflow events told it so, or told it of the kernel's.
    """

    uid: int
    marks: int
    waiting: int
    limit: int
    dropped: int
    overflows: int


class JournalStatus(msgspec.Struct):
    """The journal in figures.

    Attributes:
        state: `filling` until the tree has been recorded for the first time, `comparing` after any other start until it
            is known what has changed meanwhile, then `ready`; `failing` while it cannot be written.
        size: bytes that the database takes.
        oldest: the oldest cursor that is honoured.
        compared: entries of the tree that have been looked at since the start.
    """

    state: str = ""
    size: int = 0
    oldest: str = ""
    compared: int = 0


class Status(msgspec.Struct):
    """The state of one daemon. Fields may be added in any version.

    Attributes:
        pid: process id of the daemon, in its own pid namespace.
        source: the backing tree; bytes, as a path need not be UTF-8.
        mountpoint: where it is mounted; bytes too.
        watcher: what hears the backing tree.
        watcher_reason: why it is that one.
        native: how native delivery is set.
        cursor: the current position in the history of changes.
        watches: how many directories of the backing tree are watched.
        overflows: how often the kernel's queue lost events.
        recoveries: how often that was repaired by comparison.
        deaf: how many directories there are in which changes are not heard, or not those of other machines.
        groups: how many groups listen.
        nodes: how many nodes the kernel holds.
        replays: native delivery in figures.
        state: what has become of SOURCE: `in place`, `deleted`, `unmounted` or `moved`; nothing is heard of it but in
            the first case.
        deaf_paths: where the deaf directories are: at most MOST_DEAF_PATHS, and none that is below another one.
        watch_limit: how many watches the user of the daemon may have, all programs together; 0 where that is unknown.
        told: how many events were told so far.
        dropped: how many events found no room in a queue of a group that is still open.
        queues: the groups that have most to read, at most MOST_QUEUES.
        latency: how long events took on their way.
        native_reason: to whom changes are delivered natively, and why.
        journal: what is known of the history of changes.
    """

    pid: int
    source: bytes
    mountpoint: bytes
    watcher: str
    native: str
    cursor: str
    watches: int
    overflows: int
    recoveries: int
    deaf: int
    groups: int
    nodes: int
    replays: Replays
    state: str = "in place"
    deaf_paths: list[bytes] = []
    watch_limit: int = 0
    told: int = 0
    dropped: int = 0
    queues: list[QueueStatus] = []
    latency: Latency = msgspec.field(default_factory=Latency)
    watcher_reason: str = ""
    native_reason: str = ""
    journal: JournalStatus = msgspec.field(default_factory=JournalStatus)
