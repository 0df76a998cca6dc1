"""Groups are told what they missed while their queues were full: what there is now, at every path that is in doubt.

A look shows the present and the stream tells of the past. So what happens while a group is being told is not told to it
as it happens, but noted (`doubt`) and looked at in its turn. That ends at a moment at which nothing is in doubt and the
stream has nothing left to tell. Whatever the pace of the reader, each path waits for the others once: no change keeps
another one from being told, and none of this can fill a queue.
"""

import itertools
import stat
import time
from collections.abc import Callable, Iterator
from typing import Final

from msgspec.structs import replace

from fusenotify.beneath import Beneath
from fusenotify.crawler import Crawler
from fusenotify.doubt import Doubtful
from fusenotify.events import CREATE, DELETE, IS_DIR, LOCAL, MODIFY, RECOVERED, RENAME, EventRecord, Reason
from fusenotify.filesystems import Filesystems
from fusenotify.group import Group
from fusenotify.groups import Groups
from fusenotify.lag import Recorded, Told
from fusenotify.tree import ROOT_PATH, Directory

_AT_A_TIME: Final = 64  # events for one group before it is another's turn


class Arrears:
    """Tells groups what they missed."""

    def __init__(
        self,
        backing: Beneath,
        crawler: Crawler,
        filesystems: Filesystems,
        groups: Groups,
        position: Callable[[], int],
    ) -> None:
        """`position` is that in the history of changes."""
        self._backing = backing
        self._crawler = crawler
        self._filesystems = filesystems
        self._groups = groups
        self._position = position

    def pay(self, is_quiet: Callable[[], bool]) -> Iterator[bool]:
        """Tell each group some of what it missed; yield for each whether it has come closer to the end of that.

        `is_quiet` says whether all that has happened on the backing tree has been told.
        """
        for group in self._groups.fanout.owed():
            yield self._pay(group, is_quiet)

    def _pay(self, group: Group, is_quiet: Callable[[], bool]) -> bool:
        lag = group.lag
        if lag.telling is None:
            if not lag.due and not self._begin(group, is_quiet):
                return False
            lag.telling = self._tell(group)
        if not self._is_in_place(group):
            return False
        room = min(group.queue.limit - len(group.queue), _AT_A_TIME)
        told = list(itertools.islice(lag.telling, room))
        if not self._is_in_place(group):
            lag.give_up()  # it has been looked for where it was not, or is no longer
        elif told:
            group.tell(told)
        else:
            lag.telling = None
        return True

    def _begin(self, group: Group, is_quiet: Callable[[], bool]) -> bool:
        """Begin to tell of what is in doubt by now; return whether there is anything to tell."""
        doubt = group.lag.doubt
        if doubt is None:
            return False
        if doubt.is_total:
            # What is gone is found by the reader, who looks again at all it knows, and has to be told to.
            if group.lag.may_catch_up():
                group.queue.push_overflow(group.lag.position, time.time_ns(), Reason.QUEUE)
            return False
        if group.lag.supplies:
            group.lag.supplies[0].ask()
            return False
        group.lag.due.extend(doubt.take())
        if not group.lag.due and is_quiet():
            group.catch_up(self._position(), time.time_ns())
        return bool(group.lag.due)

    def _is_in_place(self, group: Group) -> bool:
        """Whether the directories that the group sees are where the tree has them."""
        directories = {group.base, *group.marked}
        return all(directory.is_root or self._crawler.is_in_place(directory) for directory in directories)

    # --- what there is to tell -----------------------------------------------------------------------------------

    def _tell(self, group: Group) -> Iterator[Told]:
        while group.lag.due:
            path, what = group.lag.due.popleft()
            if isinstance(what, Recorded):
                yield from self._tell_recorded(group, path, what)
            elif path != ROOT_PATH:
                yield from self._tell_path(group, path, what)
            elif what.below:
                for directory in group.marked:
                    yield from self._tell_below(group, _relative(directory, group.base), what)
            else:
                yield what.mark, _record(MODIFY, path, group, _flags(what, is_dir=True))

    def _tell_recorded(self, group: Group, path: bytes, what: Recorded) -> Iterator[Told]:
        """Tell of a path what was recorded; what has come of it since is in doubt, and told behind it."""
        full = _full(path, group.base)
        mark = group.mark_over(full, what.mark)
        if mark is None:
            return
        try:
            is_dir = self._look(full)
        except OSError:
            is_dir = what.is_dir  # as far as is known
        flags = IS_DIR if what.is_dir else 0
        if what.old_path is not None:
            if is_dir == what.is_dir:
                yield mark, replace(_record(RENAME, path, group, flags), old_path=what.old_path)
            else:  # it has gone on, to where the stream will tell
                yield mark, _record(DELETE, what.old_path, group, flags)
        elif not what.exists:
            yield mark, _record(DELETE, path, group, flags)
        elif is_dir is not None:
            kind = CREATE if what.is_new or is_dir != what.is_dir else MODIFY
            yield mark, _record(kind, path, group, IS_DIR if is_dir else 0)

    def _tell_path(self, group: Group, path: bytes, what: Doubtful) -> Iterator[Told]:
        full = group.base.prefix + path
        mark = group.mark_over(full, what.mark, below=what.below)
        if mark is None:
            if what.below:
                group.lag.give_up()  # a directory above what is marked has come to stand for it
            return
        is_renewed = what.name or what.below
        try:
            is_dir = self._look(full)
        except OSError:  # somebody who is told that it is gone would remove what is there
            yield mark, _record(CREATE if is_renewed else MODIFY, path, group, _flags(what, is_dir=what.below))
            return
        if is_dir is None or (what.replaced and (is_dir or what.below)):
            yield mark, _record(DELETE, path, group, _flags(what, is_dir=what.below))
        if is_dir is not None:
            yield mark, _record(CREATE if is_renewed else MODIFY, path, group, _flags(what, is_dir=is_dir))
        if is_dir and is_renewed and group.reaches_below(full):
            yield from self._tell_below(group, path, what)

    def _tell_below(self, group: Group, top: bytes, what: Doubtful) -> Iterator[Told]:
        """Tell of everything below a directory; what is kept meanwhile is a piece of a listing for each level."""
        levels = [self._entries(group.base, top)]
        while levels:
            path, is_dir = next(levels[-1], (None, False))
            if path is None:
                levels.pop()
                continue
            full = group.base.prefix + path
            mark = group.mark_over(full, what.mark)
            if mark is not None:
                yield mark, _record(CREATE, path, group, _flags(what, is_dir=is_dir))
                if is_dir and group.reaches_below(full):
                    levels.append(self._entries(group.base, path))

    def _entries(self, base: Directory, path: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield (path, is it a directory) of what is in a directory; nothing where it cannot be read (any more)."""
        full, prefix = (base.path, b"") if path == ROOT_PATH else (base.prefix + path, path + b"/")
        offset = 0
        while not self._filesystems.is_silent_at(full):
            try:
                entries, end = self._backing.list_on(full, offset)
            except OSError:
                return
            for name, is_dir in entries:
                yield prefix + name, is_dir
            if end == offset:
                return
            offset = end

    def _look(self, full: bytes) -> bool | None:
        """Return whether there is a directory at a path of the tree, None where there is nothing.

        Raises:
            OSError: that cannot be seen.
        """
        if self._filesystems.is_silent_at(full):
            raise TimeoutError
        found = self._backing.attributes_at(full)
        return None if found is None else stat.S_ISDIR(found.st_mode)


def _record(kind: int, path: bytes, group: Group, flags: int) -> EventRecord:
    return EventRecord(group.lag.position, time.time_ns(), kind, RECOVERED | flags, path)


def _flags(what: Doubtful, *, is_dir: bool) -> int:
    return (0 if what.remote else LOCAL) | (IS_DIR if is_dir else 0)


def _full(path: bytes, base: Directory) -> bytes:
    return base.path if path == ROOT_PATH else base.prefix + path


def _relative(directory: Directory, base: Directory) -> bytes:
    """Return the path of a directory as those see it who see what is below `base`."""
    return ROOT_PATH if directory is base else directory.path.removeprefix(base.prefix)
