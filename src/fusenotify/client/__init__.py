"""The client library: groups of marks on one or several daemons, and the events they let through as an async iterator.

It runs under trio and under asyncio. There is no task in the background: whoever waits, for an event or for an answer,
reads for all.
"""

from fusenotify.client.connection import Connection, Mark
from fusenotify.client.group import Group, open_group, watch
from fusenotify.client.questions import locate, lookup, status

__all__ = ["Connection", "Group", "Mark", "locate", "lookup", "open_group", "status", "watch"]
