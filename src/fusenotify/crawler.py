"""Directories come into the tree and leave it: each is watched first and listed second, so nothing in it is missed.

A path is only as good as the moment: before a directory is taken for the one that the stream has told of, everything
read so far is searched for the name, or one above it, leaving. If it is about to, the directory is *missed*, and is
looked for again once that has been told.
"""

import errno
import logging
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from fusenotify.beneath import Beneath, Entry
from fusenotify.filesystems import Filesystems
from fusenotify.identity import InodeKey
from fusenotify.snapshot import Snapshot
from fusenotify.stream import Stream
from fusenotify.tree import Directory, Tree
from fusenotify.watchers.watcher import Adoption, Watcher

log = logging.getLogger(__name__)

# No program can use a longer path (PATH_MAX is a quarter of it), and everything below would be told with it.
_LONGEST_PATH = 16384
_SHOWN = 200  # bytes of a path in the log
# What opening says of a directory that is not there any more, or is something else by now.
_MOVED_ON = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})
_SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})  # it is there, and is looked at again like what is deaf
_NOWHERE = InodeKey(0, 0)  # a directory that is not looked at

# A directory that has come into the tree, and what is in it.
Arrival = tuple[Directory, list[Entry]]


class Reached(NamedTuple):
    """A directory that was found at a path.

    Attributes:
        fd: a readable descriptor, which is the receiver's to close; None where it cannot be opened.
        key: device and inode number.
    """

    fd: int | None
    key: InodeKey


class Crawler:
    """Keeps watches where the tree has directories, and nowhere else."""

    def __init__(
        self,
        backing: Beneath,
        watcher: Watcher,
        stream: Stream,
        tree: Tree,
        filesystems: Filesystems,
        snapshot: Snapshot,
        *,
        recursive: bool = True,
    ) -> None:
        """Start with nothing watched; unless `recursive`, nothing but the root ever is."""
        self._recursive = recursive
        self._snapshot = snapshot
        self._filesystems = filesystems
        self._backing = backing
        self._watcher = watcher
        self._stream = stream
        self._tree = tree
        self._missed: dict[Directory, set[bytes]] = {}

    def crawl(self) -> Iterator[Arrival]:
        """Watch the whole tree, of which nothing is known yet; yield as `arrive` does."""
        root = self._tree.root
        adoption = self._adopt(root.path)
        if adoption is None:
            return
        self._tree.set_wd(root, adoption.wd)
        yield root, adoption.entries
        for name, is_dir, _ in adoption.entries:
            if is_dir:
                yield from self.arrive(root, name)

    def arrive(self, parent: Directory, name: bytes, made: int | None = None) -> Iterator[Arrival]:
        """Watch a directory and everything below it; yield each directory and its entries, parents first.

        `made` is the watch of a directory that an operation of ours made: it is known, whatever it is called by now.
        """
        known = self._watcher.adoption_by(made) if made is not None else None
        stack = [(parent, name)] if self._recursive else []
        while stack:
            parent, name = stack.pop()
            adoption, known = known or self._adopt_as(parent, name), None
            if adoption is None or self._is_elsewhere(adoption, parent, name):
                self._missed.setdefault(parent, set()).add(name)
                continue
            self.has_left(parent, name)
            directory = self._tree.heard_by(adoption.wd)
            if directory is None:
                directory, gone = self._tree.attach(parent, name, adoption.wd, adoption.key)
                self.leave(gone)
            if adoption.overlaps:
                directory.announced = {entry for entry, _, _ in adoption.entries}
                directory.announced_until = adoption.until
            yield directory, adoption.entries
            stack.extend((directory, entry) for entry, is_dir, _ in adoption.entries if is_dir)

    def tidy_up(self) -> None:
        """Stop watching what was adopted early and has not come; everything that has happened has to have been told."""
        if not self._missed:
            self._watcher.drop_early(self._tree.by_wd.__contains__)

    def start_over(self) -> set[Directory]:
        """Forget what was waited for, as the stream is not told where it would have come; return where that was."""
        doubtful = set(self._missed)
        self._missed.clear()
        self._watcher.adoptions.clear()
        return doubtful

    @property
    def has_distant(self) -> bool:
        """Whether there are filesystems in the tree that somebody else answers for."""
        return bool(self._filesystems.distant)

    def is_distant(self, directory: Directory) -> bool:
        """Whether somebody else answers for the filesystem of a directory, or fails to."""
        return directory.key.device in self._filesystems.distant

    def arrive_missed(self) -> Iterator[Arrival]:
        """Look again for the directories that were missed, now that one has been moved or has left the tree."""
        for parent, name in [(one, name) for one, names in self._missed.items() for name in names]:
            if self.is_missed(parent, name):
                yield from self.arrive(parent, name)

    def is_missed(self, parent: Directory, name: bytes) -> bool:
        """Whether a name stands for a directory that could not be reached yet."""
        return name in self._missed.get(parent, ())

    def destination_of(self, directory: Directory) -> tuple[Directory, bytes] | None:
        """Return where a directory has moved to that was not watched when it got there, None if that is not known."""
        for parent, names in self._missed.items():
            for name in names:
                found = self._backing.stat_beneath(parent.prefix + name)
                is_it = found is not None and InodeKey(found.st_dev, found.st_ino) == directory.key
                self._watcher.drain()
                if is_it and self.is_settled(parent, name) and not parent.is_below(directory):
                    return parent, name
        return None

    def is_there(self, directory: Directory, name: bytes, is_dir: bool) -> bool:
        """Whether there is something of a name and type, and nothing that is still to be told changes that."""
        found = self._backing.stat_beneath(directory.prefix + name)
        self._watcher.drain()
        return found is not None and stat.S_ISDIR(found.st_mode) == is_dir and self.is_settled(directory, name)

    def is_in_place(self, directory: Directory) -> bool:
        """Whether a directory was, by now, where the tree has it, so that a look has found its entries."""
        self._watcher.drain()
        return directory.parent is None or self.is_settled(directory.parent, directory.name)

    def has_left(self, parent: Directory, name: bytes) -> bool:
        """Take note that a name does not stand for a missed directory any more; return whether it did."""
        missed = self._missed.get(parent)
        if missed is None or name not in missed:
            return False
        missed.remove(name)
        if not missed:
            del self._missed[parent]
        return True

    def leave(self, gone: list[Directory]) -> None:
        """Stop watching directories that are not in the tree any more: a watch follows its inode wherever it goes."""
        self._snapshot.forget(gone)
        for directory in gone:
            self._missed.pop(directory, None)
            self._watcher.adoptions.pop(directory.key, None)
            self._watcher.allow(directory.key)
            if directory.wd is not None:
                self._watcher.unwatch(directory.wd)

    def entries_of(self, directory: Directory) -> list[tuple[bytes, bool]] | None:
        """List a directory of the tree; None while its path is not for sure its own."""
        if directory.parent is not None and not self.is_settled(directory.parent, directory.name):
            return None
        try:
            key, entries = self._backing.list_beneath(directory.path)
        except OSError as error:
            return [] if error.errno == errno.EACCES else None
        return entries if key == directory.key else None

    def _adopt_as(self, parent: Directory, name: bytes) -> Adoption | None:
        """Take the directory at a path under watch; None if it is not there, or not for sure the one that is meant."""
        if not self.is_settled(parent, name):
            return None
        adoption = self._adopt(parent.prefix + name)
        if adoption is None or self.is_settled(parent, name):
            return adoption
        if adoption.wd is None or adoption.wd not in self._tree.by_wd:
            self._watcher.keep(adoption)
        return None

    def is_settled(self, parent: Directory, name: bytes) -> bool:
        """Whether nothing that has happened and is still to be told changes what a path stands for."""
        directory = parent
        self._stream.look_ahead()
        while directory.wd is None or not self._stream.is_leaving(directory.wd, name):
            if directory.parent is None:
                return True
            directory, name = directory.parent, directory.name
        return False

    def _adopt(self, path: bytes) -> Adoption | None:
        """Take a directory under watch, unless a handler did so before; None when it is not there, or cannot be."""
        reached = self.reach(path)
        if reached is None:
            return None
        if reached.fd is None:
            return Adoption(None, reached.key, [], overlaps=False, until=0)
        try:
            return self._watcher.adoptions.pop(reached.key, None) or self._watcher.adopt(reached.fd)
        finally:
            os.close(reached.fd)

    def reach(self, path: bytes, parent_fd: int | None = None) -> Reached | None:
        """Open a directory by its path, or by the last name of it in the open directory `parent_fd`.

        Returns None when it is not there.
        """
        try:
            if len(path) > _LONGEST_PATH:
                raise OSError(errno.ENAMETOOLONG, f"its path is longer than {_LONGEST_PATH} bytes")
            if self._filesystems.is_silent_at(path):
                return self._refused(_NOWHERE, path, "that filesystem is silent")
            name = path if parent_fd is None else path.rpartition(b"/")[2]
            fd = self._backing.open_beneath(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK, parent_fd)
        except OSError as error:
            return None if error.errno in _MOVED_ON else self._refuse(path, error)
        status = os.fstat(fd)
        return Reached(fd, InodeKey(status.st_dev, status.st_ino))

    def _refuse(self, path: bytes, error: OSError) -> Reached | None:
        look = self._backing.key_unopened if error.errno in _SCARCE else self._backing.key_beneath
        key = look(path)
        return self._refused(key, path, error.strerror) if key is not None else None

    def _refused(self, key: InodeKey, path: bytes, reason: str | None) -> Reached:
        if not self._watcher.has_heard_of(key):
            log.warning("changes below %s are not heard: %s", os.fsdecode(path[:_SHOWN]), reason)
        self._watcher.refuse(key)
        return Reached(None, key)

    def _is_elsewhere(self, adoption: Adoption, parent: Directory, name: bytes) -> bool:
        """Whether this directory is in the tree under another name, so that a rename is still to be told."""
        known = self._tree.heard_by(adoption.wd)
        return known is not None and (known.parent is not parent or known.name != name)
