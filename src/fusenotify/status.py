"""How a daemon is, as it tells its clients."""

from typing import Final

import msgspec

MOST_DEAF_PATHS: Final = 16


class Replays(msgspec.Struct):
    """Native delivery in figures.

    Attributes:
        delivered: changes that programs which know nothing of us heard.
        fell_back: changes for which only the caches were put right.
    """

    delivered: int = 0
    fell_back: int = 0


class Status(msgspec.Struct):
    """The state of one daemon. Fields may be added in any version.

    Attributes:
        pid: process id of the daemon, in its own pid namespace.
        source: the backing tree; bytes, as a path need not be UTF-8.
        mountpoint: where it is mounted; bytes too.
        watcher: what hears the backing tree.
        native: how native delivery is set.
        cursor: the current position in the history of changes.
        watches: how many watches are set on the backing tree.
        overflows: how often the kernel's queue lost events.
        recoveries: how often that was repaired by comparison.
        deaf: how many directories could not be watched.
        groups: how many groups listen.
        nodes: how many nodes the kernel holds.
        replays: native delivery in figures.
        state: what has become of SOURCE: `in place`, `deleted`, `unmounted` or `moved`; nothing is heard of it but in
            the first case.
        deaf_paths: where those directories are, at most so many, and none that is below another one.
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
