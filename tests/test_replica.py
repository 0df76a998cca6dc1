"""Convergence: who mirrors the tree by its events alone ends up with the tree, whatever both sides do to it."""

import contextlib
import os
import random
import shutil
import signal
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from examples.replica import Replica, Seen
from fusenotify import Event, Group, Kind, _linux, open_group
from tests.harness import PATIENCE, Mount, mounted

SEEDS = 240
STEPS = 70
NAMES = ["a", "b", "c", "d", "e", "lang", "f g", os.fsdecode(b"\xff")]


@pytest.fixture(scope="module")
def shared(tmpfs: Path) -> Iterator[Mount]:
    """One daemon for all seeds; every test leaves its tree empty."""
    with tempfile.TemporaryDirectory(dir=tmpfs) as name, mounted(Path(name)) as mount:
        yield mount


@pytest.fixture
def clean(shared: Mount) -> Iterator[Mount]:
    """The shared mount with an empty tree, and `outside` beside the tree."""
    outside = shared.source.parent / "outside"
    outside.mkdir()
    try:
        yield shared
    finally:
        shutil.rmtree(outside)
        for entry in os.scandir(shared.source):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


@dataclass(frozen=True)
class Plan:
    """How one seed is played.

    Attributes:
        sides: where changes are made: on the backing tree, through the mount.
        threads: how many threads make them.
        marked: the marked directory below the root; where it is not the root, `outside` is a directory beside it.
        look_at_mount: whether the mirror looks at the mount, not at the backing tree.
        blackouts: whether the daemon is stopped now and then, so that it lags behind.
        socket: whether the events come by the unix socket, which knows the root only.
        late: whether nothing is read before the end of the changes; a queue file is not touched during a blackout.
    """

    sides: tuple[str, ...]
    threads: int
    marked: str
    look_at_mount: bool
    blackouts: bool
    socket: bool
    late: bool

    @classmethod
    def of(cls, dice: random.Random) -> "Plan":
        sides = dice.choice([("source",), ("source", "mount"), ("source", "mount"), ("mount",)])
        threads = dice.choice([1, 2])
        marked = dice.choice([".", "in"])
        blackouts = "source" in sides and threads == 1 and dice.random() < 0.6
        socket = marked == "." and (blackouts or dice.random() < 0.5)
        return cls(
            sides=sides,
            threads=threads,
            marked=marked,
            look_at_mount=not blackouts and dice.random() < 0.5,
            blackouts=blackouts,
            socket=socket,
            late=blackouts and not socket,
        )


@dataclass
class Workload:
    """Random changes of a small tree, with few names so that they meet often. What races make impossible is skipped.

    Attributes:
        inside: the tree, as a path for each side.
        outside: a place on the same filesystem and outside the marks, as a path for each side.
        alone: whether no other thread changes the tree.
        links: held while a file is linked or written to: a write is told for one name of a file, which has to be its
            only one, or the others have to be touched as well.
        log: what was done.
    """

    dice: random.Random
    inside: dict[str, Path]
    outside: dict[str, Path]
    alone: bool
    links: threading.Lock
    log: list[str] = field(default_factory=list)
    side: str = "source"

    def run(self, steps: int, sides: tuple[str, ...]) -> None:
        for _ in range(steps):
            self.side = self.dice.choice(sides)
            (operation,) = self.dice.choices(list(OPERATIONS), list(OPERATIONS.values()))
            with contextlib.suppress(OSError):
                operation(self)

    # --- choosing --------------------------------------------------------------------------------------------------

    def entries(self, top: Path) -> list[str]:
        """What is below a directory now; the backing tree is asked."""
        found: list[str] = []
        for where, directories, files in os.walk(top):
            found += [os.path.relpath(os.path.join(where, name), top) for name in directories + files]
        return sorted(found)

    def some(self, kind: Callable[[int], bool] | None = None, *, outside: bool = False) -> Path:
        """Choose an entry of some kind, as a path of this step's side."""
        places = self.outside if outside else self.inside
        there = self.entries(places["source"])
        if kind is not None:
            there = [name for name in there if kind(os.lstat(places["source"] / name).st_mode)]
        if not there:
            raise FileNotFoundError
        return places[self.side] / self.dice.choice(there)

    def new(self, *, outside: bool = False) -> Path:
        """Choose a path for something new; there may be something already."""
        place = (self.outside if outside else self.inside)[self.side]
        parent = place
        if not outside and self.dice.random() < 0.75:
            with contextlib.suppress(OSError):
                parent = self.some(stat.S_ISDIR)
        return parent / self.dice.choice(NAMES)

    def note(self, what: str, *paths: Path) -> None:
        names = [os.path.relpath(path, self.inside[self.side]) for path in paths]
        self.log.append(f"{threading.get_ident() % 1000:3} {self.side:6} {what} {' '.join(map(ascii, names))}")

    # --- changing --------------------------------------------------------------------------------------------------

    def content(self) -> bytes:
        return self.dice.randbytes(self.dice.randrange(40))

    def create(self) -> None:
        path = self.new()
        self.note("create", path)
        with self.links:
            self.written(path, lambda: path.write_bytes(self.content()))

    def mkdir(self) -> None:
        path = self.new()
        self.note("mkdir", path)
        path.mkdir()

    def fill(self, path: Path) -> None:
        """Make a directory with some content, as fast as possible."""
        deep = path / self.dice.choice(NAMES) / self.dice.choice(NAMES)
        deep.mkdir(parents=True)
        for place in (path, deep.parent, deep):
            (place / "file").write_bytes(self.content())

    def mkdirs(self) -> None:
        path = self.new()
        self.note("mkdirs", path)
        self.fill(path)

    def write(self) -> None:
        path = self.some(stat.S_ISREG)
        mode = self.dice.choice(["wb", "ab", "r+b"])
        self.note(f"write {mode}", path)

        def write() -> None:
            with open(path, mode, buffering=0) as file:
                for _ in range(self.dice.randrange(3)):
                    file.write(self.content())

        with self.links:
            self.written(path, write)

    def truncate(self) -> None:
        path = self.some(stat.S_ISREG)
        size = self.dice.randrange(60)
        self.note(f"truncate {size}", path)
        with self.links:
            self.written(path, lambda: os.truncate(path, size))

    def chmod(self) -> None:
        path = self.some(lambda mode: not stat.S_ISLNK(mode))
        mode = self.dice.choice([0o600, 0o644, 0o700, 0o755, 0o4711])
        self.note(f"chmod {mode:o}", path)
        with self.links:
            self.written(path, lambda: os.chmod(path, mode))

    def written(self, path: Path, change: Callable[[], object]) -> None:
        """Change a file through one name, or, if it has more, through one and then touch all the others."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            change()
            return
        if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
            change()
        elif self.alone:
            change()
            inode = os.stat(path).st_ino
            source = self.inside["source"]
            for name in self.entries(source):
                if os.lstat(source / name).st_ino == inode:
                    os.utime(source / name)

    def rename(self) -> None:
        old, new = self.some(), self.new()
        if self.dice.random() < 0.3:
            new = self.some()  # most likely over something
        self.note("rename", old, new)
        old.rename(new)

    def replace(self) -> None:
        path = self.some(stat.S_ISREG)
        temporary = path.with_name("temporary")
        self.note("replace", path)
        temporary.write_bytes(self.content())
        temporary.rename(path)

    def exchange(self) -> None:
        one, other = self.some(), self.some()
        self.note("exchange", one, other)
        _linux.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _linux.RENAME_EXCHANGE)

    def shuffle(self) -> None:
        """Rename a directory away and put another one in its place, which no path alone can tell apart."""
        old = self.some(stat.S_ISDIR)
        new = self.new()
        self.note("shuffle", old, new)
        old.rename(new)
        self.fill(old)

    def there_and_back(self) -> None:
        old, between = self.some(), self.new()
        self.note("there and back", old, between)
        if not between.exists():
            old.rename(between)
            between.rename(old)
            if self.dice.random() < 0.5:
                between.mkdir()

    def move_in(self) -> None:
        self.side = "source" if "mount" not in self.outside else self.side
        try:
            coming = self.some(outside=True)
        except FileNotFoundError:
            coming = self.new(outside=True)
            if self.dice.random() < 0.7:
                self.fill(coming)
            else:
                coming.write_bytes(self.content())
        path = self.new()
        self.note("move in", path)
        coming.rename(path)

    def move_out(self) -> None:
        self.side = "source" if "mount" not in self.outside else self.side
        path = self.some()
        self.note("move out", path)
        path.rename(self.new(outside=True))

    def unlink(self) -> None:
        path = self.some(lambda mode: not stat.S_ISDIR(mode))
        self.note("unlink", path)
        path.unlink()

    def remove(self) -> None:
        path = self.some(stat.S_ISDIR)
        self.note("rm -r", path)
        shutil.rmtree(path)

    def link(self) -> None:
        old, new = self.some(stat.S_ISREG), self.new()
        self.note("link", old, new)
        with self.links:
            os.link(old, new)

    def symlink(self) -> None:
        path = self.new()
        self.note("symlink", path)
        path.symlink_to(self.dice.choice(NAMES))

    def mkfifo(self) -> None:
        path = self.new()
        self.note("mkfifo", path)
        os.mkfifo(path)


OPERATIONS: dict[Callable[[Workload], None], int] = {
    Workload.create: 10,
    Workload.mkdir: 6,
    Workload.mkdirs: 5,
    Workload.write: 6,
    Workload.truncate: 3,
    Workload.chmod: 4,
    Workload.rename: 16,
    Workload.replace: 2,
    Workload.exchange: 8,
    Workload.shuffle: 4,
    Workload.there_and_back: 2,
    Workload.move_in: 6,
    Workload.move_out: 4,
    Workload.unlink: 4,
    Workload.remove: 3,
    Workload.link: 3,
    Workload.symlink: 3,
    Workload.mkfifo: 1,
}


def tree(top: Path, below: Path) -> dict[str, Seen]:
    """What a mirror of `below` has to show, with paths relative to `top`."""
    found: dict[str, Seen] = {}
    for where, directories, files in os.walk(below):
        for name in directories + files:
            path = os.path.join(where, name)
            mode = os.lstat(path).st_mode
            content = b""
            if stat.S_ISREG(mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(mode):
                content = os.fsencode(os.readlink(path))
            found[os.path.relpath(path, top)] = Seen(mode, content)
    return found


class Mirror:
    """A replica fed by a group until it is told where the end is; every event is checked for what it presupposes."""

    def __init__(self, group: Group, root: Path, marked: str) -> None:
        self.replica = Replica(root)
        self.events: list[Event] = []
        self.surprises: list[Event] = []
        self._group = group
        self._marked = marked

    async def follow(self, end: str) -> None:
        """Apply events up to the one on the path `end`."""
        async for event in self._group:
            self.events.append(event)
            if event.path == end:
                return
            if not self._is_possible(event):
                self.surprises.append(event)
            self.replica.apply(event)

    def _is_possible(self, event: Event) -> bool:
        """Whether what an event says can follow from those before it."""
        knows = self.replica.knows
        if event.path is not None and os.path.dirname(event.path) not in ("", self._marked):
            if not knows(os.path.dirname(event.path)):
                return False
        if event.kind is Kind.RENAME:
            return event.old_path is None or knows(event.old_path)
        return event.kind is Kind.CREATE or (event.path is not None and knows(event.path))

    def story(self) -> str:
        return "\n".join(map(repr, self.events))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_mirror_converges(clean: Mount, seed: int) -> None:
    dice = random.Random(seed)
    plan = Plan.of(dice)
    end = os.path.normpath(os.path.join(plan.marked, "end"))
    sides = {"source": clean.source, "mount": clean.mountpoint}
    if plan.marked == ".":
        inside, outside = sides, {"source": clean.source.parent / "outside"}
    else:
        for name in (plan.marked, "out"):
            (clean.source / name).mkdir()
        inside = {side: root / plan.marked for side, root in sides.items()}
        outside = {side: root / "out" for side, root in sides.items()}
    lock = threading.Lock()
    workloads = [
        Workload(random.Random(f"{seed} {number}"), inside, outside, plan.threads == 1, lock)
        for number in range(plan.threads)
    ]

    def work(workload: Workload) -> None:
        if not plan.blackouts:
            workload.run(STEPS // plan.threads, plan.sides)
            return
        for _ in range(3):
            workload.run(STEPS // 12, plan.sides)
            os.kill(clean.pid, signal.SIGSTOP)
            try:
                workload.run(STEPS // 4, ("source",))
            finally:
                os.kill(clean.pid, signal.SIGCONT)

    async with open_group() as group:
        await group.mark(f"unix:{clean.socket}" if plan.socket else inside["mount"])
        mirror = Mirror(group, sides["mount" if plan.look_at_mount else "source"], plan.marked)
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as reading:
                if not plan.late:
                    reading.start_soon(mirror.follow, end)
                async with trio.open_nursery() as working:
                    for workload in workloads:
                        working.start_soon(trio.to_thread.run_sync, work, workload)
                if plan.late:
                    reading.start_soon(mirror.follow, end)
                await group.sync()
                (inside["source"] / "end").touch()
    (inside["source"] / "end").unlink()
    told = mirror.replica.snapshot()
    expected = tree(clean.source, inside["source"])
    wrong = {
        path: (told.get(path), expected.get(path)) for path in told | expected if told.get(path) != expected.get(path)
    }
    done = "\n".join(line for workload in workloads for line in workload.log)
    assert not wrong, f"{plan}\n--- done\n{done}\n--- told\n{mirror.story()}\n--- (told, there)\n{wrong}"
    assert not mirror.surprises, f"{plan}\n--- done\n{done}\n--- told\n{mirror.story()}\n--- odd\n{mirror.surprises}"
