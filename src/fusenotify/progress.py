"""How far something that takes its time has come, on a terminal only."""

import os
import sys
import time
from typing import Final

_PATIENCE: Final = 1.0  # seconds until anything is shown
_INTERVAL: Final = 0.2


class Progress:
    """One line that is written over and over, and wiped away in the end."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + _PATIENCE
        self._is_shown = False

    def show(self, count: int) -> None:
        """Tell how much is done."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _INTERVAL
            self._is_shown |= self._write(f"\r{self._what}: {count:,}")

    def end(self) -> None:
        """Take it away."""
        if self._is_shown:
            self._write("\r\x1b[K")
            self._is_shown = False

    def _write(self, text: str) -> bool:
        """Write to the terminal; return whether there is one: a daemon lets go of its own."""
        try:
            if not os.isatty(sys.stderr.fileno()):
                return False
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            return False
        return True
