"""Tells listeners what a comparison has found, so that what they know is the tree again.

A directory is where its watch has turned up. A file that has come is one that has gone elsewhere if it has the same
inode number, and was born before anything was missed: inode numbers are used again.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from fusenotify.arrivals import Arrivals
from fusenotify.beneath import Beneath
from fusenotify.crawler import Crawler
from fusenotify.events import CREATE, DELETE, EXCHANGE, IS_DIR, MODIFY, OTHER_IS_DIR, RECOVERED, EventRecord
from fusenotify.snapshot import UNKNOWN, Snapshot
from fusenotify.telling import Teller
from fusenotify.tree import ROOT_PATH, Directory, Tree
from fusenotify.watchers.watcher import Watcher

_CLOCK_TICK: Final = 20_000_000  # nanoseconds that filesystems' clocks may lag behind
_DEEPEST: Final = 16384  # no path is longer, in bytes

Place = tuple[Directory, bytes]


@dataclass(slots=True)
class Difference:
    """What has changed in one directory.

    Attributes:
        appeared: names that were not known, or stand for something else: (name, numbered object).
        vanished: names that have gone.
        modified: names of files that have changed.
        itself: whether the directory has changed.
        stamps: the times of change of the files, and of the directory itself under an empty name; where asked for.
        names: what is there, where the stream may tell the same again.
        until: the position in the stream at the end of the listing.
    """

    appeared: list[tuple[bytes, int]] = field(default_factory=list)
    vanished: list[bytes] = field(default_factory=list)
    modified: list[bytes] = field(default_factory=list)
    itself: bool = False
    stamps: dict[bytes, int] | None = None
    names: set[bytes] | None = None
    until: int = 0


@dataclass(slots=True)
class Findings:
    """What a look at some directories has found.

    Attributes:
        since: time in nanoseconds before which no change has been missed.
        stamps: the times of change that listeners have been told of, by directory and name; where asked for.
        places: where directories are that are new, or not where they were.
        new_by_wd: the new ones that are watched.
        differences: what has changed in each directory that was reached.
    """

    since: int
    stamps: dict[Directory, dict[bytes, int]]
    places: dict[Directory, Place] = field(default_factory=dict)
    new_by_wd: dict[int, Directory] = field(default_factory=dict)
    differences: dict[Directory, Difference] = field(default_factory=dict)

    def path_of(self, directory: Directory) -> bytes | None:
        """Return where a directory is by what has been found so far; None where that makes no sense."""
        names: list[bytes] = []
        while not directory.is_root:
            parent, name = self.places.get(directory) or (directory.parent, directory.name)
            if parent is None or len(names) > _DEEPEST:
                return None
            names.append(name)
            directory = parent
        return b"/".join(reversed(names)) or ROOT_PATH


class Repair:
    """Tells of the differences, and changes the tree of watched directories accordingly."""

    def __init__(
        self,
        backing: Beneath,
        watcher: Watcher,
        crawler: Crawler,
        tree: Tree,
        snapshot: Snapshot,
        teller: Teller,
        arrivals: Arrivals,
    ) -> None:
        self._backing = backing
        self._watcher = watcher
        self._crawler = crawler
        self._tree = tree
        self._snapshot = snapshot
        self._teller = teller
        self._arrivals = arrivals
        self._findings = Findings(0, {})

    def tell(self, findings: Findings) -> Iterator[list[EventRecord]]:
        """Tell what was found: directories first, from above; what has gone last, as it may have been moved."""
        self._findings = findings
        depths = {one: path.count(b"/") for one in findings.places if (path := findings.path_of(one)) is not None}
        for directory in sorted(depths, key=lambda one: depths[one]):
            yield from self._put_in_place(directory, *findings.places[directory])
        sources = self._sources()
        for directory, difference in findings.differences.items():
            if self._tree.contains(directory):
                yield from self._tell_difference(directory, difference, sources)
        for directory, difference in findings.differences.items():
            for name in difference.vanished:
                if self._tree.contains(directory) and name in self._snapshot.known(directory):
                    yield from self._tell_gone(directory, name)
        # What has come to a place of which all was forgotten could not be told there before it had gone elsewhere.
        yield from self._arrivals.arrive_missed()
        for wd in findings.new_by_wd:
            if wd not in self._tree.by_wd:
                self._watcher.unwatch(wd)
        yield from self._teller.flush()

    def _put_in_place(self, directory: Directory, parent: Directory, name: bytes) -> Iterator[list[EventRecord]]:
        if self._tree.contains(directory) and (directory.parent, directory.name) == (parent, name):
            return  # it was told with what it has changed places with
        has_arrived = not self._tree.contains(directory) and self._tree.heard_by(directory.wd) is not None
        if has_arrived or not self._tree.contains(parent):
            return  # it was found where it went then, with what has been told of already
        if self._has_changed_places(directory, parent, name):
            yield from self._exchange(directory, parent, name)
            return
        if name in self._snapshot.known(parent):
            yield from self._tell_gone(parent, name)
        if self._tree.contains(directory):
            assert directory.parent is not None
            self._teller.rename((directory.parent, directory.name), (parent, name), True, None, RECOVERED)
            yield from self._teller.flush()
            self._crawler.leave(self._tree.move(directory, parent, name))
            return
        self._teller.entry(CREATE, parent, name, True, None, RECOVERED, directory.key.number)
        yield from self._teller.flush()
        if directory.gone:  # with what was in its place, and so has everything that is known of what is in it
            yield from self._arrivals.arrive(parent, name, None)
        else:
            self._tree.add(directory, parent, name)

    def _has_changed_places(self, directory: Directory, parent: Directory, name: bytes) -> bool:
        """Whether what was where a directory is now is where that was."""
        other = parent.children.get(name)
        return (
            other is not None
            and self._tree.contains(directory)
            and self._findings.places.get(other) == (directory.parent, directory.name)
            and not self._tree.would_loop(directory, parent)
            and not self._tree.would_loop(other, directory.parent)
        )

    def _exchange(self, directory: Directory, parent: Directory, name: bytes) -> Iterator[list[EventRecord]]:
        assert directory.parent is not None
        old = directory.parent, directory.name
        self._teller.rename(old, (parent, name), True, None, EXCHANGE | OTHER_IS_DIR | RECOVERED)
        yield from self._teller.flush()
        self._tree.exchange(*old, parent, name)

    def _sources(self) -> dict[tuple[int, int], Place]:
        """Return where files were known to be that are not there any more, by device and `numbered` object."""
        return {
            (directory.key.device, number): (directory, name)
            for directory, difference in self._findings.differences.items()
            for name in [*difference.vanished, *(name for name, _ in difference.appeared)]
            if (number := self._snapshot.known(directory).get(name, UNKNOWN)) >> 1 != UNKNOWN and not number & 1
        }

    def _tell_difference(
        self, directory: Directory, difference: Difference, sources: dict[tuple[int, int], Place]
    ) -> Iterator[list[EventRecord]]:
        for name, number in difference.appeared:
            if self._snapshot.known(directory).get(name, 0) & 1:
                yield from self._tell_gone(directory, name)
            source = sources.pop((directory.key.device, number), None)
            if source is not None and self._has_moved(*source, number, directory.prefix + name):
                self._teller.rename(source, (directory, name), False, None, RECOVERED)
                self._teller.entry(MODIFY, directory, name, False, None, RECOVERED)
            else:
                self._teller.entry(CREATE, directory, name, False, None, RECOVERED, number >> 1)
            if self._teller.is_full:
                yield self._teller.gathered()
        for name in difference.modified:
            self._teller.entry(MODIFY, directory, name, False, None, RECOVERED)
            if self._teller.is_full:
                yield self._teller.gathered()
        if difference.itself:
            self._teller.tell(MODIFY, directory.path, None, IS_DIR | RECOVERED)
        if difference.stamps is not None:
            self._findings.stamps[directory] = difference.stamps
        if difference.names is not None:
            directory.announced, directory.announced_until = difference.names, difference.until

    def _has_moved(self, directory: Directory, name: bytes, number: int, path: bytes) -> bool:
        """Whether what was known as `name` is what is at `path` now, and has not just the same inode number."""
        if not self._tree.contains(directory) or self._snapshot.known(directory).get(name) != number:
            return False
        times = self._backing.times_beneath(path)
        return times is not None and 0 < times.born < self._findings.since - _CLOCK_TICK

    def _tell_gone(self, parent: Directory, name: bytes) -> Iterator[list[EventRecord]]:
        is_dir = bool(self._snapshot.known(parent)[name] & 1)
        self._teller.entry(DELETE, parent, name, is_dir, None, RECOVERED)
        child = parent.children.get(name)
        if child is not None:
            yield from self._teller.flush()
            self._crawler.leave(self._tree.detach(child))
