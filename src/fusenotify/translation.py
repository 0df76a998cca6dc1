"""Joined inotify events to events of the product: paths, origin, new directories, exchanges.

Everything the stream tells goes through here in order, and the tree of watched directories is changed as it passes.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from typing import Final

from fusenotify import events, joiner
from fusenotify.backing import Backing
from fusenotify.crawler import Arrival, Crawler
from fusenotify.echoes import Echoes, Expectation, LocalOperation, Name
from fusenotify.events import EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, RECOVERED, EventRecord, Reason
from fusenotify.exchanges import Exchanges, is_watched
from fusenotify.identity import InodeKey
from fusenotify.joiner import Item, Move, RawEvent
from fusenotify.stream import Stream
from fusenotify.tree import ROOT_PATH, Directory, Tree
from fusenotify.watchers.inotify import InotifyWatcher

log = logging.getLogger(__name__)

_KINDS: Final = {
    joiner.IN_CREATE: events.CREATE,
    joiner.IN_DELETE: events.DELETE,
    joiner.IN_MODIFY: events.MODIFY,
    joiner.IN_ATTRIB: events.ATTRIB,
    joiner.IN_CLOSE_WRITE: events.CLOSE_WRITE,
    joiner.IN_OPEN: events.OPEN,
    joiner.IN_ACCESS: events.ACCESS,
    joiner.IN_CLOSE_NOWRITE: events.CLOSE_NOWRITE,
}
_DELETED_DIRECTORY: Final = joiner.IN_DELETE | joiner.IN_ISDIR
_ROOT_GONE: Final = joiner.IN_DELETE_SELF | joiner.IN_UNMOUNT | joiner.IN_MOVE_SELF
_TURN: Final = 16  # items told, or directories looked at, before other work may be done
_CHUNK: Final = 512  # how many events are gathered at most


class Translator:
    """Turns the items of the joiner into event records, in batches.

    Attributes:
        tree: the watched directories as of the last item.
        overflows: how often the kernel's queue lost events.
        position: right behind what has been told of the stream.
        root_gone: whether the backing root was deleted, moved or unmounted.
    """

    def __init__(
        self,
        backing: Backing,
        watcher: InotifyWatcher,
        stream: Stream,
        crawler: Crawler,
        exchanges: Exchanges,
        tree: Tree,
        echoes: Echoes,
    ) -> None:
        self.tree = tree
        self.overflows = 0
        self.root_gone = False
        self.seq = 0
        self.position = 0
        self._backing = backing
        self._watcher = watcher
        self._stream = stream
        self._crawler = crawler
        self._exchanges = exchanges
        self._echoes = echoes
        self._time_ns = 0
        self._came_in: Move | None = None  # the last item, if it was a rename and not half an exchange
        self._batch: list[EventRecord] = []

    # --- entry points ----------------------------------------------------------------------------------------------

    def crawl(self) -> Iterator[list[EventRecord]]:
        """Watch the whole tree as it is now; yields nothing but chances to do other work."""
        for _ in self._crawler.crawl():
            yield []

    def start_over(self, time_ns: int) -> Iterator[list[EventRecord]]:
        """Do as if the kernel's queue had overflowed: something went wrong, and nobody knows what has been lost."""
        self._time_ns = time_ns
        self._batch.clear()
        yield from self._on_overflow()

    def end(self) -> Iterator[list[EventRecord]]:
        """Tell, once, that nothing more will be heard."""
        if not self.root_gone:
            self.root_gone = True
            self._tell(events.UNMOUNT, None, None, IS_DIR)
        yield from self._flush()

    def translate(self, items: Sequence[Item], time_ns: int) -> Iterator[list[EventRecord]]:
        """Yield the events of some items in batches. An empty one is a chance to do other work, and needed as such."""
        self._time_ns = time_ns
        told: set[int | None] = set()
        for index, item in enumerate(items):
            if self.root_gone:
                break  # nothing comes after unmount
            if index in told:
                continue
            if index % _TURN == 0:
                yield self._gathered() if len(self._batch) >= _CHUNK else []
            self._note_leaving(item)
            self.position = _end_of(item)
            came_in, self._came_in = self._came_in, None
            if self._echoes:
                yield from self._tell_unheard(item[0])
            if isinstance(item, Move):
                partner = self._exchanges.partner(items, index)
                self.position = _end_of(items[index if partner is None else partner])
                if (yield from self._on_rename(item, items[partner] if partner is not None else None)):
                    told.add(partner)
                elif came_in is not None and self._exchanges.is_swap(came_in, item):
                    yield from self._on_move(came_in, None)
                self._came_in = item
            elif (directory := self.tree.by_wd.get(item[1])) is not None:
                yield from self._on_event(directory, item)
            elif item[2] & joiner.IN_Q_OVERFLOW:
                yield from self._on_overflow()
            else:
                self._watcher.adoption_by(item[1])  # goes untold, so what was listed before is out of date
                if item[2] & joiner.IN_IGNORED:
                    self._watcher.forget(item[1])
        yield from self._flush()

    def settle(self, position: int, time_ns: int) -> Iterator[list[EventRecord]]:
        """Yield what local operations raise by themselves, once the stream has been processed up to `position`."""
        self._time_ns = time_ns
        yield from self._tell_unheard(position)
        yield from self._flush()

    def _note_leaving(self, item: Item) -> None:
        if isinstance(item, Move):
            for wd, name in (item.old_wd, item.old_name), (item.new_wd, item.new_name):
                if item.is_dir and wd is not None:
                    self._stream.left(wd, name)
        elif item[2] & _DELETED_DIRECTORY == _DELETED_DIRECTORY:
            self._stream.left(item[1], item[4])

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
        if isinstance(item, Move):
            return any(one.matches_move(item) for one in operation.expectations)
        directory, name = self.tree.by_wd.get(item[1]), item[4]
        kind = _KINDS.get(item[2] & ~joiner.IN_ISDIR)
        return directory is not None and any(
            one.kind == kind and self._is_of(one, directory, name) for one in operation.expectations
        )

    # --- one event -------------------------------------------------------------------------------------------------

    def _on_event(self, directory: Directory, item: RawEvent) -> Iterator[list[EventRecord]]:
        position, wd, mask, _, name = item
        kind = _KINDS.get(mask & ~joiner.IN_ISDIR)
        if kind is None or not name:
            self._on_self(directory, wd, mask, position)
            return
        is_dir = bool(mask & joiner.IN_ISDIR)
        if is_dir and kind & events.USES:
            return  # of directories they may be our own
        operation = self._claim(position, kind, directory, name) if self._echoes else None
        known = self._window(directory, position)
        if kind == events.CREATE:
            if known is None or name not in known:
                yield from self._on_create(directory, name, is_dir, operation)
        elif kind == events.DELETE:
            if known is None or name in known:
                yield from self._on_delete(directory, name, is_dir, operation)
        elif operation is None or not operation.is_silent(kind):
            self._tell(kind, directory.prefix + name, operation, IS_DIR if is_dir else 0)

    def _on_self(self, directory: Directory, wd: int, mask: int, position: int) -> None:
        """Handle an event of the watched directory itself; but for the root its parent tells the same."""
        if mask & joiner.IN_IGNORED:
            self._watcher.forget(wd)
            self.tree.set_wd(directory, None)
        elif directory is not self.tree.root:
            return
        elif mask & joiner.IN_ATTRIB:
            operation = self._claim(position, events.ATTRIB, directory, b"") if self._echoes else None
            self._tell(events.ATTRIB, ROOT_PATH, operation, IS_DIR)
        elif mask & _ROOT_GONE and not self.root_gone:
            self.root_gone = True
            self._tell(events.UNMOUNT, None, None, IS_DIR)

    def _on_create(
        self, directory: Directory, name: bytes, is_dir: bool, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        self._tell(events.CREATE, directory.prefix + name, operation, IS_DIR if is_dir else 0)
        if directory.announced is not None:
            directory.announced.add(name)
        if is_dir:
            yield from self._arrive(directory, name, operation)

    def _on_delete(
        self, directory: Directory, name: bytes, is_dir: bool, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        self._tell(events.DELETE, directory.prefix + name, operation, IS_DIR if is_dir else 0)
        if directory.announced is not None:
            directory.announced.discard(name)
        if not is_dir:
            return
        self._crawler.has_left(directory, name)
        if (gone := directory.children.get(name)) is not None:
            yield from self._flush()
            self._crawler.leave(self.tree.detach(gone))
            yield from self._arrive_missed()

    def _window(self, directory: Directory, position: int) -> set[bytes] | None:
        """Return the names listeners know in a directory whose listing may have told what the stream tells again."""
        if directory.announced is not None and position >= directory.announced_until:
            directory.announced = None
        return directory.announced

    # --- renames ---------------------------------------------------------------------------------------------------

    def _on_rename(self, move: Move, partner: Item | None) -> Generator[list[EventRecord], None, bool]:
        """Tell of a rename and of its partner in an exchange, if it is one; return whether it is."""
        mirror = partner if isinstance(partner, Move) and partner.is_mirror_of(move) else None
        if not isinstance(partner, Move) or (mirror is not None and not self._exchanges.is_swap(move, mirror)):
            return (yield from self._on_move(move, mirror))
        # What was there leaves first, or it would seem to have been replaced.
        self._note_leaving(partner)
        yield from self._on_move(partner, move)
        yield from self._on_move(move, None)
        return True

    def _on_move(self, move: Move, mirror: Move | None) -> Generator[list[EventRecord], None, bool]:
        """Tell of a rename; return whether the item behind it has been told with it."""
        old, new = self._directory(move.old_wd), self._directory(move.new_wd)
        for wd, directory in ((move.old_wd, old), (move.new_wd, new)):
            if wd is not None and directory is None:
                self._watcher.adoption_by(wd)  # this half goes untold, so what was listed before is out of date
        operation, expectation = self._claim_move(move) if self._echoes else (None, None)
        if expectation is not None and expectation.exchange:
            if expectation.heard == 1:
                other_is_dir = mirror.is_dir if mirror is not None else expectation.other_than(move)
                yield from self._on_exchange(old, new, move, operation, other_is_dir=other_is_dir)
            else:
                yield from self._arrive_missed()
            return False
        if expectation is not None and expectation.to is not None:  # one end may be in a directory that is deaf
            old, new = old or self._unlisted(expectation.at), new or self._unlisted(expectation.to)
            move = move._replace(old_name=expectation.at.name, new_name=expectation.to.name)
        if old is None or new is None or mirror is None or expectation is not None:
            is_exchange = False
        else:
            is_exchange = self._exchanges.is_exchange(old, new, move, mirror)
        if is_exchange and mirror is not None:
            self._note_leaving(mirror)
            yield from self._on_exchange(old, new, move, None, other_is_dir=mirror.is_dir)
        else:
            yield from self._tell_move(old, new, move, operation)
        return is_exchange

    def _tell_move(
        self, old: Directory | None, new: Directory | None, move: Move, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        """Tell of a rename, as far as listeners know the names."""
        if old is not None and (known := self._window(old, move.position)) is not None:
            if move.old_name not in known:
                old = None  # renamed before the listing came to it, so nobody has heard of that name
            known.discard(move.old_name)
        if new is not None and (known := self._window(new, move.position)) is not None:
            if old is None and move.new_name in known:
                if move.is_dir and move.new_name not in new.children:
                    yield from self._arrive(new, move.new_name, operation)
                return
            known.add(move.new_name)
        yield from self._rename(old, new, move, operation)

    def _rename(
        self, old: Directory | None, new: Directory | None, move: Move, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        if old is None and new is None:
            return
        new_name = move.new_name
        moved = old.children.get(move.old_name) if old is not None else None
        if moved is not None and new is None and (place := self._crawler.destination_of(moved)) is not None:
            new, new_name = place
        old_path = old.prefix + move.old_name if old is not None else None
        new_path = new.prefix + new_name if new is not None else None
        self._tell(events.RENAME, new_path, operation, IS_DIR if move.is_dir else 0, old_path)
        if move.is_dir:
            yield from self._flush()  # what is queued so far is told by the paths of before
        for directory, name in ((old, move.old_name), (new, new_name)):
            if directory is not None:
                self._crawler.has_left(directory, name)
        if self.tree.would_loop(moved, new):
            yield from self._on_overflow()  # the tree cannot be right: it has missed something
            return
        if new is not None and moved is not None and moved.wd is not None:
            self._crawler.leave(self.tree.move(moved, new, new_name))
        else:
            if moved is not None:
                self._crawler.leave(self.tree.detach(moved))
            if new is not None and new_name in new.children:
                self._crawler.leave(self.tree.detach(new.children[new_name]))  # it was renamed over
            if new is not None and move.is_dir:
                yield from self._arrive(new, new_name, operation)
        if move.is_dir:
            yield from self._arrive_missed()

    # --- exchanges -------------------------------------------------------------------------------------------------

    def _on_exchange(
        self,
        old: Directory | None,
        new: Directory | None,
        move: Move,
        operation: LocalOperation | None,
        *,
        other_is_dir: bool,
    ) -> Iterator[list[EventRecord]]:
        """Tell of an exchange, as far as listeners know the names.

        One side may be outside the tree or not yet in it, or may have gone on when its directory was listed: then the
        other is left by one thing and another comes to it.
        """
        at_old = old if old is not None and self._knows(old, move.old_name, move.position) else None
        at_new = new if new is not None and self._knows(new, move.new_name, move.position) else None
        if at_old is not None and at_new is not None:
            yield from self._on_whole_exchange(at_old, at_new, move, operation, other_is_dir=other_is_dir)
        elif at_new is not None:
            out = Move(move.position, move.end, other_is_dir, move.new_wd, move.new_name, None, b"")
            yield from self._rename(at_new, None, out, operation)
            yield from self._rename(None, at_new, move, operation)
        elif at_old is not None:
            back = Move(move.position, move.end, other_is_dir, None, b"", move.old_wd, move.old_name)
            yield from self._rename(at_old, None, move, operation)
            yield from self._rename(None, at_old, back, operation)
        yield from self._arrive_missed()

    def _on_whole_exchange(
        self, old: Directory, new: Directory, move: Move, operation: LocalOperation | None, *, other_is_dir: bool
    ) -> Iterator[list[EventRecord]]:
        is_certain = operation is not None or any(
            map(is_watched, (old.children.get(move.old_name), new.children.get(move.new_name)))
        )
        yield from self._exchange(old, new, move, operation, other_is_dir=other_is_dir)
        if old.announced is not None or new.announced is not None or (move.is_dir and not is_certain):
            # The listing may have told of what came to the names later, and so of the wrong types.
            yield from self._introduce(new, move.new_name, move.is_dir)
            yield from self._introduce(old, move.old_name, other_is_dir)
        elif operation is None and not move.is_dir and not other_is_dir:
            yield from self._refresh_unless_sure(old, new, move)

    def _knows(self, directory: Directory, name: bytes, position: int) -> bool:
        """Whether listeners have heard of a name that the stream tells of."""
        known = self._window(directory, position)
        return known is None or name in known

    def _exchange(
        self, old: Directory, new: Directory, move: Move, operation: LocalOperation | None, *, other_is_dir: bool
    ) -> Iterator[list[EventRecord]]:
        old_path, new_path = old.prefix + move.old_name, new.prefix + move.new_name
        flags = EXCHANGE | (IS_DIR if move.is_dir else 0) | (OTHER_IS_DIR if other_is_dir else 0)
        self._tell(events.RENAME, new_path, operation, flags, old_path)
        yield from self._flush()
        ends = ((old, move.old_name), (new, move.new_name))
        if any(
            self.tree.would_loop(one.children.get(name), other)
            for (one, name), other in zip(ends, (new, old), strict=True)
        ):
            yield from self._on_overflow()
            return
        missed = [end for end, other in zip(ends, reversed(ends), strict=True) if self._crawler.has_left(*other)]
        self.tree.exchange(old, move.old_name, new, move.new_name)
        for directory, name in missed:
            yield from self._arrive(directory, name, operation)
        yield from self._arrive_missed()

    def _refresh_unless_sure(self, old: Directory, new: Directory, move: Move) -> Iterator[list[EventRecord]]:
        """Have listeners look again at two files that were exchanged, unless it is certain that they were."""
        ends = ((old, move.old_name), (new, move.new_name))
        if not self._exchanges.are_surely_exchanged(*(directory.prefix + name for directory, name in ends)):
            for directory, name in ends:
                if self._exchanges.may_be_there(directory, name):
                    yield from self._introduce(directory, name, is_dir=False)

    def _introduce(self, directory: Directory, name: bytes, is_dir: bool) -> Iterator[list[EventRecord]]:
        """Have listeners take a name for what it stands for at this place in the stream, which is not the present."""
        self._tell(events.CREATE, directory.prefix + name, None, RECOVERED | (IS_DIR if is_dir else 0))
        if directory.announced is not None:
            directory.announced.add(name)
        if is_dir and name not in directory.children:
            yield from self._arrive(directory, name, None)

    # --- directories come and go -----------------------------------------------------------------------------------

    def _arrive(self, parent: Directory, name: bytes, cause: LocalOperation | None) -> Iterator[list[EventRecord]]:
        """Have a directory watched that has come into the tree, and tell of what is in it already."""
        made = next((one.watch for one in cause.expectations if one.watch is not None), None) if cause else None
        yield from self._tell_arrivals(self._crawler.arrive(parent, name, made), cause)

    def _tell_arrivals(self, arrivals: Iterator[Arrival], cause: LocalOperation | None) -> Iterator[list[EventRecord]]:
        for number, (directory, entries) in enumerate(arrivals, 1):
            prefix = directory.prefix
            for name, is_dir in entries:
                self._tell(events.CREATE, prefix + name, cause, RECOVERED | (IS_DIR if is_dir else 0))
                if len(self._batch) >= _CHUNK:
                    yield from self._flush()
            if number % _TURN == 0:
                yield []

    def _arrive_missed(self) -> Iterator[list[EventRecord]]:
        yield from self._tell_arrivals(self._crawler.arrive_missed(), None)

    def _on_overflow(self) -> Iterator[list[EventRecord]]:
        """Events are lost: say so, and look at every directory again so that later ones are told rightly."""
        self.overflows += 1
        yield from self._flush()
        self._tell(events.OVERFLOW, None, None, 0, reason=Reason.KERNEL)
        yield from self._flush()
        yield from self.crawl()

    # --- telling ---------------------------------------------------------------------------------------------------

    def _directory(self, wd: int | None) -> Directory | None:
        return self.tree.by_wd.get(wd) if wd is not None else None

    def _claim(self, position: int, kind: int, directory: Directory, name: bytes) -> LocalOperation | None:
        """Return the local operation that an event is the echo of, None for a remote change."""
        operation = self._echoes.at(position)
        if operation is not None:
            for expectation in operation.expectations:
                is_due = expectation.kind == kind and not expectation.complete
                if is_due and self._is_of(expectation, directory, name):
                    expectation.heard += 1
                    return operation
        return None

    def _is_of(self, expectation: Expectation, directory: Directory, name: bytes) -> bool:
        """Whether an entry is the one that an operation is expected to change."""
        at, inode = expectation.at, expectation.inode
        if at.wd == directory.wd and at.name == name:
            return True
        found = self._backing.stat_beneath(directory.prefix + name) if inode is not None else None
        return found is not None and InodeKey(found.st_dev, found.st_ino) == inode

    def _claim_move(self, move: Move) -> tuple[LocalOperation | None, Expectation | None]:
        operation = self._echoes.at(move.position)
        if operation is not None:
            for expectation in operation.expectations:
                if not expectation.complete and expectation.matches_move(move):
                    expectation.heard += 1
                    return operation, expectation
        return None, None

    def _tell_unheard(self, position: int) -> Iterator[list[EventRecord]]:
        """Tell of local operations that raised no event, now that the stream has passed the place where it would be."""
        for operation, expectation in self._echoes.passed(position):
            at, to = expectation.at, expectation.to
            directory = self._unlisted(at)
            if to is not None:
                new = self._unlisted(to)
                move = Move(operation.end, operation.end, expectation.is_dir, None, at.name, None, to.name)
                if expectation.exchange:
                    other_is_dir = expectation.other_is_dir
                    yield from self._on_exchange(directory, new, move, operation, other_is_dir=other_is_dir)
                else:
                    yield from self._rename(directory, new, move, operation)
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
                self._tell(expectation.kind, directory.prefix + at.name or ROOT_PATH, operation, flags)

    def _unlisted(self, name: Name) -> Directory | None:
        """Return the directory of a name in which an operation was made, None where its listing tells of that.

        What was not watched then and is now, or will be when it comes into the tree, is listed with the outcome.
        """
        directory = self.tree.by_key.get(name.directory)
        return directory if directory is None or name.wd is not None or directory.wd is None else None

    def _tell(
        self,
        kind: int,
        path: bytes | None,
        operation: LocalOperation | None,
        flags: int,
        old_path: bytes | None = None,
        reason: str = "",
    ) -> None:
        self.seq += 1
        if operation is None:
            record = EventRecord(self.seq, self._time_ns, kind, flags, path, old_path, None, None, reason)
        else:
            record = EventRecord(
                self.seq, self._time_ns, kind, flags | LOCAL, path, old_path, operation.pid, operation.uid, reason
            )
        self._batch.append(record)

    def _flush(self) -> Iterator[list[EventRecord]]:
        if self._batch:
            yield self._gathered()

    def _gathered(self) -> list[EventRecord]:
        batch, self._batch = self._batch, []
        return batch


def _end_of(item: Item) -> int:
    """Return a position behind an item, and before whatever follows."""
    return item.end if isinstance(item, Move) else item[0] + 1
