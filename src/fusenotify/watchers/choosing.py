"""Which watcher hears a tree, and why."""

import os
from pathlib import Path
from typing import Final

from fusenotify.errors import EnvironmentProblem
from fusenotify.filesystems import Filesystems
from fusenotify.mountinfo import is_below, read_mounts
from fusenotify.watchers.fanotify import FanotifyWatcher
from fusenotify.watchers.inotify import InotifyWatcher
from fusenotify.watchers.watcher import Watcher

# From so many directories on, the kernel's memory for an inotify watch on each of them (about 1 kB, and the inode that
# it keeps) is worth more than not hearing what else happens on the filesystem.
_MANY: Final = 50_000
_WATCH_LIMIT: Final = Path("/proc/sys/fs/inotify/max_user_watches")


def choose(wanted: str, source: str, root_fd: int, filesystems: Filesystems) -> tuple[Watcher, str]:
    """Return a watcher for the tree of `root_fd`, and why it is this one.

    Args:
        wanted: `inotify`, `fanotify` or `auto`.
        source: the path of the tree.
        root_fd: a readable descriptor of its root, which stays open for as long as the watcher is used.
        filesystems: what the tree consists of.

    Raises:
        EnvironmentProblem: the watcher that is wanted cannot be had.
    """
    if wanted == "inotify":
        return InotifyWatcher(), "asked for"
    if wanted == "fanotify":
        return FanotifyWatcher(root_fd), "asked for"
    if filesystems.distant or any(is_below(mount.mountpoint, source) for mount in read_mounts()):
        return InotifyWatcher(), "the tree consists of several filesystems, or of a distant one"
    many = min(_MANY, _watch_limit() // 2)
    if not _has_more_directories(root_fd, many):
        return InotifyWatcher(), f"the tree has at most {many} directories"
    try:
        return FanotifyWatcher(root_fd), f"the tree has more than {many} directories"
    except EnvironmentProblem as problem:
        return InotifyWatcher(), str(problem).partition(". ")[0]


def _watch_limit() -> int:
    try:
        return int(_WATCH_LIMIT.read_text())
    except OSError:
        return 2 * _MANY


def _has_more_directories(root_fd: int, count: int) -> bool:
    filesystem = os.fstatvfs(root_fd)
    if filesystem.f_files > 0 and filesystem.f_files - filesystem.f_ffree <= count:
        return False  # it has not even so many inodes in use
    found = 0
    for _, directories, _, directory_fd in os.fwalk(".", dir_fd=root_fd):
        found += len(directories)
        if found >= count:
            return True
        directories[:] = [name for name in directories if _may_have_directories(name, directory_fd)]
    return False


def _may_have_directories(name: str, directory_fd: int) -> bool:
    """Whether there may be directories in one: where they are counted, it has a link more for each."""
    try:
        return os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_nlink != 2
    except OSError:
        return False
