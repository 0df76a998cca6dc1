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
from fusenotify import Event, Group, Origin, _linux, open_group
from tests.harness import PATIENCE, Mount, mounted
from tests.soak import examples

WATCHERS = ("inotify", "fanotify")
SEEDS = examples(120, 10_000)  # with each watcher
STEPS = 70
NAMES = ["a", "b", "c", "d", "e", "lang", "f g", os.fsdecode(b"\xff")]


@pytest.fixture(scope="module", params=WATCHERS)
def shared(tmpfs: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """One daemon for all tests of a watcher; every test leaves its tree empty."""
    arguments = ["--watcher", request.param]
    with tempfile.TemporaryDirectory(dir=tmpfs) as name, mounted(Path(name), arguments) as mount:
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
            # A local change is told before the call that made it has returned: who reads through the mount at once may
            # be too early for it.
            look_at_mount=not blackouts and "mount" not in sides and dice.random() < 0.5,
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
            self.written(path, self.put)

    def put(self, path: Path) -> None:
        with open(path, "wb", opener=not_blocking) as file:
            file.write(self.content())

    def mkdir(self) -> None:
        path = self.new()
        self.note("mkdir", path)
        path.mkdir()

    def fill(self, path: Path) -> None:
        """Make a directory with some content, as fast as possible."""
        deep = path / self.dice.choice(NAMES) / self.dice.choice(NAMES)
        deep.mkdir(parents=True)
        for place in (path, deep.parent, deep):
            with self.links:
                self.written(place / "file", self.put)

    def mkdirs(self) -> None:
        path = self.new()
        self.note("mkdirs", path)
        self.fill(path)

    def write(self) -> None:
        path = self.some(stat.S_ISREG)
        mode = self.dice.choice(["wb", "ab", "r+b"])
        self.note(f"write {mode}", path)

        def write(path: Path) -> None:
            with open(path, mode, buffering=0, opener=not_blocking) as file:
                for _ in range(self.dice.randrange(3)):
                    file.write(self.content())

        with self.links:
            self.written(path, write)

    def truncate(self) -> None:
        path = self.some(stat.S_ISREG)
        size = self.dice.randrange(60)
        self.note(f"truncate {size}", path)
        with self.links:
            self.written(path, lambda path: os.truncate(path, size))

    def chmod(self) -> None:
        path = self.some(lambda mode: not stat.S_ISLNK(mode))
        mode = self.dice.choice([0o600, 0o644, 0o700, 0o755, 0o4711])
        self.note(f"chmod {mode:o}", path)
        with self.links:
            self.written(path, lambda path: os.chmod(path, mode))

    def written(self, path: Path, change: Callable[[Path], object]) -> None:
        """Change a file by one of its names, and touch it by all others; what has others is let be among threads.

        `change` is called with a path of the very file that was looked at, whatever has come to its name since.
        """
        if self.alone:
            change(path)
            source = self.inside["source"]
            status = os.stat(path)
            if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
                for name in self.entries(source):
                    if os.lstat(source / name).st_ino == status.st_ino:
                        os.utime(source / name)
            return
        try:
            fd = os.open(path, os.O_PATH)
        except FileNotFoundError:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            status = os.fstat(fd)
            if stat.S_ISDIR(status.st_mode) or status.st_nlink == 1:
                change(Path(f"/proc/self/fd/{fd}"))
        finally:
            os.close(fd)

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
        self.put(temporary)
        temporary.rename(path)

    def swap(self) -> None:
        one, other = self.some(), self.some()
        self.note("exchange", one, other)
        exchange(one, other)

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
                self.put(coming)
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
        # Not rmtree: it would wait for ever in opening a FIFO that has taken a directory's name.
        for where, directories, files in os.walk(path, topdown=False):
            for name in directories + files:
                entry = os.path.join(where, name)
                (os.rmdir if stat.S_ISDIR(os.lstat(entry).st_mode) else os.unlink)(entry)
        path.rmdir()

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
    Workload.swap: 8,
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


def exchange(one: Path, other: Path) -> None:
    _linux.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _linux.RENAME_EXCHANGE)


def not_blocking(path: str, flags: int) -> int:
    """Open as `open` does; a FIFO may have got the name."""
    return os.open(path, flags | os.O_NONBLOCK, 0o666)


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
    """A replica fed by a group."""

    def __init__(self, group: Group, root: Path) -> None:
        self.replica = Replica(root)
        self.events: list[Event] = []
        self._group = group

    async def follow(self, end: str) -> None:
        """Apply events up to the one on the path `end`."""
        await self.follow_until(lambda event: event.path == end)

    async def follow_until(self, is_last: Callable[[Event], bool]) -> None:
        """Apply events up to one, which is not applied."""
        async for event in self._group:
            if is_last(event):
                self.events.append(event)
                return
            self.take(event)

    def take(self, event: Event) -> None:
        """Apply one event."""
        self.events.append(event)
        self.replica.apply(event)

    def story(self) -> str:
        return "\n".join(map(repr, self.events))


def differences(mirror: Mirror, top: Path, below: Path) -> dict[str, tuple[Seen | None, Seen | None]]:
    """What the mirror shows and what is there, of every path where they differ."""
    told = mirror.replica.snapshot()
    expected = tree(top, below)
    return {
        path: (told.get(path), expected.get(path)) for path in told | expected if told.get(path) != expected.get(path)
    }


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_a_mirror_converges(clean: Mount, seed: int) -> None:
    dice = random.Random(seed)
    plan = Plan.of(dice)
    end = "end" if plan.marked == "." else f"{plan.marked}/end"
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
        mirror = Mirror(group, sides["mount" if plan.look_at_mount else "source"])
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
    wrong = differences(mirror, clean.source, inside["source"])
    done = "\n".join(line for workload in workloads for line in workload.log)
    assert not wrong, f"(told, there): {wrong}\n{plan}\n--- done\n{done}\n--- told\n{mirror.story()}"


# What the seeds have found, each in as few steps as it takes. The daemon is stopped meanwhile: it sees the outcome
# before it hears how that came about.


def a_directory_above_moves(source: Path, outside: Path) -> None:
    (source / "old" / "new").mkdir()
    (source / "old" / "new" / "file").touch()
    (source / "old").rename(source / "moved")


def another_directory_takes_the_name(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    (source / "new").rename(source / "moved")
    (source / "new").mkdir()
    (source / "new" / "other").touch()


def a_directory_moves_into_a_new_one(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "old" / "below").rename(source / "new" / "below")
    (source / "new" / "below" / "later").touch()


def a_directory_moves_in_between(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (outside / "coming").mkdir()
    (outside / "coming" / "file").touch()
    (outside / "coming").rename(source / "new" / "came")
    (source / "new" / "came").rename(source / "came")


def a_new_directory_overwrites_an_empty_one(source: Path, outside: Path) -> None:
    (source / "empty").mkdir()
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    (source / "new").rename(source / "empty")


def there_and_back(source: Path, outside: Path) -> None:
    (source / "old").rename(source / "between")
    (source / "between").rename(source / "old")
    (source / "between").mkdir()
    (source / "between" / "file").touch()


def an_exchange_and_on(source: Path, outside: Path) -> None:
    exchange(source / "old", source / "older")
    (source / "old").rename(source / "one")
    (source / "older").rename(source / "other")


def an_exchange_of_files_and_on(source: Path, outside: Path) -> None:
    exchange(source / "old" / "file", source / "older" / "file")
    (source / "old" / "file").unlink()
    (source / "old").rename(source / "one")


def an_exchange_with_the_outside(source: Path, outside: Path) -> None:
    (outside / "other").mkdir()
    (outside / "other" / "came").touch()
    exchange(outside / "other", source / "old")


def an_exchange_of_files_with_the_outside(source: Path, outside: Path) -> None:
    (outside / "other").write_bytes(b"came")
    exchange(outside / "other", source / "old" / "file")


def an_exchange_in_a_new_directory_and_on(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "a").write_bytes(b"a")
    (source / "new" / "b").mkdir()
    (source / "new" / "b" / "file").touch()
    exchange(source / "new" / "a", source / "new" / "b")
    (source / "new" / "b").rename(source / "new" / "c")


def an_exchange_of_a_new_directory_with_a_file(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    exchange(source / "new", source / "old" / "file")


def an_exchange_with_what_nobody_heard_of(source: Path, outside: Path) -> None:
    (source / "new" / "below").mkdir(parents=True)
    (source / "new" / "below" / "file").touch()
    exchange(source / "new" / "below", source / "old")
    (source / "old" / "on").touch()


def an_exchange_there_and_on(source: Path, outside: Path) -> None:
    an_exchange_with_what_nobody_heard_of(source, outside)
    (source / "new" / "below").rename(source / "one")
    (source / "old").rename(source / "older" / "other")


def a_directory_comes_over_an_empty_one_and_moves_on(source: Path, outside: Path) -> None:
    (outside / "other" / "below").mkdir(parents=True)
    held = os.open(source / "older" / "empty", os.O_RDONLY)  # so it does not say yet that it has gone
    (outside / "other").rename(source / "older" / "empty")
    (source / "older" / "empty").rename(source / "moved")
    os.close(held)


def a_directory_takes_the_name_of_a_file(source: Path, outside: Path) -> None:
    exchange(source / "old" / "file", source / "older" / "file")
    (source / "old" / "file").rename(source / "moved")
    (source / "old" / "file").mkdir()
    (source / "old" / "file" / "new").touch()


def an_exchange_of_two_new_directories(source: Path, outside: Path) -> None:
    (source / "old" / "new" / "below").mkdir(parents=True)
    (source / "older" / "new").mkdir()
    (source / "older" / "new" / "file").touch()
    exchange(source / "old" / "new" / "below", source / "older" / "new")


def there_and_back_and_another_file_there(source: Path, outside: Path) -> None:
    (source / "old" / "file").rename(source / "older" / "between")
    (source / "older" / "between").rename(source / "old" / "file")
    (source / "older" / "file").rename(source / "older" / "between")


# inotify merges the halves of two renames where one name is told of twice in a row.
def a_rename_and_an_exchange_with_what_nobody_heard_of(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    (source / "old" / "file").rename(source / "file")
    exchange(source / "new" / "file", source / "file")


def an_exchange_and_one_with_what_nobody_heard_of(source: Path, outside: Path) -> None:
    (source / "new").mkdir()
    (source / "new" / "file").touch()
    exchange(source / "old", source / "older" / "file")
    exchange(source / "new" / "file", source / "old")


@pytest.mark.parametrize(
    "change",
    [
        a_directory_above_moves,
        another_directory_takes_the_name,
        a_directory_moves_into_a_new_one,
        a_directory_moves_in_between,
        a_new_directory_overwrites_an_empty_one,
        there_and_back,
        an_exchange_and_on,
        an_exchange_of_files_and_on,
        an_exchange_with_the_outside,
        an_exchange_of_files_with_the_outside,
        an_exchange_in_a_new_directory_and_on,
        an_exchange_of_a_new_directory_with_a_file,
        an_exchange_with_what_nobody_heard_of,
        an_exchange_there_and_on,
        a_directory_comes_over_an_empty_one_and_moves_on,
        a_directory_takes_the_name_of_a_file,
        an_exchange_of_two_new_directories,
        there_and_back_and_another_file_there,
        a_rename_and_an_exchange_with_what_nobody_heard_of,
        an_exchange_and_one_with_what_nobody_heard_of,
    ],
)
async def test_a_mirror_converges_although_the_daemon_is_late(
    clean: Mount, change: Callable[[Path, Path], None]
) -> None:
    source = clean.source
    async with open_group() as group:
        await group.mark(f"unix:{clean.socket}")
        for name in ("old", "older"):
            (source / name / "below").mkdir(parents=True)
            (source / name / "file").write_text(name)
            (source / name / "below" / "file").write_text(name)
        (source / "older" / "empty").mkdir()
        mirror = Mirror(group, source)
        (source / "begin").touch()
        with trio.fail_after(PATIENCE):
            await mirror.follow("begin")
        (source / "begin").unlink()
        os.kill(clean.pid, signal.SIGSTOP)
        try:
            change(source, source.parent / "outside")
        finally:
            os.kill(clean.pid, signal.SIGCONT)
        with trio.fail_after(PATIENCE):
            await group.sync()
            for directory in source.rglob("*/"):
                (directory / "later").touch()  # every directory is heard under its right name
            (source / "end").touch()
            await mirror.follow("end")
    (source / "end").unlink()
    assert differences(mirror, source, source) == {}, mirror.story()


# Changes of both sides, all made before the first of them is told: what is done before the `yield` finds the daemon
# stopped, and what comes behind it finds it with much to tell.


def an_exchange_in_a_directory_that_moves_on(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (source / "old" / "new" / "below").mkdir(parents=True)
    (source / "old" / "new" / "below" / "file").write_text("below")
    yield
    exchange(mount / "old" / "new" / "below", mount / "older")
    (mount / "old").rename(mount / "moved")


def an_exchange_with_a_file_in_a_directory_that_moves_on(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (source / "old" / "new" / "below").mkdir(parents=True)
    (source / "old" / "new" / "below" / "file").write_text("below")
    yield
    exchange(mount / "old" / "new" / "below", mount / "older" / "file")
    (mount / "old").rename(mount / "moved")


def a_new_name_in_a_directory_that_came_in(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (outside / "coming" / "directory" / "below").mkdir(parents=True)
    (outside / "coming").rename(source / "came")
    yield
    (mount / "came" / "link").symlink_to("nowhere")
    exchange(source / "came" / "link", source / "came" / "directory")


def a_rename_in_a_directory_that_came_in(source: Path, outside: Path, mount: Path) -> Iterator[None]:
    (outside / "coming" / "one").mkdir(parents=True)
    (outside / "coming").rename(source / "came")
    yield
    (mount / "came" / "one").rename(mount / "came" / "other")
    (mount / "older").rename(mount / "came" / "one")


@pytest.mark.parametrize(
    "change",
    [
        an_exchange_in_a_directory_that_moves_on,
        an_exchange_with_a_file_in_a_directory_that_moves_on,
        a_new_name_in_a_directory_that_came_in,
        a_rename_in_a_directory_that_came_in,
    ],
)
async def test_a_mirror_converges_although_the_daemon_is_busy(
    clean: Mount, change: Callable[[Path, Path, Path], Iterator[None]]
) -> None:
    source = clean.source
    async with open_group() as group, open_group() as other:
        await group.mark(f"unix:{clean.socket}")
        for _ in range(50):  # each is looked at with every event, which takes its time
            await other.mark(f"unix:{clean.socket}", origin=Origin.LOCAL)
        for name in ("old", "older"):
            (source / name / "below").mkdir(parents=True)
            (source / name / "file").write_text(name)
        mirror = Mirror(group, source)
        with trio.fail_after(PATIENCE):
            await group.sync()
            os.kill(clean.pid, signal.SIGSTOP)
            try:
                for number in range(16_000):  # the kernel would lose what is beyond 16384
                    (source / f"busy{number % 10}").touch()
                changes = change(source, source.parent / "outside", clean.mountpoint)
                next(changes)
            finally:
                os.kill(clean.pid, signal.SIGCONT)
            next(changes, None)
            await group.sync()
            (source / "end").touch()
            await mirror.follow("end")
    (source / "end").unlink()
    assert differences(mirror, source, source) == {}, mirror.story()
