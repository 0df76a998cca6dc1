"""The inode table: what the kernel calls a node, and which object of the backing tree that is.

One owner, two maps. A pair of nodeid and generation never denotes two objects, and a nodeid is not given to another
object while the kernel still holds the old one: the kernel would fail every descriptor of the older one by itself.
"""

import errno
import os
from collections.abc import Callable
from typing import Final

from fusenotify.appending import Ends
from fusenotify.backing import Reference
from fusenotify.identity import Identity, InodeKey

ROOT_NODEID: Final = 1
# Objects whose inode number cannot serve as nodeid get numbers from here on; filesystems do not count that far.
_FIRST_SYNTHETIC: Final = 1 << 61
# And from here on nodes are not of the backing tree at all (see `queuefile`).
FIRST_VIRTUAL: Final = 1 << 62


class Node:
    """One object as the kernel knows it.

    Attributes:
        nodeid, generation: what the kernel calls it.
        identity: what it is, whatever its name.
        key: device and inode number.
        reference: how it is reached.
        is_dir: whether it is a directory.
        lookups: how many references the kernel holds (fuse: nlookup).
        directory, name: the entry it was last seen as; a memory, never used to reach it.
        ends: while it is open with O_APPEND, what the kernel takes for its end.
    """

    __slots__ = (
        "directory",
        "ends",
        "generation",
        "identity",
        "is_dir",
        "key",
        "lookups",
        "name",
        "nodeid",
        "reference",
    )

    def __init__(
        self, nodeid: int, generation: int, identity: Identity, key: InodeKey, reference: Reference, is_dir: bool
    ) -> None:
        self.nodeid = nodeid
        self.generation = generation
        self.identity = identity
        self.key = key
        self.reference = reference
        self.is_dir = is_dir
        self.lookups = 0
        self.directory = InodeKey(0, 0)
        self.name = b""
        self.ends: Ends | None = None


class InodeTable:
    """Every node that the kernel holds."""

    def __init__(self, device: int) -> None:
        """Make an empty table; inode numbers of `device`, the root's, serve as nodeids."""
        self._device = device
        self._by_nodeid: dict[int, Node] = {}
        self._by_identity: dict[Identity, Node] = {}
        self._synthetic = _FIRST_SYNTHETIC
        self._serial = 0

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def add_root(self, identity: Identity, key: InodeKey, reference: Reference) -> Node:
        """Add the root, which the kernel knows without a lookup and never forgets."""
        return self._add(ROOT_NODEID, identity, key, reference, True)

    def get(self, nodeid: int) -> Node:
        """Return a node.

        Raises:
            OSError: ESTALE, when there is no such node.
        """
        node = self._by_nodeid.get(nodeid)
        if node is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return node

    def known(self, identity: Identity) -> Node | None:
        """Return the node of an object, None while the kernel holds none."""
        return self._by_identity.get(identity)

    def remember(self, identity: Identity, key: InodeKey, keep: Callable[[], Reference], is_dir: bool) -> Node:
        """Return the node of an object that the kernel is about to be told of, counting one more lookup.

        `keep` makes the reference, and is called only for a new node.
        """
        node = self._by_identity.get(identity)
        if node is None:
            node = self._add(self._choose_nodeid(key), identity, key, keep(), is_dir)
        node.lookups += 1
        return node

    def forget(self, nodeid: int, lookups: int) -> Node | None:
        """Take back lookups that the kernel has forgotten; return the node if it is gone with them."""
        node = self._by_nodeid.get(nodeid)
        if node is None or nodeid == ROOT_NODEID:
            return None
        node.lookups -= lookups
        if node.lookups > 0:
            return None
        del self._by_nodeid[nodeid]
        del self._by_identity[node.identity]
        node.reference.close()
        return node

    def _add(self, nodeid: int, identity: Identity, key: InodeKey, reference: Reference, is_dir: bool) -> Node:
        self._serial += 1
        node = Node(nodeid, identity.generation(self._serial), identity, key, reference, is_dir)
        self._by_nodeid[nodeid] = node
        self._by_identity[identity] = node
        return node

    def _choose_nodeid(self, key: InodeKey) -> int:
        """Prefer the inode number, so that stat(2) shows the backing's own and it outlives a remount."""
        if key.device == self._device and 0 < key.number < _FIRST_SYNTHETIC and key.number not in self._by_nodeid:
            return key.number
        self._synthetic += 1
        return self._synthetic
