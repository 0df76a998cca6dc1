"""An ordinary inotify program, as it might watch either side of a mount."""

import contextlib
import itertools
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from inotify_simple import INotify, flags

from tests.harness import PATIENCE, Mount

# What can be replayed; OPEN and its like come of replays as well, and nobody promises any of them.
KINDS = (
    flags.MODIFY
    | flags.ATTRIB
    | flags.CLOSE_WRITE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.CREATE
    | flags.DELETE
    | flags.DELETE_SELF
    | flags.MOVE_SELF
)
_MERGING = frozenset({"MODIFY", "ATTRIB", "ATTRIB|ISDIR", "CLOSE_WRITE"})  # equal ones may be told as one
MARKERS = ".markers"
_numbers = itertools.count()

# Run before the daemon: on machines that have a process which nobody may look at (the init of some virtual machines),
# it shall be no reason to take everything for watched.
LOOKING = """
import os
from fusenotify import onlookers
_begin = onlookers.Onlookers.__init__
onlookers.Onlookers.__init__ = lambda self, native, left_out: _begin(self, native, {1, *left_out})
"""


class Heard(NamedTuple):
    """An event: what is watched (by its path when the watch was set), its kinds and name, which pair it is half of."""

    watch: str
    kinds: str
    name: str
    pair: int

    def __str__(self) -> str:
        pair = f" pair {self.pair}" if self.pair else ""
        return f"{self.watch}: {self.kinds} {self.name}{pair}".rstrip()


class Program:
    """Watches paths below a directory, and writes down what it hears."""

    def __init__(self, root: Path, patience: float = PATIENCE) -> None:
        """Watch below `root`; what is not heard of for `patience` seconds is taken for lost."""
        self.root = root
        self._patience = patience
        self._inotify = INotify(nonblocking=True)
        self._poll = select.poll()
        self._poll.register(self._inotify.fd, select.POLLIN)
        self._labels: dict[int, str] = {}
        self._numbers: dict[int, int] = {}  # inode numbers of what is watched
        self._left: set[int] = set()  # watches on what is no longer there, which are to say no more
        self._pairs: dict[int, int] = {}
        self._unread: list[Heard] = []

    def close(self) -> None:
        self._inotify.close()

    def watch(self, path: str, kinds: int = KINDS) -> None:
        """Watch a path; what has a watch keeps it, with the name it had then."""
        wd = self._inotify.add_watch(self.root / path, kinds | flags.DONT_FOLLOW)
        self._labels.setdefault(wd, path)
        self._numbers[wd] = os.lstat(self.root / path).st_ino

    def watch_all(self) -> None:
        """Watch everything that is below the root, and nothing else any more."""
        for path in objects_below(self.root):
            self.watch(path)
        there = {os.lstat(self.root / path).st_ino for path in objects_below(self.root)}
        for wd in [wd for wd in self._labels if self._numbers[wd] not in there and self._labels[wd] != MARKERS]:
            self._inotify.rm_watch(wd)
            self._left.add(wd)

    def until(self, watch: str, name: str) -> list[Heard]:
        """Return everything that is heard before an event of this name."""
        heard: list[Heard] = []
        while True:
            for index, event in enumerate(self._unread):
                if (event.watch, event.name) == (watch, name):
                    del self._unread[: index + 1]
                    return heard
                heard.append(event)
            self._unread = []
            assert self._poll.poll(self._patience * 1000), (
                f"{watch}/{name} was not heard of, but {list(map(str, heard))}"
            )
            self._unread = list(self._read())

    def drain(self, seconds: float) -> None:
        """Read for so long, and forget it."""
        deadline = time.monotonic() + seconds
        while (rest := deadline - time.monotonic()) > 0:
            if self._poll.poll(rest * 1000):
                self._inotify.read(timeout=0)

    def _read(self) -> Iterator[Heard]:
        for event in self._inotify.read(timeout=0):
            kinds = "|".join(flag.name or "" for flag in flags.from_mask(event.mask))
            assert not event.mask & flags.Q_OVERFLOW
            if event.wd in self._left:
                self._left.discard(event.wd)
                del self._labels[event.wd]
                continue
            pair = self._pairs.setdefault(event.cookie, len(self._pairs) + 1) if event.cookie else 0
            yield Heard(self._labels[event.wd], kinds, os.fsdecode(event.name), pair)
            if event.mask & flags.IGNORED:
                del self._labels[event.wd]


class Barrier:
    """Tells when everything that has happened on the backing tree so far was replayed: replays are made in order.

    Attributes:
        last: the name that came last.
    """

    def __init__(self, source: Path, program: Program) -> None:
        self._place = source / MARKERS
        self._program = program
        self.last = ""
        self._place.mkdir(exist_ok=True)
        program.watch(MARKERS, flags.CREATE)
        self.heard()

    def heard(self) -> list[Heard]:
        """Wait for it, and return what the program has heard since the last time."""
        self.last = str(next(_numbers))
        os.mknod(self._place / self.last)
        return self._program.until(MARKERS, self.last)


def merged(heard: list[Heard]) -> list[str]:
    """Return events as text, with those told once that the kernel may merge: what is unread, and changes once more."""
    lines: list[str] = []
    run: set[str] = set()  # the lines since another kind of event, of one that merges
    kinds = ""
    for event in heard:
        if event.kinds != kinds:
            run, kinds = set(), event.kinds
        line = str(event)
        if line not in run or kinds not in _MERGING:
            lines.append(line)
            run.add(line)
    return lines


def objects_below(root: Path) -> list[str]:
    """Return the paths of a directory and everything below it that the kernel takes at once, parents first."""
    found = ["."]
    for directory, directories, files in os.walk(root):
        for name in sorted((*directories, *files)):
            path = os.path.join(directory, name)
            if len(os.fsencode(path)) < 4000 and not path.startswith(str(root / MARKERS)):
                found.append(os.path.relpath(path, root))
    return found


def settle(mount: Mount, patience: float = PATIENCE) -> None:
    """Return when what was done behind the mount is over: whoever begins to watch now hears nothing of it."""
    with contextlib.closing(Program(mount.mountpoint, patience)) as program:
        Barrier(mount.source, program)
