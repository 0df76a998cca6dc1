"""fanotify: one mark on the filesystem of the backing tree, and everything that happens there, with who did it.

The kernel tells of directories by their handles. Here a directory of the tree has a watch descriptor of our own, a
number that is never used again, and what is told of all others is dropped as soon as it has been read: the whole
filesystem is heard, the state directory included. What comes out are the raw events that inotify has for the same.

- Positions count records, so FIONREAD brackets our own operations exactly.
- What is in a directory is heard from when it is adopted; the directory itself, of which only it tells (with inotify
  the directory above does), from when a record or a listing shows it.
- Uses of files (open, access, close_nowrite) are heard of on the whole filesystem while anybody asks for them, and
  dropped where nobody does.
- Unread records that are equal merge (`Standings`): names in doubt are looked at when all that was read has been told.
"""

import errno
import logging
import os
import stat
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from fusenotify import _fanotify, events, joiner
from fusenotify._fanotify import Record
from fusenotify.callers import is_child, user_of
from fusenotify.errors import EnvironmentProblem
from fusenotify.identity import InodeKey
from fusenotify.joiner import IN_ISDIR, ITSELF, Author, RawEvent
from fusenotify.standing import Place, Standings
from fusenotify.watchers.watcher import Adoption, Watcher, list_directory

log = logging.getLogger(__name__)

_CHUNK: Final = 64 * 1024  # bytes read at once
# Beyond this many events not told yet the kernel's queue is left to fill: an overflow event is better than no memory.
_BUFFER_LIMIT: Final = 1 << 20
_STRIDE: Final = 8  # positions of a record: it becomes as many events at most
_MOST_DOUBTS: Final = 4096  # names in doubt that may wait until all that was read has been told
_LOOKS: Final = 64  # names looked at in one go: about a millisecond
_UNKNOWN: Final = Author(None, None)
# What one record may tell of an entry, in the order in which it most likely happened.
_BITS: Final = (
    (_fanotify.FAN_CREATE, joiner.IN_CREATE),
    (_fanotify.FAN_OPEN, joiner.IN_OPEN),
    (_fanotify.FAN_ACCESS, joiner.IN_ACCESS),
    (_fanotify.FAN_MODIFY, joiner.IN_MODIFY),
    (_fanotify.FAN_ATTRIB, joiner.IN_ATTRIB),
    (_fanotify.FAN_CLOSE_WRITE, joiner.IN_CLOSE_WRITE),
    (_fanotify.FAN_CLOSE_NOWRITE, joiner.IN_CLOSE_NOWRITE),
    (_fanotify.FAN_DELETE, joiner.IN_DELETE),
)
_USES: Final = {
    events.OPEN: _fanotify.FAN_OPEN,
    events.ACCESS: _fanotify.FAN_ACCESS,
    events.CLOSE_NOWRITE: _fanotify.FAN_CLOSE_NOWRITE,
}
_ALL_USES: Final = _fanotify.FAN_OPEN | _fanotify.FAN_ACCESS | _fanotify.FAN_CLOSE_NOWRITE
_NAMES: Final = _fanotify.FAN_CREATE | _fanotify.FAN_DELETE  # what changes a name's standing, but for renames


class FanotifyWatcher(Watcher):
    """The mark on the filesystem of the backing tree, and the records of it that concern the tree."""

    name = "fanotify"

    def __init__(self, root_fd: int) -> None:
        """Hear the filesystem of `root_fd`, which has to stay open for as long as the watcher is used.

        Raises:
            EnvironmentProblem: this process, the kernel or the filesystem does not allow that.
        """
        super().__init__()
        self._root_fd = root_fd
        self._device = os.fstat(root_fd).st_dev
        self._own_pid = os.getpid()
        self._fd = open_group()
        _mark(self._fd, root_fd)
        self._fsid = _fanotify.fsid_of(root_fd)
        self._by_handle: dict[bytes, int] = {}
        self._handles: dict[int, bytes] = {}
        self._expected: dict[bytes, int] = {}  # directories that are about to be adopted
        self._expected_at: deque[tuple[int, bytes]] = deque()  # since which position
        self._last_wd = 0
        self._uses_heard = 0  # FAN_* bits
        self._standings = Standings()
        self._buffer: deque[tuple[int, list[RawEvent]]] = deque()
        self._lengths: deque[tuple[int, int]] = deque()  # (position behind, count) of events that have not been told
        self._untold = 0
        self._read = 0  # records

    def close(self) -> None:
        """Hear nothing any more."""
        os.close(self._fd)

    def fileno(self) -> int:
        """Return the descriptor to wait for."""
        return self._fd

    # --- the stream ------------------------------------------------------------------------------------------------

    def drain(self) -> int:
        """Read what the kernel holds, keep what concerns the tree, and return the position behind it."""
        now = time.time_ns()
        queued = _fanotify.count_queued(self._fd)
        while queued > 0 and self._untold < _BUFFER_LIMIT:
            records = _fanotify.parse(os.read(self._fd, _CHUNK), self._by_handle, self._expected)
            first, self._read = self._read, self._read + len(records)
            queued = _fanotify.count_queued(self._fd)
            self._keep(list(self._events(records, first, self._read + queued)))
        if not queued:
            self._note_empty(self._read * _STRIDE, now)
        return (self._read + queued) * _STRIDE

    def take(self) -> tuple[int, list[RawEvent]] | None:
        """Return the oldest events that were read and a position behind them, None when there are none.

        While a name is in doubt that position is one short: what was read has not been told in full.
        """
        if not self._buffer or len(self._standings) > _MOST_DOUBTS:
            self._look_at_doubts()
        if not self._buffer:
            return None
        end, events = self._buffer.popleft()
        return end - bool(self._standings), events

    def told(self, position: int) -> None:
        """Take note that everything before a position has been worked off and takes no memory any more."""
        while self._lengths and self._lengths[0][0] <= position:
            self._untold -= self._lengths.popleft()[1]
        self._forget_times(position)
        while self._expected_at and self._expected_at[0][0] < position:
            self._expected.pop(self._expected_at.popleft()[1], None)  # it has gone before anybody came to it

    def _keep(self, events: list[RawEvent]) -> None:
        if events:
            end = self._read * _STRIDE
            self._buffer.append((end, events))
            self._lengths.append((end, len(events)))
            self._untold += len(events)
            self._note_read(end)
            self.on_data()

    def _events(self, records: Iterable[Record | None], first: int, until: int) -> Iterator[RawEvent]:
        """Yield the events of records; those before the number `until` were queued when these were read."""
        authors: dict[int, Author] = {}
        wds = self._by_handle
        for number, record in enumerate(records, first):
            if record is None:
                continue
            if record.mask & _fanotify.FAN_Q_OVERFLOW:
                self._standings.clear()
                yield number * _STRIDE, -1, joiner.IN_Q_OVERFLOW, 0, b"", None
            elif (
                record.directory in wds
                or record.new_directory in wds
                or (record.name == ITSELF and record.directory in self._expected)
                or self._is_root(record.target)
            ):
                author = authors.get(record.pid)
                if author is None:
                    author = authors[record.pid] = self._author(record.pid)
                if record.mask & _fanotify.FAN_RENAME:
                    yield from self._rename(record, number, until, author)
                else:
                    yield from self._change(record, number, until, author)

    def _is_root(self, target: bytes | None) -> bool:
        return target is not None and self.root_wd is not None and self._by_handle.get(target) == self.root_wd

    def _author(self, pid: int) -> Author:
        # A child has our open files until its exec, and closes what was closed here meanwhile.
        if pid == self._own_pid or is_child(pid):
            return Author(pid, None, is_us=True)
        return Author(pid, user_of(pid)) if pid > 0 else _UNKNOWN

    def _rename(self, record: Record, number: int, until: int, author: Author) -> Iterator[RawEvent]:
        """Yield the halves of a rename as far as they lie in watched directories, and that a directory moved itself."""
        _, _, directory, name, new_directory, new_name, target = record
        old = self._by_handle.get(directory) if directory is not None else None
        new = self._by_handle.get(new_directory) if new_directory is not None else None
        is_dir = record.mask & IN_ISDIR
        position, cookie = number * _STRIDE, joiner.ALONE if old is None or new is None else number + 1
        if directory is not None and old is not None:
            self._standings.went((directory, name), target, number, until)
            yield position, old, joiner.IN_MOVED_FROM | is_dir, cookie, name, author
        if new_directory is not None and new is not None:
            self._standings.came((new_directory, new_name), target, number, until, is_dir=bool(is_dir))
            yield position + 1, new, joiner.IN_MOVED_TO | is_dir, cookie, new_name, author
        if target is not None and is_dir:
            moved = self._by_handle.get(target)
            if moved is not None:
                yield position + 2, moved, joiner.IN_MOVE_SELF, 0, b"", author
            elif new is not None:
                self._expect(target)

    def _change(self, record: Record, number: int, until: int, author: Author) -> Iterator[RawEvent]:
        mask, _, directory, name, _, _, target = record
        if directory is None:
            return
        wd = self._by_handle.get(directory)
        if wd is None:
            wd = self._expected.get(directory) if name == ITSELF else None
        if wd is None:
            return
        if name == ITSELF and wd == self.root_wd:
            name = b""
        is_dir = mask & IN_ISDIR
        if mask & _ALL_USES:
            mask &= ~_ALL_USES | self._uses_in(wd)
        if mask & _NAMES:
            self._note_standing(record, (directory, name), number, until)
        elif not is_dir and self._standings.has_left((directory, name), target):
            return  # it is written to without a name, which by now may be another file's
        for place, (bit, kind) in enumerate(_BITS):
            if mask & bit:
                yield number * _STRIDE + place, wd, kind | is_dir, 0, name, author

    def _uses_in(self, wd: int) -> int:
        key = self._keys.get(wd)
        return _flags_of(self._uses.get(key, 0)) if key is not None else 0

    def _note_standing(self, record: Record, place: Place, number: int, until: int) -> None:
        is_dir = bool(record.mask & IN_ISDIR)
        if record.mask & _fanotify.FAN_CREATE:
            self._standings.came(place, record.target, number, until, is_dir=is_dir)
            if is_dir and record.target is not None:
                self._expect(record.target)
        if record.mask & _fanotify.FAN_DELETE:
            self._standings.went(place, record.target, number, until)
        if record.mask & _NAMES == _NAMES:
            self._standings.doubt(place)

    # --- names in doubt --------------------------------------------------------------------------------------------

    def _look_at_doubts(self) -> None:
        """Add what names in doubt stand for now, where that is not what was told, behind all that has been read."""
        if not self._standings:
            return
        self.drain()
        gone: list[RawEvent] = []
        come: list[RawEvent] = []
        position = self._read * _STRIDE - 1
        for place, standing in self._standings.some_in_doubt(_LOOKS):
            directory, name = place
            wd = self._by_handle.get(directory)
            found = self._look(place) if wd is not None else None
            if wd is None or found is None or found[0] == standing.target:
                continue
            if standing.target is not None:
                mask = joiner.FOUND | joiner.IN_DELETE | (IN_ISDIR if standing.is_dir else 0)
                gone.append((position, wd, mask, 0, name, _UNKNOWN))
            standing.target, standing.is_dir = found
            if standing.target is not None:
                mask = joiner.FOUND | joiner.IN_CREATE | (IN_ISDIR if standing.is_dir else 0)
                come.append((position, wd, mask, 0, name, _UNKNOWN))
        # What has moved leaves its old name first.
        self._buffer.append((self._read * _STRIDE, gone + come))

    def _look(self, place: Place) -> tuple[bytes | None, bool] | None:
        """Return what a name stands for now (nothing: no handle), and whether that is a directory.

        None where the directory has gone, which has been told or will be.
        """
        directory, name = place
        try:
            fd = _fanotify.open_handle(self._root_fd, directory, os.O_PATH | os.O_DIRECTORY)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return None
        try:
            is_dir = stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
            return _fanotify.handle_of(self._fsid, fd, name), is_dir
        except FileNotFoundError:
            return None, False
        finally:
            os.close(fd)

    # --- the directories -------------------------------------------------------------------------------------------

    def adopt(self, directory_fd: int) -> Adoption:
        """Watch a directory, then list it: in this order nothing that appears in it can be missed.

        `directory_fd` is a readable descriptor of it. What lies on another filesystem cannot be watched.
        """
        status = os.fstat(directory_fd)
        key = InodeKey(status.st_dev, status.st_ino)
        before = self.drain()
        may_have_raised_events = key in self._wds or before > self._read * _STRIDE
        wd = self.watch(directory_fd, key)
        entries = list_directory(directory_fd)
        for name, is_dir, _ in entries:
            if is_dir and wd is not None:
                self._expect_entry(directory_fd, name)
        until = self.drain()
        return Adoption(wd, key, entries, may_have_raised_events or until > before, until)

    def watch(self, directory_fd: int, key: InodeKey) -> int | None:
        """Watch a directory, unless that is so already; None where it cannot be."""
        if key.device != self._device:
            if not self._refused:
                log.warning(
                    "changes on filesystems that are mounted below SOURCE are not heard (see --watcher inotify)"
                )
            self._refused.add(key)
            return None
        handle = _fanotify.handle_of(self._fsid, directory_fd)
        wd = self._by_handle.get(handle) or self._expected.pop(handle, None) or self._new_number()
        self._by_handle[handle] = wd
        self._handles[wd] = handle
        self._watched(key, wd)
        return wd

    def _ask_for_uses(self, directory_fd: int, key: InodeKey) -> None:
        """Have uses told of on the whole filesystem, until no directory asks for any."""
        wanted = self._uses_heard | _flags_of(self._uses.get(key, 0)) if self._uses else 0
        if more := wanted & ~self._uses_heard:
            _fanotify.mark_filesystem(self._fd, self._root_fd, more)
        if less := self._uses_heard & ~wanted:
            _fanotify.unmark_filesystem(self._fd, self._root_fd, less)
        self._uses_heard = wanted

    def unwatch(self, wd: int) -> None:
        """Stop watching a directory that has left the tree."""
        self.forget(wd)
        handle = self._handles.pop(wd, None)
        if handle is not None:
            del self._by_handle[handle]

    def _new_number(self) -> int:
        self._last_wd += 1
        return self._last_wd

    def _expect(self, handle: bytes) -> None:
        """Hear a directory itself that is about to be adopted, so that nothing that happens before is missed."""
        if handle not in self._by_handle and handle not in self._expected:
            self._expected[handle] = self._new_number()
            self._expected_at.append((self._read * _STRIDE, handle))

    def _expect_entry(self, directory_fd: int, name: bytes) -> None:
        with suppress(OSError):  # it has gone
            self._expect(_fanotify.handle_of(self._fsid, directory_fd, name))


def _flags_of(uses: int) -> int:
    """Return the FAN_* bits of uses, which are bits of `Kind`."""
    return sum(flag for kind, flag in _USES.items() if uses & kind)


def open_group() -> int:
    """Open a group that hears nothing yet.

    Raises:
        EnvironmentProblem: this process or the kernel does not allow that.
    """
    try:
        return _fanotify.init()
    except OSError as error:
        raise EnvironmentProblem(_why_no_group(error)) from error


def _mark(fd: int, root_fd: int) -> None:
    """Have a group hear the filesystem of a directory, of which handles have to be had and opened."""
    try:
        _fanotify.mark_filesystem(fd, root_fd, _fanotify.MASK)
        handle = _fanotify.handle_of(_fanotify.fsid_of(root_fd), root_fd)
        os.close(_fanotify.open_handle(root_fd, handle, os.O_PATH))
    except OSError as error:
        os.close(fd)
        raise EnvironmentProblem(_why_no_mark(error)) from error


def _why_no_group(error: OSError) -> str:
    if error.errno == errno.EPERM:
        return "the fanotify watcher needs CAP_SYS_ADMIN in the first user namespace. Run as root, or take inotify"
    if error.errno in (errno.EINVAL, errno.ENOSYS):
        return "the fanotify watcher needs Linux 5.17 or later. Take --watcher inotify"
    if error.errno == errno.EMFILE:
        return (
            "no fanotify group is left for this user (fs.fanotify.max_user_groups); "
            "raise it with `sysctl fs.fanotify.max_user_groups=1024`, or take --watcher inotify"
        )
    return f"fanotify cannot be used: {error.strerror}. Take --watcher inotify"


def _why_no_mark(error: OSError) -> str:
    reasons = {
        errno.EXDEV: "SOURCE is in a btrfs subvolume, which fanotify cannot tell from its filesystem",
        errno.EOPNOTSUPP: "the filesystem of SOURCE has no file handles, by which fanotify tells of directories",
        errno.ENODEV: "the filesystem of SOURCE has no id, by which fanotify tells of it",
        errno.EPERM: "the fanotify watcher needs CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH",
    }
    return f"{reasons.get(error.errno or 0, f'SOURCE cannot be marked: {error.strerror}')}. Take --watcher inotify"
