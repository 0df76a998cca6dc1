"""Finds the object of a handle in the tree as it is now, and nowhere else.

What is in question is never reached by the handle alone: a path is guessed, from what was remembered or from what the
kernel knows of the opened object, and what is found at that path, beneath the root, has to be the very object.
"""

import contextlib
import errno
import itertools
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Final

from fusenotify._linux import proc_path
from fusenotify.backing import Backing, Found
from fusenotify.identity import Identity, InodeKey
from fusenotify.inodes import ROOT_NODEID
from fusenotify.references import Reference, stale
from fusenotify.store import NodeRow, Store

_DEEPEST: Final = 4096  # directories above a remembered node
_MOST_MISSED: Final = 1 << 16
_MISSED_FOR: Final = 60.0  # seconds


class Place:
    """Where an object is: what was found there, its path below the root, the directory it lies in and its name."""

    def __init__(self, found: Found, path: bytes, directory: InodeKey, above: Reference) -> None:
        self.found = found
        self.path = path
        self.directory = directory
        self.above = above

    @property
    def name(self) -> bytes:
        """The last part of the path."""
        return self.path.rpartition(b"/")[2]


class Whereabouts:
    """Finds objects by what they are. Slow: every method is for a thread."""

    def __init__(self, backing: Backing, store: Store) -> None:
        self._backing = backing
        self._store = store
        self._searching = threading.Lock()  # one search at a time: it reads every directory
        self._missed: dict[Identity, float] = {}  # objects that were searched for in vain, and until when that holds

    def place(
        self, identity: Identity, number: int | None, nodeids: Iterable[int], guesses: Iterable[bytes] = ()
    ) -> Place:
        """Return where an object is; it is the caller's to close what was found.

        Args:
            identity: the object.
            number: its inode number, if that is known.
            nodeids: what the kernel may have called it.
            guesses: paths where it may be.

        Raises:
            OSError: ESTALE, when it is not in the tree now.
        """
        with contextlib.ExitStack() as stack:
            fd = self._backing.open_identity(identity)
            if fd is not None:
                stack.callback(os.close, fd)
                number = os.fstat(fd).st_ino
            for path in itertools.chain(guesses, self._known_paths(identity, fd, nodeids)):
                found = self._found_at(path, identity)
                if found is not None:
                    return self._place(path, found)
            if number is not None and not (fd is not None and stat.S_ISDIR(os.fstat(fd).st_mode)):
                return self._search(identity, number)
        raise stale()

    def is_gone(self, row: NodeRow) -> bool:
        """Whether what a row tells of exists no longer, or is not to be found by it."""
        try:
            fd = self._backing.open_identity(row.identity)
            if fd is not None:
                os.close(fd)
                return False
            path = self._remembered_path(row)
            found = self._found_at(path, row.identity) if path is not None else None
            if found is not None:
                found.close()
            return found is None
        except OSError as error:
            return error.errno == errno.ESTALE
        except ValueError:
            return True

    def _place(self, path: bytes, found: Found) -> Place:
        try:
            above, directory = self._backing.way_to(path)
        except BaseException:
            found.close()
            raise
        return Place(found, path, directory, above)

    def _found_at(self, path: bytes, identity: Identity) -> Found | None:
        try:
            found = self._backing.find_beneath(path)
        except OSError:
            return None
        if found.identity == identity:
            return found
        found.close()
        return None

    # --- guessing ----------------------------------------------------------------------------------------------------

    def _known_paths(self, identity: Identity, fd: int | None, nodeids: Iterable[int]) -> Iterator[bytes]:
        if fd is not None:
            yield from self._as_the_kernel_says(fd)
        for nodeid in dict.fromkeys(nodeids):
            row = self._store.row(nodeid)
            if row is not None and row.packed == identity.packed():
                path = self._remembered_path(row)
                if path is not None:
                    yield path
                yield from self._in_its_directory(row)

    def _as_the_kernel_says(self, fd: int) -> Iterator[bytes]:
        """Yield the path of an open object below the root, where the kernel knows one: of directories it does."""
        try:
            root = os.readlink(os.fsencode(proc_path(self._backing.root_fd))).rstrip(b"/") + b"/"
            path = os.readlink(os.fsencode(proc_path(fd)))
        except OSError:
            return  # ENAMETOOLONG: it says no paths of more than a page
        if path.startswith(root) and path != root:
            yield path[len(root) :]

    def _remembered_path(self, row: NodeRow) -> bytes | None:
        """Return the path that the remembered names make, None if they do not lead to the root."""
        names = [row.name]
        above: NodeRow | None = row
        while above is not None and above.parent != ROOT_NODEID and len(names) < _DEEPEST:
            above = self._store.row(above.parent)
            if above is not None:
                names.append(above.name)
        return b"/".join(reversed(names)) if above is not None and above.parent == ROOT_NODEID else None

    def _in_its_directory(self, row: NodeRow) -> Iterator[bytes]:
        """Yield where the object is if its directory was moved."""
        above = self._store.row(row.parent)
        if above is None:
            return
        with contextlib.suppress(OSError):
            fd = self._backing.open_identity(above.identity)
            if fd is not None:
                try:
                    for path in self._as_the_kernel_says(fd):
                        yield path + b"/" + row.name
                finally:
                    os.close(fd)

    def _search(self, identity: Identity, number: int) -> Place:
        """Go through the whole tree; once in vain is enough for a while, unless somebody comes by the object."""
        with self._searching:
            if self._missed.get(identity, 0) < time.monotonic():
                for path in self._backing.paths_of(number):
                    found = self._found_at(path, identity)
                    if found is not None:
                        return self._place(path, found)
                self._missed[identity] = time.monotonic() + _MISSED_FOR
                if len(self._missed) > _MOST_MISSED:
                    del self._missed[next(iter(self._missed))]
        raise stale()
