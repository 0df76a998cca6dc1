"""The filesystems that a tree consists of: which have nothing to wait for, and which may never answer.

A *distant* filesystem is one that somebody else answers for: a server, or the daemon of another FUSE mount. Before it
is used it is asked for its figures, in a thread, unless it has answered a moment ago. Whoever wants something of one
that is silent waits for that, and nobody else.
"""

import contextlib
import errno
import os
import stat
import threading
import time
from typing import Final

from fusenotify import _linux
from fusenotify.beneath import Beneath, Forbidden
from fusenotify.mountinfo import MountEntry, is_below, mount_at, read_mounts

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_DISTANT: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "virtiofs", "afs", "glusterfs", "lustre"})
_PATIENCE: Final = 2.0  # seconds for which threads wait for the answer of one
_TRUST: Final = 0.1  # seconds for which a filesystem that has answered is taken to answer again


class Filesystems:
    """What is mounted at and below SOURCE, by device number (`st_dev`).

    Attributes:
        doors: the names of directories on which a distant filesystem is mounted, and which that may be.
        distant: the mountpoints of distant filesystems.
    """

    def __init__(self, source: str) -> None:
        self.doors: dict[bytes, set[int]] = {}
        self.distant: dict[int, str] = {}
        self._source = source
        self._types: dict[int, str] = {}
        self._answered: dict[int, float] = {}
        self._asked: dict[int, int] = {}  # how many threads wait for an answer
        self._askers: dict[int, threading.Thread] = {}
        self.look(read_mounts())

    def look(self, mounts: list[MountEntry]) -> None:
        """Take note of what is mounted now."""
        doors: dict[bytes, set[int]] = {}
        distant: dict[int, str] = {}
        base = mount_at(self._source, mounts)
        for mount in mounts:
            if mount is not base and not is_below(mount.mountpoint, self._source):
                continue
            if mount.fs_type.partition(".")[0] == "fuse" or mount.fs_type in _DISTANT:
                device = _number(mount.device)
                distant[device] = mount.mountpoint
                if mount is not base:
                    doors.setdefault(os.fsencode(os.path.basename(mount.mountpoint)), set()).add(device)
        self._types.clear()
        self.doors, self.distant = doors, distant  # whole ones at any moment: threads look at them

    def is_in_memory(self, device: int) -> bool:
        """Return whether a filesystem keeps everything in memory."""
        found = self._types.get(device)
        if found is None:
            types = (mount.fs_type for mount in read_mounts() if _number(mount.device) == device)
            found = self._types[device] = next(types, "")
        return found in _IN_MEMORY

    def answers(self, device: int) -> bool:
        """Return whether a filesystem is not distant, or has answered a moment ago."""
        return device not in self.distant or time.monotonic() < self._answered.get(device, 0.0) + _TRUST

    def ask(self, device: int) -> None:
        """Return when a distant filesystem answers. Slow: for a thread."""
        self._asked[device] = self._asked.get(device, 0) + 1
        try:
            os.statvfs(self.distant[device])  # which no filesystem answers from a cache
        except (OSError, KeyError):
            pass  # that is an answer too: whoever uses it will hear it
        finally:
            self._asked[device] -= 1
        self._answered[device] = time.monotonic()

    def is_silent(self, device: int) -> bool:
        """Return whether a distant filesystem has been asked and has not answered."""
        return bool(self._asked.get(device)) and not self.answers(device)

    def is_silent_at(self, path: bytes) -> bool:
        """Return whether a path below SOURCE lies on a filesystem that is silent."""
        if not self.distant:
            return False
        place = os.path.join(self._source, os.fsdecode(path))
        silent = (mountpoint for device, mountpoint in self.distant.items() if self.is_silent(device))
        return any(is_below(place, mountpoint) for mountpoint in silent)

    def expect_answer(self, path: bytes) -> None:
        """Return when the filesystems on the way to a path below SOURCE answer. Slow: for a thread.

        Only who is the first to ask one that is silent waits for that.

        Raises:
            TimeoutError: one does not.
        """
        if not self.distant:
            return
        place = os.path.normpath(os.path.join(self._source, os.fsdecode(path)))
        for device, mountpoint in self.distant.items():
            if is_below(place, mountpoint) and not self._answers_in_time(device):
                raise TimeoutError(errno.ETIMEDOUT, f"the filesystem mounted at {mountpoint} is silent")

    def answers_at(self, path: bytes) -> bool:
        """Return whether the filesystems on the way to a path answer (see `expect_answer`). Slow: for a thread."""
        try:
            self.expect_answer(path)
        except TimeoutError:
            return False
        return True

    def _answers_in_time(self, device: int) -> bool:
        if self.answers(device):
            return True
        asker = self._askers.get(device)
        if asker is None or not asker.is_alive():
            asker = self._askers[device] = threading.Thread(target=self.ask, args=(device,), daemon=True)
            asker.start()
            asker.join(_PATIENCE)
        return self.answers(device)

    def sync(self, tree: Beneath) -> None:
        """Bring all that was changed in the tree to its disks, on whatever filesystem it is. Slow: for a thread.

        Raises:
            OSError: a disk does not take it, or does not answer.
        """
        _linux.syncfs(tree.root_fd)
        done = {tree.root_key.device}
        for mount in read_mounts():
            device = _number(mount.device)
            if device not in done and is_below(mount.mountpoint, self._source):
                with contextlib.suppress(PermissionError):  # of what nobody lets us see nothing is known
                    if self._sync_at(tree, os.fsencode(os.path.relpath(mount.mountpoint, self._source))):
                        done.add(device)

    def _sync_at(self, tree: Beneath, path: bytes) -> bool:
        """Bring the filesystem of a mount to its disk; return whether that is still to be seen, and can be opened."""
        self.expect_answer(path)
        try:
            status = tree.attributes_at(path)
            if status is None or not (stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)):
                return False
            fd = tree.open_beneath(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except Forbidden:
            return False
        try:
            _linux.syncfs(fd)
        finally:
            os.close(fd)
        return True


def _number(device: str) -> int:
    major, minor = map(int, device.split(":"))
    return os.makedev(major, minor)
