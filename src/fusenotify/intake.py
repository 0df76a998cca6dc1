"""How much the daemon holds for clients of what they have asked and what they are answered.

Requests that are half sent or wait for their turn, and answers that nobody reads, take memory however few they are. One
user has a share of it, and all have one together. Where that is used up no more is taken, nor answered, of those who
take part in it; a little everybody may always have, so that one client does not keep another from asking.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

MOST_BYTES_PER_UID: Final = 16 << 20
MOST_BYTES: Final = 64 << 20
MODEST: Final = 4096  # bytes that each client may have in any case
_PART: Final = 8  # what is used up is free again when such a part of it has been given back


class Share:
    """What is held for one client.

    Attributes:
        size: bytes of memory.
        on_room: called when there is room again for what the client had to wait with.
    """

    __slots__ = ("_intake", "on_room", "size", "uid")

    def __init__(self, intake: "Intake", uid: int) -> None:
        self.on_room: Callable[[], None] = lambda: None
        self.uid = uid
        self.size = 0
        self._intake = intake

    @property
    def room(self) -> int | None:
        """How many bytes more may be held; None where there is plenty."""
        return max(MODEST - self.size, 0) if self._intake.is_used_up(self.uid) else None

    def hold(self, size: int) -> None:
        """Take note that so many bytes are held now."""
        change, self.size = size - self.size, size
        self._intake.count(self.uid, change)

    def close(self) -> None:
        """Take note that nothing is held, now and later."""
        self._intake.leave(self)  # first, or it would be told of the room that it makes
        self.hold(0)


class Intake:
    """What is held for all clients."""

    def __init__(self, most_bytes: int = MOST_BYTES, most_bytes_per_uid: int = MOST_BYTES_PER_UID) -> None:
        self._most_bytes = most_bytes
        self._most_bytes_per_uid = most_bytes_per_uid
        self._bytes: Counter[int] = Counter()  # by user
        self._all_bytes = 0
        self._used_up: set[int] = set()  # users who have to wait until much of theirs has been given back
        self._all_used_up = False
        self._shares: dict[Share, None] = {}

    def open(self, uid: int) -> Share:
        """Return the share of a new client."""
        share = Share(self, uid)
        self._shares[share] = None
        return share

    def leave(self, share: Share) -> None:
        """Forget the share of a client that has gone."""
        self._shares.pop(share, None)

    def is_used_up(self, uid: int) -> bool:
        """Whether a user has to wait."""
        return self._all_used_up or uid in self._used_up

    def count(self, uid: int, change: int) -> None:
        """Count memory that a user takes, or, with a negative number, gives back."""
        self._all_bytes += change
        self._bytes[uid] += change
        if not self._bytes[uid]:
            del self._bytes[uid]
        if self._bytes[uid] > self._most_bytes_per_uid:
            self._used_up.add(uid)
        elif uid in self._used_up and self._bytes[uid] <= _enough(self._most_bytes_per_uid):
            self._used_up.remove(uid)
            self._wake(share for share in tuple(self._shares) if share.uid == uid)
        if self._all_bytes > self._most_bytes:
            self._all_used_up = True
        elif self._all_used_up and self._all_bytes <= _enough(self._most_bytes):
            self._all_used_up = False
            self._wake(tuple(self._shares))

    @staticmethod
    def _wake(shares: Iterable[Share]) -> None:
        for share in shares:
            share.on_room()


def _enough(most: int) -> int:
    return most - most // _PART
