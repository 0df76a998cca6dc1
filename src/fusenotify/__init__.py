"""Change notification for a FUSE mount that works: every change behind the mount is heard in front of it."""

from fusenotify.client import Group, Mark, open_group, watch
from fusenotify.errors import (
    BadCursor,
    DaemonGone,
    FusenotifyError,
    HistoryGone,
    LimitReached,
    NotAMount,
    NotPermitted,
    StaleHandle,
)
from fusenotify.events import Event, Kind, Origin, Reason, Scope

__all__ = [
    "BadCursor",
    "DaemonGone",
    "Event",
    "FusenotifyError",
    "Group",
    "HistoryGone",
    "Kind",
    "LimitReached",
    "Mark",
    "NotAMount",
    "NotPermitted",
    "Origin",
    "Reason",
    "Scope",
    "StaleHandle",
    "open_group",
    "watch",
]
