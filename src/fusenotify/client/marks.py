"""What a group hears, whoever tells it: its marks, and the sources of their events."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from fusenotify.errors import NotAMount, UsageError
from fusenotify.events import Event, Kind, Origin, Scope
from fusenotify.protocol import (
    AddMark,
    AskCursor,
    AskSnapshots,
    AskStatus,
    CreateSnapshot,
    DeleteSnapshot,
    Done,
    Locate,
    Lookup,
    More,
    Recount,
    RemoveMark,
    Reply,
    Since,
    Sync,
)
from fusenotify.targets import LocalTarget, Target

if TYPE_CHECKING:
    from fusenotify.client.ignoring import Ignore

BATCH: Final = 1024  # events that are handed on at a time

Question = (
    AddMark | RemoveMark | Recount | Sync | AskStatus | Lookup | Locate
    | AskCursor | Since | More | CreateSnapshot | DeleteSnapshot | AskSnapshots
)  # fmt: skip


@dataclass(eq=False)
class Mark:
    """A group's interest in a part of a tree; `event.mark` of its events. Read-only.

    Attributes:
        target: what was marked, as it was given.
        scope: how far it reaches.
        kinds: what is asked for.
        origin: whose changes are asked for.
        cursor: the position from which on nothing is missed: `since`, if the mark was made with that.
        live: the position from which on changes are told as they happen; None while those are told that were recorded
            earlier.
        number: what the group calls it.
        source: what its source is found by.
        ignore: what of its events is not handed on.
        oneshot: whether it ends with its first event.
    """

    target: str
    scope: Scope
    kinds: Kind
    origin: Origin
    cursor: str
    number: int = field(repr=False)
    source: object = field(repr=False)
    ignore: "Ignore | None" = field(default=None, repr=False)
    oneshot: bool = False
    live: str | None = None


class Source(Protocol):
    """Where events come from: a daemon, or a tree that this process watches by itself.

    Attributes:
        epoch: what its positions belong to.
        marks: the marks there are, by number.
        asked: how each of them was asked for.
        position: up to where nothing has been missed; None before the first mark.
    """

    epoch: str
    marks: dict[int, Mark]
    asked: dict[int, AddMark]
    position: int | None

    @property
    def target(self) -> Target | LocalTarget:
        """What it was reached by."""

    async def request(self, message: Question) -> Reply:
        """Have something done and return the answer."""

    async def mark(self, message: AddMark, make: Callable[[Done], Mark]) -> Mark:
        """Have a mark made; `make` makes it of the answer, before any event behind the answer is looked at."""

    async def unmark(self, mark: Mark) -> None:
        """Remove a mark; what waits for it is dropped."""

    async def read(self) -> None:
        """Wait until there is something more (DaemonGone: nothing more will come)."""

    def lose(self, seq: int, time_ns: int, reason: str) -> None:
        """Queue an overflow event."""

    @property
    def is_idle(self) -> bool:
        """Whether it watches something that no mark asks for any more."""

    @property
    def has_news(self) -> bool:
        """Whether events wait."""

    def pop(self) -> list[Event]:
        """Return some of the oldest events that wait; none where something else has come than events."""

    def cursor_of(self, number: int) -> str | None:
        """Return the cursor from which a mark misses nothing, if nothing more comes of this source; None if none is."""

    async def aclose(self) -> None:
        """Let go of everything."""


def only_one(marks: dict[int, Mark]) -> Mark | None:
    """Return the mark that an event of a whole source concerns: the only one, None where there are more."""
    return next(iter(marks.values())) if len(marks) == 1 else None


def check_mark(target: LocalTarget, scope: Scope, origin: Origin, since: str | None) -> None:
    """Check that a mark makes sense on no mount.

    Raises:
        NotAMount: it asks for remote changes only, or for those of earlier.
        UsageError: such an object has no such scope.
    """
    if since is not None:
        raise NotAMount(f"{target.given} is not on a fusenotify mount, so nobody has recorded what has changed there")
    if origin == Origin.REMOTE:
        raise NotAMount(
            f"{target.given} is not on a fusenotify mount, so nothing remote can be heard there; "
            "mount it with `fusenotify mount SOURCE DIR`, or ask for local changes as well"
        )
    if scope == Scope.FILESYSTEM:
        raise UsageError(
            f"{target.given} is not on a fusenotify mount, and only such a one can be marked as a whole: mark a subtree"
        )
    if scope != Scope.INODE and not target.is_dir:
        raise UsageError(f"{target.given} is no directory; mark it with the scope `inode`")
