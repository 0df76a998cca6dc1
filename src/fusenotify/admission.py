"""What a client may ask at all: how long the parts of a request may be, and what it takes to keep one."""

from typing import Final

from fusenotify.errors import LimitReached, UsageError
from fusenotify.groups import MOST_UIDS
from fusenotify.protocol import AddMark, Request

REQUEST_COST: Final = 100  # bytes of memory that a request takes on top of what it says
_NUMBER_COST: Final = 36  # bytes of memory of each number in it
_LONGEST_PATH: Final = 1 << 16  # bytes
_LONGEST_SCOPE: Final = 64


def cost_of(request: Request, payload: bytes) -> int:
    """Return about how many bytes of memory a request takes until it is carried out."""
    numbers = len(request.uids or ()) if isinstance(request, AddMark) else 0
    return REQUEST_COST + len(payload) + _NUMBER_COST * numbers


def check_mark(request: AddMark) -> None:
    """Refuse what is longer than anything that makes sense, before it is looked for or quoted.

    Raises:
        UsageError: of the path or the scope.
        LimitReached: of the list of users.
    """
    check_path(request.path)
    if request.mark < 1:
        raise UsageError(f"marks are numbered from 1 on, so {request.mark} is none")
    if len(request.scope) > _LONGEST_SCOPE:
        raise UsageError(f"a text of {len(request.scope)} characters is no scope")
    if request.uids is not None and len(request.uids) > MOST_UIDS:
        raise LimitReached(f"a mark can name {MOST_UIDS} users, not {len(request.uids)}; name none to hear of all")


def check_path(path: bytes) -> None:
    """Refuse what can be no path below the directory that a client sees.

    Raises:
        UsageError: it is too long, empty, or has a zero byte.
    """
    if len(path) > _LONGEST_PATH:
        raise UsageError(f"a path of {len(path)} bytes is longer than the {_LONGEST_PATH} that are allowed")
    if not path or b"\0" in path:
        raise UsageError("a path has at least one byte, `.` for the directory itself, and none that is zero")
