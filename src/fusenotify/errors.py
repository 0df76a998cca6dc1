"""The errors a user of fusenotify can meet, each with what went wrong, why, and what to do."""

import os
from typing import ClassVar


class FusenotifyError(Exception):
    """Base of every error that fusenotify raises on purpose; `exit_code` is what the command line ends with."""

    exit_code: ClassVar[int] = 1


class UsageError(FusenotifyError):
    """The request itself makes no sense: an unknown option, a malformed value."""

    exit_code = 2


class BadCursor(UsageError):
    """The cursor is malformed, or it belongs to another tree."""


class EnvironmentProblem(FusenotifyError):
    """This machine does not let us: no /dev/fuse, a missing program, a limit, a busy mount."""

    exit_code = 4


class NotAMount(EnvironmentProblem):
    """The path is not on a fusenotify mount, so nothing remote can be heard there."""


class NotPermitted(EnvironmentProblem):
    """The daemon refuses this to the caller's user."""


class LimitReached(EnvironmentProblem):
    """A limit on groups, marks or connections of this user is used up."""


class DaemonGone(FusenotifyError):
    """The daemon cannot be reached, or it ended while we listened."""

    exit_code = 5


class HistoryGone(FusenotifyError):
    """The changes since that cursor are no longer recorded."""

    exit_code = 6


class StaleHandle(FusenotifyError):
    """The object of this handle is gone, or the handle is not one of this tree."""


class ProtocolError(FusenotifyError):
    """The other side sent what the protocol does not allow."""


def quoted(name: bytes) -> str:
    """Return a name or path as messages show it: in quotes, what is no printable text escaped."""
    return repr(os.fsdecode(name))
