"""Compares the tree with what listeners know of it: where each directory is by now, and what differs in it.

Looking comes before telling (`repair`), because what has gone from one directory may turn up in another one: only when
all have been looked at is a rename known for what it is. A directory is the same as before if its watch is.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Container, Generator, Iterable, Iterator
from typing import Final

from fusenotify.beneath import Beneath, Entry, entries_of
from fusenotify.crawler import Crawler
from fusenotify.events import EventRecord
from fusenotify.identity import InodeKey
from fusenotify.repair import Difference, Findings
from fusenotify.snapshot import UNKNOWN, Snapshot, numbered
from fusenotify.tree import ROOT_PATH, Directory, Tree
from fusenotify.watchers.watcher import Watcher

# A change has its time before it raises its event, and whoever makes it may lose the processor in between.
_IN_FLIGHT: Final = 1_000_000_000  # nanoseconds
_TURN: Final = 256  # files looked at before other work may be done


class Comparison:
    """Looks at directories for what listeners do not know yet.

    Attributes:
        findings: what the last look has found.
        compared: the directories that the last look has reached.
        unreached: those that it has not, new ones among them: by then they had moved again, or had gone.
    """

    def __init__(
        self,
        backing: Beneath,
        watcher: Watcher,
        crawler: Crawler,
        tree: Tree,
        snapshot: Snapshot,
    ) -> None:
        self.findings = Findings(0, {})
        self.compared: set[Directory] = set()
        self.unreached: set[Directory] = set()
        self._backing = backing
        self._watcher = watcher
        self._crawler = crawler
        self._tree = tree
        self._snapshot = snapshot
        self._unread: list[Directory] = []  # new ones
        self._keeps_names = False
        self._is_stamping = False
        self._stamps: dict[Directory, dict[bytes, int]] = {}  # of what is compared again and again

    def see(self, has_untold: Callable[[], bool]) -> Iterator[None]:
        """Find out which inodes the names stand for that were told of, as long as nothing waits to be told.

        Else what a look shows may be something else than what was told of.
        """
        unseen = self._snapshot.unseen
        while unseen and not has_untold():
            directory, name = unseen[0]
            is_wanted = self._snapshot.known(directory).get(name) == numbered(UNKNOWN, is_dir=False)
            if is_wanted and self._tree.contains(directory) and not self._crawler.is_distant(directory):
                found = self._backing.stat_beneath(directory.prefix + name)
                if has_untold():
                    return
                if found is not None and not stat.S_ISDIR(found.st_mode):
                    self._snapshot.put(directory, name, numbered(found.st_ino, is_dir=False))
            unseen.popleft()
            yield

    def keep_stamps(self, directories: Iterable[Directory]) -> None:
        """Forget the times of change that were seen, but for those in some directories."""
        self._stamps = {one: self._stamps[one] for one in directories if one in self._stamps}

    # --- looking -----------------------------------------------------------------------------------------------------

    def look(
        self,
        work: Iterable[Directory],
        since: int,
        *,
        relist: bool,
        keep_names: bool,
        doubtful: Container[Directory] = (),
        stamp: bool = False,
    ) -> Iterator[list[EventRecord]]:
        """Find the differences of some directories, and what is in those that are new.

        Yields nothing but chances to do other work. The tree has to stay as it is until they have been told.

        Args:
            work: directories of the tree.
            since: time in nanoseconds before which no change has been missed.
            relist: whether to list also those directories that have not changed since.
            doubtful: directories to list in any case.
            keep_names: whether the stream will be told from the beginning of this on, and so may tell the same again.
            stamp: whether this is done again and again, as nothing is heard. Then a change is known by its time being
                another one than before, as the clock may be somebody else's.
        """
        self.findings = Findings(since, self._stamps)
        self._unread.clear()
        self.unreached.clear()
        self._keeps_names, self._is_stamping = keep_names, stamp
        late: list[Directory] = []
        for directory in sorted(work, key=_depth):
            if not (yield from self._look_at(directory, relist=relist or directory in doubtful)):
                late.append(directory)  # it has moved, or one above it has: by the end it is known where to
            yield []
        for directory in late:
            if not (yield from self._look_at(directory, relist=relist or directory in doubtful)):
                self.unreached.add(directory)
        self.compared = set(self.findings.differences)

    def _look_at(self, directory: Directory, *, relist: bool) -> Generator[list[EventRecord], None, bool]:
        """Compare a directory and all that is new in it; return whether it was where it is thought to be."""
        if not (yield from self._compare(directory, relist=relist)):
            return False
        while self._unread:
            new = self._unread.pop()
            if not (yield from self._compare(new, relist=True)):
                self.unreached.add(new)
        return True

    def _compare(self, directory: Directory, *, relist: bool) -> Generator[list[EventRecord], None, bool]:
        path = self.findings.path_of(directory)
        reached = self._crawler.reach(path) if path is not None else None
        if reached is None or reached.fd is None:
            return reached is not None and reached.key == directory.key
        try:
            there = self._what_is_there(directory, reached.fd, reached.key)
            if there is not None:
                yield from self._compare_open(there, reached.fd, relist=relist or there is not directory)
            return there is directory
        finally:
            os.close(reached.fd)

    def _what_is_there(self, directory: Directory, fd: int, key: InodeKey) -> Directory | None:
        """Have what is at the place of a directory watched, and return what it is; None if it is known elsewhere.

        It is another one if the inode number has been used again, or something has been mounted there or unmounted.
        """
        wd = self._watcher.watch(fd, key)
        if key == directory.key and (wd is None or directory.wd in (None, wd)):
            if wd != directory.wd and self._tree.contains(directory):
                self._tree.set_wd(directory, wd)
            return directory
        parent, name = self.findings.places.get(directory) or (directory.parent, directory.name)
        is_known = wd is not None and (wd in self.findings.new_by_wd or wd in self._tree.by_wd)
        if parent is None or parent not in self.findings.differences or is_known:
            return None
        self.findings.places.pop(directory, None)
        return self._new(parent, name, wd, key)

    def _compare_open(self, directory: Directory, fd: int, *, relist: bool) -> Iterator[list[EventRecord]]:
        known = self._snapshot.known(directory)
        stamps: dict[bytes, int] | None = {} if self._is_stamping else None
        has_changed = self._has_changed(directory, b"", os.fstat(fd), stamps)
        difference = Difference(itself=has_changed and self._tree.contains(directory), stamps=stamps)
        if relist or has_changed:
            entries: list[Entry] = []
            with contextlib.suppress(FileNotFoundError), os.scandir(fd) as listing:
                entries = entries_of(listing)
            difference.names = {name for name, _, _ in entries}
            difference.vanished = [name for name in known if name not in difference.names]
            self._compare_names(directory, fd, known, entries, difference)
        else:
            difference.names = set(known)
        difference.until = self._watcher.drain()
        appeared = [name for name, _ in difference.appeared]
        same = difference.names.difference(appeared)
        files = [name for name, number in known.items() if not number & 1 and name in same]
        for number, name in enumerate(files if stamps is None else files + appeared, 1):
            with contextlib.suppress(OSError):  # gone: the stream tells
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if self._has_changed(directory, name, status, stamps) and name in same:
                    difference.modified.append(name)
            if number % _TURN == 0:
                yield []
        if not self._keeps_names:
            difference.names = None
        self.findings.differences[directory] = difference

    def _compare_names(
        self, directory: Directory, fd: int, known: dict[bytes, int], entries: list[Entry], difference: Difference
    ) -> None:
        for name, is_dir, inode in entries:
            was, number = known.get(name), numbered(inode, is_dir=is_dir)
            if is_dir:
                child = directory.children.get(name)
                if was is None or child is None or child.key.number != inode:
                    self._meet(directory, fd, name)
            elif was is None or (was != number and was != numbered(UNKNOWN, is_dir=False)):
                difference.appeared.append((name, number))

    def _meet(self, parent: Directory, parent_fd: int, name: bytes) -> None:
        """Find out which directory it is that was not known to be here.

        It is opened in the very directory that was listed, whose path may be another one's by now.
        """
        path = self.findings.path_of(parent)
        if path is None:
            self.unreached.add(parent)
            return
        reached = self._crawler.reach(_joined(path, name), parent_fd)
        if reached is None or (reached.fd is None and name in parent.children):
            return  # gone again, which the stream tells; or out of reach for now
        wd = None
        if reached.fd is not None:
            wd = self._watcher.watch(reached.fd, reached.key)
            os.close(reached.fd)
        known = self._tree.heard_by(wd) if wd is not None else self._tree.by_key.get(reached.key)
        if known is None or (known.wd is not None and wd is None):
            if wd is None or wd not in self.findings.new_by_wd:
                self._unread.append(self._new(parent, name, wd, reached.key))
        elif (known.parent, known.name) != (parent, name) and not self._is_elsewhere(known):
            self.findings.places[known] = parent, name

    def _new(self, parent: Directory, name: bytes, wd: int | None, key: InodeKey) -> Directory:
        directory = Directory(parent, name, wd, key)
        self.findings.places[directory] = parent, name
        if wd is not None:
            self.findings.new_by_wd[wd] = directory
        return directory

    def _is_elsewhere(self, directory: Directory) -> bool:
        """Whether a directory is where it was as well: a bind mount shows it twice, and it has one watch."""
        if directory in self.findings.places or directory in self.findings.differences:
            return True
        path = self.findings.path_of(directory)
        reached = self._crawler.reach(path) if path is not None else None
        if reached is None or reached.fd is None:
            return False
        try:
            return reached.key == directory.key and self._watcher.watch(reached.fd, reached.key) == directory.wd
        finally:
            os.close(reached.fd)

    def _has_changed(
        self, directory: Directory, name: bytes, status: os.stat_result, stamps: dict[bytes, int] | None
    ) -> bool:
        """Whether something may have changed since; no program can set the time of that (ctime)."""
        if stamps is not None:
            stamps[name] = status.st_ctime_ns
            before = self._stamps.get(directory, {}).get(name)
            if before is not None:
                return before != status.st_ctime_ns
        return status.st_ctime_ns >= self.findings.since - _IN_FLIGHT


def _depth(directory: Directory) -> int:
    return directory.prefix.count(b"/")


def _joined(path: bytes, name: bytes) -> bytes:
    return name if path == ROOT_PATH else path + b"/" + name
