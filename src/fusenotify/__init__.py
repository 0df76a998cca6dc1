"""Change notification for a FUSE mount that works: every change behind the mount is heard in front of it."""

from fusenotify.client import Group, Mark, locate, lookup, open_group, watch
from fusenotify.errors import (
    BadCursor,
    DaemonGone,
    EnvironmentProblem,
    FusenotifyError,
    HistoryGone,
    LimitReached,
    NotAMount,
    NotPermitted,
    ProtocolError,
    StaleHandle,
    UsageError,
)
from fusenotify.events import Event, Kind, Origin, Reason, Scope
from fusenotify.tls import Tls

__all__ = [
    "BadCursor",
    "DaemonGone",
    "EnvironmentProblem",
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
    "ProtocolError",
    "Reason",
    "Scope",
    "StaleHandle",
    "Tls",
    "UsageError",
    "locate",
    "lookup",
    "open_group",
    "watch",
]
