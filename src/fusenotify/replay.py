"""Answers a replayer: the process that does on the mount what has been done behind it, for the kernel to tell of it.

Each of its requests belongs to a plan, and is answered from what is so already; nothing on the backing tree is
touched. Of which nodes `subjects` says.
"""

import errno
import os
import secrets
import stat
from collections.abc import Callable, Sequence
from typing import Any, Final

import pyfuse3

from fusenotify import events
from fusenotify._linux import proc_path
from fusenotify.attributes import answer_of, entry_of, unchecked
from fusenotify.inodes import FIRST_VIRTUAL, ROOT_NODEID, Node
from fusenotify.nodes import Nodes
from fusenotify.orders import Progress
from fusenotify.plans import Pending, Place, Plan
from fusenotify.references import stale
from fusenotify.status import Replays
from fusenotify.subjects import Subjects
from fusenotify.takings import Takings

REPLAYED_FH: Final = FIRST_VIRTUAL - 1  # what a replayer has open; no descriptor has that number


def refusal(request: str) -> OSError:
    """Return how a request is refused: ESTALE.

    To a lookup that is ENOMEM: after any other error the kernel would drop the name, and unmount what is mounted there.
    """
    return OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) if request == "lookup" else stale()


class Replay:
    """The plans that are being carried out, and the answers to who does it.

    Attributes:
        pids: the processes whose requests are answered here, and never by the operations they look like.
        takings: what the kernel takes from the answers.
        outside: the name in the root of the directory that stands for everything outside of the tree.
        is_covered: whether something is mounted on what is below the mount.
    """

    def __init__(self, nodes: Nodes, pending: Pending, subjects: Subjects, counts: Replays) -> None:
        self.pids: set[int] = set()
        self.is_covered: Callable[[], bool] = lambda: False
        # By chance, so that nothing has it already. It is no secret: to anybody but a replayer there is no such name.
        self.outside = b".fusenotify-" + secrets.token_hex(16).encode()
        self._nodes = nodes
        self._table = nodes.table
        self._pending = pending
        self._subjects = subjects
        self._counts = counts
        self._outside: Node | None = None  # while the kernel holds it
        self._pid = 0
        self._progress: Progress | None = None
        self._handed_out: dict[int, Plan] = {}
        self.takings = Takings()
        self._answers: dict[str, Callable[..., Any]] = {
            "lookup": self._lookup,
            "getattr": self._getattr,
            "getxattr": self._getxattr,
            "setattr": self._setattr,
            "mknod": self._mknod,
            "mkdir": self._mkdir,
            "symlink": self._symlink,
            "unlink": self._remove,
            "rmdir": self._remove,
            "rename": self._rename,
            "open": self._open,
            "statfs": self._statfs,
        }

    # --- whom to answer ----------------------------------------------------------------------------------------------

    def employ(self, pid: int, progress: Progress) -> None:
        """Answer a process, which says by `progress` what it is doing."""
        self.pids.add(pid)
        self._pid, self._progress = pid, progress

    def dismiss(self) -> None:
        """Answer nobody; what the last one still asks is refused."""
        self.takings.end()
        self._pid = 0
        self._progress = None

    def bury(self, pid: int) -> None:
        """Take note that a process has ended, so that its number may be another one's."""
        self.pids.discard(pid)

    @property
    def directories(self) -> list[Node]:
        """The directories that the plan is about that is being carried out."""
        plan = self._plan
        return [place.directory for place in plan.places] if plan is not None else []

    @property
    def _plan(self) -> Plan | None:
        """The plan that is being carried out."""
        return None if self._progress is None else self._handed_out.get(self._progress.executing())

    def answer(self, request: str, *args: Any) -> Any:
        """Return the answer to a request of a replayer; its arguments are those of the handler, the context last.

        Raises:
            OSError: as `refusal` has it, when it belongs to no plan that still fits.
        """
        plan = self._plan if args[-1].pid == self._pid else None
        answer = self._answers.get(request)
        try:
            if plan is None or not self._may_go_on(plan) or plan.void or answer is None:
                raise stale()
            return answer(plan, *args[:-1])
        except OSError as error:
            if request == "lookup" and error.errno != errno.ENOENT:
                raise refusal(request) from error
            raise

    def _may_go_on(self, plan: Plan) -> bool:
        """Whether a plan's requests may be answered, or something of an earlier one's has to be done again before."""
        return self._progress is not None and self.takings.are_taken_before(plan.number, self._progress)

    # --- what to carry out -------------------------------------------------------------------------------------------

    def hand_out(self, most: int) -> list[Plan]:
        """Return the plans that are to be carried out next; what does not fit any more is left out."""
        plans: list[Plan] = []
        while not plans and (taken := self._pending.take(most)):
            for plan in taken:
                if plan.void:
                    self._finish(plan)
                    continue
                self._handed_out[plan.number] = plan
                plans.append(plan)
        return plans

    def drop(self, plans: Sequence[Plan]) -> None:
        """Forget plans that were handed out, and that nobody would hear of."""
        for plan in plans:
            del self._handed_out[plan.number]
            self._forget(plan)

    def take_back(self, plans: Sequence[Plan]) -> None:
        """Take back plans that were not begun."""
        for plan in plans:
            del self._handed_out[plan.number]
        self._pending.give_back(plans)

    def finish(self, plan: Plan, error: int) -> None:
        """Take note of how a plan went: 0, or an errno."""
        del self._handed_out[plan.number]
        self.takings.end()
        plan.void |= error != 0 or not plan.made
        self._finish(plan)

    def _finish(self, plan: Plan) -> None:
        # Nothing else is to be done: the kernel keeps no name and no attribute without asking.
        if plan.void:
            self._counts.fell_back += 1
        else:
            self._counts.delivered += 1
        self._forget(plan)

    def _forget(self, plan: Plan) -> None:
        self._pending.finish(plan)
        pinned = [place.directory for place in plan.places]
        pinned += [node for node in (plan.subject, plan.other, *plan.paved) if node is not None]
        self._nodes.forget([(node.nodeid, 1) for node in pinned])

    # --- requests ----------------------------------------------------------------------------------------------------

    def _lookup(self, plan: Plan, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        if parent == ROOT_NODEID and name == self.outside:
            return self._entry(self._outside_node(), 0)
        self._subjects.decide(plan)
        if self._is_outside(parent):
            if plan.old is None and plan.subject is not None:
                return self._entry(plan.subject, 1)
            raise _no_entry()
        if _is_at(plan.old, parent, name):
            return self._told(plan, plan.old, plan.subject)
        if _is_at(plan.new, parent, name):
            return self._told(plan, plan.new, plan.other)
        for node in self._table.entries.at(self._table.get(parent).key, name)[-1:]:
            return self._entry(node, 0)  # on the way to a directory
        raise stale()

    def _outside_node(self) -> Node:
        if self._outside is None or self._table.find(self._outside.nodeid) is None:
            self._outside = self._table.add_ghost(stat.S_IFDIR)
        return self._outside

    def _is_outside(self, nodeid: int) -> bool:
        return self._outside is not None and nodeid == self._outside.nodeid

    def _told(self, plan: Plan, place: Place | None, node: Node | None) -> pyfuse3.EntryAttributes:
        """Say what a name stands for before the change."""
        assert place is not None
        known = self._table.entries.at(*place.entry)
        if known and known[-1] is not node and self.is_covered():
            raise stale()  # the kernel would unmount what is mounted there
        if node is None:
            raise _no_entry()
        if plan.kind == events.CLOSE_WRITE and node.file_type != stat.S_IFREG:
            raise stale()  # the kernel opens a FIFO without asking us, and its readers would take that for a writer
        is_removed = plan.kind == events.DELETE or (node is plan.other and not plan.is_exchange)
        return self._entry(node, is_removed)

    def _entry(self, node: Node, more_links: int) -> pyfuse3.EntryAttributes:
        """Tell the kernel of a node; `more_links` is how many names the kernel is about to take from it."""
        entry = self._attributes(node)
        entry.st_ino = pyfuse3.InodeT(node.nodeid)
        entry.generation = node.generation
        entry.entry_timeout = 0
        if not node.is_dir:
            entry.st_nlink += more_links
        entry.st_nlink = max(entry.st_nlink, 1)  # or the kernel would take its end for told
        node.lookups += 1
        return entry

    def _getxattr(self, plan: Plan, nodeid: int, name: bytes) -> bytes:
        """Tell an attribute as it is: the kernel asks for access control lists, and keeps them for everybody."""
        try:
            with self._nodes.descriptor(self._table.get(nodeid)) as fd:
                return os.getxattr(proc_path(fd), name)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None  # it is gone

    def _getattr(self, plan: Plan, nodeid: int) -> pyfuse3.EntryAttributes:
        return self._attributes(self._table.get(nodeid))

    def _setattr(
        self, plan: Plan, nodeid: int, wanted: object, fields: pyfuse3.SetattrFields, fh: object
    ) -> pyfuse3.EntryAttributes:
        self._subjects.decide(plan)
        asked = events.ATTRIB if fields.update_atime else events.MODIFY
        if plan.kind != asked or plan.subject is None or nodeid != plan.subject.nodeid:
            raise stale()
        plan.made = True
        return unchecked(self._attributes(plan.subject, is_checked=False))

    def _mknod(self, plan: Plan, parent: int, name: bytes, mode: int, rdev: int) -> pyfuse3.EntryAttributes:
        return self._make(plan, parent, name)

    def _mkdir(self, plan: Plan, parent: int, name: bytes, mode: int) -> pyfuse3.EntryAttributes:
        return self._make(plan, parent, name)

    def _symlink(self, plan: Plan, parent: int, name: bytes, target: bytes) -> pyfuse3.EntryAttributes:
        return self._make(plan, parent, name)

    def _make(self, plan: Plan, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        place = plan.old
        if plan.kind != events.CREATE or place is None or not _is_at(place, parent, name):
            raise stale()
        plan.made = True
        if not self._pending.is_taken_later(plan, place.entry):
            with self._subjects.found(place) as found:
                if found is not None and stat.S_IFMT(found.stat.st_mode) == plan.file_type:
                    return entry_of(self._nodes.remember(place.directory, name, found), found.stat)
        ghost = self._table.add_ghost(plan.file_type)
        self._table.entries.put(ghost, *place.entry)
        return self._entry(ghost, 0)

    def _remove(self, plan: Plan, parent: int, name: bytes) -> None:
        if plan.kind != events.DELETE or plan.subject is None or plan.old is None or not _is_at(plan.old, parent, name):
            raise stale()
        plan.made = True
        self._table.entries.take(plan.subject, *plan.old.entry)

    def _rename(self, plan: Plan, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        fits = _is_at(plan.old, parent, name) if plan.old is not None else self._is_outside(parent)
        fits &= _is_at(plan.new, new_parent, new_name) if plan.new is not None else self._is_outside(new_parent)
        if plan.kind != events.RENAME or not fits or plan.subject is None:
            raise stale()
        plan.made = True
        self._renamed(plan, plan.subject)

    def _renamed(self, plan: Plan, subject: Node) -> None:
        entries = self._table.entries
        if plan.old is not None:
            entries.take(subject, *plan.old.entry)
        if plan.new is None:
            return
        if plan.other is not None:
            entries.take(plan.other, *plan.new.entry)
        entries.put(subject, *plan.new.entry)
        self._nodes.note_name(plan.new.directory, plan.new.name)
        if plan.is_exchange and plan.old is not None and plan.other is not None:
            entries.put(plan.other, *plan.old.entry)
            self._nodes.note_name(plan.old.directory, plan.old.name)

    def _open(self, plan: Plan, nodeid: int, flags: int) -> pyfuse3.FileInfo:
        subject = plan.subject
        if plan.kind != events.CLOSE_WRITE or subject is None or nodeid != subject.nodeid:
            raise stale()
        if flags & os.O_TRUNC or subject.file_type != stat.S_IFREG:
            raise stale()
        plan.made = True
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(REPLAYED_FH), direct_io=True, keep_cache=False)

    def _statfs(self, plan: Plan) -> pyfuse3.StatvfsData:
        """Say by the number of files whether a replayer has to ask for the attributes again.

        Everything that was asked before the kernel took the last ones has come here before this.
        """
        figures = pyfuse3.StatvfsData()
        figures.f_files = int(not self.takings.are_taken())
        return figures

    def _attributes(self, node: Node, *, is_checked: bool = True) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node, made up where it is gone; see `unchecked` for `is_checked`."""
        try:
            with self._nodes.descriptor(node) as fd:
                told = answer_of(node, os.fstat(fd))
        except OSError:
            return _made_up(node)
        if node.file_type == stat.S_IFREG:
            self.takings.begin(node.nodeid, told, self._plan, is_checked=is_checked)
        return told


def _is_at(place: Place | None, nodeid: int, name: bytes) -> bool:
    return place is not None and place.directory.nodeid == nodeid and place.name == name


def _no_entry() -> OSError:
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def _made_up(node: Node) -> pyfuse3.EntryAttributes:
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(node.key.number)
    entry.attr_timeout = 0
    entry.st_mode = pyfuse3.ModeT(node.file_type | 0o700)
    entry.st_uid, entry.st_gid = os.geteuid(), os.getegid()
    entry.st_nlink = 0
    return entry
