"""As which names the kernel knows its nodes: what it has been told, not what the backing tree looks like by now.

The two differ by the changes that the kernel has not heard of, and those are what `replay` is about. A name may thus
stand for several nodes: the later ones came when an earlier one had gone from it behind the kernel's back.
"""

from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from fusenotify.identity import InodeKey

Entry = tuple[InodeKey, bytes]  # a directory, and a name in it


class Named(Protocol):
    """What has names; it keeps the list of them itself."""

    entries: tuple[Entry, ...]
    is_dir: bool


N = TypeVar("N", bound=Named)


class Dentries(Generic[N]):
    """The names of nodes, and the nodes of names."""

    def __init__(self) -> None:
        self._nodes: dict[Entry, list[N]] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._nodes)

    def __contains__(self, entry: Entry) -> bool:
        """Whether a name stands for anything."""
        return entry in self._nodes

    def at(self, directory: InodeKey, name: bytes) -> Sequence[N]:
        """Return what a name stands for and, before that, stood for until it went unheard."""
        return self._nodes.get((directory, name), ())

    def put(self, node: N, directory: InodeKey, name: bytes) -> None:
        """Take note that the kernel is told that a name stands for a node; a directory has no other then."""
        entry = (directory, name)
        if node.is_dir and node.entries and node.entries != (entry,):
            self.drop(node)
        nodes = self._nodes.setdefault(entry, [])
        if nodes and nodes[-1] is node:
            return
        if entry in node.entries:
            nodes.remove(node)
        else:
            node.entries += (entry,)
        nodes.append(node)

    def take(self, node: N, directory: InodeKey, name: bytes) -> None:
        """Take note that the kernel has heard that a name does not stand for a node any more."""
        entry = (directory, name)
        if entry in node.entries:
            node.entries = tuple(one for one in node.entries if one != entry)
            self._remove(node, entry)

    def drop(self, node: N) -> None:
        """Forget a node."""
        for entry in node.entries:
            self._remove(node, entry)
        node.entries = ()

    def _remove(self, node: N, entry: Entry) -> None:
        nodes = self._nodes[entry]
        nodes.remove(node)
        if not nodes:
            del self._nodes[entry]
