"""Holds back what is told until it is known whether anybody watches the mount natively at all.

Mostly nobody does, and then a change must cost next to nothing: a batch of events is put into a list, and the list is
thrown away at the end of the next look.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final

from fusenotify.events import EventRecord
from fusenotify.onlookers import Onlookers
from fusenotify.planning import Planner

_MOST_HELD: Final = 1 << 13  # events: what is held is worked through at once when a directory moves
_MANY_HELD: Final = 1 << 12  # so many are worth a look that would come later
_Held = tuple[list[EventRecord], int]  # events, and the stamp of when they were told


class Backlog:
    """Passes events on in order, but for those that nobody can have expected."""

    def __init__(self, onlookers: Onlookers, planner: Planner) -> None:
        """Hold nothing yet; the planner gets what may have been expected, and what was not."""
        self._onlookers = onlookers
        self._planner = planner
        self._held: list[_Held] = []
        self._n_held = 0
        onlookers.on_look = self._sift

    def follow(self, records: Sequence[EventRecord]) -> None:
        """Take what is told."""
        stamp = self._onlookers.stamp
        self._n_held += len(records)
        if self._held and self._held[-1][1] == stamp:  # the next look has been asked for, and answers for these too
            self._held[-1][0].extend(records)
        else:
            self._held.append((list(records), stamp))
            if self._onlookers.is_nobody(stamp) is False:
                self.release()
        if self._n_held > _MOST_HELD:
            self.release()
        elif self._n_held > _MANY_HELD:
            self._onlookers.hurry()

    def release(self) -> None:
        """Pass on everything: who watches is to be found out of each event, and paths may be about to become wrong."""
        held, self._held = self._held, []
        self._n_held = 0
        if held:
            # At once, as what was done through the mount since may have overtaken what comes before it.
            self._planner.follow(list(_each(held)), held[-1][1])

    def _sift(self) -> None:
        """Drop what was told before a look that has shown nobody; pass everything on if there is somebody."""
        if self._held and self._onlookers.is_nobody(self._held[0][1]) is False:
            self.release()
            return
        unexpected = [one for one in self._held if self._onlookers.is_nobody(one[1])]
        self._planner.ignore(_each(unexpected))
        self._held = self._held[len(unexpected) :]
        self._n_held = sum(len(records) for records, _ in self._held)


def _each(held: Iterable[_Held]) -> Iterator[EventRecord]:
    return chain.from_iterable(records for records, _ in held)
