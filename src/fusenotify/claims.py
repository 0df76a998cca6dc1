"""Whose change an event tells of: an operation made through the mount may claim it as its echo."""

from collections.abc import Container, Iterator, Sequence
from typing import Final

from fusenotify import events, joiner
from fusenotify.beneath import Beneath
from fusenotify.echoes import Echoes, Expectation, LocalOperation, Name
from fusenotify.identity import InodeKey
from fusenotify.joiner import ITSELF, Author, Item, Move, author_of, is_of_others
from fusenotify.tree import Directory, Tree

KINDS: Final = {
    joiner.IN_CREATE: events.CREATE,
    joiner.IN_DELETE: events.DELETE,
    joiner.IN_MODIFY: events.MODIFY,
    joiner.IN_ATTRIB: events.ATTRIB,
    joiner.IN_CLOSE_WRITE: events.CLOSE_WRITE,
    joiner.IN_OPEN: events.OPEN,
    joiner.IN_ACCESS: events.ACCESS,
    joiner.IN_CLOSE_NOWRITE: events.CLOSE_NOWRITE,
}


_NOWHERE: Final = Name(InodeKey(0, 0), None, b"")
# What this process did and no operation has taken note of: names are told of as ever, and the rest is nobody's doing.
_OF_OURS: Final = LocalOperation(
    0, 0, None, None,
    [
        Expectation(one, _NOWHERE, silent=True)
        for one in (
            events.MODIFY, events.ATTRIB, events.CLOSE_WRITE, events.OPEN, events.ACCESS, events.CLOSE_NOWRITE
        )
    ],
)  # fmt: skip


class Claims:
    """Matches the stream with the local operations that are noted."""

    def __init__(self, backing: Beneath, tree: Tree, echoes: Echoes) -> None:
        self._backing = backing
        self._tree = tree
        self._echoes = echoes

    def __bool__(self) -> bool:
        """Whether any operation may still claim something."""
        return bool(self._echoes)

    def note(self, operation: LocalOperation) -> None:
        """Note an operation that begins now."""
        self._echoes.add(operation)

    def claim(
        self, position: int, kind: int, directory: Directory, name: bytes, by: Author | None
    ) -> LocalOperation | None:
        """Return the local operation that an event is the echo of, None for a remote change.

        `by` is who made the change, None where the watcher does not tell.
        """
        if is_of_others(by):
            return None
        operation = self._echoes.at(position)
        if operation is not None:
            for expectation in operation.expectations:
                is_due = expectation.kind == kind and not expectation.complete
                if is_due and self._is_of(expectation, directory, name):
                    expectation.heard += 1
                    return operation
        return _OF_OURS if by is not None else None

    def claim_move(self, move: Move) -> tuple[LocalOperation | None, Expectation | None]:
        """Return the local operation that a rename is the echo of and what it expected; None for a remote one."""
        if is_of_others(move.by):
            return None, None
        operation = self._echoes.at(move.position)
        if operation is not None:
            for expectation in operation.expectations:
                if not expectation.complete and expectation.matches_move(move):
                    expectation.heard += 1
                    return operation, expectation
        return _OF_OURS if move.by is not None else None, None

    def unheard(self, position: int) -> Iterator[tuple[LocalOperation, Expectation]]:
        """Yield what operations raised no event for, now that the stream has passed the place where it would be."""
        return self._echoes.passed(position)

    def concern(self, directories: Container[Directory | None]) -> bool:
        """Whether an operation that has not been told yet was made in some directories."""
        places = (place for one in self._echoes for place in one.places)
        return any(self._tree.by_key.get(place.directory) in directories for place in places)

    def excuse(self, position: int) -> None:
        """Take note that echoes before a position were lost; of operations that end behind it a comparison tells."""
        for operation in self._echoes:
            if operation.start < position < operation.end:
                for expectation in operation.expectations:
                    expectation.optional |= expectation.at.wd is not None

    def unlisted(self, name: Name) -> Directory | None:
        """Return the directory of a name in which an operation was made, None where its listing tells of that.

        What was not watched then and is now, or will be when it comes into the tree, is listed with the outcome.
        """
        directory = self._tree.by_key.get(name.directory)
        return directory if directory is None or name.wd is not None or directory.wd is None else None

    def until_known(self, items: Sequence[Item]) -> int:
        """Return how many items can be told before an operation that is under way has succeeded, or failed.

        What looks like its echo may be somebody else's change, which is why it will fail.
        """
        operation = self._echoes.under_way()
        if operation is not None:
            for index, item in enumerate(items):
                if item[0] >= operation.start and self._looks_like_echo(operation, item):
                    return index
        return len(items)

    def _looks_like_echo(self, operation: LocalOperation, item: Item) -> bool:
        if is_of_others(author_of(item)):
            return False
        if isinstance(item, Move):
            return any(one.matches_move(item) for one in operation.expectations)
        directory, name = entry_of(self._tree.by_wd.get(item[1]), item[4])
        kind = KINDS.get(item[2] & ~joiner.IN_ISDIR)
        return directory is not None and any(
            one.kind == kind and self._is_of(one, directory, name) for one in operation.expectations
        )

    def _is_of(self, expectation: Expectation, directory: Directory, name: bytes) -> bool:
        """Whether an entry is the one that an operation is expected to change."""
        at, inode = expectation.at, expectation.inode
        if at.wd == directory.wd and at.name == name:
            return True
        found = self._backing.stat_beneath(directory.prefix + name) if inode is not None else None
        return found is not None and InodeKey(found.st_dev, found.st_ino) == inode


def entry_of(directory: Directory | None, name: bytes) -> tuple[Directory | None, bytes]:
    """Return the directory and the name of what an event is about: a directory may have told of itself."""
    if directory is not None and name == ITSELF:
        return directory.parent, directory.name
    return directory, name
