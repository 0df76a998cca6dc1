"""What names stand for as far as a stream tells whose equal records merge while they are unread.

fanotify puts a change that equals an unread one of the same process into that one's place. So a name that was created,
renamed away and back and deleted is told as created *and* deleted, then renamed there and back; and of a rename there,
back and there again the third is not told at all. Neither the order nor the outcome can be known from that. But it
takes two records of one name, the later of which was queued before the earlier was read: such a name is *in doubt*, and
has to be looked at. All others are as they were told.

Pure: no descriptor, no clock.
"""

from collections import OrderedDict
from dataclasses import dataclass
from itertools import islice
from typing import Final

_MOST: Final = 1 << 16  # names remembered

Place = tuple[bytes, bytes]  # the handle of a directory, and a name in it


@dataclass(slots=True)
class Standing:
    """What a name stands for.

    Attributes:
        target: the handle of the object; None for nothing.
        is_dir: whether that is a directory.
        is_known: whether anything is known of that at all.
        until: records before this number may have been queued when the last record of the name was read.
    """

    target: bytes | None = None
    is_dir: bool = False
    is_known: bool = False
    until: int = 0


class Standings:
    """The names that records have told of lately."""

    def __init__(self) -> None:
        self._places: OrderedDict[Place, Standing] = OrderedDict()
        self._doubts: dict[Place, Standing] = {}

    def __len__(self) -> int:
        """Return how many names are in doubt."""
        return len(self._doubts)

    def clear(self) -> None:
        """Forget everything: records have been lost."""
        self._places.clear()
        self._doubts.clear()

    def came(self, place: Place, target: bytes | None, number: int, until: int, *, is_dir: bool) -> None:
        """Take note that an object has come to a name, by the record of this number; `until` as in `Standing`."""
        standing = self._touched(place, number, until)
        standing.target, standing.is_dir, standing.is_known = target, is_dir, True

    def went(self, place: Place, target: bytes | None, number: int, until: int) -> None:
        """Take note that an object has left a name; what an exchange has brought there meanwhile stays."""
        standing = self._touched(place, number, until)
        if not standing.is_known or standing.target == target:
            standing.target, standing.is_known = None, True

    def doubt(self, place: Place) -> None:
        """Take note that the order of what a record tells of a name is not known."""
        self._doubts[place] = self._places[place]

    def has_left(self, place: Place, target: bytes | None) -> bool:
        """Whether an object does not have a name any more for sure, though it is still written to by way of it."""
        standing = self._places.get(place)
        return standing is not None and standing.is_known and standing.target != target and place not in self._doubts

    def some_in_doubt(self, count: int) -> list[tuple[Place, Standing]]:
        """Take out names in doubt, for a look at them."""
        some = list(islice(self._doubts.items(), count))
        for place, _ in some:
            del self._doubts[place]
        return some

    def _touched(self, place: Place, number: int, until: int) -> Standing:
        standing = self._places.get(place)
        if standing is None:
            standing = self._places[place] = self._doubts.get(place) or Standing()
            if len(self._places) > _MOST:
                self._places.popitem(last=False)
        elif number < standing.until:
            self._doubts[place] = standing
        standing.until = until
        self._places.move_to_end(place)
        return standing
