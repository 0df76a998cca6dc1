"""The watcher's events in order, and a look at those that have not been told yet.

A directory that has come into the tree is opened by its path, which may be another one's by then: what happened to the
name since is in the stream, further down. So whoever opens a path asks here whether a name on the way is to leave.
"""

from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from fusenotify.joiner import IN_DELETE, IN_ISDIR, IN_MOVED_FROM, RawEvent, parse

_LEAVING: Final = IN_DELETE | IN_MOVED_FROM


class Stream:
    """Parses what the watcher has read, each byte once, and knows which directories are about to leave their names."""

    def __init__(self, take: Callable[[], tuple[int, bytes] | None]) -> None:
        """`take` returns the oldest bytes that the watcher has read and their position, None when there are none."""
        self._take = take
        self._parsed: deque[tuple[int, list[RawEvent]]] = deque()
        self._leaving: Counter[tuple[int, bytes]] = Counter()

    def next(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that have not been returned and the position behind them."""
        if not self._parsed:
            self._parse_one()
        return self._parsed.popleft() if self._parsed else None

    def will_leave(self, wd: int, name: bytes) -> bool:
        """Whether a directory is to leave a name (be deleted or renamed) in what was read and has not been told."""
        while self._parse_one():
            pass
        return (wd, name) in self._leaving

    def left(self, wd: int, name: bytes) -> None:
        """Take note that a directory has left a name: this has been told."""
        count = self._leaving[wd, name]
        if count > 1:
            self._leaving[wd, name] = count - 1
        else:
            del self._leaving[wd, name]

    def _parse_one(self) -> bool:
        chunk = self._take()
        if chunk is None:
            return False
        position, data = chunk
        events = parse(data, position)
        for _, wd, mask, _, name in events:
            if mask & IN_ISDIR and mask & _LEAVING:
                self._leaving[wd, name] += 1
        self._parsed.append((position + len(data), events))
        return True
