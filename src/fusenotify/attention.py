"""Has the watcher hear of uses of files (open, access, close_nowrite) where a mark asks for them, and nowhere else."""

import contextlib
import os
from collections.abc import Iterator

from fusenotify.beneath import Beneath
from fusenotify.filesystems import Filesystems
from fusenotify.identity import InodeKey
from fusenotify.tree import Directory
from fusenotify.uses import AskedUses
from fusenotify.watchers.watcher import Watcher

_CHUNK = 64  # directories between two chances to do other work


class Attention:
    """Keeps the watches as the marks want them."""

    def __init__(self, backing: Beneath, watcher: Watcher, filesystems: Filesystems, uses: AskedUses) -> None:
        self._backing = backing
        self._watcher = watcher
        self._filesystems = filesystems
        self._uses = uses

    def settle(self) -> Iterator[None]:
        """Change the watches of directories where something else is asked for now; yields chances to do other work."""
        if not self._uses.is_unsettled:
            return
        for number, directory in enumerate(self._uses.take_unsettled(), 1):
            wanted = self._uses.asked_in(directory)
            if directory.wd is not None and self._watcher.uses_of(directory.key) != wanted:
                self._change(directory, wanted)
            if number % _CHUNK == 0:
                yield

    def _change(self, directory: Directory, wanted: int) -> None:
        path = directory.path
        if self._filesystems.is_silent_at(path):
            return
        with contextlib.suppress(OSError):
            fd = self._backing.open_beneath(path, os.O_PATH | os.O_DIRECTORY)
            try:
                status = os.fstat(fd)
                if InodeKey(status.st_dev, status.st_ino) == directory.key:
                    self._watcher.hear_uses(fd, directory.key, wanted)
                    return
            finally:
                os.close(fd)
        # It has been renamed, which is still to be told. If that is never told, it is not in the tree any more.
        self._uses.put_back(directory)
