"""Tells of what is in directories that come into the tree."""

from collections.abc import Iterator
from typing import Final

from fusenotify.crawler import Arrival, Crawler
from fusenotify.echoes import LocalOperation
from fusenotify.events import CREATE, RECOVERED, EventRecord
from fusenotify.snapshot import Snapshot, numbered
from fusenotify.telling import Teller
from fusenotify.tree import Directory

_TURN: Final = 16  # directories looked at before other work may be done


class Arrivals:
    """Has directories watched and tells, as recovered, of what was in them before."""

    def __init__(self, crawler: Crawler, teller: Teller, snapshot: Snapshot) -> None:
        self._crawler = crawler
        self._teller = teller
        self._snapshot = snapshot

    def crawl(self) -> Iterator[list[EventRecord]]:
        """Have the whole tree watched, of which nothing is told; yields nothing but chances to do other work."""
        for number, (directory, entries) in enumerate(self._crawler.crawl()):
            self._snapshot.fill(directory, {name: numbered(inode, is_dir=is_dir) for name, is_dir, inode in entries})
            if number % _TURN == 0:
                yield []

    def arrive(self, parent: Directory, name: bytes, cause: LocalOperation | None) -> Iterator[list[EventRecord]]:
        """Have a directory watched that has come into the tree, and tell of what is in it already."""
        made = next((one.watch for one in cause.expectations if one.watch is not None), None) if cause else None
        yield from self._tell(self._crawler.arrive(parent, name, made), cause)

    def arrive_missed(self) -> Iterator[list[EventRecord]]:
        """Look again for the directories that were missed, now that one has been moved or has left the tree."""
        yield from self._tell(self._crawler.arrive_missed(), None)

    def introduce(self, directory: Directory, name: bytes, is_dir: bool) -> Iterator[list[EventRecord]]:
        """Have listeners take a name for what it stands for at this place in the stream, which is not the present."""
        self._teller.entry(CREATE, directory, name, is_dir, None, RECOVERED)
        if directory.announced is not None:
            directory.announced.add(name)
        if is_dir and name not in directory.children:
            yield from self.arrive(directory, name, None)

    def meet(self, directory: Directory, name: bytes, is_dir: bool) -> Iterator[list[EventRecord]]:
        """Introduce what is found under a name that listeners do not know, if it is of that type."""
        if name not in self._snapshot.known(directory) and self._crawler.is_there(directory, name, is_dir):
            yield from self.introduce(directory, name, is_dir)

    def _tell(self, arrivals: Iterator[Arrival], cause: LocalOperation | None) -> Iterator[list[EventRecord]]:
        for number, (directory, entries) in enumerate(arrivals, 1):
            for name, is_dir, inode in entries:
                self._teller.entry(CREATE, directory, name, is_dir, cause, RECOVERED, inode)
                if self._teller.is_full:
                    yield self._teller.gathered()
            if number % _TURN == 0:
                yield []
