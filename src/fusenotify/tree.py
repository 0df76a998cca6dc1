"""The watched directories as the stream of changes has them so far: watch descriptor to path and back.

The tree lags behind the filesystem by what is still unread, on purpose: a path told with an event is the path at the
event's place in the order of changes.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from fusenotify.identity import InodeKey

ROOT_PATH: Final = b"."


class Directory:
    """One watched directory.

    Attributes:
        parent: None for the root and for what has left the tree.
        gone: whether it has left the tree.
        name: its name in `parent`.
        wd: watch descriptor; None where it could not be watched.
        key: device and inode number.
        children: the directories in it, by name.
        announced: names told by the listing whose own events may still be in the stream (see `hearing`).
        announced_until: the position in the stream from which on nothing is told twice.
    """

    __slots__ = ("_prefix", "announced", "announced_until", "children", "gone", "key", "name", "parent", "wd")

    def __init__(self, parent: "Directory | None", name: bytes, wd: int | None, key: InodeKey) -> None:
        self.parent = parent
        self.name = name
        self.wd = wd
        self.key = key
        self.gone = False
        self.children: dict[bytes, Directory] = {}
        self.announced: set[bytes] | None = None
        self.announced_until = 0
        self._prefix: bytes | None = None

    @property
    def is_root(self) -> bool:
        """Whether it is the root of the tree."""
        return self.parent is None and not self.gone

    @property
    def prefix(self) -> bytes:
        """What the paths of its entries begin with: empty for the root, else its path and a slash."""
        if self._prefix is None:
            unknown = [self]
            while (parent := unknown[-1].parent) is not None and parent._prefix is None:
                unknown.append(parent)
            for directory in reversed(unknown):
                above = directory.parent
                directory._prefix = b"" if above is None else (above._prefix or b"") + directory.name + b"/"
        assert self._prefix is not None
        return self._prefix

    @property
    def path(self) -> bytes:
        """Path below the root, `.` for the root itself."""
        return self.prefix[:-1] or ROOT_PATH

    def known_names(self, position: int) -> set[bytes] | None:
        """Return the names listeners know where the listing may have told what the stream tells again from `position`.

        None where nothing is told twice.
        """
        if self.announced is not None and position >= self.announced_until:
            self.announced = None
        return self.announced

    def below(self) -> "Iterator[Directory]":
        """Yield this directory and every one below it."""
        stack = [self]
        while stack:
            directory = stack.pop()
            yield directory
            stack.extend(directory.children.values())

    def is_below(self, other: "Directory") -> bool:
        """Whether this is another directory or lies somewhere in it."""
        directory: Directory | None = self
        while directory is not None and directory is not other:
            directory = directory.parent
        return directory is other

    def forget_prefix(self) -> None:
        """Have the paths worked out anew, after a move."""
        for directory in self.below():
            directory._prefix = None


class Tree:
    """The root, and the maps that find a directory by watch descriptor and by inode.

    Attributes:
        on_changing: called before a directory moves or leaves.
        on_leaving: called with directories that are about to leave the tree, each of them still in its place.
        on_placed: called with directories that have come to where they are.
    """

    def __init__(self, root_key: InodeKey) -> None:
        self.on_changing: Callable[[], None] = lambda: None
        self.on_leaving: Callable[[list[Directory]], None] = lambda _: None
        self.on_placed: Callable[[Iterable[Directory]], None] = lambda _: None
        self.root = Directory(None, b"", None, root_key)
        self.by_wd: dict[int, Directory] = {}
        self.by_key: dict[InodeKey, Directory] = {root_key: self.root}

    def __len__(self) -> int:
        return len(self.by_key)

    def heard_by(self, wd: int | None) -> Directory | None:
        """Return the directory that a watch is set on, None if it is none of the tree."""
        return self.by_wd.get(wd) if wd is not None else None

    def attach(
        self, parent: Directory, name: bytes, wd: int | None, key: InodeKey
    ) -> tuple[Directory, list[Directory]]:
        """Add a directory, unless it is there already; also return what was under that name and has left the tree."""
        known = parent.children.get(name)
        if known is not None and known.key == key and known.wd == wd:
            return known, []
        gone = self.detach(parent.children[name]) if name in parent.children else []
        directory = Directory(parent, name, wd, key)
        self.add(directory, parent, name)
        return directory, gone

    def set_wd(self, directory: Directory, wd: int | None) -> None:
        """Say by which watch descriptor a directory is heard."""
        if directory.wd is not None and self.by_wd.get(directory.wd) is directory:
            del self.by_wd[directory.wd]
        directory.wd = wd
        if wd is not None:
            self.by_wd[wd] = directory

    def detach(self, directory: Directory) -> list[Directory]:
        """Take a directory and all below it out of the tree and return them."""
        self.on_changing()
        gone = list(directory.below())
        self.on_leaving(gone)
        if directory.parent is not None:
            directory.parent.children.pop(directory.name, None)
        for one in gone:
            one.gone = True
            if one.wd is not None and self.by_wd.get(one.wd) is one:
                del self.by_wd[one.wd]
            if self.by_key.get(one.key) is one:
                del self.by_key[one.key]
        directory.parent = None
        return gone

    def move(self, directory: Directory, new_parent: Directory, new_name: bytes) -> list[Directory]:
        """Rename a directory; return what was overwritten and has left the tree."""
        self.on_changing()
        target = new_parent.children.get(new_name)
        gone = self.detach(target) if target is not None and target is not directory else []
        assert directory.parent is not None
        del directory.parent.children[directory.name]
        self._place(directory, new_parent, new_name)
        return gone

    def would_loop(self, directory: Directory | None, parent: Directory | None) -> bool:
        """Whether moving a directory into `parent` would put it below itself, which no filesystem does."""
        above = parent if directory is not None else None
        while above is not None and above is not directory:
            above = above.parent
        return above is not None

    def exchange(self, parent: Directory, name: bytes, other_parent: Directory, other_name: bytes) -> None:
        """Swap what the two names stand for; either may be no directory."""
        self.on_changing()
        one = parent.children.pop(name, None)
        other = other_parent.children.pop(other_name, None)
        if one is not None:
            self._place(one, other_parent, other_name)
        if other is not None:
            self._place(other, parent, name)

    def _place(self, directory: Directory, parent: Directory, name: bytes) -> None:
        directory.parent = parent
        directory.name = name
        parent.children[name] = directory
        directory.forget_prefix()
        self.on_placed(directory.below())

    def add(self, directory: Directory, parent: Directory, name: bytes) -> None:
        """Put a directory that is not in the tree under a name that is free."""
        self._place(directory, parent, name)
        self.by_key[directory.key] = directory
        self.set_wd(directory, directory.wd)

    def contains(self, directory: Directory) -> bool:
        """Whether a directory is still in the tree."""
        return self.by_key.get(directory.key) is directory

    def find(self, path: bytes, base: Directory | None = None) -> Directory | None:
        """Return the directory at a path below `base` (the root unless given), None where there is none."""
        directory: Directory | None = base or self.root
        for name in path.split(b"/"):
            if directory is None:
                return None
            if name not in (b"", b"."):
                directory = directory.children.get(name)
        return directory

    def way_to(self, path: bytes) -> tuple[list[Directory], Directory | None]:
        """Return the directories from the root to the one at a path, as far as they are known, and that one itself."""
        way = [self.root]
        for name in path.split(b"/") if path else ():
            below = way[-1].children.get(name)
            if below is None:
                return way, None
            way.append(below)
        return way, way[-1]


def topmost(directories: Collection[Directory], count: int) -> Iterator[bytes]:
    """Yield the paths of at most so many directories, leaving out what lies below another one."""
    all_of_them = set(directories)
    tops = (one for one in directories if one.parent not in all_of_them)
    yield from (directory.path for directory in itertools.islice(tops, count))
