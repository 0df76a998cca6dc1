"""The words of a change: kinds, origins, scopes, and the event in its two forms.

`EventRecord` is what the daemon builds, queues and sends: integers and bytes, cheap to make by the hundred thousand.
`Event` is what a user of the library holds: a read-only view of one record.
"""

import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import IntFlag, StrEnum
from typing import Final

import msgspec


class Kind(IntFlag):
    """What happened. Several kinds combine with `|` into the selection of a mark."""

    CREATE = 1
    DELETE = 2
    MODIFY = 4
    ATTRIB = 8
    CLOSE_WRITE = 16
    RENAME = 32
    OVERFLOW = 64
    UNMOUNT = 128
    OPEN = 256
    ACCESS = 512
    CLOSE_NOWRITE = 1024
    DELETE_SELF = 2048
    MOVE_SELF = 4096
    IGNORED = 8192
    DEFAULT = CREATE | DELETE | MODIFY | ATTRIB | CLOSE_WRITE | RENAME | OVERFLOW | UNMOUNT
    ALL = DEFAULT | OPEN | ACCESS | CLOSE_NOWRITE | DELETE_SELF | MOVE_SELF | IGNORED

    def __str__(self) -> str:
        """Return the kinds as the command line spells them: `create`, or `create,rename`."""
        return ",".join((kind.name or "").lower() for kind in self)


class Origin(StrEnum):
    """Where a change was made: through the mount (local) or behind it (remote)."""

    ANY = "any"
    LOCAL = "local"
    REMOTE = "remote"


class Scope(StrEnum):
    """How far a mark reaches: the object itself, the entries of a directory, what is below it, the whole mount."""

    INODE = "inode"
    DIR = "dir"
    SUBTREE = "subtree"
    FILESYSTEM = "filesystem"


class Reason(StrEnum):
    """Why an overflow event came: what could not keep up."""

    QUEUE = "queue"
    KERNEL = "kernel"
    RESTART = "restart"


# An IntFlag `&` costs 845 ns and an int `&` 48 ns, so the event path computes with these.
CREATE: Final = int(Kind.CREATE)
DELETE: Final = int(Kind.DELETE)
MODIFY: Final = int(Kind.MODIFY)
ATTRIB: Final = int(Kind.ATTRIB)
CLOSE_WRITE: Final = int(Kind.CLOSE_WRITE)
RENAME: Final = int(Kind.RENAME)
OVERFLOW: Final = int(Kind.OVERFLOW)
UNMOUNT: Final = int(Kind.UNMOUNT)
OPEN: Final = int(Kind.OPEN)
ACCESS: Final = int(Kind.ACCESS)
CLOSE_NOWRITE: Final = int(Kind.CLOSE_NOWRITE)
DELETE_SELF: Final = int(Kind.DELETE_SELF)
MOVE_SELF: Final = int(Kind.MOVE_SELF)
IGNORED: Final = int(Kind.IGNORED)
DEFAULT: Final = int(Kind.DEFAULT)
ALL: Final = int(Kind.ALL)
LIVE: Final = 16384  # no change: a mark has been told of the time before it, and hears of changes as they happen
USES: Final = OPEN | ACCESS | CLOSE_NOWRITE  # what leaves a file as it is, and is heard of only while somebody asks
ALWAYS: Final = OVERFLOW | UNMOUNT  # these come whatever kinds were asked for

EVERYTHING: Final = "0"  # the cursor before all that there is

IS_DIR: Final = 1
EXCHANGE: Final = 2
RECOVERED: Final = 4
LOCAL: Final = 8
OTHER_IS_DIR: Final = 16

_KIND_BY_BIT: Final = {int(kind): kind for kind in Kind}
_NAME_BY_BIT: Final = {int(kind): (kind.name or "").lower() for kind in Kind}
_EPOCH_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


class EventRecord(msgspec.Struct, array_like=True, gc=False):
    """One change, as it is queued and sent.

    Attributes:
        seq: position in the history of this run of the daemon; grows by one per event.
        time_ns: when the daemon read it, nanoseconds since the epoch.
        kind: one bit of `Kind`.
        flags: IS_DIR, EXCHANGE, RECOVERED, LOCAL; OTHER_IS_DIR where an exchange brought a directory to `old_path`.
        path: path below the root that the group sees; None for the side of a rename that lies outside.
        old_path: where a rename came from; None for other kinds and for what came from outside.
        pid: the process that did it, where known.
        uid: its user id, where known.
        reason: why an overflow event came; empty for other kinds.
        handle, parent, old_parent: of the object, of the directory of `path`, of that of `old_path`; None where nobody
            asked, or where it was gone before it was known.
    """

    seq: int
    time_ns: int
    kind: int
    flags: int
    path: bytes | None
    old_path: bytes | None = None
    pid: int | None = None
    uid: int | None = None
    reason: str = ""
    handle: str | None = None
    parent: str | None = None
    old_parent: str | None = None


class Event:
    """One change, as an iterator of the library yields it. Read-only.

    Attributes:
        mark: the mark that let it through; for an overflow or unmount the only mark on that tree, None if it has more.
        record: the event as it was sent.
    """

    __slots__ = ("_epoch", "mark", "record")

    def __init__(self, record: EventRecord, epoch: str, mark: object) -> None:
        self.record = record
        self._epoch = epoch
        self.mark = mark

    def _told_as(self, record: EventRecord) -> "Event":
        """Return the same event with another record: what of it is to be told."""
        return Event(record, self._epoch, self.mark)

    @property
    def kind(self) -> Kind:
        """What happened: exactly one kind."""
        return _KIND_BY_BIT[self.record.kind]

    @property
    def path(self) -> str | None:
        """Path relative to SOURCE, `.` for the root; bytes that are no UTF-8 are surrogate-escaped.

        None for a rename to a place outside all marks, and for an overflow that puts everything in doubt.
        """
        return _decoded(self.record.path)

    @property
    def old_path(self) -> str | None:
        """Where a rename came from; None for other kinds and for what came from outside all marks."""
        return _decoded(self.record.old_path)

    @property
    def exchange(self) -> bool:
        """Whether a rename swapped the two paths (RENAME_EXCHANGE of renameat2(2))."""
        return bool(self.record.flags & EXCHANGE)

    @property
    def is_dir(self) -> bool:
        """Whether the object is a directory."""
        return bool(self.record.flags & IS_DIR)

    @property
    def recovered(self) -> bool:
        """Whether the change was found by looking, not heard as it happened."""
        return bool(self.record.flags & RECOVERED)

    @property
    def origin(self) -> Origin:
        """Where the change was made."""
        return Origin.LOCAL if self.record.flags & LOCAL else Origin.REMOTE

    @property
    def reason(self) -> Reason | None:
        """Why an overflow event came; None for other kinds."""
        return Reason(self.record.reason) if self.record.reason else None

    @property
    def cursor(self) -> str:
        """The position right after this event in the history of changes."""
        return format_cursor(self._epoch, self.record.seq)

    @property
    def time(self) -> datetime:
        """When the daemon heard it (UTC)."""
        return _EPOCH_START + timedelta(microseconds=self.record.time_ns // 1000)

    @property
    def pid(self) -> int | None:
        """The process (thread group) that made the change, None where unknown."""
        return self.record.pid

    @property
    def uid(self) -> int | None:
        """The user id of that process, None where unknown."""
        return self.record.uid

    @property
    def handle(self) -> str | None:
        """The object's handle, as from `lookup`; None where nobody asked, or it was gone before it was known."""
        return self.record.handle

    @property
    def parent(self) -> str | None:
        """The handle of the directory that `path` lies in, None as above."""
        return self.record.parent

    @property
    def old_parent(self) -> str | None:
        """The handle of the directory that `old_path` lies in, None as above."""
        return self.record.old_parent

    def __repr__(self) -> str:
        sides = f"{self.old_path!r} -> {self.path!r}" if self.kind is Kind.RENAME else repr(self.path)
        return f"<Event {kind_name(self.kind)} {sides} {self.origin}{' recovered' if self.recovered else ''}>"


class RecordedEvent(Event):
    """A change of the time before the mark. Until all of those have been told, only their beginning is a cursor."""

    __slots__ = ("_since",)

    def __init__(self, record: EventRecord, since: str, mark: object) -> None:
        super().__init__(record, "", mark)
        self._since = since

    def _told_as(self, record: EventRecord) -> "Event":
        """Return the same event with another record: what of it is to be told."""
        return RecordedEvent(record, self._since, self.mark)

    @property
    def cursor(self) -> str:
        """The cursor that the mark was made with."""
        return self._since


def utc_text(time_ns: int) -> str:
    """Return nanoseconds since the epoch as ISO 8601 text with microseconds."""
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds // 1000:06}Z"


def _decoded(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def kind_name(kind: int) -> str:
    """Return the lower-case name of one kind, as the command line and JSON spell it."""
    return _NAME_BY_BIT[kind]


def parse_kinds(names: Iterable[str]) -> Kind:
    """Turn names such as `create` or `default` into a selection.

    Raises:
        ValueError: naming the word that is no kind.
    """
    selection = Kind(0)
    for name in names:
        try:
            selection |= Kind[name.strip().upper()]
        except KeyError:
            known = ", ".join(sorted((kind.name or "").lower() for kind in Kind))
            raise ValueError(f"{name!r} is no kind of event; the kinds are {known}, default, all") from None
    return selection


def format_cursor(epoch: str, seq: int) -> str:
    """Return the text form of a cursor."""
    return f"c:{epoch}:{seq}"
