"""What a group may have wrong since its queue was full: a bounded set of paths, and what has become doubtful of each.

It grows by paths until there are too many. Then directories stand for what is below them, in the end the top for all.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Final, NamedTuple

from fusenotify import events
from fusenotify.events import ALWAYS, IS_DIR, LOCAL, OTHER_IS_DIR, USES, EventRecord
from fusenotify.tree import ROOT_PATH

MOST_PATHS: Final = 1024
MOST_BYTES: Final = 128 << 10
_PATH_COST: Final = 200  # bytes of memory on top of the path itself
_NAMES: Final = events.CREATE | events.DELETE | events.RENAME


class Doubtful(NamedTuple):
    """What is doubtful of one path.

    Attributes:
        mark: the number of the mark that asked for it.
        name: whether it may stand for something new, or for nothing.
        replaced: whether it may have stood for something else before.
        below: whether everything below it is doubtful.
        remote: whether a change behind the mount was among the causes.
    """

    mark: int
    name: bool
    replaced: bool
    below: bool
    remote: bool

    def merged(self, other: "Doubtful") -> "Doubtful":
        """Return what is doubtful by either."""
        return Doubtful(self.mark, *(one or two for one, two in zip(self[1:], other[1:], strict=True)))


EVERYTHING: Final = Doubtful(0, name=False, replaced=True, below=True, remote=True)


class Doubt:
    """The set; its paths are those that the group is told."""

    def __init__(self, most_paths: int = MOST_PATHS, most_bytes: int = MOST_BYTES) -> None:
        self._most_paths = most_paths
        self._most_bytes = most_bytes
        self._paths: dict[bytes, Doubtful] = {}
        self._size = 0

    def __bool__(self) -> bool:
        return bool(self._paths)

    @property
    def is_total(self) -> bool:
        """Whether everything is in doubt."""
        top = self._paths.get(ROOT_PATH)
        return top is not None and top.below

    def give_up(self) -> None:
        """Have everything in doubt."""
        self._paths = {ROOT_PATH: EVERYTHING}
        self._size = _PATH_COST

    def take(self) -> list[tuple[bytes, Doubtful]]:
        """Return everything, parents first, and begin anew."""
        taken, self._paths, self._size = self._paths, {}, 0
        return sorted(taken.items())

    def note(self, mark: int, record: EventRecord) -> None:
        """Take in the paths of an event that is not told."""
        if record.kind & (ALWAYS | USES) or self.is_total:
            return
        is_name = bool(record.kind & _NAMES)
        is_dir = bool(record.flags & IS_DIR)
        is_remote = not record.flags & LOCAL
        is_replaced = is_name and record.kind != events.CREATE
        below = is_dir or bool(record.flags & OTHER_IS_DIR)
        for path in (record.path, record.old_path):
            if path is not None:
                self._add(path, Doubtful(mark, is_name, is_replaced, is_name and below, is_remote))

    def _add(self, path: bytes, what: Doubtful) -> None:
        place = path if path in self._paths else self._covering(path)
        if place is not None:
            known = self._paths[place]
            self._paths[place] = known.merged(what if place == path else known._replace(replaced=what.replaced))
            return
        self._paths[path] = what
        self._size += len(path) + _PATH_COST
        if len(self._paths) > self._most_paths or self._size > self._most_bytes:
            self._collapse()

    def _covering(self, path: bytes) -> bytes | None:
        """Return the directory that stands for a path below it, None if there is none."""
        while (cut := path.rfind(b"/")) >= 0:
            path = path[:cut]
            above = self._paths.get(path)
            if above is not None and above.below:
                return path
        return None

    def _collapse(self) -> None:
        """Let directories stand for what is below them, those with most in them first, until half is free."""
        while self._is_more_than_half_full():
            families: defaultdict[bytes, list[bytes]] = defaultdict(list)
            for path in self._paths:
                families[_parent(path)].append(path)
            for parent in sorted(families, key=lambda one: len(families[one]), reverse=True):
                if not self._is_more_than_half_full():
                    return
                if parent == ROOT_PATH:
                    self.give_up()
                    return
                self._merge(parent, families[parent])

    def _is_more_than_half_full(self) -> bool:
        return len(self._paths) > self._most_paths // 2 or self._size > self._most_bytes // 2

    def _merge(self, parent: bytes, paths: Iterable[bytes]) -> None:
        merged = self._paths.get(parent)
        for path in paths:
            what = self._paths.pop(path)
            self._size -= len(path) + _PATH_COST
            merged = merged.merged(what) if merged is not None else what
        assert merged is not None
        if parent not in self._paths:
            self._size += len(parent) + _PATH_COST
        self._paths[parent] = merged._replace(replaced=True, below=True)


def _parent(path: bytes) -> bytes:
    return path.rpartition(b"/")[0] or ROOT_PATH
