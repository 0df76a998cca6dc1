"""The client library: groups of marks on one or several daemons, and the events they let through as an async iterator.

It runs under trio and under asyncio. Whoever waits, for an event or for an answer of a daemon, reads for all; tasks in
the background there are only for what this process watches by itself, and to wait for a daemon that is to come back.
"""

from fusenotify.client.connection import Connection
from fusenotify.client.group import Group, open_group, scope_of, watch
from fusenotify.client.history import (
    Change,
    ChangesSince,
    Snapshot,
    create_snapshot,
    cursor,
    delete_snapshot,
    list_snapshots,
    since,
)
from fusenotify.client.marks import Mark
from fusenotify.client.questions import locate, lookup, status

__all__ = [
    "Change",
    "ChangesSince",
    "Connection",
    "Group",
    "Mark",
    "Snapshot",
    "create_snapshot",
    "cursor",
    "delete_snapshot",
    "list_snapshots",
    "locate",
    "lookup",
    "open_group",
    "scope_of",
    "since",
    "status",
    "watch",
]
