"""Unmodified programs on the mount hear what is done behind it, each in its own way."""

import os
import queue
import select
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path

import pytest

from fusenotify import _fanotify, _linux
from tests.harness import PATIENCE, Mount, mounted, patched, run, wait_for
from tests.native import LOOKING, settle
from tests.soak import SOAK

_WATCHDOG = """
import sys
from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer

class Handler(FileSystemEventHandler):
    def on_any_event(self, event):
        if event.event_type not in ("opened", "closed_no_write"):
            print(event.event_type, event.src_path, event.dest_path, flush=True)

observer = Observer()
observer.schedule(Handler(), ".", recursive=True)
observer.start()
print("ready", flush=True)
observer.join()
"""
_WATCHFILES = """
import watchfiles
is_ready = False
for changes in watchfiles.watch(".", yield_on_timeout=True, rust_timeout=50, step=5, debounce=5):
    if not is_ready:
        is_ready = True
        print("ready", flush=True)
    for change, path in changes:
        print(change.name, path, flush=True)
"""
_ASYNCINOTIFY = """
import asyncio
from asyncinotify import Inotify, Mask

async def main():
    with Inotify() as inotify:
        inotify.add_watch(".", Mask.CREATE | Mask.MOVE | Mask.DELETE | Mask.CLOSE_WRITE)
        print("ready", flush=True)
        async for event in inotify:
            print(event.mask.name, event.name, flush=True)

asyncio.run(main())
"""
_FS_WATCH = """
require("fs").watch(".", (kind, name) => console.log(kind, name));
console.log("ready");
"""
_CHOKIDAR = """
require("chokidar").watch(".", {usePolling: false})
    .on("all", (kind, path) => console.log(kind, path)).on("ready", () => console.log("ready"));
"""


class Running:
    """A program, line by line."""

    def __init__(self, command: Sequence[str | Path], where: Path, given: str = "") -> None:
        environment = {**os.environ, "NODE_PATH": "/usr/share/nodejs", "CHOKIDAR_USEPOLLING": "0"}
        self.process = subprocess.Popen(
            command,
            cwd=where,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(given)
        self.process.stdin.close()
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))

    def until(self, *words: str) -> list[str]:
        """Wait for a line that has all these words in it; return what came before, and that."""
        lines: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while not (lines and all(word in lines[-1] for word in words)):
            try:
                lines.append(self._lines.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"{words} did not come, but {lines}") from None
        return lines

    def tells(self, words: str, within: float) -> bool:
        """Whether a line with these words comes within so many seconds."""
        deadline = time.monotonic() + within
        with suppress(queue.Empty):
            while words not in self._lines.get(timeout=max(0, deadline - time.monotonic())):
                pass
            return True
        return False

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture(params=["always", "auto"] if SOAK else ["auto"])
def mount(directory: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount with native delivery, to all and to those who are seen to watch."""
    mounting: AbstractContextManager[Mount] = (
        mounted(directory, ["--native", "always"]) if request.param == "always" else patched(directory, LOOKING)
    )
    with mounting as mount:
        yield mount


@pytest.fixture
def start(mount: Mount) -> Iterator[Callable[..., Running]]:
    """Run a program in the mount."""
    with ExitStack() as stack:

        def start(*command: str | Path, given: str = "") -> Running:
            settle(mount)
            running = Running(command, mount.mountpoint, given)
            stack.callback(running.close)
            return running

        yield start


def change(source: Path) -> None:
    """What is done behind the mount: a file is made, renamed, written and removed."""
    (source / "new").touch()
    (source / "new").rename(source / "renamed")
    (source / "renamed").write_text("content")
    (source / "renamed").unlink()


def test_inotifywait(mount: Mount, start: Callable[..., Running]) -> None:
    (mount.source / "d").mkdir()
    kinds = "create,delete,modify,moved_to,moved_from,close_write"
    program = start("inotifywait", "-m", "-r", "-e", kinds, "--format", "%e %w%f", ".")
    program.until("Watches established")
    change(mount.source / "d")
    assert program.until("DELETE", "renamed") == [
        "CREATE ./d/new",
        "CLOSE_WRITE,CLOSE ./d/new",
        "MOVED_FROM ./d/new",
        "MOVED_TO ./d/renamed",
        *["MODIFY ./d/renamed"],
        "CLOSE_WRITE,CLOSE ./d/renamed",
        "DELETE ./d/renamed",
    ]
    (mount.source / "later").mkdir()
    program.until("CREATE,ISDIR ./later")
    barrier(mount, program)
    (mount.source / "later" / "f").touch()
    program.until("CREATE ./later/f")


def barrier(mount: Mount, program: Running) -> None:
    """Wait until inotifywait has set its watch on a new directory, which it does before it reads on."""
    (mount.source / "barrier").touch()
    program.until("CLOSE_WRITE", "./barrier")


def test_tail_follows_a_log_that_is_rotated(mount: Mount, start: Callable[..., Running]) -> None:
    """It takes FUSE for a network filesystem and polls, here as on any; it has to see what is there all the same."""
    log = mount.source / "log"
    log.write_text("one\n")
    program = start("tail", "-s", "0.05", "-F", "log")
    program.until("one")
    with log.open("a") as stream:
        stream.write("two\n")
    program.until("two")
    log.rename(mount.source / "log.1")
    log.write_text("three\n")
    program.until("three")


def test_entr(mount: Mount, start: Callable[..., Running]) -> None:
    page = mount.source / "page.html"
    page.write_text("first\n")
    program = start("entr", "-n", "cat", "page.html", given="page.html\n")
    program.until("first")
    save_until_told(program, page.write_text, "written")

    def replace(text: str) -> None:
        (mount.source / "page.new").write_text(text)
        (mount.source / "page.new").rename(page)

    save_until_told(program, replace, "replaced")


def save_until_told(program: Running, save: Callable[[str], object], text: str) -> None:
    """Save one version after the other: entr does not hear of what happens before it has settled down again.

    And while one change follows the other it runs nothing.
    """

    def is_told() -> bool:
        save(f"{text} {time.monotonic()}\n")
        return program.tells(text, within=0.5)

    wait_for(is_told)


def test_watchdog(mount: Mount, start: Callable[..., Running]) -> None:
    program = start(sys.executable, "-c", _WATCHDOG)
    program.until("ready")
    change(mount.source)
    told = [line.split() for line in program.until("deleted", "renamed")]
    assert [words for words in told if words[0] in ("created", "moved", "deleted")] == [
        ["created", "./new"],
        ["moved", "./new", "./renamed"],
        ["deleted", "./renamed"],
    ]
    assert ["closed", "./renamed"] in told


def test_watchfiles(mount: Mount, start: Callable[..., Running]) -> None:
    program = start(sys.executable, "-c", _WATCHFILES)
    program.until("ready")
    (mount.source / "f").touch()
    program.until("added", "/f")
    (mount.source / "f").write_text("content")
    program.until("modified", "/f")
    (mount.source / "f").unlink()
    program.until("deleted", "/f")


def test_asyncinotify(mount: Mount, start: Callable[..., Running]) -> None:
    program = start(sys.executable, "-c", _ASYNCINOTIFY)
    program.until("ready")
    change(mount.source)
    assert program.until("DELETE", "renamed") == [
        "CREATE new",
        "CLOSE_WRITE new",
        "MOVED_FROM new",
        "MOVED_TO renamed",
        "CLOSE_WRITE renamed",
        "DELETE renamed",
    ]


def test_node(mount: Mount, start: Callable[..., Running]) -> None:
    program = start("node", "-e", _FS_WATCH)
    program.until("ready")
    (mount.source / "f").touch()
    program.until("rename f")
    (mount.source / "f").write_text("content")
    program.until("change f")
    (mount.source / "f").rename(mount.source / "g")
    program.until("rename g")


def test_chokidar(mount: Mount, start: Callable[..., Running]) -> None:
    (mount.source / "src").mkdir()
    (mount.source / "src" / "app.js").write_text("one")
    program = start("node", "-e", _CHOKIDAR)
    program.until("ready")
    (mount.source / "src" / "app.js").write_text("two")
    program.until("change src/app.js")
    (mount.source / "src" / "new.js").write_text("new")
    program.until("add src/new.js")
    shutil.rmtree(mount.source / "src")
    program.until("unlinkDir", "src")


def test_fanotify(mount: Mount) -> None:
    """A program with a fanotify mark on a directory and what is in it, told by handles and names."""
    directory = mount.source / "d"
    directory.mkdir()
    group = _fanotify.init()
    try:
        fd = os.open(mount.mountpoint / "d", os.O_RDONLY | os.O_DIRECTORY)
        try:
            _mark_children(group, fd)
        finally:
            os.close(fd)
        (directory / "f").touch()
        heard = read_until(group, _fanotify.FAN_CLOSE_WRITE)
        assert heard & _fanotify.FAN_CREATE
        (directory / "f").rename(directory / "g")
        read_until(group, _fanotify.FAN_RENAME)
        (directory / "g").unlink()
        read_until(group, _fanotify.FAN_DELETE)
    finally:
        os.close(group)


def _mark_children(group: int, directory_fd: int) -> None:
    """Mark a directory for what happens to its entries (FAN_EVENT_ON_CHILD)."""
    mask = _fanotify.MASK | 0x08000000
    libc = _linux._libc
    assert libc.fanotify_mark(group, 1, mask, directory_fd, None) == 0


def read_until(group: int, kind: int) -> int:
    """Read records until there is one of a kind; return all kinds that came."""
    kinds = 0
    poll = select.poll()
    poll.register(group, select.POLLIN)
    while not kinds & kind:
        assert poll.poll(PATIENCE * 1000), f"{kind:#x} did not come, but {kinds:#x}"
        for record in _fanotify.parse(os.read(group, 1 << 16), _Everything(), ()):
            if record is not None:
                kinds |= record.mask
    return kinds


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


def test_status_tells_of_replays(mount: Mount, start: Callable[..., Running]) -> None:
    program = start("inotifywait", "-m", "-e", "create,delete", "--format", "%e %f", ".")
    program.until("Watches established")
    (mount.source / "f").mkdir()
    program.until("CREATE")
    told = run("status", mount.mountpoint).stdout
    assert "delivered" in told
    assert "native" in told


def test_the_example() -> None:
    example = Path(__file__).parent.parent / "examples" / "native.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, timeout=2 * PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "server      server: version 2" in done.stdout
