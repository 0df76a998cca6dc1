"""What commands print on standard output: written at once, and an error where that is not possible."""

import os
import sys

from fusenotify.errors import EnvironmentProblem


def check_open() -> None:
    """Check that there is a standard output.

    Raises:
        EnvironmentProblem: it is closed. Its descriptor may be something else's by now.
    """
    if sys.stdout is None:
        raise EnvironmentProblem("standard output is closed, so there is nowhere to print to")


def put_line(text: str) -> None:
    """Print a line (errors as `write`); what is no UTF-8 is escaped."""
    check_open()
    write(f"{text}\n".encode(errors="backslashreplace"))


def write(data: bytes) -> None:
    """Write bytes, however long that takes.

    Raises:
        BrokenPipeError: whoever read has had enough.
        EnvironmentProblem: they cannot be written.
    """
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(sys.stdout.fileno(), view) :]
        except BrokenPipeError:
            raise
        except OSError as error:
            raise EnvironmentProblem(f"cannot write to standard output: {error.strerror}") from error


def shown(path: str | None) -> str:
    """Return a path as a terminal can show it: control characters and bytes that are no UTF-8 escaped."""
    if path is None:
        return ""
    return path if path.isprintable() else path.encode("unicode_escape", "surrogateescape").decode("ascii", "replace")
