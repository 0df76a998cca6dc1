"""Which renames of the stream are the two halves of a RENAME_EXCHANGE, or of one with something outside the tree.

inotify tells of an exchange as of two renames, there and back, and of a rename there and back in the same words; a
naive mirror would destroy one of the two. What tells them apart: a watched directory says itself that it moves, and the
kernel holds both parents' locks throughout, so nothing else can happen in them between the halves.
"""

from collections.abc import Sequence
from typing import Final

from fusenotify.beneath import Beneath
from fusenotify.crawler import Crawler
from fusenotify.echoes import Echoes
from fusenotify.identity import InodeKey
from fusenotify.joiner import IN_CREATE, IN_DELETE, Item, Move, is_of_others
from fusenotify.snapshot import Snapshot
from fusenotify.stream import Stream
from fusenotify.tree import Directory, Tree

_NEAR: Final = 32  # what other processors queue between the two halves is not more than this


class Exchanges:
    """Looks for the halves, and for the evidence."""

    def __init__(
        self, backing: Beneath, stream: Stream, crawler: Crawler, tree: Tree, echoes: Echoes, snapshot: Snapshot
    ) -> None:
        self._backing = backing
        self._stream = stream
        self._crawler = crawler
        self._tree = tree
        self._echoes = echoes
        self._snapshot = snapshot

    # --- what belongs together -------------------------------------------------------------------------------------

    def partner(self, items: Sequence[Item], index: int) -> int | None:
        """Return the index of the rename that may be the other half of an exchange, None if there is none."""
        partner = self._look_behind(items, index)[0]
        return None if partner is None or _is_made_behind(items, partner) else partner

    def other_half(self, items: Sequence[Item], index: int) -> int | None:
        """Return the index of the mirror image of a rename, an exchange or not; None if there is none."""
        return self._look_behind(items, index)[0]

    def is_undecided(self, items: Sequence[Item], index: int, *, more_follows: bool) -> bool:
        """Whether a rename, which is told next, cannot be told before what follows the items is known.

        `more_follows` says that half a rename has come already.
        """
        move = items[index]
        assert isinstance(move, Move)
        if self._is_local(move):
            return False
        partner, is_open = self._look_behind(items, index)
        other = items[partner] if partner is not None else None
        if partner is not None and isinstance(other, Move):
            return self._look_behind(items, partner)[1] and self._may_be_told_more(move, other)
        waits = is_open and (more_follows or self._may_be_half(move) or self._came_to_a_directory(move))
        return waits or self._may_be_swap(items, index)

    def lacks_half(self, held: Sequence[Item]) -> bool:
        """Whether nothing but the other half of an exchange can explain what a look shows of the first item's name."""
        move = held[0]
        return isinstance(move, Move) and self._look_behind(held, 0) == (None, True) and self._may_be_half(move)

    def _is_local(self, move: Move) -> bool:
        """Whether an operation of ours expects this rename: then what it is need not be found out."""
        operation = self._echoes.at(move.position) if not is_of_others(move.by) else None
        return operation is not None and any(one.matches_move(move) for one in operation.expectations)

    def _look_behind(self, items: Sequence[Item], index: int) -> tuple[int | None, bool]:
        """Return the index of the other half, and whether it may still come."""
        move = items[index]
        assert isinstance(move, Move)
        wds = {wd for wd in (move.old_wd, move.new_wd) if wd is not None}
        for number in range(index + 1, min(index + _NEAR, len(items))):
            other = items[number]
            if isinstance(other, Move):
                if other.is_mirror_of(move) or self.is_swap(move, other):
                    return number, False
                if other.old_wd in wds or other.new_wd in wds:
                    return None, False
            elif other[1] in wds and other[2] & (IN_CREATE | IN_DELETE):
                return None, False
        return None, index + _NEAR >= len(items)

    def _may_be_half(self, move: Move) -> bool:
        """Whether the mirror image of this move may follow: its old name is there again, or still."""
        old = self._tree.heard_by(move.old_wd)
        looks_so = old is not None and self.may_be_there(old, move.old_name)
        # A look tells of the present: with events still unread, what follows has to be known first.
        return looks_so or self._stream.has_unread

    def _came_to_a_directory(self, move: Move) -> bool:
        """Whether something came in by the name of a directory, which most likely leaves by it now."""
        new = self._tree.heard_by(move.new_wd)
        if self._tree.heard_by(move.old_wd) is not None or new is None:
            return False
        return move.new_name in new.children or self._crawler.is_missed(new, move.new_name)

    def _may_be_swap(self, items: Sequence[Item], index: int) -> bool:
        """Whether the last thing read is a watched directory's leaving behind a move to its name, and no more.

        If it left by that very exchange it says next that it has moved.
        """
        came_in, left = items[index], items[-1]
        if index + 2 != len(items) or not isinstance(came_in, Move) or not isinstance(left, Move):
            return False
        directory = self._where_they_take_turns(came_in, left)
        return directory is not None and is_watched(directory.children.get(left.old_name))

    def _may_be_told_more(self, move: Move, mirror: Move) -> bool:
        """Whether more of the stream will tell if two renames are an exchange of directories."""
        old, new = self._tree.heard_by(move.old_wd), self._tree.heard_by(move.new_wd)
        if old is None or new is None or not (move.is_dir and mirror.is_dir):
            return False
        ends = (old.children.get(move.old_name), new.children.get(move.new_name))
        return any(map(is_watched, ends)) and self._evidence(old, new, move, mirror) is None

    # --- what it was -----------------------------------------------------------------------------------------------

    def is_exchange(self, old: Directory, new: Directory, move: Move, mirror: Move) -> bool:
        """Tell a RENAME_EXCHANGE from a rename there and back.

        Of directories that are not watched nobody knows more than the names, and both are looked at again: then it
        does not matter.
        """
        if new.announced is None and move.new_name not in self._snapshot.known(new):
            return False  # nothing was there to come back
        if move.is_dir != mirror.is_dir or not move.is_dir:
            return move.is_dir != mirror.is_dir or self._was_there(new, mirror)
        evidence = self._evidence(old, new, move, mirror)
        if evidence is not None:
            return evidence
        other = new.children.get(move.new_name)
        if other is not None or self._crawler.is_missed(new, move.new_name):
            return not is_watched(other)  # or it would have said so
        return is_watched(old.children.get(move.old_name))  # which would have said that it came back

    def is_swap(self, came_in: Move, left: Move) -> bool:
        """Whether something came into the tree by a name, and what then left by it had that name before.

        They changed places, by an exchange with something outside; the stream tells of that in this order.
        """
        directory = self._where_they_take_turns(came_in, left)
        return directory is not None and self._came_back(directory, came_in, left)

    def _where_they_take_turns(self, came_in: Move, left: Move) -> Directory | None:
        """Return the directory where something came into the tree by a name and something left it by the same name."""
        if (came_in.new_wd, came_in.new_name) != (left.old_wd, left.old_name):
            return None
        if self._tree.heard_by(came_in.old_wd) is not None or self._tree.heard_by(left.new_wd) is not None:
            return None
        return self._tree.heard_by(came_in.new_wd)

    def are_surely_exchanged(self, one: bytes, other: bytes) -> bool:
        """Whether what is at two paths was there before and changed in the same instant, as only an exchange does."""
        first, second = self._backing.times_beneath(one), self._backing.times_beneath(other)
        if first is None or second is None:
            return False
        return first.changed == second.changed and 0 < first.born < first.changed and 0 < second.born < second.changed

    def may_be_there(self, directory: Directory, name: bytes) -> bool:
        """Whether there is something of a name, as far as a look at the present can tell."""
        if self._backing.stat_beneath(directory.prefix + name) is not None:
            return True
        # A directory that has just moved may not be announced yet.
        there = self._backing.stat_beneath(directory.path)
        is_there = there is not None and InodeKey(there.st_dev, there.st_ino) == directory.key
        return not (is_there and self._crawler.is_in_place(directory))

    def _was_there(self, directory: Directory, mirror: Move) -> bool:
        """Whether there may have been something at the name that a rename took something from, once it had done so."""
        # A look shows the present, in which that may have left the name.
        leaves = mirror.old_wd is not None and self._stream.leaves(mirror.old_wd, mirror.old_name, mirror.end)
        return leaves or self.may_be_there(directory, mirror.old_name)

    def _evidence(self, old: Directory, new: Directory, move: Move, mirror: Move) -> bool | None:
        """Whether it was the other directory that moved back; None as long as nothing tells."""
        one, other = old.children.get(move.old_name), new.children.get(move.new_name)
        if other is not None and other.wd is not None and self._stream.has_moved(other.wd, move.position):
            return True
        if one is not None and one.wd is not None and mirror.old_wd is not None:
            back = self._stream.has_moved(one.wd, mirror.end, (mirror.old_wd, mirror.old_name))
            return False if back else None
        return None

    def _came_back(self, directory: Directory, came_in: Move, left: Move) -> bool:
        """Whether what left a name, after something came in by it, is what had the name before."""
        if not came_in.is_dir and not left.is_dir:
            return self.may_be_there(directory, came_in.new_name)
        before = directory.children.get(came_in.new_name)
        if before is not None and before.wd is not None:
            return self._stream.has_moved(before.wd, came_in.position)
        # A directory that is renamed over is not there to leave.
        return came_in.is_dir != left.is_dir or self._crawler.is_missed(directory, came_in.new_name)


def is_watched(directory: Directory | None) -> bool:
    """Whether there is a directory that tells of its own moves."""
    return directory is not None and directory.wd is not None


def _is_made_behind(items: Sequence[Item], index: int) -> bool:
    """Whether the name that a rename took something from is made anew next: then nothing had come to it."""
    move = items[index]
    assert isinstance(move, Move)
    place = move.old_wd, move.old_name
    for item in items[index + 1 : index + _NEAR]:
        if isinstance(item, Move):
            if place in ((item.old_wd, item.old_name), (item.new_wd, item.new_name)):
                return False
        elif (item[1], item[4]) == place:
            return bool(item[2] & IN_CREATE)
    return False
