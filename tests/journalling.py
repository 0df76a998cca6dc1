"""What tests of the journal share: one in the test's own process, random changes, and what must be named of them."""

import contextlib
import os
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from random import Random

import trio

from fusenotify.config import JournalRules
from fusenotify.export import Export
from fusenotify.journal import Change
from tests.harness import PATIENCE
from tests.workload import not_blocking


class Journalled:
    """A daemon's part behind the mount.

    Attributes:
        export: what hears and journals the tree.
    """

    def __init__(self, export: Export) -> None:
        self.export = export

    async def cursor(self) -> str:
        """Return the position behind everything that has happened."""
        await self.export.hearing.caught_up()
        return await self.export.journal.cursor()

    async def since(self, cursor: str, below: bytes = b".") -> tuple[list[Change], bool]:
        """Return what changed since a cursor, in the order in which it is told, and whether that is all there is."""
        await self.export.hearing.caught_up()
        changes: list[Change] = []
        async with await self.export.journal.since(cursor, below) as answer:
            while page := await answer.page(7):
                changes += page
            return changes, answer.fresh


@contextlib.asynccontextmanager
async def journalled(source: Path, state_dir: Path, *, is_exclusive: bool = False) -> AsyncIterator[Journalled]:
    """Hear and journal a tree; the end is a clean one."""
    for path in (source, state_dir):
        path.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        export = Export(source, state_dir, stack, rules=JournalRules(exclusive=is_exclusive))
        await export.crawl()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(export.hearing.run)
            nursery.start_soon(export.journal.tend, export.hearing.caught_up)
            yield Journalled(export)
            await export.say_goodbye()
            nursery.cancel_scope.cancel()


def named(changes: list[Change]) -> set[tuple[bytes, bool]]:
    """Return (path, exists) of changes."""
    return {(change.path, change.exists) for change in changes}


# Run by a daemon at its start: whoever connects to a socket is told the cursor behind all that has happened, durably.
CONTROL = """
import socket, threading, trio
from fusenotify.export import Export
crawl = Export.crawl
async def crawl_and_answer(self):
    await crawl(self)
    token = trio.lowlevel.current_trio_token()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(self.journal._database.path.with_suffix(".control")))
    listener.listen()
    async def cursor():
        await self.hearing.caught_up()
        return await self.journal.cursor()
    def answer():
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(trio.from_thread.run(cursor, trio_token=token).encode())
    threading.Thread(target=answer, daemon=True).start()
Export.crawl = crawl_and_answer
"""


def durable_cursor(state_dir: Path) -> str:
    """Return the cursor of a daemon that runs CONTROL: what has happened by now is durable."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE)
        client.connect(str(state_dir / "store.control"))
        return client.makefile().read()


State = dict[bytes, tuple[int, bytes]]


def state_of(root: Path) -> State:
    """Return what is below a directory: by path, mode and content."""
    found: State = {}
    for directory, names, files in os.walk(os.fsencode(root)):
        for name in names + files:
            path = os.path.join(directory, name)
            mode = os.lstat(path).st_mode
            content = Path(os.fsdecode(path)).read_bytes() if stat.S_ISREG(mode) else b""
            found[os.path.relpath(path, os.fsencode(root))] = mode, content
    return found


def missing(before: State, after: State, changes: Sequence[Change]) -> set[bytes]:
    """Return the paths that differ and are not named as what they are; what has gone with its directory need not be."""
    there = {change.path for change in changes if change.exists}
    gone = {change.path for change in changes if not change.exists}
    changed = {path for path in after if after[path] != before.get(path)}
    removed = {path for path in before.keys() - after.keys() if not gone & {path, *_above(path)}}
    return removed | changed - there


def _above(path: bytes) -> Iterator[bytes]:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        yield path


class Workload:
    """Random changes of a tree that hide from who compares sizes and times; those of `tests.workload` only cross."""

    def __init__(self, random: Random, *sides: Path) -> None:
        self._random = random
        self._sides = sides
        self._count = 0

    def step(self) -> None:
        """Change something; what is in the way of that makes it do nothing."""
        side = self._random.choice(self._sides)
        with contextlib.suppress(OSError):
            self._random.choice(_CHANGES)(self, side)

    def _pick(self, side: Path, *, is_dir: bool) -> Path:
        directories = [side, *(path for path in side.glob("**/*") if path.is_dir())]
        if is_dir:
            return self._random.choice(directories)
        # A name that stood for a fifo would keep who writes waiting.
        files = [path for path in self._random.choice(directories).iterdir() if stat.S_ISREG(path.lstat().st_mode)]
        return self._random.choice(files) if files else side / "nothing"

    def _new(self, side: Path) -> Path:
        return self._pick(side, is_dir=True) / f"n{self._random.randrange(12)}"

    def _write(self, side: Path) -> None:
        self._count += 1
        with open(self._new(side), "w", opener=not_blocking) as file:  # which may be a fifo
            file.write(f"{self._count}")

    def _overwrite(self, side: Path) -> None:
        """Write in place, which keeps the size, and put the time of modification back."""
        path = self._pick(side, is_dir=False)
        status = path.stat()
        with path.open("r+b") as file:
            file.write(bytes([self._random.randrange(256)]))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def _replace(self, side: Path) -> None:
        """Put another file with the same size and time of modification in a file's place."""
        path = self._pick(side, is_dir=False)
        status, other = path.stat(), side / "other"
        other.write_bytes(bytes(self._random.randrange(256) for _ in range(status.st_size)))
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.rename(path)

    def _mkdir(self, side: Path) -> None:
        self._new(side).mkdir()

    def _remove(self, side: Path) -> None:
        path = self._pick(side, is_dir=False)
        path.unlink()

    def _remove_tree(self, side: Path) -> None:
        path = self._pick(side, is_dir=True)
        if path != side and self._random.random() < 0.3:
            shutil.rmtree(path)

    def _link(self, side: Path) -> None:
        self._new(side).hardlink_to(self._pick(side, is_dir=False))

    def _move(self, side: Path) -> None:
        self._pick(side, is_dir=False).rename(self._new(side))

    def _move_directory(self, side: Path) -> None:
        path = self._pick(side, is_dir=True)
        if path != side:
            path.rename(self._new(side))

    def _chmod(self, side: Path) -> None:
        self._pick(side, is_dir=False).chmod(self._random.choice((0o600, 0o644, 0o755)))


_CHANGES = (
    Workload._write, Workload._write, Workload._overwrite, Workload._replace, Workload._mkdir, Workload._remove,
    Workload._remove_tree, Workload._link, Workload._move, Workload._move_directory, Workload._chmod,
)  # fmt: skip
