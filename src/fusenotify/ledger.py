"""What each user takes of the daemon: how many groups and marks, and how much memory for what they have not read."""

from typing import Final

MOST_BYTES_PER_UID: Final = 64 << 20
MOST_BYTES: Final = 256 << 20
_PART: Final = 8  # what is too much is brought down by such a part more, so that this is not done all the time


class Usage:
    """What one user takes.

    Attributes:
        uid: the user.
        groups: how many groups are open.
        marks: how many marks these have.
        bytes: memory of what waits in their own queues.
    """

    __slots__ = ("_ledger", "bytes", "groups", "marks", "uid")

    def __init__(self, uid: int, ledger: "Ledger") -> None:
        self.uid = uid
        self.groups = 0
        self.marks = 0
        self.bytes = 0
        self._ledger = ledger

    def take(self, size: int) -> None:
        """Count memory that is needed, or, with a negative number, no longer needed."""
        self.bytes += size
        self._ledger.count(self, size)


class Ledger:
    """What all users take together, and who has to give way when that is too much."""

    def __init__(self, most_bytes: int = MOST_BYTES, most_bytes_per_uid: int = MOST_BYTES_PER_UID) -> None:
        self._most_bytes = most_bytes
        self._most_bytes_per_uid = most_bytes_per_uid
        self._bytes = 0
        self._users: dict[int, Usage] = {}
        self._grown: Usage | None = None  # the user who was the last to exceed what one may take

    def of(self, uid: int) -> Usage:
        """Return what a user takes."""
        usage = self._users.get(uid)
        if usage is None:
            usage = self._users[uid] = Usage(uid, self)
        return usage

    def close_group(self, usage: Usage) -> None:
        """Count one group less, and forget a user who has none left."""
        usage.groups -= 1
        if not usage.groups:
            del self._users[usage.uid]

    def count(self, usage: Usage, size: int) -> None:
        """Count memory that a user takes, or gives back."""
        self._bytes += size
        if usage.bytes > self._most_bytes_per_uid:
            self._grown = usage

    def excess(self) -> tuple[int, int] | None:
        """Return whose queues have to give way and by how many bytes; None while all is well."""
        user, most = self._grown, self._most_bytes_per_uid
        if user is not None and user.bytes > most:
            return user.uid, user.bytes - most + most // _PART
        self._grown = None
        if self._bytes <= self._most_bytes:
            return None
        user = max(self._users.values(), key=lambda one: one.bytes)
        return user.uid, min(user.bytes, self._bytes - self._most_bytes + self._most_bytes // _PART)
