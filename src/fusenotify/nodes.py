"""The nodes: how the objects that the kernel knows are reached, found by name and by handle, and forgotten."""

import contextlib
import errno
import functools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

import pyfuse3

from fusenotify.attributes import entry_of
from fusenotify.backing import Backing, Found
from fusenotify.inodes import FIRST_SYNTHETIC, ROOT_NODEID, InodeTable, Node
from fusenotify.recorder import Recorder
from fusenotify.references import stale
from fusenotify.store import NodeRow, Store
from fusenotify.whereabouts import Place, Whereabouts

_DIRECTORY_DESCRIPTORS: Final = 32  # O_PATH descriptors of directories kept between operations


class Held:
    """A descriptor for the length of a block, unless it is kept longer by others."""

    __slots__ = ("_fd", "_is_kept")

    def __init__(self, fd: int, *, is_kept: bool) -> None:
        self._fd = fd
        self._is_kept = is_kept

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *exc_info: object) -> None:
        if not self._is_kept:
            os.close(self._fd)


class Nodes:
    """The inode table at work on the backing tree.

    Attributes:
        backing: the backing tree.
        table: what the kernel calls its objects.
        on_abroad: called when another filesystem than the root's is touched.
    """

    def __init__(
        self, backing: Backing, table: InodeTable, recorder: Recorder, store: Store, whereabouts: Whereabouts
    ) -> None:
        self.backing = backing
        self.table = table
        self.on_abroad: Callable[[], None] = lambda: None
        self._recorder = recorder
        self._store = store
        self._whereabouts = whereabouts
        self._directory_fds: OrderedDict[int, int] = OrderedDict()
        with contextlib.closing(backing.find_root()) as root:
            table.add_root(root.identity, root.key, backing.root).directory = root.key  # it has no other, and no name

    def close(self) -> None:
        """Close the descriptors kept between operations."""
        while self._directory_fds:
            self._drop_directory_fd(next(iter(self._directory_fds)))

    # --- reaching objects --------------------------------------------------------------------------------------------

    def directory_fd(self, node: Node) -> int:
        """Return an O_PATH descriptor of a directory, good until the next but one call."""
        self._tell_abroad(node)
        fd = self._directory_fds.get(node.nodeid)
        if fd is not None:
            self._directory_fds.move_to_end(node.nodeid)
            return fd
        fd = node.reference.acquire(os.O_PATH | os.O_DIRECTORY)
        self._directory_fds[node.nodeid] = fd
        if len(self._directory_fds) > _DIRECTORY_DESCRIPTORS:
            self._drop_directory_fd(next(iter(self._directory_fds)))
        return fd

    def _drop_directory_fd(self, nodeid: int) -> None:
        fd = self._directory_fds.pop(nodeid, None)
        if fd is not None:
            os.close(fd)

    def _tell_abroad(self, node: Node) -> None:
        if node.key.device != self.backing.root_key.device:
            self.on_abroad()

    def let_go(self) -> None:
        """Close the descriptors kept on other filesystems than the root's, so that they can be unmounted."""
        for nodeid in list(self._directory_fds):
            if self.table.get(nodeid).key.device != self.backing.root_key.device:
                self._drop_directory_fd(nodeid)
        self.backing.let_go()

    def descriptor(self, node: Node) -> Held:
        """Hold an O_PATH descriptor of any object."""
        if node.is_dir:
            return Held(self.directory_fd(node), is_kept=True)
        self._tell_abroad(node)
        return Held(node.reference.acquire(os.O_PATH | os.O_NOFOLLOW), is_kept=False)

    def remember(self, parent: Node, name: bytes, found: Found) -> Node:
        """Return the node of what was found, counting a lookup; `found` is used up."""
        file_type = stat.S_IFMT(found.stat.st_mode)
        if file_type == stat.S_IFDIR:
            self._recorder.watch_at_once(parent, found)
            if found.key.device != parent.key.device:
                self.backing.entered(found, parent.reference, name)
        keep = functools.partial(found.keep, parent.reference, name)
        node = self.table.remember(found.identity, found.key, keep, file_type)
        self.table.entries.put(node, parent.key, name)
        self._note(node, parent, name)
        self._tell_abroad(node)
        return node

    def _note(self, node: Node, parent: Node, name: bytes) -> None:
        """Take note of the entry that an object was seen as."""
        if node.name != name or node.directory != parent.key:
            node.directory, node.name = parent.key, name
            node.reference.moved(parent.reference, name)
            self._store.put(NodeRow(node.nodeid, node.generation, node.identity.packed(), parent.nodeid, name))

    def entry_at(self, parent: Node, name: bytes, made: int = 0) -> pyfuse3.EntryAttributes:
        """Look a name up and return what the kernel is told of it.

        `made` is what was made there before, as `check_made` has it, if anything was.
        """
        found = self.backing.find(self.directory_fd(parent), name)
        try:
            if made:
                check_made(found, made)
            return entry_of(self.remember(parent, name, found), found.stat)
        finally:
            found.close()

    # --- names and handles -------------------------------------------------------------------------------------------

    def lookup(self, parent_nodeid: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Look up one name; of `.` see `recall`."""
        parent = self.table.get(parent_nodeid)
        if name == b"..":  # asked for when a handle of the mount is opened
            if parent_nodeid == ROOT_NODEID:
                return self.root_entry()
            return self._entry_above(parent)
        return self.entry_at(parent, name)

    def _entry_above(self, node: Node) -> pyfuse3.EntryAttributes:
        """Look up the directory that a directory lies in; under which name that is known is not learnt by that."""
        fd = self.directory_fd(node)
        if not self.backing.contains(fd):
            raise stale()  # it has left the tree
        with contextlib.closing(self.backing.find(fd, b"..")) as found:
            if found.key == self.backing.root_key:
                return self.root_entry()
            keep = functools.partial(found.keep, node.reference, b"..")
            return entry_of(self.table.remember(found.identity, found.key, keep, stat.S_IFDIR), found.stat)

    def root_entry(self) -> pyfuse3.EntryAttributes:
        """Look up the root itself."""
        root = self.table.get(ROOT_NODEID)
        root.lookups += 1
        return entry_of(root, os.fstat(self.backing.root_fd))

    def recall(self, nodeid: int) -> Callable[[], pyfuse3.EntryAttributes]:
        """Find the object of a handle of the mount that is opened, made by this daemon or an earlier one.

        Slow, for a thread; what it returns is to be called on the thread of the handlers, and makes the answer.

        Raises:
            OSError: ESTALE, when there is no such object in the tree now.
        """
        row = self._store.row(nodeid)
        if row is None:
            raise stale()
        try:
            number = nodeid if nodeid < FIRST_SYNTHETIC else None
            place = self._whereabouts.place(row.identity, number, [nodeid])
        except OSError as error:
            if error.errno == errno.ESTALE and self._whereabouts.is_gone(row):
                self._store.forget(row)
            raise
        return functools.partial(self._recalled, row, place)

    def _recalled(self, row: NodeRow, place: Place) -> pyfuse3.EntryAttributes:
        found = place.found
        with contextlib.closing(found):
            keep = functools.partial(found.keep, place.above, place.name)
            file_type = stat.S_IFMT(found.stat.st_mode)
            node = self.table.restore(row.nodeid, row.generation, found.identity, found.key, keep, file_type)
            node.directory, node.name = place.directory, place.name
            self._tell_abroad(node)
            return entry_of(node, found.stat)

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Take back lookups."""
        for nodeid, lookups in forgotten:
            fd = self._directory_fds.get(nodeid)
            node = self.table.forget(nodeid, lookups)
            if node is not None and fd is not None:
                del self._directory_fds[nodeid]
                os.close(fd)

    def note_name(self, parent: Node, name: bytes) -> None:
        """Take note of what a name stands for now, if the kernel knows it."""
        with contextlib.suppress(OSError):  # renamed on by somebody else
            found = self.backing.find(self.directory_fd(parent), name)
            node = self.table.known(found.identity)
            if node is not None:
                self.table.entries.put(node, parent.key, name)
                self._note(node, parent, name)
            found.close()

    def note_removal(self, parent: Node, name: bytes) -> None:
        """Take note that the kernel has had a name removed."""
        for node in self.table.entries.at(parent.key, name)[-1:]:
            self.table.entries.take(node, parent.key, name)


def check_made(found: Found, file_type: int) -> None:
    """Make sure that what is under a name is of the type (S_IF* of stat(2)) that was just made there.

    Raises:
        OSError: ENOENT, since something else has taken its place; the kernel would call that an I/O error.
    """
    if stat.S_IFMT(found.stat.st_mode) != file_type:
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
