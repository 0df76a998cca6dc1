"""A mirror that is fed by a group, and how it differs from the tree."""

import os
from collections.abc import Callable
from pathlib import Path

from examples.replica import Replica, Seen, look
from fusenotify import Event, Group

Differences = dict[str, tuple[Seen | None, Seen | None]]  # path: what the mirror shows, what is there


def tree(top: Path, below: Path) -> dict[str, Seen]:
    """What a mirror of `below` has to show, with paths relative to `top`."""
    found: dict[str, Seen] = {}
    for where, directories, files in os.walk(below):
        for name in directories + files:
            path = os.path.join(where, name)
            found[os.path.relpath(path, top)] = look(path)
    return found


class Mirror:
    """A replica fed by a group."""

    def __init__(self, group: Group, root: Path) -> None:
        self.replica = Replica(root)
        self.events: list[Event] = []
        self._group = group

    async def follow(self, end: str) -> None:
        """Apply events up to the one on the path `end`."""
        await self.follow_until(lambda event: event.path == end)

    async def follow_until(self, is_last: Callable[[Event], bool]) -> None:
        """Apply events up to one, which is not applied."""
        async for event in self._group:
            if is_last(event):
                self.events.append(event)
                return
            self.take(event)

    def take(self, event: Event) -> None:
        """Apply one event."""
        self.events.append(event)
        self.replica.apply(event)

    def story(self) -> str:
        return "\n".join(map(repr, self.events))


def differences(mirror: Mirror, top: Path, below: Path) -> Differences:
    """What the mirror shows and what is there, of every path where they differ."""
    told = mirror.replica.snapshot()
    expected = tree(top, below)
    return {
        path: (told.get(path), expected.get(path)) for path in told | expected if told.get(path) != expected.get(path)
    }
