"""A mirror of a tree, kept with nothing but events and a look at the paths that they name. No directory is ever listed.

    replica = Replica("/mnt/data")
    async with fusenotify.watch("/mnt/data") as events:
        async for event in events:
            replica.apply(event)

The one thing to understand is that a look shows the present and an event tells of the past. So which names exist, and
which of them are directories, is taken from the events alone; what a file holds is taken from the look. A name that the
look does not find, or finds to be something else, is kept with nothing seen of it: it has moved on, and the event that
says where to has not been read yet. When a directory is renamed, everything known below it is looked at again under its
new name, since what was seen under the old one may have been its successor. And when the mount has been away,
everything is looked at again: what has not changed meanwhile is told by no event.
"""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from fusenotify import Event, Kind


@dataclass(frozen=True)
class Seen:
    """What a look at a path showed.

    Attributes:
        mode: type and permissions, as in `st_mode`.
        content: the bytes of a regular file, the target of a symbolic link; empty for everything else.
        mtime_ns: when that was changed, nanoseconds since 1970; 0 for directories, whose time changes with their
            entries: the events name those only.
    """

    mode: int
    content: bytes = b""
    mtime_ns: int = 0


@dataclass(eq=False)
class Node:
    """A name that the events have told of.

    Attributes:
        is_dir: whether the events say that it is a directory.
        seen: what the last look showed; None while the name is not there.
        children: what is in the directory.
    """

    is_dir: bool
    seen: Seen | None = None
    children: "dict[str, Node]" = field(default_factory=dict)


class Replica:
    """The mirror.

    Attributes:
        looks: how often a path was looked at.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        """Start empty. `root` is where paths of events are found: the mountpoint, or the backing tree itself."""
        self.looks = 0
        self._root = os.fspath(root)
        self._top = Node(is_dir=True)
        self._was_away = False  # whether looks may have found nothing for want of a mount

    # --- reading it ------------------------------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Seen]:
        """Return what is there: path to what was seen of it."""
        return {path: node.seen for path, node in _below(self._top, "") if node.seen is not None}

    def knows(self, path: str) -> bool:
        """Whether the events have told of a path; the root is always known."""
        return self._find(path) is not None

    # --- keeping it ------------------------------------------------------------------------------------------------

    def apply(self, event: Event) -> None:
        """Take note of an event. They have to be applied in the order in which they come."""
        path, old_path = event.path, event.old_path
        if self._was_away:
            self._was_away = False
            self._look_below(".")
        if event.kind is Kind.UNMOUNT:
            self._was_away = True
        elif event.kind is Kind.OVERFLOW:
            self._look_below(path or ".")  # what is missing is told by the recovered events that follow
        elif event.kind is Kind.DELETE:
            self._take(path)
        elif event.exchange and path is not None and old_path is not None:
            one, other = self._take(old_path), self._take(path)
            self._put(path, _typed(one, event))
            self._put(old_path, other)
        elif event.kind is Kind.RENAME:
            self._put(path, _typed(self._take(old_path), event))
        elif path is not None:  # created or changed, unless the whole tree has gone
            node = self._find(path)
            if node is None or event.kind is Kind.CREATE:
                node = _typed(node, event)
                self._put(path, node)
            else:
                self._look(path, node)

    def _find(self, path: str) -> Node | None:
        node: Node | None = self._top
        for name in _names(path):
            node = node.children.get(name) if node is not None else None
        return node

    def _take(self, path: str | None) -> Node | None:
        """Remove a name with everything below it and return it; None if it is unknown, or outside what we watch."""
        if path is None:
            return None
        parent, name = os.path.split(path)
        directory = self._find(parent)
        return directory.children.pop(name, None) if directory is not None else None

    def _put(self, path: str | None, node: Node | None) -> None:
        """Let a name stand for a node, and look at it and at everything below it."""
        if path is None or node is None:
            return
        parent, name = os.path.split(path)
        directory = self._top
        for step in _names(parent):  # above the directory we watch there are some that nobody tells of
            directory = directory.children.setdefault(step, Node(is_dir=True))
        directory.children[name] = node
        self._look_below(path)

    # --- looking ---------------------------------------------------------------------------------------------------

    def _look_below(self, path: str) -> None:
        node = self._find(path)
        if node is not None:
            self._look(path, node)
            for below, known in _below(node, "" if path == "." else path):
                self._look(below, known)

    def _look(self, path: str, node: Node) -> None:
        self.looks += 1
        full = os.path.join(self._root, path)
        try:
            seen = look(full)
        except OSError as error:
            seen = None  # not there, or not any more: an event will tell
            self._was_away |= error.errno in (errno.ENOTCONN, errno.ECONNABORTED)  # nobody serves the mount any more
        node.seen = seen if seen is not None and stat.S_ISDIR(seen.mode) == node.is_dir else None


def look(path: str | os.PathLike[str]) -> Seen:
    """Return what is at a path.

    Raises:
        OSError: there is nothing, or it cannot be read.
    """
    status = os.lstat(path)
    return Seen(
        mode=status.st_mode,
        content=_content(path, status.st_mode),
        mtime_ns=0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns,
    )


def _typed(node: Node | None, event: Event) -> Node:
    """Return a node, or a new one if an event shows it to be something else than we thought."""
    return node if node is not None and node.is_dir == event.is_dir else Node(event.is_dir)


def _names(path: str) -> list[str]:
    return [name for name in path.split("/") if name not in ("", ".")]


def _below(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """Yield everything below a node and its path, parents first."""
    for name, child in node.children.items():
        below = f"{path}/{name}" if path else name
        yield below, child
        yield from _below(child, below)


def _content(path: str | os.PathLike[str], mode: int) -> bytes:
    if stat.S_ISLNK(mode):
        return os.fsencode(os.readlink(path))
    if not stat.S_ISREG(mode):
        return b""
    # Not blocking, as by now it may be a FIFO.
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
        return file.read()
