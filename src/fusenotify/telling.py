"""Builds the records of what the event path has found out, and gathers them into batches."""

from collections.abc import Iterator
from typing import Final

from fusenotify.echoes import LocalOperation
from fusenotify.events import CREATE, DELETE, EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, RECOVERED, RENAME, EventRecord
from fusenotify.joiner import Author
from fusenotify.snapshot import UNKNOWN, Snapshot, numbered
from fusenotify.tree import Directory

_CHUNK: Final = 512  # how many events are gathered at most


class Teller:
    """What is to be told next.

    Attributes:
        seq: how many events have been told in this run of the daemon.
        time_ns: when what is told now was heard, nanoseconds since the epoch.
        by: who made the change that is told now, where the watcher knows.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.seq = 0
        self.time_ns = 0
        self.by: Author | None = None
        self._batch: list[EventRecord] = []

    def tell(
        self,
        kind: int,
        path: bytes | None,
        operation: LocalOperation | None,
        flags: int = 0,
        old_path: bytes | None = None,
        reason: str = "",
    ) -> None:
        """Gather one event; `operation` is the local operation that made the change, None for a remote one."""
        self.seq += 1
        if operation is None:
            pid, uid = (None, None) if self.by is None or flags & RECOVERED else (self.by.pid, self.by.uid)
            record = EventRecord(self.seq, self.time_ns, kind, flags, path, old_path, pid, uid, reason)
        else:
            record = EventRecord(
                self.seq, self.time_ns, kind, flags | LOCAL, path, old_path, operation.pid, operation.uid, reason
            )
        self._batch.append(record)

    def advance(self) -> int:
        """Return a new position, for a change that nothing tells of."""
        self.seq += 1
        return self.seq

    def entry(
        self,
        kind: int,
        directory: Directory,
        name: bytes,
        is_dir: bool,
        operation: LocalOperation | None,
        flags: int = 0,
        inode: int = UNKNOWN,
    ) -> None:
        """Tell of an entry of a directory; `inode` is its inode number, where that has been seen."""
        if kind == CREATE:
            self._snapshot.put(directory, name, numbered(inode, is_dir=is_dir))
        elif kind == DELETE:
            self._snapshot.take(directory, name)
        self.tell(kind, directory.prefix + name, operation, flags | IS_DIR if is_dir else flags)

    def rename(
        self,
        old: tuple[Directory, bytes] | None,
        new: tuple[Directory, bytes] | None,
        is_dir: bool,
        operation: LocalOperation | None,
        flags: int = 0,
    ) -> None:
        """Tell of a rename from one (directory, name) to another; None is a place outside the tree."""
        number = self._snapshot.take(*old) if old is not None else None
        if new is not None:
            if old is not None and flags & EXCHANGE:
                other = self._snapshot.take(*new)
                self._snapshot.put(*old, other or numbered(UNKNOWN, is_dir=bool(flags & OTHER_IS_DIR)))
            if number is None or number & 1 != is_dir:
                number = numbered(UNKNOWN, is_dir=is_dir)
            self._snapshot.put(*new, number)
        old_path = old[0].prefix + old[1] if old is not None else None
        path = new[0].prefix + new[1] if new is not None else None
        self.tell(RENAME, path, operation, flags | IS_DIR if is_dir else flags, old_path)

    @property
    def is_full(self) -> bool:
        """Whether so much has been gathered that it should be passed on."""
        return len(self._batch) >= _CHUNK

    def flush(self) -> Iterator[list[EventRecord]]:
        """Yield what has been gathered, if anything."""
        if self._batch:
            yield self.gathered()

    def gathered(self) -> list[EventRecord]:
        """Return what has been gathered, and begin anew."""
        batch, self._batch = self._batch, []
        return batch
