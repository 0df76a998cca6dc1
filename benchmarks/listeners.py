"""The programs that listen, measured side by side: each is a process that prints what it hears."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks import peers
from benchmarks.table import OURS

# Something that was told: when, whether there is something now, and its path relative to what is listened to.
Told = tuple[float, bool, str]
# What a line says, as of `Told` but the time.
Parse = Callable[[str], list[tuple[bool, str]]]
# Listens to a directory; the second argument is an empty one for whatever else is needed.
Starter = Callable[[Path, Path], AbstractContextManager["Listener"]]

PATIENCE: Final = 60.0  # seconds until nothing is expected any more


class Listener:
    """A running program that prints what it hears.

    Attributes:
        pid: the process that has the watches.
        ready_after: seconds from the start until the watches were in force.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", parse: Parse) -> None:
        self.pid = process.pid
        self.ready_after = 0.0
        self._process = process
        self._parse = parse
        self._pieces: list[tuple[float, bytes]] = []
        self._grown = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        while piece := os.read(self._process.stdout.fileno(), 1 << 20):
            with self._grown:
                self._pieces.append((time.perf_counter(), piece))
                self._grown.notify_all()

    def wait_for(self, text: str, seconds: float = PATIENCE) -> bool:
        """Wait until it has printed something, and the rest of that line; return whether it did."""
        wanted, seen, rest, is_found = text.encode(), 0, b"", False

        def is_there() -> bool:
            nonlocal seen, rest, is_found
            while seen < len(self._pieces):
                rest = rest[-len(wanted) :] + self._pieces[seen][1]
                seen += 1
                is_found |= wanted in rest
            return is_found and rest.endswith(b"\n")

        with self._grown:
            return self._grown.wait_for(is_there, seconds)

    def told(self) -> list[Told]:
        """Return everything that it has told so far."""
        told: list[Told] = []
        rest = b""
        for stamp, piece in list(self._pieces):
            *lines, rest = (rest + piece).split(b"\n")
            told += [(stamp, *one) for line in lines for one in self._parse(line.decode("utf-8", "replace"))]
        return told

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()


@contextlib.contextmanager
def running(command: list[str], ready: str, parse: Parse, asked: bytes = b"") -> Iterator[Listener]:
    """Start a program, and wait until it prints that it listens; `asked` is what it reads from its input."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    listener = Listener(process, parse)
    assert process.stdin is not None
    try:
        process.stdin.write(asked)
        process.stdin.flush()
        if not listener.wait_for(ready):
            raise TimeoutError(f"{command} does not listen")
        listener.ready_after = time.perf_counter() - start
        yield listener
    finally:
        listener.close()
        process.stdin.close()


# --- ours ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fusenotify(source: Path, scratch: Path, watcher: str) -> Iterator[Listener]:
    """Listen through a mount, from another process."""
    mountpoint = scratch / "mount"
    mountpoint.mkdir()
    start = time.perf_counter()
    with peers.ours(source, mountpoint, "--watcher", watcher):
        ready_after = time.perf_counter() - start
        status = subprocess.run([*peers.FUSENOTIFY, "status", mountpoint, "--json"], capture_output=True, check=True)
        command = [*peers.FUSENOTIFY, "watch", "--json", str(mountpoint)]
        with running(command, '"ready"', _parse_ours) as listener:
            listener.pid = json.loads(status.stdout)["pid"]
            listener.ready_after = ready_after
            yield listener


def _parse_ours(line: str) -> list[tuple[bool, str]]:
    event = json.loads(line)
    if event["type"] != "event" or event["path"] is event.get("old_path"):
        return []
    gone = [(False, event["old_path"])] if event.get("old_path") else []
    return gone + ([(event["kind"] != "delete", event["path"])] if event["path"] else [])


# --- others ----------------------------------------------------------------------------------------------------------


def inotifywait(source: Path, _: Path) -> AbstractContextManager[Listener]:
    """Listen with inotify-tools."""
    kinds = "create,modify,attrib,close_write,move,delete"
    command = ["inotifywait", "-m", "-r", "-e", kinds, "--format", "%e %w%f", str(source)]
    return running(command, "Watches established.", partial(_parse_inotifywait, f"{source}/"))


def _parse_inotifywait(prefix: str, line: str) -> list[tuple[bool, str]]:
    kinds, _, path = line.partition(" ")
    if not path.startswith(prefix):
        return []
    return [(not re.search("DELETE|MOVED_FROM", kinds), path.removeprefix(prefix))]


def in_python(library: str, source: Path, _: Path) -> AbstractContextManager[Listener]:
    """Listen with a library for Python, in the process that uses it."""
    command = [sys.executable, str(Path(__file__).with_name("listener.py")), library, str(source)]
    return running(command, "listening\n", partial(_parse_in_python, f"{source}/"))


def _parse_in_python(prefix: str, line: str) -> list[tuple[bool, str]]:
    if not line.startswith("["):
        return []
    is_there, path = json.loads(line)
    return [(is_there, path.removeprefix(prefix))]


@contextlib.contextmanager
def watchman(source: Path, scratch: Path) -> Iterator[Listener]:
    """Listen with watchman: a server of our own, and its command as client."""
    home = scratch / "watchman"
    home.mkdir(mode=0o700)
    client = ["watchman", f"--sockname={home}/socket", "--no-spawn", "--no-pretty"]
    start = time.perf_counter()
    server = subprocess.Popen(
        ["watchman", "--foreground", f"--sockname={home}/socket", f"--statefile={home}/state",
         f"--logfile={home}/log", f"--pidfile={home}/pid"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        _await(home / "socket")
        subprocess.run([*client, "watch", source], stdout=subprocess.DEVNULL, check=True)
        asked = json.dumps(["subscribe", str(source), "bench", {"fields": ["name", "exists"]}]) + "\n"
        with running([*client, "-j", "-p"], '"subscribe"', _parse_watchman, asked.encode()) as listener:
            listener.pid = server.pid
            listener.ready_after = time.perf_counter() - start
            yield listener
    finally:
        server.terminate()
        server.wait(PATIENCE)


def _await(socket: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while not socket.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{socket} does not come")
        time.sleep(0.005)


def _parse_watchman(line: str) -> list[tuple[bool, str]]:
    told = json.loads(line) if line.startswith("{") else {}
    return [(file["exists"], file["name"]) for file in told.get("files", ())]


def listeners(watcher: str) -> dict[str, Starter]:
    """Return every listener that can be had here; ours hears by `watcher`."""
    found: dict[str, Starter] = {OURS: partial(fusenotify, watcher=watcher)}
    found |= {library: partial(in_python, library) for library in ("inotify_simple", "watchfiles", "watchdog")}
    found |= {"inotifywait": inotifywait} if shutil.which("inotifywait") else {}
    found |= {"watchman": watchman} if shutil.which("watchman") else {}
    return found
