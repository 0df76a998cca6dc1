"""inotify: one watch per directory, and a read buffer of our own.

The kernel's queue holds 16384 events and loses the rest, so it is emptied first and looked at later: every caller that
passes by drains it into the buffer. The stream of bytes has positions, which tell what came before what.
"""

import contextlib
import errno
import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from fcntl import ioctl
from pathlib import Path
from termios import FIONREAD
from typing import Final

from inotify_simple import INotify, flags

from fusenotify import events
from fusenotify._linux import proc_path
from fusenotify.errors import EnvironmentProblem
from fusenotify.identity import InodeKey
from fusenotify.joiner import RawEvent, parse
from fusenotify.watchers.watcher import Adoption, Watcher, list_directory

log = logging.getLogger(__name__)

# OPEN, ACCESS and CLOSE_NOWRITE come in only where a mark asks for them, as our own crawl raises them. Unlinked files
# are silent, as their name may by then stand for another file.
_MASK: Final = (
    flags.CREATE
    | flags.DELETE
    | flags.MODIFY
    | flags.ATTRIB
    | flags.CLOSE_WRITE
    | flags.MOVED_FROM
    | flags.MOVED_TO
    | flags.DELETE_SELF
    | flags.MOVE_SELF
    | flags.ONLYDIR
    | flags.EXCL_UNLINK
)
_USES: Final = {events.OPEN: flags.OPEN, events.ACCESS: flags.ACCESS, events.CLOSE_NOWRITE: flags.CLOSE_NOWRITE}
_CHUNK: Final = 64 * 1024  # bytes worked on before the kernel's queue is drained again
# Beyond this many bytes not told yet (parsed they take ten times as much memory) the kernel's queue is left to fill: an
# overflow event is better than no memory.
_BUFFER_LIMIT: Final = 64 * 1024 * 1024
_LIMIT_ADVICE: Final = (
    "the limit of inotify watches is reached, so changes in some directories are not heard but found by looking, late; "
    "raise it with `sysctl fs.inotify.max_user_watches=1048576`"
)


class InotifyWatcher(Watcher):
    """The watches on the backing tree and the bytes they raised."""

    name = "inotify"

    def __init__(self) -> None:
        super().__init__()
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            raise EnvironmentProblem(
                "no inotify instance is left for this user (fs.inotify.max_user_instances); "
                "raise it with `sysctl fs.inotify.max_user_instances=1024` or end a program that watches files"
            ) from error
        self._buffer: deque[bytes] = deque()
        self._untold = 0  # bytes read and not told yet, here or with whoever took them
        self._read = 0
        self._taken = 0
        self._available = bytearray(4)

    def close(self) -> None:
        """Drop every watch."""
        self._inotify.close()

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        fd: int = self._inotify.fileno()
        return fd

    @property
    def limit(self) -> int:
        """How many watches the user may have in all, 0 where the kernel does not say."""
        try:
            return int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
        except OSError:
            return 0

    # --- the stream ------------------------------------------------------------------------------------------------

    def drain(self) -> int:
        """Move what the kernel holds into the buffer and return the position behind it, in bytes."""
        fd, now = self._inotify.fileno(), time.time_ns()
        ioctl(fd, FIONREAD, self._available)
        waiting = int.from_bytes(self._available, "little")
        while waiting > 0 and self._untold < _BUFFER_LIMIT:
            data = os.read(fd, min(waiting, _CHUNK))
            self._buffer.append(data)
            self._untold += len(data)
            self._read += len(data)
            self._note_read(self._read)
            waiting -= len(data)
            self.on_data()
        if not waiting:
            self._note_empty(self._read, now)
        return self._read + waiting

    def take(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that were read and the position behind them, None when there are none."""
        if not self._buffer:
            return None
        position, data = self._taken, self._buffer.popleft()
        data += b"".join(self._follow_up(_CHUNK - len(data)))  # each round of work has a price of its own
        self._taken += len(data)
        return self._taken, parse(data, position)

    def _follow_up(self, room: int) -> Iterator[bytes]:
        while self._buffer and len(self._buffer[0]) <= room:
            room -= len(self._buffer[0])
            yield self._buffer.popleft()

    def told(self, position: int) -> None:
        """Take note that everything before a position has been worked off and takes no memory any more."""
        self._untold = self._read - position
        self._forget_times(position)

    # --- the watches -----------------------------------------------------------------------------------------------

    def adopt(self, directory_fd: int) -> Adoption:
        """Watch a directory, then list it: in this order nothing that appears in it can be missed.

        `directory_fd` is a readable descriptor of it.
        """
        stat = os.fstat(directory_fd)
        key = InodeKey(stat.st_dev, stat.st_ino)
        before = self.drain()
        has_raised_events = key in self._wds
        wd = self.watch(directory_fd, key)
        entries = list_directory(directory_fd)
        until = self.drain()
        return Adoption(wd, key, entries, has_raised_events or until > before, until)

    def watch(self, directory_fd: int, key: InodeKey) -> int | None:
        """Watch a directory, unless that is so already, and return its watch descriptor; None where it cannot be.

        As long as a directory lives it has the same one, and nothing else ever has it.
        """
        try:
            wd: int = self._inotify.add_watch(proc_path(directory_fd), self._mask_of(key))
        except OSError as error:
            if error.errno == errno.ENOSPC and not self._refused:
                log.warning("%s", _LIMIT_ADVICE)
            if error.errno != errno.ENOENT:
                self._refused.add(key)
            return None
        self._watched(key, wd)
        return wd

    def _ask_for_uses(self, directory_fd: int, key: InodeKey) -> None:
        self.watch(directory_fd, key)

    def _mask_of(self, key: InodeKey) -> int:
        mask: int = _MASK
        uses = self._uses.get(key, 0)
        for kind, flag in _USES.items():
            mask |= flag if uses & kind else 0
        return mask

    def unwatch(self, wd: int) -> None:
        """Stop watching a directory that has left the tree: a watch follows its inode wherever it goes."""
        self.forget(wd)
        with contextlib.suppress(OSError):  # EINVAL: the kernel dropped it when the directory was deleted
            self._inotify.rm_watch(wd)
