"""What is told to every group at once: some events, and what is known of them."""

from collections.abc import Sequence
from dataclasses import dataclass

from fusenotify.events import EventRecord
from fusenotify.marks import Ways
from fusenotify.pinned import Sighting


@dataclass(slots=True, frozen=True)
class News:
    """Some events, for groups to select from.

    Attributes:
        records: the events.
        usual: those of them that are not only told where they are asked for.
        ways: the tree as it is for all of them.
        sightings: of each event, what marked files it is of.
        named: the events with handles; as `records` where nobody asks for them.
        named_sightings: as `sightings`, for those.
    """

    records: Sequence[EventRecord]
    usual: Sequence[EventRecord]
    ways: Ways
    sightings: Sequence[Sighting]
    named: Sequence[EventRecord]
    named_sightings: Sequence[Sighting]
