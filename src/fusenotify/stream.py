"""The watcher's events in order, and a look at those that have not been told yet.

A directory that has come into the tree is opened by its path, which may be another one's by then: what happened to the
name since is in the stream, further down. So whoever opens a path asks here whether a name on the way is to leave.
"""

from collections import Counter, deque
from typing import Final, Protocol

from fusenotify.joiner import IN_DELETE, IN_ISDIR, IN_MOVED_FROM, IN_MOVED_TO, RawEvent, parse

# What is moved to a name may take it from another directory, an empty one, of which nothing else is told.
_LEAVING: Final = IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO


class Source(Protocol):
    """Where the bytes come from: a watcher."""

    def drain(self) -> int:
        """Read what the kernel holds and return the position behind it."""

    def take(self) -> tuple[int, bytes] | None:
        """Return the oldest bytes that were read and their position, None when there are none."""


class Stream:
    """Parses what the watcher has read, each byte once, and knows which directories are about to leave their names."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._parsed_to = 0
        self._parsed: deque[tuple[int, list[RawEvent]]] = deque()
        self._leaving: Counter[tuple[int, bytes]] = Counter()

    def next(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that have not been returned and the position behind them."""
        if not self._parsed:
            self._parse_one()
        return self._parsed.popleft() if self._parsed else None

    @property
    def has_more(self) -> bool:
        """Whether there are events that have not been returned."""
        return bool(self._parsed) or self._parse_one()

    def will_leave(self, wd: int, name: bytes) -> bool:
        """Whether a directory is to leave a name (be deleted or renamed) in what was read and has not been told."""
        now = self._source.drain()
        while self._parsed_to < now and self._parse_one():
            self._source.drain()  # parsing may take longer than the kernel's queue lasts
        return (wd, name) in self._leaving

    def left(self, wd: int, name: bytes) -> None:
        """Take note that a directory has left a name: this has been told."""
        count = self._leaving[wd, name]
        if count > 1:
            self._leaving[wd, name] = count - 1
        else:
            del self._leaving[wd, name]

    def _parse_one(self) -> bool:
        chunk = self._source.take()
        if chunk is None:
            return False
        position, data = chunk
        events = parse(data, position)
        for _, wd, mask, _, name in events:
            if mask & IN_ISDIR and mask & _LEAVING:
                self._leaving[wd, name] += 1
        self._parsed_to = position + len(data)
        self._parsed.append((self._parsed_to, events))
        return True
