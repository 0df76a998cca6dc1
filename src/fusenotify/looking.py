"""Looks at what events name, so that the journal knows it again: attributes only, and nothing that raises an event."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from fusenotify.backing import Backing
from fusenotify.digest import Step
from fusenotify.events import DELETE, EventRecord
from fusenotify.filesystems import Filesystems
from fusenotify.rows import UNSEEN, Look, Row, look_of

_MOST_YOUNG: Final = 1 << 14

Looks = dict[bytes, Look]


class Looker:
    """Looks beneath the root, following no symbolic links. Slow: for a thread."""

    def __init__(self, backing: Backing, filesystems: Filesystems) -> None:
        self._backing = backing
        self._filesystems = filesystems
        self._young: dict[bytes, None] = {}  # paths of what had changed only just before it was looked at

    def look(self, steps: Sequence[Step]) -> tuple[Looks, dict[bytes, Look | None]]:
        """Return what is at the paths that events tell of, and what their directories are, as far as can be seen."""
        names: dict[bytes, list[bytes]] = {}
        looks: Looks = {}
        for path, is_there in _paths_of(steps):
            if path == b".":
                if self._filesystems.answers_at(path):
                    with contextlib.suppress(OSError):
                        looks[path] = look_of(os.fstat(self._backing.root_fd), time.time_ns())
                continue
            directory, _, name = path.rpartition(b"/")
            in_it = names.setdefault(directory or b".", [])
            if is_there:
                in_it.append(name)
        return looks, {directory: self._look_in(directory, in_it, looks) for directory, in_it in names.items()}

    def _look_in(self, directory: bytes, names: Sequence[bytes], looks: Looks) -> Look | None:
        """Look at some entries of a directory, and return what it is itself, None where that is not possible."""
        if not self._filesystems.answers_at(directory):
            return None
        try:
            fd = self._backing.open_beneath(directory, os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return None
        prefix = b"" if directory == b"." else directory + b"/"
        began = time.time_ns()
        try:
            for name in names:
                if self._filesystems.answers_at(prefix + name):
                    with contextlib.suppress(OSError):
                        looks[prefix + name] = look_of(os.stat(name, dir_fd=fd, follow_symlinks=False), began)
            return look_of(os.fstat(fd), began)
        except OSError:  # its disk has failed
            return None
        finally:
            os.close(fd)

    def note(self, looks: Iterable[tuple[bytes, Look]]) -> None:
        """Take note of what had changed only just before it was looked at."""
        if len(self._young) < _MOST_YOUNG:
            self._young.update((path, None) for path, look in looks if look.ctime == 0)

    def look_again(self) -> Looks:
        """Look once more at what has been noted, and forget it."""
        young, self._young = self._young, {}
        looks: Looks = {}
        for path in young:
            with contextlib.suppress(OSError):
                look = self._look_at(path)
                if look is not None:
                    looks[path] = look
        return looks

    def changed(self, rows: Iterable[tuple[bytes, Row]]) -> list[tuple[Row, Look]]:
        """Return what has changed, of paths and their rows; what cannot be seen may have."""
        found: list[tuple[Row, Look]] = []
        for path, row in rows:
            try:
                look = self._look_at(path)
            except OSError:
                look = UNSEEN._replace(inode=row.inode, links=row.links)
            if look is not None and not row.is_as(look):
                found.append((row, look))
        return found

    def _look_at(self, path: bytes) -> Look | None:
        """Return what is at a path, None where there is nothing (OSError: where that cannot be seen)."""
        self._filesystems.expect_answer(path)
        began = time.time_ns()
        status = self._backing.attributes_at(path)
        return None if status is None else look_of(status, began)


def _paths_of(steps: Sequence[Step]) -> Iterator[tuple[bytes, bool]]:
    """Yield the paths that events tell of, and whether there may be something."""
    for step in steps:
        if isinstance(step, EventRecord):
            for path in (step.path, step.old_path):
                if path is not None:
                    yield path, step.kind != DELETE
        else:
            for path, note in step.items():
                yield path, note.exists is not False
