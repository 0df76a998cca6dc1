"""Progress on a terminal, and nothing where there is none."""

import io
import os
import pty

import pytest

from fusenotify import progress


def test_a_line_that_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours, "rb", buffering=0) as seen:
        monkeypatch.setattr("sys.stderr", terminal)
        shown = progress.Progress("compared")
        shown.show(1234)
        assert seen.read(100) == b"\rcompared: 1,234"
        shown.end()
        assert seen.read(100) == b"\r\x1b[K"


def test_nothing_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr("sys.stderr", pipe)
        shown = progress.Progress("compared")
        shown.show(1)
        shown.end()
        monkeypatch.setattr("sys.stderr", io.StringIO())
        shown.show(1)
    with os.fdopen(read_end) as told:
        assert told.read() == ""
