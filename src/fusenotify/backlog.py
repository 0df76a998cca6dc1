"""Holds back what is told until it is known whether anybody watches the mount natively at all.

Mostly nobody does, and then a change must cost next to nothing: a batch of events is put into a list, and the list is
thrown away at the end of the next look.
"""

from collections.abc import Callable, Sequence
from typing import Final

from fusenotify.events import EventRecord
from fusenotify.onlookers import Onlookers

_MOST_HELD: Final = 1 << 16  # events


class Backlog:
    """Passes events on in order, but for those that nobody can have expected."""

    def __init__(self, onlookers: Onlookers, pass_on: Callable[[Sequence[EventRecord], int], None]) -> None:
        """Hold nothing yet; `pass_on` gets events with the stamp of when they were told."""
        self._onlookers = onlookers
        self._pass_on = pass_on
        self._held: list[tuple[Sequence[EventRecord], int]] = []
        self._n_held = 0
        onlookers.on_look = self._sift

    def follow(self, records: Sequence[EventRecord]) -> None:
        """Take what is told."""
        self._held.append((records, self._onlookers.stamp))
        self._n_held += len(records)
        if self._onlookers.is_nobody(self._onlookers.stamp) is not None or self._n_held > _MOST_HELD:
            self.release()

    def release(self) -> None:
        """Pass on everything: the paths of what is held are about to become wrong."""
        held, self._held = self._held, []
        self._n_held = 0
        for records, stamp in held:
            self._pass_on(records, stamp)

    def _sift(self) -> None:
        """Drop what was told before a look that has shown nobody; pass everything on if there is somebody."""
        held, self._held = self._held, []
        for records, stamp in held:
            if (is_nobody := self._onlookers.is_nobody(stamp)) is None:
                self._held.append((records, stamp))
            elif not is_nobody:
                self._pass_on(records, stamp)
        self._n_held = sum(len(records) for records, _ in self._held)
