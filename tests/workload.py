"""Random changes of a tree, made on both sides of a mount by one thread or several."""

import contextlib
import os
import random
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fusenotify import _linux

_INOTIFY_QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")
_FANOTIFY_QUEUE = Path("/proc/sys/fs/fanotify/max_queued_events")
NOISE = ("noise", "more noise")
NAMES = ["a", "b", "c", "d", "e", "lang", "f g", os.fsdecode(b"\xff")]


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
                        os.utime(source / name, ns=(status.st_atime_ns, status.st_mtime_ns))
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


def overflow_inotify(directory: Path) -> None:
    """Raise more events than a queue of inotify holds, so that what follows is lost unless somebody reads them."""
    files = [directory / name for name in NOISE]
    for file in files:
        file.touch()
    for number in range(int(_INOTIFY_QUEUE.read_text()) + 2):
        os.utime(files[number % 2])
    for file in files:
        file.unlink()


def overflow_fanotify(directory: Path) -> None:
    """Do the same for fanotify, where equal events merge; the directory may be anywhere on the filesystem."""
    files = [directory / f"{number}" for number in range(int(_FANOTIFY_QUEUE.read_text()) + 2)]
    for file in files:
        os.mknod(file)
    for file in files:
        file.unlink()
