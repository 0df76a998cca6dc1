"""The names in a tree, as a listener knows them by nothing but events, for tests of what events have to make good."""

import os
from collections.abc import Iterator
from pathlib import Path

from fusenotify import Event, Group, Kind, Reason


class Names:
    """What a listener knows of a tree that uses nothing but events: every path there is."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self.paths = set(survey(source))
        self.overflows: list[Reason | None] = []

    def follow(self, event: Event) -> None:
        match event.kind:
            case Kind.OVERFLOW:
                self.overflows.append(event.reason)
                # Then everything that there is comes anew; else what was missed, as far as it is known.
                is_all_told = event.reason is Reason.RESTART
                self.paths = (
                    set() if is_all_told else {path for path in self.paths if os.path.lexists(self._source / path)}
                )
            case Kind.CREATE:
                assert event.path is not None
                self.paths.add(event.path)
            case Kind.DELETE:
                self._remove(event.path or "")
            case Kind.RENAME:
                self._move(event.old_path, event.path)

    def _remove(self, top: str) -> set[str]:
        """Forget a path and everything below it, and return that."""
        removed = {path for path in self.paths if path == top or path.startswith(f"{top}/")}
        self.paths -= removed
        return removed

    def _move(self, old: str | None, new: str | None) -> None:
        below = {path.removeprefix(old) for path in self._remove(old)} if old is not None else set()
        if new is not None:
            self._remove(new)
            self.paths |= {new} | {new + path for path in below}


def survey(source: Path) -> Iterator[str]:
    for top, directories, files in os.walk(source):
        for name in (*directories, *files):
            yield os.path.relpath(os.path.join(top, name), source)


async def follow_until(group: Group, names: Names, source: Path) -> None:
    """Follow events until the names are those that there are."""
    while names.paths != set(survey(source)):
        names.follow(await anext(group))
