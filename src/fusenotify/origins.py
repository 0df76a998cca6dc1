"""Where things were at a position: the name that went and the name that came of one object, found in the rows.

A rename that was told left both with the position of its event. What a comparison found has that of the comparison, so
it takes a proof that the two are one object: it is no younger than what was last seen under the old name.
"""

import sqlite3
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from fusenotify.rows import FOUND_GONE, IS_DIRECTORY

# In the order in which they came to their names: one of them may have taken what another one left.
_CAME: Final = """
SELECT id, parent, name, kind, inode, born, gone FROM entry
WHERE changed > ? AND born > ? AND kind >= 2 AND inode != 0 ORDER BY born
"""
_WENT: Final = """
SELECT id, parent, name, ctime, links, born FROM entry INDEXED BY entry_inode
WHERE inode = ? AND changed = ? AND kind = ?
"""


class Moved(NamedTuple):
    """Something that has another name than at a position.

    Attributes:
        id: the number of its row.
        origin: that of the row of its old name.
        path, old_path: the names, in directories that have the paths that they had.
        is_dir: whether it is a directory.
        replaces: whether a directory was at `path` that is not told of as moved.
    """

    id: int
    origin: int
    path: bytes
    old_path: bytes
    is_dir: bool
    replaces: bool


class _Origin(NamedTuple):
    id: int
    parent: int
    name: bytes


class Origins:
    """Finds out what has moved since a position."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        after: int,
        prefix_of: Callable[[int], bytes | None],
        born_at: Callable[[bytes], int],
    ) -> None:
        """Prepare to ask.

        Args:
            connection: the rows.
            after: the position.
            prefix_of: returns what paths in a directory begin with, by its number, None if it has moved.
            born_at: returns when what is at a path was born, in nanoseconds since 1970, 0 where that is unknown.
        """
        self._connection = connection
        self._after = after
        self._prefix_of = prefix_of
        self._born_at = born_at

    def moved(self) -> Iterator[Moved]:
        """Yield what has moved, in an order in which it can be told. Slow: for a thread."""
        left: set[bytes] = set()
        came = self._connection.execute(_CAME, (self._after, self._after))
        for number, parent, name, kind, inode, born, gone in came:
            prefix = self._prefix_of(parent)
            if prefix is None:
                continue
            origin = self._origin(prefix + name, inode, born, kind & IS_DIRECTORY)
            old_prefix = None if origin is None else self._prefix_of(origin.parent)
            if origin is None or old_prefix is None:
                continue
            path, old_path = prefix + name, old_prefix + origin.name
            replaces = gone > self._after and path not in left
            left.add(old_path)
            yield Moved(number, origin.id, path, old_path, bool(kind & IS_DIRECTORY), replaces)

    def _origin(self, path: bytes, inode: int, born: int, kind: int) -> _Origin | None:
        """Return where an object was at the position, which has come to its path since."""
        while (went := self._connection.execute(_WENT, (inode, born, kind)).fetchone()) is not None:
            number, parent, name, ctime, links, earlier = went
            if links == FOUND_GONE and not 0 < self._born_at(path) <= ctime:
                break
            if earlier <= self._after:
                return _Origin(number, parent, name)
            if earlier >= born:
                break  # nobody knew that it was there
            born = earlier
        return None
