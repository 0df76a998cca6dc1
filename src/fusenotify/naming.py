"""What is known of the objects of events, for the groups that ask for their handles."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from fusenotify.events import EventRecord
from fusenotify.marks import Place


class Identified(NamedTuple):
    """The handles that go with an event; None where they are not known.

    Attributes:
        handle: of the object.
        parent: of the directory that its path lies in.
        old_parent: of the one that its old path lies in.
        other: of an exchange, of the object that was at the new path.
    """

    handle: str | None = None
    parent: str | None = None
    old_parent: str | None = None
    other: str | None = None


class Identifies(Protocol):
    """Who finds the handles (see `identification`)."""

    def identify(self, records: Sequence[EventRecord]) -> list[Identified]:
        """Return what goes with some events, the tree being as it is for them."""

    def handle_of(self, place: Place) -> str | None:
        """Return the handle of an object that has marks."""


class Anonymous:
    """Who finds none."""

    def identify(self, records: Sequence[EventRecord]) -> list[Identified]:
        """Return that nothing is known."""
        return [Identified()] * len(records)

    def handle_of(self, place: Place) -> str | None:
        """Return that nothing is known."""
        return None


def named(record: EventRecord, known: Identified) -> EventRecord:
    """Return an event with handles."""
    return EventRecord(
        record.seq, record.time_ns, record.kind, record.flags, record.path, record.old_path, record.pid, record.uid,
        record.reason, known.handle, known.parent, known.old_parent,
    )  # fmt: skip
