"""Marked files, and whatever else is marked and no directory: followed through the stream by what they are.

The watched directories tell of names, a mark is on the object. So each marked file is kept by a descriptor, which keeps
its inode number from being used again, and is known by the names under which the stream tells of it.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple, Protocol

from fusenotify.errors import LimitReached
from fusenotify.events import CREATE, DELETE, EXCHANGE, IS_DIR, OTHER_IS_DIR, RENAME, EventRecord
from fusenotify.identity import InodeKey
from fusenotify.tree import Directory, Tree

_LOOKS: Final = 16  # at files without a known name, for each event that may have taken another name away


class Pin(Protocol):
    """What keeps an object (`backing.Found`).

    Attributes:
        key: device and inode number.
    """

    key: InodeKey

    @property
    def links(self) -> int:
        """How many names it has, in the tree or not."""

    def copy(self) -> "Pin":
        """Return another one of the same object."""

    def close(self) -> None:
        """Let go of it."""


class PinnedFile:
    """A marked object that is no directory.

    Attributes:
        pin: keeps it.
        names: the directory entries it is known by, oldest first.
        outside: how many of its names are known to lie outside the tree.
    """

    __slots__ = ("names", "outside", "pin")

    def __init__(self, pin: Pin) -> None:
        self.pin = pin
        self.names: dict[tuple[Directory, bytes], None] = {}
        self.outside = 0

    @property
    def is_gone(self) -> bool:
        """Whether it has no name in the tree any more, as far as can be told."""
        return not self.names and self.pin.links <= self.outside


class Ended(NamedTuple):
    """A marked file that has left the tree, and the last path by which it was known there."""

    file: PinnedFile
    path: bytes | None


class Sighting(NamedTuple):
    """What an event has to do with marked files, and what else is known of its objects.

    Attributes:
        file: the one that it is of; of a rename, what was at the old path.
        other: of an exchange, what was at the new path.
        ended: those that have left the tree by it.
        other_handle: the handle of what was at the new path, marked or not, if somebody asks for handles.
    """

    file: PinnedFile | None = None
    other: PinnedFile | None = None
    ended: tuple[Ended, ...] = ()
    other_handle: str | None = None


NOTHING: Final = Sighting()


class PinnedFiles:
    """Every marked file.

    Attributes:
        on_moved: called with a directory that one of them has come to.
    """

    def __init__(self, tree: Tree, look: Callable[[bytes], InodeKey | None], limit: int) -> None:
        """Start without any; `look` tells what is at a path now, and at most `limit` are kept."""
        self.on_moved: Callable[[Directory], None] = lambda _: None
        self._tree = tree
        self._look = look
        self._limit = limit
        self._by_key: dict[InodeKey, PinnedFile] = {}
        self._in: dict[Directory, dict[bytes, PinnedFile]] = {}
        self._adrift: dict[PinnedFile, None] = {}  # without a known name, but not without any

    def __bool__(self) -> bool:
        return bool(self._by_key)

    def pin(self, directory: Directory, name: bytes, found: Pin) -> PinnedFile:
        """Keep the file that is at an entry now; `found` stays the caller's.

        Raises:
            LimitReached: too many are kept.
        """
        file = self._by_key.get(found.key)
        if file is None:
            if len(self._by_key) >= self._limit:
                raise LimitReached(f"{self._limit} files are marked, which is the limit; mark directories instead")
            file = self._by_key[found.key] = PinnedFile(found.copy())
        self._gain(file, directory, name)
        return file

    def files_in(self, directory: Directory) -> Iterable[PinnedFile]:
        """Return those that have a name in a directory."""
        return self._in.get(directory, {}).values()

    def forget(self, file: PinnedFile) -> None:
        """Let go of a file that has no mark any more."""
        for directory, name in list(file.names):
            self._lose(directory, name)
        self._adrift.pop(file, None)
        if self._by_key.get(file.pin.key) is file:
            del self._by_key[file.pin.key]
        file.pin.close()

    # --- following ---------------------------------------------------------------------------------------------------

    def sight(self, record: EventRecord) -> Sighting:
        """Return what an event has to do with marked files, and take note of what it does to their names."""
        if record.kind == RENAME:
            return self._sight_rename(record)
        if record.flags & IS_DIR or record.path is None:
            return NOTHING
        directory, name = self._entry(record.path)
        file = self._at(directory, name)
        if record.kind == CREATE:
            self._arrive(directory, name, record.path)
        elif record.kind == DELETE:
            if file is not None:
                self._lose(directory, name)
            return Sighting(file, ended=tuple(self._ended(file, record.path)))
        return Sighting(file) if file is not None else NOTHING

    def _sight_rename(self, record: EventRecord) -> Sighting:
        old, new = self._entry(record.old_path), self._entry(record.path)
        file = self._lose(*old) if not record.flags & IS_DIR else None
        if record.flags & EXCHANGE:
            other = self._lose(*new) if not record.flags & OTHER_IS_DIR else None
            self._gain(other, *old)
            self._gain(file, *new)
            return Sighting(file, other)
        replaced = self._lose(*new)
        ended: list[Ended] = []
        if file is not None:
            if record.path is None:
                file.outside += 1
            self._gain(file, *new)
            ended += self._ended(file, record.old_path)
        elif record.path is not None and not record.flags & IS_DIR:
            self._arrive(*new, record.path)
        ended += self._ended(replaced, record.path)
        return Sighting(file, ended=tuple(ended))

    def leave(self, directories: Iterable[Directory]) -> list[Ended]:
        """Take note that directories leave the tree with everything in them; return which files have left it so."""
        ended = []
        for directory in directories:
            for name in list(self._in.get(directory, ())):
                path = directory.prefix + name
                file = self._lose(directory, name)
                assert file is not None
                file.outside += 1
                if file.is_gone:
                    ended.append(self._end(file, path))
        return ended

    def look_again(self) -> list[Ended]:
        """Compare every known name with what is there, as events have been lost; return which files have left."""
        ended = []
        for file in list(self._by_key.values()):
            paths = [(directory, name, directory.prefix + name) for directory, name in file.names]
            for directory, name, path in paths:
                if self._look(path) != file.pin.key:
                    self._lose(directory, name)
            if file.is_gone:
                ended.append(self._end(file, paths[0][2] if paths else None))
        return ended

    def _arrive(self, directory: Directory | None, name: bytes, path: bytes) -> None:
        """Take note that something has come to a name: another link of a marked file, or one that was lost sight of."""
        key = self._look(path)
        file = self._by_key.get(key) if key is not None else None
        if key is not None and self._at(directory, name) is not file:
            self._lose(directory, name)
            self._gain(file, directory, name)

    def _ended(self, file: PinnedFile | None, path: bytes | None) -> Iterator[Ended]:
        """Yield what has left the tree, now that a name, of `file` or unknown, has been taken away."""
        if file is not None:
            if file.is_gone:
                yield self._end(file, path)
            return
        for adrift in list(itertools.islice(self._adrift, _LOOKS)):
            del self._adrift[adrift]
            if adrift.is_gone:
                yield self._end(adrift, None)
            else:
                self._adrift[adrift] = None  # behind the others

    def _end(self, file: PinnedFile, path: bytes | None) -> Ended:
        self._adrift.pop(file, None)
        del self._by_key[file.pin.key]
        return Ended(file, path)

    # --- names -------------------------------------------------------------------------------------------------------

    def _entry(self, path: bytes | None) -> tuple[Directory | None, bytes]:
        if path is None:
            return None, b""
        above, _, name = path.rpartition(b"/")
        return self._tree.find(above), name

    def _at(self, directory: Directory | None, name: bytes) -> PinnedFile | None:
        return self._in.get(directory, {}).get(name) if directory is not None else None

    def _gain(self, file: PinnedFile | None, directory: Directory | None, name: bytes) -> None:
        if file is not None and directory is not None:
            file.names[directory, name] = None
            self._in.setdefault(directory, {})[name] = file
            self._adrift.pop(file, None)
            self.on_moved(directory)

    def _lose(self, directory: Directory | None, name: bytes) -> PinnedFile | None:
        """Take a name away from the file that has it, if it is a marked one; return which."""
        file = self._at(directory, name)
        if file is not None and directory is not None:
            del file.names[directory, name]
            del self._in[directory][name]
            if not self._in[directory]:
                del self._in[directory]
            if not file.names:
                self._adrift[file] = None
        return file
