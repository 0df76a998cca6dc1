"""The inode table: what the kernel calls a node, and which object of the backing tree that is.

One owner, two maps. A pair of nodeid and generation never denotes two objects, and a nodeid is not given to another
object while the kernel still holds the old one: the kernel would fail every descriptor of the older one by itself. An
object keeps its nodeid for as long as it lives, over restarts too (see `store`).
"""

import hashlib
import itertools
import secrets
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from fusenotify.appending import Ends
from fusenotify.dentries import Dentries
from fusenotify.identity import Identity, InodeKey, InodeNumber
from fusenotify.references import NowhereReference, Reference, stale

ROOT_NODEID: Final = 1
# Objects whose inode number cannot serve as nodeid get a hash of their identity, from here on; filesystems do not count
# that far.
FIRST_SYNTHETIC: Final = 1 << 61
# And from here on nodes are not of the backing tree at all (see `queuefile`).
FIRST_VIRTUAL: Final = 1 << 62
# The last synthetic numbers are of ghosts: of what was gone before the kernel heard of it (see `replay`).
FIRST_GHOST: Final = FIRST_VIRTUAL - (1 << 48)
_MOST_DISPLACED: Final = 1 << 16


class Node:
    """One object as the kernel knows it.

    Attributes:
        nodeid, generation: what the kernel calls it.
        identity: what it is, whatever its name.
        key: device and inode number.
        reference: how it is reached.
        file_type: one of the S_IF* of stat(2).
        is_dir: whether it is a directory.
        lookups: how many references the kernel holds (fuse: nlookup).
        directory, name: the entry it was last seen as; a memory, never used to reach it.
        entries: all that the kernel was told of it as (see `Dentries`).
        ends: while it is open with O_APPEND, what the kernel takes for its end.
    """

    __slots__ = (
        "directory",
        "ends",
        "entries",
        "file_type",
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
        self, nodeid: int, generation: int, identity: Identity, key: InodeKey, reference: Reference, file_type: int
    ) -> None:
        self.nodeid = nodeid
        self.generation = generation
        self.identity = identity
        self.key = key
        self.reference = reference
        self.file_type = file_type
        self.is_dir = file_type == stat.S_IFDIR
        self.lookups = 0
        self.directory = InodeKey(0, 0)
        self.name = b""
        self.ends: Ends | None = None
        self.entries: tuple[tuple[InodeKey, bytes], ...] = ()

    @property
    def is_ghost(self) -> bool:
        """Whether it stands for something that was gone before the kernel heard of it."""
        return self.nodeid >= FIRST_GHOST


class InodeTable:
    """Every node that the kernel holds.

    Attributes:
        entries: as which names.
    """

    def __init__(self, device: int, displaced: Iterable[Identity] = ()) -> None:
        """Make an empty table; inode numbers of `device`, the root's, serve as nodeids.

        `displaced` are the objects of that device that had to take another number before the daemon was restarted.
        """
        self._device = device
        self._by_nodeid: dict[int, Node] = {}
        self._by_identity: dict[Identity, Node] = {}
        self._directories: dict[InodeKey, list[Node]] = {}
        self.entries: Dentries[Node] = Dentries()
        self._ghosts = itertools.count(FIRST_GHOST)
        # An ordered set of objects that keep a synthetic number though their inode number may be free by now.
        self._displaced = dict.fromkeys(displaced)
        self._serial = secrets.randbits(32)  # so that it does not begin again at a restart

    def __len__(self) -> int:
        return len(self._by_nodeid)

    def add_root(self, identity: Identity, key: InodeKey, reference: Reference) -> Node:
        """Add the root, which the kernel knows without a lookup and never forgets."""
        return self._add(ROOT_NODEID, identity, key, reference, stat.S_IFDIR)

    def add_ghost(self, file_type: int) -> Node:
        """Add what stands for an object that is gone: it is reached by nothing, and its number is never used again."""
        nodeid = next(self._ghosts)
        number = InodeNumber(0, nodeid, 0)  # on no device
        return self._add(nodeid, number, InodeKey(0, nodeid), NowhereReference(), file_type)

    def get(self, nodeid: int) -> Node:
        """Return a node.

        Raises:
            OSError: ESTALE, when there is no such node.
        """
        node = self._by_nodeid.get(nodeid)
        if node is None:
            raise stale()
        return node

    def find(self, nodeid: int) -> Node | None:
        """Return a node, None while the kernel holds none of that number."""
        return self._by_nodeid.get(nodeid)

    def known(self, identity: Identity) -> Node | None:
        """Return the node of an object, None while the kernel holds none."""
        return self._by_identity.get(identity)

    def directories(self, key: InodeKey) -> Sequence[Node]:
        """Return the directories that have an inode number, or had it and are gone, in the order of their coming."""
        return self._directories.get(key, ())

    def remember(self, identity: Identity, key: InodeKey, keep: Callable[[], Reference], file_type: int) -> Node:
        """Return the node of an object that the kernel is about to be told of, counting one more lookup.

        `keep` makes the reference, and is called only for a new node.
        """
        node = self._by_identity.get(identity)
        if node is None:
            node = self._add(self._choose_nodeid(identity, key), identity, key, keep(), file_type)
        node.lookups += 1
        return node

    def restore(
        self,
        nodeid: int,
        generation: int,
        identity: Identity,
        key: InodeKey,
        keep: Callable[[], Reference],
        file_type: int,
    ) -> Node:
        """Return the node that an object was earlier, counting one more lookup.

        Raises:
            OSError: ESTALE, when one of the two has come to belong to something else.
        """
        node = self._by_nodeid.get(nodeid)
        if node is None:
            if identity in self._by_identity:
                raise stale()
            node = self._add(nodeid, identity, key, keep(), file_type)
            node.generation = generation
        elif node.identity != identity:
            raise stale()
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
        self.entries.drop(node)
        if node.is_dir:
            self._directories[node.key].remove(node)
            if not self._directories[node.key]:
                del self._directories[node.key]
        node.reference.close()
        return node

    def _add(self, nodeid: int, identity: Identity, key: InodeKey, reference: Reference, file_type: int) -> Node:
        self._serial += 1
        node = Node(nodeid, identity.generation(self._serial), identity, key, reference, file_type)
        self._by_nodeid[nodeid] = node
        if node.is_dir:
            self._directories.setdefault(key, []).append(node)
        self._by_identity[identity] = node
        return node

    def _choose_nodeid(self, identity: Identity, key: InodeKey) -> int:
        """Prefer the inode number, so that stat(2) shows the backing's own and it outlives a remount."""
        if key.device == self._device and 0 < key.number < FIRST_SYNTHETIC and identity not in self._displaced:
            if key.number not in self._by_nodeid:
                return key.number
            self._displaced[identity] = None
            if len(self._displaced) > _MOST_DISPLACED:
                del self._displaced[next(iter(self._displaced))]
        nodeid = synthetic_nodeid(identity)
        while nodeid in self._by_nodeid or nodeid >= FIRST_GHOST:  # of 2**61
            nodeid = FIRST_SYNTHETIC | (nodeid + 1 + FIRST_VIRTUAL - FIRST_GHOST) & FIRST_SYNTHETIC - 1
        return nodeid


def synthetic_nodeid(identity: Identity) -> int:
    """Return the nodeid of an object whose inode number cannot serve as one."""
    digest = hashlib.blake2b(identity.packed(), digest_size=8).digest()
    return FIRST_SYNTHETIC | int.from_bytes(digest, "little") & FIRST_SYNTHETIC - 1
