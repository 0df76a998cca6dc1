"""A program that watches a mount with inotify and knows nothing of us."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from inotify_simple import INotify, flags, masks

from tests.harness import PATIENCE, Mount

_END = "onlooker-end"  # a directory; what is made in it behind the mount is heard after everything before it
_UNHEARD = flags.ACCESS | flags.CLOSE_NOWRITE | flags.OPEN


class Heard(NamedTuple):
    """One event: which watch heard it, what it says (`CREATE`, `CREATE|ISDIR`), of which name, and its cookie."""

    where: str
    what: str
    name: str
    cookie: int = 0


class Onlooker:
    """Watches objects of a mount."""

    def __init__(self, mount: Mount, inotify: INotify) -> None:
        self._mount = mount
        self._inotify = inotify
        self._names: dict[int, str] = {}
        self._asked = 0
        (mount.source / _END).mkdir(exist_ok=True)
        self._end = inotify.add_watch(mount.mountpoint / _END, flags.CREATE)
        self.events()

    def watch(self, *paths: str, mask: int = masks.ALL_EVENTS & ~_UNHEARD) -> None:
        """Watch paths below the mountpoint, `.` for the root."""
        for path in paths:
            self._names[self._inotify.add_watch(self._mount.mountpoint / path, mask)] = path

    def raw(self) -> list[Heard]:
        """Return what has been heard of everything that was done behind the mount before this call."""
        self._asked += 1
        last = f"{os.getpid()}-{self._asked}"
        os.mknod(self._mount.source / _END / last)
        heard: list[Heard] = []
        while True:
            events = self._inotify.read(timeout=int(PATIENCE * 1000))
            assert events, f"the end was not heard, only {heard}; {self._mount.log}"
            for event in events:
                if event.wd == self._end:
                    if event.name == last:
                        return heard
                elif event.wd in self._names:
                    what = "|".join(flag.name for flag in flags.from_mask(event.mask))
                    heard.append(Heard(self._names[event.wd], what, event.name, event.cookie))

    def events(self) -> list[str]:
        """Return the same in short: `where: what name`."""
        return [f"{one.where}: {one.what} {one.name}".strip() for one in self.raw() if one.name != _END]


@contextmanager
def onlooking(mount: Mount) -> Iterator[Onlooker]:
    """Watch a mount."""
    with INotify() as inotify:
        yield Onlooker(mount, inotify)


def tree_of(root: Path) -> dict[str, tuple[object, ...]]:
    """Return everything that can be seen of a tree, but for the times of reading."""
    seen: dict[str, tuple[object, ...]] = {}
    for directory, _, files in os.walk(root):
        for name in (".", *files):
            path = Path(directory, name)
            status = path.lstat()
            what = (status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_size)
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            seen[os.path.join(os.path.relpath(directory, root), name)] = (
                *what,
                status.st_mtime_ns,
                status.st_ctime_ns,
                content,
            )
    return seen
