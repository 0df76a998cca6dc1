"""What the journal's thread is still to do: events that wait to be written, and who waits for them to be."""

import threading
from collections.abc import Sequence
from typing import Final, NamedTuple

from fusenotify.digest import CHANGES
from fusenotify.events import EventRecord

_MANY: Final = 1 << 14  # events that are written at once
_MOST_BACKLOG: Final = 1 << 18  # events that wait; beyond it the whole tree is looked at again


class Task(NamedTuple):
    """What is to be done at one time.

    Attributes:
        batches: events.
        seq: the last of them.
        looks_at_unheard, looks_again: see `Inbox.hurry`.
        linked: see `Inbox.link`.
        is_lost: events before these are lost.
    """

    batches: list[Sequence[EventRecord]]
    seq: int
    looks_at_unheard: bool
    looks_again: bool
    linked: set[int]
    is_lost: bool


class Inbox:
    """Takes what others want to have done, and has it taken by the one thread that does it.

    Attributes:
        is_closing: there is only an end to come.
        is_settled: nothing has changed that was not told, and all of that is written.
    """

    def __init__(self) -> None:
        self.is_closing = self.is_settled = False
        self._due = threading.Condition()
        self._batches: list[Sequence[EventRecord]] = []
        self._waiting = 0  # events
        self._followed = 0
        self._wanted = -1
        self._looks_at_unheard = self._looks_again = False
        self._linked: set[int] = set()
        self._is_lost = False

    def __bool__(self) -> bool:
        """Whether events wait."""
        return bool(self._batches)

    # --- what others want --------------------------------------------------------------------------------------------

    def follow(self, records: Sequence[EventRecord]) -> bool:
        """Take events, and return False if they are lost with all that wait, as those are too many."""
        with self._due:
            self._followed = records[-1].seq
            self.is_settled = self.is_settled and not any(record.kind & CHANGES for record in records)
            self._batches.append(records)
            self._waiting += len(records)
            is_kept = self._waiting <= _MOST_BACKLOG
            if not is_kept:
                self._batches.clear()
                self._waiting = 0
                self._is_lost = True
            if self._is_lost or len(self._batches) == 1 or self._waiting > _MANY:
                self._due.notify()
            return is_kept

    def hurry(self, seq: int, *, looks_at_unheard: bool = False, looks_again: bool = False) -> None:
        """Have everything up to an event written now.

        Args:
            seq: the event.
            looks_at_unheard: what no event tells of is looked for, in files with several names and where a filesystem
                did not answer. It counts as changed at that event, which has to be a new one.
            looks_again: what had changed only just before it was looked at is looked at once more.
        """
        with self._due:
            self._wanted = max(self._wanted, seq)
            self._looks_at_unheard |= looks_at_unheard
            self._looks_again |= looks_again
            self._due.notify()

    def link(self, inode: int) -> None:
        """Take note of a file that got another name: its inode number, as rows have it.

        It may be changed by that name and lose it again before anybody has looked at that.
        """
        with self._due:
            self._linked.add(inode)

    def settle(self, seq: int, *, is_written: bool) -> None:
        """Take note that nothing has changed that was not told up to an event, if everything up to it is written."""
        with self._due:
            self.is_settled = is_written and seq >= self._followed

    def close(self) -> None:
        """Have the thread end."""
        with self._due:
            self.is_closing = True
            self._due.notify()

    # --- the thread --------------------------------------------------------------------------------------------------

    def await_end(self, timeout: float) -> None:
        """Return when the end has come, or after so many seconds."""
        with self._due:
            self._due.wait_for(lambda: self.is_closing, timeout)

    def await_any(self, written: int, timeout: float | None = None) -> bool:
        """Return True when anything waits, False after so many seconds; `written` as for `await_urgent`."""
        with self._due:
            return self._due.wait_for(lambda: bool(self._batches) or self._is_urgent(written), timeout)

    def await_urgent(self, written: int, timeout: float) -> None:
        """Return when somebody waits for more than is written, or there is much to do, or after so many seconds."""
        with self._due:
            self._due.wait_for(lambda: self._is_urgent(written), timeout)

    def _is_urgent(self, written: int) -> bool:
        return self.is_closing or self._is_lost or self._wanted > written or self._waiting > _MANY

    def take(self) -> Task:
        """Return everything that there is to do."""
        with self._due:
            seq = max(self._followed, self._wanted)
            task = Task(self._batches, seq, self._looks_at_unheard, self._looks_again, self._linked, self._is_lost)
            self._batches, self._waiting, self._linked = [], 0, set()
            self._looks_at_unheard = self._looks_again = self._is_lost = False
            return task

    def put_back(self, task: Task) -> None:
        """Take back what could not be done."""
        with self._due:
            self._batches = task.batches + self._batches
            self._waiting += sum(map(len, task.batches))
            self._looks_at_unheard |= task.looks_at_unheard
            self._linked |= task.linked

    def lose(self) -> None:
        """Take note that the events that were taken last are lost."""
        with self._due:
            self._is_lost = True
