"""Joined inotify events to events of the product: paths, origin, new directories, exchanges.

Everything the stream tells goes through here in order, and the tree of watched directories is changed as it passes.
"""

from collections.abc import Generator, Iterator, Sequence
from typing import Final

from fusenotify import events, joiner
from fusenotify.arrivals import Arrivals
from fusenotify.claims import KINDS, Claims, entry_of
from fusenotify.crawler import Crawler
from fusenotify.echoes import LocalOperation
from fusenotify.events import IS_DIR, RECOVERED, EventRecord, Reason
from fusenotify.exchanges import Exchanges
from fusenotify.joiner import Item, Move, RawEvent, author_of
from fusenotify.renames import Renames
from fusenotify.stream import Stream
from fusenotify.telling import Teller
from fusenotify.tree import ROOT_PATH, Directory, Tree
from fusenotify.watchers.watcher import Watcher

ROOT_GONE: Final = joiner.IN_DELETE_SELF | joiner.IN_UNMOUNT | joiner.IN_MOVE_SELF
_TURN: Final = 16  # items told before other work may be done


class OverflowedError(Exception):
    """The kernel's queue has lost events."""


class Translator:
    """Turns the items of the joiner into event records, in batches.

    Attributes:
        tree: the watched directories as of the last item.
        exchanges: knows which renames belong together.
        overflows: how often the kernel's queue lost events.
        position: right behind what has been told of the stream.
        root_gone: whether the backing root was deleted, moved or unmounted.
        undecided: what `translate` has left.
        doubtful: names to be looked at (see `look_again`), and whether what may have come to them is a directory.
    """

    def __init__(
        self,
        watcher: Watcher,
        stream: Stream,
        crawler: Crawler,
        exchanges: Exchanges,
        tree: Tree,
        claims: Claims,
        teller: Teller,
        arrivals: Arrivals,
    ) -> None:
        self.tree = tree
        self.overflows = 0
        self.root_gone = False
        self.position = 0
        self.undecided: list[Item] = []
        self.doubtful: dict[tuple[Directory, bytes], bool] = {}
        self._watcher = watcher
        self._stream = stream
        self._crawler = crawler
        self.exchanges = exchanges
        self._claims = claims
        self._teller = teller
        self._arrivals = arrivals
        self._renames = Renames(tree, watcher, stream, crawler, exchanges, claims, teller, arrivals)
        self._came_in: Move | None = None  # the last item, if it was a rename

    # --- entry points ----------------------------------------------------------------------------------------------

    def crawl(self) -> Iterator[list[EventRecord]]:
        """Watch the whole tree as it is now; yields nothing but chances to do other work."""
        return self._arrivals.crawl()

    def at(self, time_ns: int) -> None:
        """Say when what is told from now on was heard."""
        self._teller.time_ns = time_ns

    def gathered(self) -> list[EventRecord]:
        """Return what has been told and not been yielded yet."""
        return self._teller.gathered()

    def lose(self, time_ns: int) -> Iterator[list[EventRecord]]:
        """Tell that events are lost."""
        self.at(time_ns)
        self._teller.by = None
        self._came_in = None
        self.doubtful.clear()
        self.overflows += 1
        yield from self._teller.flush()
        self._teller.tell(events.OVERFLOW, None, None, reason=Reason.KERNEL)
        yield from self._teller.flush()

    def end(self) -> Iterator[list[EventRecord]]:
        """Tell, once, that nothing more will be heard."""
        if not self.root_gone:
            self.root_gone = True
            self._teller.tell(events.UNMOUNT, None, None, IS_DIR)
        yield from self._teller.flush()

    def translate(
        self, items: Sequence[Item], time_ns: int, *, more_follows: bool | None = None
    ) -> Iterator[list[EventRecord]]:
        """Yield the events of some items in batches. An empty one is a chance to do other work, and needed as such.

        It ends before a rename that what follows may show in another light, and leaves that and the rest `undecided`;
        but tells everything if `more_follows` is None. True says that half a rename has come already.

        Raises:
            OverflowedError, LostTrackError: something has not been heard, now or before; everything has to be compared.
        """
        self._teller.time_ns = time_ns
        self.undecided = []
        told: set[int | None] = set()
        halves: set[int | None] = set()
        for index, item in enumerate(items):
            if self.root_gone:
                break  # nothing comes after unmount
            if index in told:
                self._came_in = item if isinstance(item, Move) else None
                continue
            if index % _TURN == 0:
                yield self._teller.gathered() if self._teller.is_full else []
            if isinstance(item, Move) and more_follows is not None and index not in halves:
                if self.exchanges.is_undecided(items, index, more_follows=more_follows):
                    self.undecided = [one for number, one in enumerate(items) if number >= index and number not in told]
                    break
                halves.add(self.exchanges.other_half(items, index))
            told.add((yield from self._tell(items, index)))
        self._teller.by = None
        yield from self._teller.flush()

    def _tell(self, items: Sequence[Item], index: int) -> Generator[list[EventRecord], None, int | None]:
        """Tell of one item; return the index of another one that has been told with it."""
        item = items[index]
        self._stream.passes(item)
        self.position = _end_of(item)
        came_in, self._came_in = self._came_in, None
        self._teller.by = None
        if self._claims:
            yield from self._tell_unheard(item[0])
        self._teller.by = author_of(item)
        if isinstance(item, Move):
            return (yield from self._on_move(items, index, item, came_in))
        if (directory := self.tree.by_wd.get(item[1])) is not None:
            yield from self._on_event(directory, item)
        elif item[2] & joiner.IN_Q_OVERFLOW:
            raise OverflowedError
        else:
            self._watcher.adoption_by(item[1])  # goes untold, so what was listed before is out of date
            if item[2] & joiner.IN_IGNORED:
                self._watcher.forget(item[1])
        return None

    def _on_move(
        self, items: Sequence[Item], index: int, move: Move, came_in: Move | None
    ) -> Generator[list[EventRecord], None, int | None]:
        """Tell of a rename and of its other half, if it is an exchange; `came_in` is the rename right before it."""
        partner = self.exchanges.partner(items, index)
        if partner is not None:
            self.position = _end_of(items[partner])
        self._came_in = move
        if (yield from self._renames.on_rename(move, items[partner] if partner is not None else None)):
            return partner
        if came_in is not None and self.exchanges.is_swap(came_in, move):
            yield from self._renames.on_move(came_in, None)
        elif came_in is not None and (came_in.new_wd, came_in.new_name) == (move.old_wd, move.old_name):
            self._doubt_what_left(move)
        return None

    def settle(self, position: int, time_ns: int) -> Iterator[list[EventRecord]]:
        """Yield what local operations raise by themselves, once the stream has been processed up to `position`."""
        self._teller.time_ns = time_ns
        yield from self._tell_unheard(position)
        yield from self._teller.flush()

    def look_again(self, time_ns: int) -> Iterator[list[EventRecord]]:
        """Tell what came to the names in doubt; to be called when everything else has been told."""
        self._teller.time_ns = time_ns
        while self.doubtful:
            (directory, name), is_dir = self.doubtful.popitem()
            if not directory.gone:
                yield from self._arrivals.meet(directory, name, is_dir)
        yield from self._teller.flush()

    def _doubt_what_left(self, move: Move) -> None:
        """Take note that something may be at a name still that was left right after a rename to it.

        inotify merges two IN_MOVED_TO of a name that are next to each other, though their cookies differ: the second
        may be that of an exchange with a place that is not heard. What it brought is of the same type as what the first
        one did, or they would not be equal.
        """
        directory = self.tree.heard_by(move.old_wd)
        if directory is not None and self.tree.heard_by(move.new_wd) is None:
            self.doubtful[directory, move.old_name] = move.is_dir

    # --- one event -------------------------------------------------------------------------------------------------

    def _on_event(self, directory: Directory, item: RawEvent) -> Iterator[list[EventRecord]]:
        position, _, mask, _, name, by = item
        kind = KINDS.get(mask & ~joiner.IN_ISDIR & ~joiner.FOUND)
        if kind is None or not name:
            self._on_self(directory, item)
            return
        where, name = entry_of(directory, name)
        if where is None:
            return  # it has left the tree
        directory, is_dir = where, bool(mask & joiner.IN_ISDIR)
        if is_dir and kind & events.USES:
            return  # of directories they may be our own
        if mask & joiner.FOUND:
            yield from self._on_found(directory, name, kind, is_dir)
            return
        operation = self._claims.claim(position, kind, directory, name, by)
        known = directory.known_names(position)
        if kind == events.CREATE:
            if known is None or name not in known:
                yield from self._on_create(directory, name, is_dir, operation)
        elif kind == events.DELETE:
            if known is None or name in known:
                yield from self._on_delete(directory, name, is_dir, operation)
        elif operation is None or not operation.is_silent(kind):
            self._teller.entry(kind, directory, name, is_dir, operation)

    def _on_found(self, directory: Directory, name: bytes, kind: int, is_dir: bool) -> Iterator[list[EventRecord]]:
        """Tell what a name stands for, which what was heard of it has left in doubt."""
        if kind == events.CREATE:
            yield from self._arrivals.introduce(directory, name, is_dir)
        else:
            yield from self._on_delete(directory, name, is_dir, None, RECOVERED)

    def _on_self(self, directory: Directory, item: RawEvent) -> None:
        """Handle an event of the watched directory itself; but for the root its parent tells the same."""
        position, wd, mask, _, _, by = item
        if mask & joiner.IN_IGNORED:
            self._watcher.forget(wd)
            self.tree.set_wd(directory, None)
        elif directory is not self.tree.root:
            return
        elif mask & joiner.IN_ATTRIB:
            operation = self._claims.claim(position, events.ATTRIB, directory, b"", by)
            if operation is None or not operation.is_silent(events.ATTRIB):
                self._teller.tell(events.ATTRIB, ROOT_PATH, operation, IS_DIR)
        elif mask & ROOT_GONE and not self.root_gone:
            self.root_gone = True
            self._teller.tell(events.UNMOUNT, None, None, IS_DIR)

    def _on_create(
        self, directory: Directory, name: bytes, is_dir: bool, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        self._teller.entry(events.CREATE, directory, name, is_dir, operation)
        if directory.announced is not None:
            directory.announced.add(name)
        if is_dir:
            yield from self._arrivals.arrive(directory, name, operation)

    def _on_delete(
        self, directory: Directory, name: bytes, is_dir: bool, operation: LocalOperation | None, flags: int = 0
    ) -> Iterator[list[EventRecord]]:
        self._teller.entry(events.DELETE, directory, name, is_dir, operation, flags)
        if directory.announced is not None:
            directory.announced.discard(name)
        if not is_dir:
            return
        self._crawler.has_left(directory, name)
        if (gone := directory.children.get(name)) is not None:
            yield from self._teller.flush()
            self._crawler.leave(self.tree.detach(gone))
            yield from self._arrivals.arrive_missed()

    def _tell_unheard(self, position: int) -> Iterator[list[EventRecord]]:
        """Tell of local operations that raised no event, now that the stream has passed the place where it would be."""
        for operation, expectation in self._claims.unheard(position):
            at, to = expectation.at, expectation.to
            directory = self._claims.unlisted(at)
            if to is not None:
                new = self._claims.unlisted(to)
                move = Move(operation.end, operation.end, expectation.is_dir, None, at.name, None, to.name)
                if expectation.exchange:
                    other_is_dir = expectation.other_is_dir
                    yield from self._renames.on_exchange(directory, new, move, operation, other_is_dir=other_is_dir)
                else:
                    yield from self._renames.rename(directory, new, move, operation)
            elif directory is None:
                continue
            elif expectation.kind == events.CREATE:
                yield from self._on_create(directory, at.name, expectation.is_dir, operation)
            elif at.name in directory.children and not expectation.is_dir:
                continue  # a file that was written to has lost its name to a directory
            elif expectation.kind == events.DELETE:
                yield from self._on_delete(directory, at.name, expectation.is_dir, operation)
            else:
                flags = IS_DIR if expectation.is_dir else 0
                self._teller.tell(expectation.kind, directory.prefix + at.name or ROOT_PATH, operation, flags)


def _end_of(item: Item) -> int:
    """Return a position behind an item, and before whatever follows."""
    return item.end if isinstance(item, Move) else item[0] + 1
