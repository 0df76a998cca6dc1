"""Ignore patterns: what of a mark's events is handed on. They are looked at here, at the edge, and by nobody else.

The patterns are those of gitignore(5), relative to what is marked. A name that is ignored does not exist for who
ignores it: what is renamed from such a name comes in, what is renamed to one goes out.
"""

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Final

from msgspec.structs import replace
from pathspec import GitIgnoreSpec

from fusenotify.errors import UsageError
from fusenotify.events import EXCHANGE, IS_DIR, OTHER_IS_DIR, OVERFLOW, RENAME, UNMOUNT, EventRecord
from fusenotify.tree import ROOT_PATH

_CACHED: Final = 4096  # directories


class Ignore:
    """The patterns of one mark."""

    def __init__(self, patterns: Iterable[str], base: bytes) -> None:
        """Read the patterns, which are relative to the path `base` (empty for the root).

        Raises:
            UsageError: one of them is no pattern.
        """
        lines = list(patterns)
        try:
            self._spec = GitIgnoreSpec.from_lines(lines)
        except ValueError as error:
            raise UsageError(f"cannot read the ignore patterns {lines}: {error}") from error
        self._prefix = os.fsdecode(base) + "/" if base else ""
        # Where patterns name places, a directory that is renamed shows and hides other things than before.
        self._has_places = any("/" in line.strip().rstrip("/") for line in lines)
        self._hides_directory = lru_cache(_CACHED)(self._is_directory_hidden)

    def apply(self, record: EventRecord) -> list[EventRecord]:
        """Return what is to be told of an event: itself, the part of it that is seen, or nothing."""
        if record.kind & (OVERFLOW | UNMOUNT):
            return [record]
        if record.kind != RENAME:
            return [] if self._hides(record.path, record.flags & IS_DIR) else [record]
        if record.flags & EXCHANGE:
            return self._apply_to_exchange(record)
        return self._apply_to_move(record)

    def uncovers(self, told: EventRecord, record: EventRecord) -> list[bytes]:
        """Return the directories of which there is more to be seen now than has been told.

        `told` is what was made of the event `record`.
        """
        if told.kind != RENAME or told.path is None or record.old_path is None:
            return []
        uncovered: list[bytes] = []
        if told.flags & IS_DIR and (told.old_path is None or self._has_places):
            uncovered.append(told.path)
        if told.flags & OTHER_IS_DIR and told.old_path is not None and self._has_places:
            uncovered.append(told.old_path)
        return uncovered

    def _apply_to_move(self, record: EventRecord) -> list[EventRecord]:
        path = None if self._hides(record.path, record.flags & IS_DIR) else record.path
        old_path = None if self._hides(record.old_path, record.flags & IS_DIR) else record.old_path
        if path is None and old_path is None:
            return []
        return [_moved(record, record.flags, path, old_path)]

    def _apply_to_exchange(self, record: EventRecord) -> list[EventRecord]:
        """Of two things that change places, tell those that come to a name that is seen and leave one."""
        one, other = record.flags & IS_DIR, IS_DIR if record.flags & OTHER_IS_DIR else 0
        sides = ((record.old_path, record.path, one), (record.path, record.old_path, other))
        seen = [
            (None if self._hides(old, is_dir) else old, None if self._hides(new, is_dir) else new, is_dir)
            for old, new, is_dir in sides
        ]
        if all(None not in (old, new) for old, new, _ in seen):
            return [record]
        flags = record.flags & ~(EXCHANGE | IS_DIR | OTHER_IS_DIR)
        # What goes out is told first, or it would be taken for what has come in by its name.
        seen.sort(key=lambda side: side[1] is not None)
        return [_moved(record, flags | is_dir, new, old) for old, new, is_dir in seen if old or new]

    def _hides(self, path: bytes | None, is_dir: int) -> bool:
        if path is None:
            return True
        text = os.fsdecode(path)
        if path == ROOT_PATH or not text.startswith(self._prefix):
            return False
        relative = text.removeprefix(self._prefix)
        above, _, _ = relative.rpartition("/")
        if above and self._hides_directory(above):
            return True
        return self._spec.match_file(relative + "/" if is_dir else relative)

    def _is_directory_hidden(self, relative: str) -> bool:
        """As in git, nothing below a directory that is ignored can be seen, whatever the patterns say of it."""
        return any(self._spec.match_file(directory + "/") for directory in _with_those_above(relative))


def _with_those_above(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition("/")[0]


def _moved(record: EventRecord, flags: int, path: bytes | None, old_path: bytes | None) -> EventRecord:
    return replace(record, flags=flags, path=path, old_path=old_path)
