"""Finds the nodes that a replay is about.

The kernel has to be told of each change as it was at its place in the order, and the tree has gone on since. So it is
what the kernel knows under the name (`Dentries`), or what is there now where no later plan takes it away, or else a
*ghost*: a node of nothing, that lasts until the kernel drops it.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

from fusenotify import events
from fusenotify.attributes import has_names
from fusenotify.backing import Found
from fusenotify.events import IS_DIR, OTHER_IS_DIR
from fusenotify.inodes import ROOT_NODEID, Node
from fusenotify.nodes import Nodes
from fusenotify.plans import Pending, Place, Plan

_DEEPEST: Final = 4096  # directories above one another


class Subjects:
    """Knows what is in the tree now, and what is still to be replayed."""

    def __init__(self, nodes: Nodes, pending: Pending) -> None:
        self._nodes = nodes
        self._table = nodes.table
        self._pending = pending

    def way_to(self, plan: Plan, place: Place) -> bytes:
        """Return the path by which the replayer reaches a directory: the names that the kernel knows.

        The kernel keeps no name that nobody uses, and forgets the directories above one that is only watched. For what
        is missing the way is that of the event's place in the stream, and what is there, or a ghost, is put up.
        """
        way: list[bytes] = []
        directory = place.directory
        while directory.entries and len(way) < _DEEPEST:
            above, name = directory.entries[0]
            way.append(name)
            parents = self._table.directories(above)
            if not parents:
                break
            directory = parents[-1]
        if directory.nodeid == ROOT_NODEID:
            return b"/".join(reversed(way))
        self._pave(plan, place)
        return place.way

    def _pave(self, plan: Plan, place: Place) -> None:
        """Put up what the way to a directory lacks."""
        directory = self._table.get(ROOT_NODEID)
        names = place.way.split(b"/")
        for name in names[:-1]:
            step = Place(directory, name)
            directory = self._directory_at(step) or self._new_ghost(IS_DIR)
            self._table.entries.put(directory, *step.entry)
            plan.paved.append(directory)
        self._table.entries.put(place.directory, directory.key, names[-1])

    def _directory_at(self, place: Place) -> Node | None:
        """Return the directory that a name stands for, kept for who asks."""
        for node in self._table.entries.at(*place.entry)[-1:]:
            if node.is_dir:
                return self._pinned(node)
        with self.found(place) as found:
            if found is None or not stat.S_ISDIR(found.stat.st_mode):
                return None
            return self._nodes.remember(place.directory, place.name, found)

    def type_to_make(self, plan: Plan, place: Place) -> int:
        """Return what is to be made in a place, one of the S_IF* of stat(2)."""
        if plan.flags & IS_DIR:
            return stat.S_IFDIR
        if not self._pending.is_taken_later(plan, place.entry):
            with self.found(place) as found:
                if found is not None and not stat.S_ISDIR(found.stat.st_mode):
                    return stat.S_IFMT(found.stat.st_mode)
        return stat.S_IFREG

    def decide(self, plan: Plan) -> None:
        """Find the nodes that a plan is about, and keep them until it has been carried out."""
        if plan.decided:
            return
        plan.decided = True
        if plan.kind == events.RENAME:
            self._decide_rename(plan)
        elif plan.kind != events.CREATE and plan.old is not None:
            if plan.kind == events.DELETE:
                plan.subject = self._departed(plan.old, is_dir=bool(plan.flags & IS_DIR))
            else:
                plan.subject = self._standing(plan, plan.old)
            plan.subject = self._pinned(plan.subject) or self._new_ghost(plan.flags & IS_DIR)

    def _departed(self, place: Place, *, is_dir: bool) -> Node | None:
        """Return what stood for a name and is gone: the earliest, which went unheard.

        Never what is alive under that name, which would lose a link, nor a directory that is alive anywhere: the kernel
        would never let anybody use it again.
        """
        with self.found(place) as found:
            for node in self._table.entries.at(*place.entry):
                is_here = found is not None and node.identity == found.identity
                if node.is_dir == is_dir and not is_here and not (is_dir and self._is_alive(node)):
                    return node
        return None

    def _standing(self, plan: Plan, place: Place) -> Node | None:
        """Return what a name stands for: what the kernel takes for it, or else what is there."""
        if not place.name:
            return place.directory
        known = self._table.entries.at(*place.entry)
        if known and _fits(plan, known[-1].file_type):
            return known[-1]
        with self.found(place) as found:
            if found is None or not _fits(plan, stat.S_IFMT(found.stat.st_mode)):
                return None
            if self._pending.is_taken_later(plan, place.entry):
                return None
            return self._remembered(place, found)

    def _decide_rename(self, plan: Plan) -> None:
        is_dir, other_is_dir = bool(plan.flags & IS_DIR), bool(plan.flags & OTHER_IS_DIR)
        plan.subject = self._pinned(self._moved(plan, plan.old, plan.new, is_dir=is_dir)) or self._new_ghost(is_dir)
        if plan.new is None:
            return
        if plan.is_exchange:
            other = self._moved(plan, plan.new, plan.old, is_dir=other_is_dir)
            plan.other = self._pinned(other) or self._new_ghost(other_is_dir)
        else:
            other = self._departed(plan.new, is_dir=is_dir)
            plan.other = self._pinned(other) if other is not plan.subject else None

    def _moved(self, plan: Plan, old: Place | None, new: Place | None, *, is_dir: bool) -> Node | None:
        """Return what has gone from one name to another: what the kernel knew there and has left, or what has come."""
        with self.found(old) as left, self.found(new) as come:
            known = self._table.entries.at(*old.entry) if old is not None else ()
            known = [node for node in known if node.is_dir == is_dir and not _is_of(node, left)]
            if known:
                return next((node for node in known if _is_of(node, come)), known[0])
            if new is None or come is None or stat.S_ISDIR(come.stat.st_mode) != is_dir:
                return None
            return None if self._pending.is_taken_later(plan, new.entry) else self._remembered(new, come)

    def _remembered(self, place: Place, found: Found) -> Node:
        """Return the node of what is in a place; the kernel is yet to be told."""
        node = self._nodes.remember(place.directory, place.name, found)
        node.lookups -= 1  # what remembering counts; whoever asks keeps it
        return node

    def _new_ghost(self, is_dir: int) -> Node:
        ghost = self._table.add_ghost(stat.S_IFDIR if is_dir else stat.S_IFREG)
        ghost.lookups += 1
        return ghost

    def _pinned(self, node: Node | None) -> Node | None:
        """Keep a node for the plan that is about it."""
        if node is not None:
            node.lookups += 1
        return node

    @contextlib.contextmanager
    def found(self, place: Place | None) -> Iterator[Found | None]:
        """Look at what is in a place now."""
        if place is None:
            yield None
            return
        try:
            found = self._nodes.backing.find(self._nodes.directory_fd(place.directory), place.name)
        except OSError:
            yield None
            return
        with contextlib.closing(found):
            # What is mounted there is left alone, or it would be busy.
            yield found if found.key.device == place.directory.key.device else None

    def _is_alive(self, node: Node) -> bool:
        try:
            with self._nodes.descriptor(node) as fd:
                return has_names(os.fstat(fd))
        except OSError:
            return False


def _fits(plan: Plan, file_type: int) -> bool:
    """Whether a change can be one of something of this type."""
    if plan.kind == events.CLOSE_WRITE:
        return file_type == stat.S_IFREG
    return (file_type == stat.S_IFDIR) == bool(plan.flags & IS_DIR)


def _is_of(node: Node, found: Found | None) -> bool:
    return found is not None and node.identity == found.identity
