"""A tree that is heard and journalled in the test's own process, without a mount."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from fusenotify.config import JournalRules
from fusenotify.export import Export
from fusenotify.journal import Change


class Journalled:
    """A daemon's part behind the mount.

    Attributes:
        export: what hears and journals the tree.
    """

    def __init__(self, export: Export) -> None:
        self.export = export

    async def cursor(self) -> str:
        """Return the position behind everything that has happened."""
        await self.export.hearing.caught_up()
        return await self.export.journal.cursor()

    async def since(self, cursor: str, below: bytes = b".") -> tuple[list[Change], bool]:
        """Return what changed since a cursor, in the order in which it is told, and whether that is all there is."""
        await self.export.hearing.caught_up()
        changes: list[Change] = []
        async with await self.export.journal.since(cursor, below) as answer:
            while page := await answer.page(7):
                changes += page
            return changes, answer.fresh


@contextlib.asynccontextmanager
async def journalled(source: Path, state_dir: Path, *, is_exclusive: bool = False) -> AsyncIterator[Journalled]:
    """Hear and journal a tree; the end is a clean one."""
    for path in (source, state_dir):
        path.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        export = Export(source, state_dir, stack, rules=JournalRules(exclusive=is_exclusive))
        await export.crawl()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.hearing.run)
            yield Journalled(export)
            await export.say_goodbye()
            nursery.cancel_scope.cancel()


def named(changes: list[Change]) -> set[tuple[bytes, bool]]:
    """Return (path, exists) of changes."""
    return {(change.path, change.exists) for change in changes}
