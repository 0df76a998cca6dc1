"""Renames of the stream to events: within the tree, into it, out of it, over something, and exchanges."""

from collections.abc import Generator, Iterator
from dataclasses import dataclass

from fusenotify.arrivals import Arrivals
from fusenotify.claims import Claims
from fusenotify.crawler import Crawler
from fusenotify.echoes import LocalOperation
from fusenotify.events import EXCHANGE, OTHER_IS_DIR, EventRecord
from fusenotify.exchanges import Exchanges, is_watched
from fusenotify.joiner import Item, Move
from fusenotify.stream import Stream
from fusenotify.telling import Teller
from fusenotify.tree import Directory, Tree
from fusenotify.watchers.inotify import InotifyWatcher


class LostTrackError(Exception):
    """The tree cannot be right: something has not been heard."""


@dataclass(slots=True)
class Renames:
    """Tells of renames and changes the tree accordingly."""

    tree: Tree
    watcher: InotifyWatcher
    stream: Stream
    crawler: Crawler
    exchanges: Exchanges
    claims: Claims
    teller: Teller
    arrivals: Arrivals

    # --- renames ---------------------------------------------------------------------------------------------------

    def on_rename(self, move: Move, partner: Item | None) -> Generator[list[EventRecord], None, bool]:
        """Tell of a rename and of its partner in an exchange, if it is one; return whether it is."""
        mirror = partner if isinstance(partner, Move) and partner.is_mirror_of(move) else None
        if not isinstance(partner, Move) or (mirror is not None and not self.exchanges.is_swap(move, mirror)):
            return (yield from self.on_move(move, mirror))
        # What was there leaves first, or it would seem to have been replaced.
        self.stream.passes(partner)
        yield from self.on_move(partner, move)
        yield from self.on_move(move, None)
        return True

    def on_move(self, move: Move, mirror: Move | None) -> Generator[list[EventRecord], None, bool]:
        """Tell of a rename; return whether the item behind it has been told with it."""
        old, new = self.tree.heard_by(move.old_wd), self.tree.heard_by(move.new_wd)
        for wd, directory in ((move.old_wd, old), (move.new_wd, new)):
            if wd is not None and directory is None:
                self.watcher.adoption_by(wd)  # this half goes untold, so what was listed before is out of date
        operation, expectation = self.claims.claim_move(move)
        if expectation is not None and expectation.exchange:
            if expectation.heard == 1:
                other_is_dir = mirror.is_dir if mirror is not None else expectation.other_than(move)
                yield from self.on_exchange(old, new, move, operation, other_is_dir=other_is_dir)
            else:
                yield from self.arrivals.arrive_missed()
            return False
        if expectation is not None and expectation.to is not None:  # one end may be in a directory that is deaf
            old, new = old or self.claims.unlisted(expectation.at), new or self.claims.unlisted(expectation.to)
            move = move._replace(old_name=expectation.at.name, new_name=expectation.to.name)
        if old is None or new is None or mirror is None or expectation is not None:
            is_exchange = False
        else:
            is_exchange = self.exchanges.is_exchange(old, new, move, mirror)
        if is_exchange and mirror is not None:
            self.stream.passes(mirror)
            yield from self.on_exchange(old, new, move, None, other_is_dir=mirror.is_dir)
        else:
            yield from self._tell_move(old, new, move, operation)
        return is_exchange

    def _tell_move(
        self, old: Directory | None, new: Directory | None, move: Move, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        """Tell of a rename, as far as listeners know the names."""
        if old is not None and (known := old.known_names(move.position)) is not None:
            if move.old_name not in known:
                old = None  # renamed before the listing came to it, so nobody has heard of that name
            known.discard(move.old_name)
        if new is not None and (known := new.known_names(move.position)) is not None:
            if old is None and move.new_name in known:
                if move.is_dir and move.new_name not in new.children:
                    yield from self.arrivals.arrive(new, move.new_name, operation)
                return
            known.add(move.new_name)
        yield from self.rename(old, new, move, operation)

    def rename(
        self, old: Directory | None, new: Directory | None, move: Move, operation: LocalOperation | None
    ) -> Iterator[list[EventRecord]]:
        """Tell of a rename between two directories of the tree; None is a place outside."""
        if old is None and new is None:
            return
        new_name = move.new_name
        moved = old.children.get(move.old_name) if old is not None else None
        if moved is not None and new is None and (place := self.crawler.destination_of(moved)) is not None:
            new, new_name = place
        if self.tree.would_loop(moved, new):
            raise LostTrackError
        source = (old, move.old_name) if old is not None else None
        target = (new, new_name) if new is not None else None
        self.teller.rename(source, target, move.is_dir, operation)
        if move.is_dir:
            yield from self.teller.flush()  # what is queued so far is told by the paths of before
        for end in (source, target):
            if end is not None:
                self.crawler.has_left(*end)
        if new is not None and moved is not None and moved.wd is not None:
            self.crawler.leave(self.tree.move(moved, new, new_name))
        else:
            if moved is not None:
                self.crawler.leave(self.tree.detach(moved))
            if new is not None and new_name in new.children:
                self.crawler.leave(self.tree.detach(new.children[new_name]))  # it was renamed over
            if new is not None and move.is_dir:
                yield from self.arrivals.arrive(new, new_name, operation)
        if move.is_dir:
            yield from self.arrivals.arrive_missed()

    # --- exchanges -------------------------------------------------------------------------------------------------

    def on_exchange(
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
        at_old = old if old is not None and _knows(old, move.old_name, move.position) else None
        at_new = new if new is not None and _knows(new, move.new_name, move.position) else None
        if at_old is not None and at_new is not None:
            yield from self._on_whole_exchange(at_old, at_new, move, operation, other_is_dir=other_is_dir)
        elif at_new is not None:
            out = Move(move.position, move.end, other_is_dir, move.new_wd, move.new_name, None, b"")
            yield from self.rename(at_new, None, out, operation)
            yield from self.rename(None, at_new, move, operation)
        elif at_old is not None:
            back = Move(move.position, move.end, other_is_dir, None, b"", move.old_wd, move.old_name)
            yield from self.rename(at_old, None, move, operation)
            yield from self.rename(None, at_old, back, operation)
        yield from self.arrivals.arrive_missed()

    def _on_whole_exchange(
        self, old: Directory, new: Directory, move: Move, operation: LocalOperation | None, *, other_is_dir: bool
    ) -> Iterator[list[EventRecord]]:
        is_certain = operation is not None or any(
            map(is_watched, (old.children.get(move.old_name), new.children.get(move.new_name)))
        )
        yield from self._exchange(old, new, move, operation, other_is_dir=other_is_dir)
        if old.announced is not None or new.announced is not None or (move.is_dir and not is_certain):
            # The listing may have told of what came to the names later, and so of the wrong types.
            yield from self.arrivals.introduce(new, move.new_name, move.is_dir)
            yield from self.arrivals.introduce(old, move.old_name, other_is_dir)
        elif operation is None and not move.is_dir and not other_is_dir:
            yield from self._refresh_unless_sure(old, new, move)

    def _exchange(
        self, old: Directory, new: Directory, move: Move, operation: LocalOperation | None, *, other_is_dir: bool
    ) -> Iterator[list[EventRecord]]:
        ends = ((old, move.old_name), (new, move.new_name))
        if any(
            self.tree.would_loop(one.children.get(name), other)
            for (one, name), other in zip(ends, (new, old), strict=True)
        ):
            raise LostTrackError
        flags = EXCHANGE | (OTHER_IS_DIR if other_is_dir else 0)
        self.teller.rename(*ends, move.is_dir, operation, flags)
        yield from self.teller.flush()
        missed = [end for end, other in zip(ends, reversed(ends), strict=True) if self.crawler.has_left(*other)]
        self.tree.exchange(old, move.old_name, new, move.new_name)
        for directory, name in missed:
            yield from self.arrivals.arrive(directory, name, operation)
        yield from self.arrivals.arrive_missed()

    def _refresh_unless_sure(self, old: Directory, new: Directory, move: Move) -> Iterator[list[EventRecord]]:
        """Have listeners look again at two files that were exchanged, unless it is certain that they were."""
        ends = ((old, move.old_name), (new, move.new_name))
        if not self.exchanges.are_surely_exchanged(*(directory.prefix + name for directory, name in ends)):
            for directory, name in ends:
                if self.exchanges.may_be_there(directory, name):
                    yield from self.arrivals.introduce(directory, name, is_dir=False)


def _knows(directory: Directory, name: bytes, position: int) -> bool:
    """Whether listeners have heard of a name that the stream tells of."""
    known = directory.known_names(position)
    return known is None or name in known
