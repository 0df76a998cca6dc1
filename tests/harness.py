"""A real daemon on a real mount, for tests: started as a process, awaited by what it says, and always taken away."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fusenotify import _linux

FUSENOTIFY = [sys.executable, "-m", "fusenotify"]
_RUN = "\nimport sys\nfrom fusenotify.cli import main\nsys.exit(main())\n"
PATIENCE = 30.0  # seconds until a test that waits in vain fails


class Daemon:
    """A process that serves a backing tree.

    Attributes:
        source: the backing tree.
        log: what it has said.
        process: the process.
    """

    def __init__(self, source: Path, command: Sequence[str], ready: str) -> None:
        """Start `command`, and wait until it says `ready`."""
        self.source = source
        self.log = ""
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()
        while ready not in (line := self._lines.get(timeout=PATIENCE) or ""):
            if not line:
                self.close()
                raise AssertionError(f"the daemon did not start: {self.log}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            self._lines.put(line)
        self._lines.put(None)

    @property
    def pid(self) -> int:
        """Process id of the daemon."""
        return self.process.pid

    @property
    def tls(self) -> str:
        """The address at which it listens for TLS, by what it said at its start."""
        found = re.search(r"listening on (tls://\S+)", self.log)
        assert found is not None, self.log
        return found[1]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """End the daemon by a signal and return its exit code."""
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the process for a while: what happens meanwhile it looks at later only."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Take everything away, whatever state it is in."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stderr is not None
        self.process.stderr.close()


class Mount(Daemon):
    """A mounted backing tree, on a tmpfs of the test session.

    Attributes:
        mountpoint: where it is mounted.
        socket: the unix socket the daemon listens on as well.
    """

    def __init__(
        self,
        source: Path,
        mountpoint: Path,
        state_dir: Path,
        arguments: Sequence[str] = (),
        command: Sequence[str] = FUSENOTIFY,
    ) -> None:
        self.mountpoint = mountpoint
        self.socket = state_dir / "socket"
        places = (str(source), str(mountpoint), "--state-dir", str(state_dir), "--listen", f"unix:{self.socket}")
        super().__init__(source, [*command, "mount", *places, *arguments], "is mounted at")

    def close(self) -> None:
        """Take everything away, whatever state it is in."""
        try:
            super().close()
        finally:
            with contextlib.suppress(OSError):
                _linux.umount2(os.fsencode(self.mountpoint), _linux.MNT_DETACH)


class Restartable:
    """A backing tree, on a tmpfs of the test session, whose daemon can be ended and started again.

    Attributes:
        source: the backing tree.
        mountpoint: where it is mounted.
        mount: the daemon that runs, or has run last.
    """

    def __init__(self, directory: Path, arguments: Sequence[str] = (), command: Sequence[str] = FUSENOTIFY) -> None:
        self.source, self.mountpoint, self._state = (directory / name for name in ("source", "mount", "state"))
        for path in (self.source, self.mountpoint, self._state):
            path.mkdir()
        self._arguments = arguments
        self._command = command
        self.mount = self.start()

    def start(self) -> Mount:
        """Start a daemon."""
        self.mount = Mount(self.source, self.mountpoint, self._state, self._arguments, self._command)
        return self.mount

    def stop(self, how: signal.Signals) -> None:
        """End the daemon by a signal, and check that nothing had gone wrong."""
        self.mount.stop(how)
        self.close()

    def close(self) -> None:
        """Take everything away, whatever state it is in; nothing may have gone wrong."""
        self.mount.close()
        assert "Traceback" not in self.mount.log, self.mount.log


@contextlib.contextmanager
def served(source: Path, *arguments: str, command: Sequence[str] = FUSENOTIFY) -> Iterator[Daemon]:
    """Serve a tree without a mount; afterwards check that nothing went wrong."""
    daemon = Daemon(source, [*command, "serve", str(source), *arguments], "is served")
    try:
        yield daemon
    finally:
        daemon.close()
    assert "Traceback" not in daemon.log, daemon.log


@contextlib.contextmanager
def mounted(directory: Path, arguments: Sequence[str] = (), command: Sequence[str] = FUSENOTIFY) -> Iterator[Mount]:
    """Mount a new backing tree in `directory`, which has to be on a tmpfs; afterwards check that nothing went wrong."""
    source, mountpoint, state_dir = (directory / name for name in ("source", "mount", "state"))
    for path in (source, mountpoint, state_dir):
        path.mkdir(exist_ok=True)
    mount = Mount(source, mountpoint, state_dir, arguments, command)
    try:
        yield mount
    finally:
        mount.close()
    assert "Traceback" not in mount.log, mount.log


def changed(patch: str) -> list[str]:
    """Return the beginning of a command that runs some Python first, which changes our program."""
    return [sys.executable, "-c", patch + _RUN]


@contextlib.contextmanager
def patched(directory: Path, patch: str, arguments: Sequence[str] = ()) -> Iterator[Mount]:
    """Mount with a daemon that runs some Python first, which changes it; its log may say anything."""
    source, mountpoint, state_dir = (directory / name for name in ("source", "mount", "state"))
    for path in (source, mountpoint, state_dir):
        path.mkdir(exist_ok=True)
    mount = Mount(source, mountpoint, state_dir, arguments, changed(patch))
    try:
        yield mount
    finally:
        mount.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until something is so that nothing tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Watch:
    """A running `fusenotify watch --json`, line by line."""

    def __init__(self, *arguments: str | Path, command: Sequence[str] = FUSENOTIFY) -> None:
        self.process = subprocess.Popen(
            [*command, "watch", "--json", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.ready = self.next()
        assert self.ready is not None, self.errors()
        assert self.ready["type"] == "ready"

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))
        self._lines.put(None)

    def next(self) -> dict[str, Any] | None:
        """Wait for the next line and return it; None at the end."""
        return self._lines.get(timeout=PATIENCE)

    def until(self, path: str) -> list[dict[str, Any]]:
        """Return everything up to and including the first event on a path."""
        lines = []
        while (line := self.next()) is not None:
            lines.append(line)
            if path in (line.get("path"), line.get("old_path")):
                return lines
        raise AssertionError(f"watch ended before {path!r} came; it told {lines}")

    def rest(self) -> list[dict[str, Any]]:
        """Wait for the end and return everything up to it."""
        lines = []
        while (line := self.next()) is not None:
            lines.append(line)
        return lines

    def errors(self) -> str:
        """Wait for the end and return what was said on stderr."""
        self.process.wait(PATIENCE)
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def run(*arguments: str | Path, timeout: float = PATIENCE) -> "subprocess.CompletedProcess[str]":
    """Run one fusenotify command to its end."""
    return subprocess.run(
        [*FUSENOTIFY, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )
