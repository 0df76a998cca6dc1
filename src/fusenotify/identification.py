"""Which objects events are of: their handles, for the groups that ask.

An event names an entry at its place in the stream, and a look shows the present. So what is seen is taken for the
event's object only if nothing that has happened since takes anything from that name; else it was gone before it was
known.
"""

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fusenotify.backing import Backing, Found
from fusenotify.events import ALWAYS, CREATE, DELETE, EXCHANGE, RENAME, EventRecord
from fusenotify.handles import Sealer
from fusenotify.identity import InodeKey
from fusenotify.marks import Place
from fusenotify.naming import Identified
from fusenotify.stream import Stream
from fusenotify.tree import Directory, Tree

_MOST_KNOWN: Final = 1 << 16

Entry = tuple[Directory, bytes]


class Identifier:
    """Finds the handles, and remembers those it has told."""

    def __init__(
        self, backing: Backing, stream: Stream, tree: Tree, sealer: Sealer, position: Callable[[], int]
    ) -> None:
        """Wire it up; `position` is how far the stream has been told of, up to the end of the events given here."""
        self._backing = backing
        self._stream = stream
        self._tree = tree
        self._sealer = sealer
        self._position = position
        # By entry; of a directory in the tree, by itself and no name.
        self._known: OrderedDict[Entry, str] = OrderedDict()

    def identify(self, records: Sequence[EventRecord]) -> list[Identified]:
        """Return the handles of the objects of events and of their directories, the tree being as it is for them."""
        left = _last_left(records)
        seen = self._look_at(records, left)
        return [self._identify(number, record, left, seen) for number, record in enumerate(records)]

    def handle_of(self, place: Place) -> str | None:
        """Return the handle of an object that has marks, None if it is not known."""
        if isinstance(place, Directory):
            return self._known.get((place, b""))
        found = place.pin
        return self._seal(found) if isinstance(found, Found) else None

    def _identify(self, number: int, record: EventRecord, left: dict[bytes, int], seen: dict[Entry, str]) -> Identified:
        if record.kind & ALWAYS:
            return Identified()
        old, new = self._entry(record.old_path), self._entry(record.path)
        shown_new = self._shown(record.path, number, left, seen)
        parents = self._parent(new), self._parent(old)
        if record.kind == RENAME:
            handle, other = self._forget(old) or shown_new, self._forget(new)
            if record.flags & EXCHANGE:
                other = other or self._shown(record.old_path, number, left, seen)
                self._note_at(new if new is not None and not new[1] else old, other)
            # A directory of the tree stays what it is, and moves there.
            self._note_at(old if old is not None and not old[1] else new, handle)
            return Identified(handle, *parents, other)
        known = self._forget(new)
        if record.kind == DELETE:
            return Identified(known, *parents)
        handle = shown_new if record.kind == CREATE else known or shown_new
        self._note_at(new, handle)
        return Identified(handle, *parents)

    def _shown(self, path: bytes | None, number: int, left: dict[bytes, int], seen: dict[Entry, str]) -> str | None:
        """Return the handle of what a look has shown at a path, None if that came there after an event."""
        entry = self._entry(path)
        return seen.get(entry) if path is not None and entry is not None and left.get(path, -1) <= number else None

    # --- looking -----------------------------------------------------------------------------------------------------

    def _look_at(self, records: Sequence[EventRecord], left: dict[bytes, int]) -> dict[Entry, str]:
        """Return the handles of what is at the entries of events, where that has been there since they were told."""
        seen: dict[Entry, str] = {}
        watched: dict[Entry, tuple[Directory, bytes]] = {}
        with _Opened(self._backing) as opened:
            for number, record in enumerate(records):
                for path in (record.path, record.old_path):
                    entry = self._entry(path)
                    if entry is None or path is None:
                        continue
                    above, name = _place_of(entry)
                    self._know(above, opened)
                    is_new = record.kind in (CREATE, RENAME)
                    if entry in seen or left.get(path, -1) > number or (not is_new and self._get(entry) is not None):
                        continue
                    handle = self._look(above, name, opened)
                    if handle is not None:
                        seen[entry], watched[entry] = handle, (above, name)
        self._stream.look_ahead()
        told = self._position()
        for entry, (above, name) in watched.items():
            if above.wd is not None and self._stream.leaves(above.wd, name, told):
                del seen[entry]
        return seen

    def _know(self, directory: Directory, opened: "_Opened") -> None:
        if (directory, b"") not in self._known:
            self._note_at((directory, b""), self._look(directory, b"", opened))

    def _look(self, directory: Directory, name: bytes, opened: "_Opened") -> str | None:
        fd = opened.descriptor(directory)
        if fd is not None:
            with contextlib.suppress(OSError):
                found = self._backing.find(fd, name) if name else self._backing.find_open(fd)
                with contextlib.closing(found):
                    return self._seal(found)
        return None

    def _seal(self, found: Found) -> str:
        return self._sealer.seal(found.identity, found.key.number)

    # --- what is known -----------------------------------------------------------------------------------------------

    def _entry(self, path: bytes | None) -> Entry | None:
        if path is None:
            return None
        directory = self._tree.find(path)
        if directory is not None:
            return directory, b""
        above, _, name = path.rpartition(b"/")
        directory = self._tree.find(above)
        return (directory, name) if directory is not None else None

    def _parent(self, entry: Entry | None) -> str | None:
        if entry is None or (entry[0].is_root and not entry[1]):
            return None
        return self._known.get((_place_of(entry)[0], b""))

    def _get(self, entry: Entry) -> str | None:
        return self._known.get(entry) or self._known.get(_place_of(entry))

    def _note_at(self, entry: Entry | None, handle: str | None) -> None:
        if entry is not None and handle is not None:
            self._known[entry] = handle
            self._known.move_to_end(entry)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)

    def _forget(self, entry: Entry | None) -> str | None:
        """Take out what is known of an entry; of a directory also what was when it was not in the tree yet."""
        if entry is None:
            return None
        before = self._known.pop(_place_of(entry), None) if not entry[0].is_root or entry[1] else None
        return self._known.pop(entry, None) or before


class _Opened:
    """One descriptor of a directory of the tree at a time: events come in runs."""

    def __init__(self, backing: Backing) -> None:
        self._backing = backing
        self._directory: Directory | None = None
        self._fd: int | None = None

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def descriptor(self, directory: Directory) -> int | None:
        """Return a descriptor of a directory, None if it is not where the tree has it."""
        if directory is not self._directory:
            self._close()
            self._directory = directory
            with contextlib.suppress(OSError):
                self._fd = self._backing.open_beneath(directory.path, os.O_PATH | os.O_DIRECTORY)
                status = os.fstat(self._fd)
                if InodeKey(status.st_dev, status.st_ino) != directory.key:
                    self._close()
                    self._directory = directory
        return self._fd

    def _close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd = self._directory = None


def _place_of(entry: Entry) -> tuple[Directory, bytes]:
    """Return the directory that an entry lies in, and its name there; of the root, itself."""
    directory, name = entry
    return (directory, name) if name or directory.parent is None else (directory.parent, directory.name)


def _last_left(records: Sequence[EventRecord]) -> dict[bytes, int]:
    """Return for each path the number of the last event that takes something from it."""
    left: dict[bytes, int] = {}
    for number, record in enumerate(records):
        for path in _taken_from(record):
            left[path] = number
    return left


def _taken_from(record: EventRecord) -> Iterator[bytes]:
    if record.kind in (DELETE, RENAME) and record.path is not None:
        yield record.path
    if record.kind == RENAME and record.old_path is not None:
        yield record.old_path
