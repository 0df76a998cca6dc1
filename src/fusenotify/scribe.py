"""The journal's thread: it looks at what events name, compares the tree at the start, and writes rows.

It alone changes rows, and never between a look and what is written of it. The lock of the database is held only while
rows are read or written, never while the tree is looked at: a filesystem that does not answer holds up nobody else.
"""

import contextlib
import functools
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from fusenotify.backing import Backing
from fusenotify.database import Database
from fusenotify.digest import CHANGES, folded
from fusenotify.entries import Entries
from fusenotify.events import EventRecord
from fusenotify.filesystems import Filesystems
from fusenotify.history import History
from fusenotify.inbox import Inbox, Task
from fusenotify.intents import Intents, Written
from fusenotify.inventory import Inventory
from fusenotify.looking import Looker
from fusenotify.progress import Progress
from fusenotify.rows import RACY, Look, Row, look_of

log = logging.getLogger(__name__)

MOST_TOMBSTONES: Final = 1 << 17  # paths that are gone, of which it is kept that they are, snapshots aside
_GATHER: Final = 1.0  # seconds from an event until it is written, unless somebody asks
_SHARE: Final = 4  # the part of the time that the thread leaves to others while events come, to one that it works
_RETRY: Final = 5.0  # seconds until what could not be written is tried again
_PAUSE: Final = 0.05  # seconds between looks at what events are awaited for
_HOUSEKEEPING: Final = 1 << 14  # events between two looks at what can be given up
_END: Final = 10.0  # seconds that the end may take


class Scribe:
    """Keeps the rows.

    Attributes:
        is_ready: the tree has been compared since the start.
        is_failing: the disk takes nothing.
        written: everything up to this event is in the database.
        hurry, link: see `Inbox`; `written` shows what has been done.
        has_links: there are files that have or may have several names, which events may not tell of.
    """

    def __init__(
        self,
        database: Database,
        history: History,
        intents: Intents,
        backing: Backing,
        filesystems: Filesystems,
        *,
        is_exclusive: bool,
        on_progress: Callable[[], None],
    ) -> None:
        """Begin with `start`; `on_progress` is called by the thread."""
        self._database = database
        self._history = history
        self._intents = intents
        self._backing = backing
        self._filesystems = filesystems
        self._looker = Looker(backing, filesystems)
        self._is_exclusive = is_exclusive
        self._on_progress = on_progress
        self.is_ready = self.is_failing = self.has_links = False
        self.written = -1
        self._inbox = Inbox()
        self.hurry, self.link = self._inbox.hurry, self._inbox.link
        self._began = time.time_ns() - RACY  # before anything is heard
        self._has_begun = False
        self._resting_until = 0.0
        self._since_housekeeping = _HOUSEKEEPING
        with database.reading() as connection:
            self._entries = Entries(connection)
        self._inventory = Inventory(backing, self._entries, filesystems)
        self._progress = Progress("fusenotify: entries compared with the journal")
        self._thread: threading.Thread | None = None

    # --- what others call --------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin the run, and compare the tree with what is known of it."""
        # A daemon thread: a filesystem that never answers must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="journal", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        if self._thread is not None:
            self._inbox.close()
            self._thread.join(_END)
            if self._thread.is_alive():
                log.warning("the backing filesystem does not answer; the next start looks at it in doubt")

    def follow(self, records: Sequence[EventRecord]) -> None:
        """Take note of what is told."""
        if not self._inbox.follow(records):
            self.is_ready = False

    def settle(self, seq: int) -> None:
        """Take note that nothing has changed that was not told up to an event, all of which is written."""
        self._inbox.settle(seq, is_written=self.written >= seq and self.is_ready)

    @property
    def is_partial(self) -> bool:
        """Whether something has not been compared, as its filesystem does not answer: it is tried again and again."""
        return bool(self._inventory.silent)

    @property
    def compared(self) -> int:
        """How many entries of the tree have been looked at since the start."""
        return self._inventory.compared

    # --- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._await_work():
            began = time.monotonic()
            try:
                had_events = self._round()
            except Exception:
                log.exception("the journal stumbled; the whole tree is looked at again")
                self._history.set_sound(False)
                with contextlib.suppress(sqlite3.Error), self._database.reading():
                    self._entries.forget_cached()
                self.is_failing, self.is_ready = True, False
                self._inbox.lose()
                had_events = True
            if had_events:
                now = time.monotonic()
                self._resting_until = now + max(_GATHER, _SHARE * (now - began))
            self._on_progress()
        self._end()

    def _begin(self, connection: sqlite3.Connection) -> None:
        began = time.time_ns()
        look = look_of(os.fstat(self._backing.root_fd), began)
        self._entries.compare_root(look, self._history.start)
        self._looker.note([(b".", look)])
        self._history.begin(connection)
        only = None
        if self._is_exclusive and self._history.was_exclusive:
            only = self._entries.directories(self._intents.earlier)
            if self._intents.earlier:
                self._entries.doubt_linked(self._history.start)
        self._inventory.begin(self._history.start, self._intents.earlier, only)

    def _await_work(self) -> bool:
        """Return when there is something to do, False if that is to end."""
        if self.is_failing:
            self._inbox.await_end(_RETRY)
        elif self._inventory.waits:
            if not self._inbox.await_any(self.written, _PAUSE):
                self._inventory.look_again(is_idle=True)
        elif self.is_ready and self._since_housekeeping < _HOUSEKEEPING:
            self._inbox.await_any(self.written)
            self._inbox.await_urgent(self.written, max(self._resting_until - time.monotonic(), _GATHER))
        return not self._inbox.is_closing

    def _round(self) -> bool:
        """Do what there is to do; return whether there were events."""
        if not self._has_begun:
            if not self._attempt(self._begin):
                return False
            self._has_begun = True
            self._history.set_sound(True)
        task = self._inbox.take()
        if task.looks_at_unheard and self._inventory.resume(self._history.start + task.seq):
            self.is_ready = False
        if task.is_lost:
            self.is_ready = False
            if not self._attempt(functools.partial(self._start_over, task.seq)):
                self._inbox.lose()
                return False
        records = [record for batch in task.batches for record in batch if record.kind & CHANGES]
        is_due = bool(task.batches) or bool(task.linked) or task.seq > self.written or self.is_failing
        if is_due and not self._attempt_events(records, task):
            self._inbox.put_back(task)
            return True
        if not self.is_ready or self._inventory:
            self._compare()
        elif self._since_housekeeping >= _HOUSEKEEPING:
            self._attempt(self._keep_house)
        self._since_housekeeping += len(records)
        return bool(records)

    def _attempt(self, work: Callable[[sqlite3.Connection], object]) -> bool:
        """Do something that the disk may not let us do, and return whether it did."""
        try:
            with self._database.transaction() as connection:
                work(connection)
        except sqlite3.Error as error:
            self.fail(error)
            with contextlib.suppress(sqlite3.Error), self._database.reading():
                self._entries.forget_cached()
            return False
        if self.is_failing:
            log.warning("%s is written again", self._database.path)
            self._history.set_sound(True)
            self.is_failing = False
        return True

    def _attempt_touching(self, work: Callable[[sqlite3.Connection], set[int]]) -> bool:
        """Do the same with what returns the directories that are in doubt by it, by inode number."""
        written: list[Written] = []
        is_done = self._attempt(lambda connection: written.append(self._intents.touch(connection, work(connection))))
        if is_done:
            self._intents.confirm(*written)
        return is_done

    def fail(self, error: sqlite3.Error) -> None:
        """Take note that the disk takes nothing."""
        if not self.is_failing:
            log.warning(
                "%s cannot be written: %s. Until it can, `since` names all there is",
                self._database.path, error,
            )  # fmt: skip
            self._history.set_sound(False)
        self.is_failing = True

    def _start_over(self, seq: int, connection: sqlite3.Connection) -> None:
        """Look at everything anew; where we heard of changes, what is there may have changed without a trace."""
        self._history.lost(connection)
        self._inventory.begin(self._history.start + seq, self._intents.in_doubt(connection))

    # --- events ------------------------------------------------------------------------------------------------------

    def _attempt_events(self, records: Sequence[EventRecord], task: Task) -> bool:
        steps = list(folded(records))
        looks, directories = self._looker.look(steps)
        links = self._looker.changed(self._linked()) if task.looks_at_unheard else []
        older = self._looker.look_again() if task.looks_again else {}

        def write(connection: sqlite3.Connection) -> set[int]:
            touched = {look.inode for look in looks.values() if look.is_dir}
            touched.update(self._written_down(directories))
            self._entries.follow(steps, self._history.start, looks)
            for row, look in links:
                if self._entries.find(row.parent, row.name) == row:  # else an event has told of it
                    self._entries.touch(row, look, self._history.start + task.seq)
                    touched.add(self._entries.inode_at(row.parent))
            self._entries.note_linked(task.linked, self._history.start + task.seq)
            for path, look in older.items():
                self._entries.look_again(path, look)
                touched.add(self._entries.inode_of(path.rpartition(b"/")[0] or b"."))
            self._history.written(connection, task.seq)
            self.has_links = self._entries.has_links()
            return touched

        if not self._attempt_touching(write):
            return False
        unlisted = self._unlisted()
        self.is_ready = self.is_ready and not unlisted
        self.written = task.seq
        self._looker.note(looks.items())
        self._looker.note((path, look) for path, look in directories.items() if look is not None)
        self._inventory.look_again(is_idle=False)
        for number in unlisted:
            self._inventory.add(number, self._history.start + task.seq)
        return True

    def _unlisted(self) -> set[int]:
        """Return the directories in which there may be what neither an event has told of nor the comparison will find.

        As long as that is under way, one that moves may come from where it has not looked yet to where it has.
        """
        unlisted = {*self._entries.unlisted, *(() if self.is_ready else self._entries.moved)}
        self._entries.unlisted.clear()
        self._entries.moved.clear()
        return unlisted

    def _written_down(self, directories: dict[bytes, Look | None]) -> Iterator[int]:
        """Write down what directories are in which something has changed, and yield where something may have changed.

        What changes in a directory changes its attributes as well, and no event tells of that. But if it was changed
        itself, that is still to be found by a comparison, or to be told: so the one that it is in is one of those.
        """
        for path, look in directories.items():
            yield look.inode if look is not None else self._entries.inode_of(path)
            if look is not None and self.is_ready:
                yield self._entries.renew(path, look)

    def _linked(self) -> list[tuple[bytes, Row]]:
        with self._database.reading():
            return self._entries.linked()

    # --- comparing, cleaning up, ending ------------------------------------------------------------------------------

    def _compare(self) -> None:
        with self._database.reading():
            directories = self._inventory.take()
        seen = self._inventory.look(directories)
        self._progress.show(self._inventory.compared)
        with self._database.reading():
            differences = self._inventory.differences(seen)

        def write(_: sqlite3.Connection) -> set[int]:
            self._inventory.write(differences)
            # What has changed since the start may still be to be told: when it is, nothing differs any more.
            return self._inventory.recent(differences, self._began)

        if differences and not self._attempt_touching(write):
            self._inbox.lose()
            return
        self._looker.note(self._inventory.looks(differences))
        if not self._inventory and self._attempt(self._compared):
            self.is_ready = True
            self._progress.end()

    def _compared(self, connection: sqlite3.Connection) -> None:
        self._history.compared(connection)
        if not self._inventory.silent:
            self._intents.forget_earlier(connection)
        self.has_links = self._entries.has_links()

    def _keep_house(self, connection: sqlite3.Connection) -> None:
        if not self._entries.purge():
            self._history.compact(connection, MOST_TOMBSTONES)
            self._since_housekeeping = 0

    def _end(self) -> None:
        """Write what is left, and that nothing is in doubt, if that is so."""
        while self._inbox and not self.is_failing:
            self._round()
        if not self._inbox.is_settled or self.is_failing or self._inventory or self.is_partial:
            return
        try:
            self._filesystems.sync(self._backing)
        except OSError as error:
            log.warning("the backing tree cannot be brought to its disk: %s", error)
            return
        self._attempt(self._ended)

    def _ended(self, connection: sqlite3.Connection) -> None:
        self._intents.forget_all(connection)
        self._history.ended(connection, self.written)
