"""Notes what operations through the mount do, so that their echoes on the backing tree are known for what they are."""

import contextlib
import os
from collections.abc import Callable, Iterator

import pyfuse3

from fusenotify._linux import proc_path
from fusenotify.backing import Found
from fusenotify.callers import process_of
from fusenotify.changes import Changes
from fusenotify.echoes import STILL_OPEN, Expectation, LocalOperation, Name
from fusenotify.hearing import Hearing
from fusenotify.inodes import Node
from fusenotify.uses import AskedUses
from fusenotify.watchers.watcher import Watcher


class Recorder:
    """Brackets the system calls of operations, and knows who made them.

    Attributes:
        on_operation: called with each operation that is noted, before its system calls.
    """

    def __init__(
        self,
        watcher: Watcher,
        hearing: Hearing,
        changes: Changes,
        is_anyone_listening: Callable[[], bool],
        uses: AskedUses,
        *,
        is_replaying: bool,
    ) -> None:
        """Wire it up.

        Where changes are replayed, operations are noted also while no group listens, lest they be replayed too; which
        process makes them nobody wants to know then.
        """
        self.on_operation: Callable[[LocalOperation], None] = lambda _: None
        self._uses = uses
        self._watcher = watcher
        self._hearing = hearing
        self._changes = changes
        self._is_anyone_listening = is_anyone_listening
        self._is_replaying = is_replaying
        self._noted: list[Expectation] = []  # of the operation that is being carried out

    @contextlib.contextmanager
    def operation(
        self, expectations: list[Expectation], pid: int | None, uid: int | None
    ) -> Iterator[list[Expectation]]:
        """Bracket the system calls of the block.

        What the block does may take long: everybody else goes on meanwhile (see `Changes.slow_calls`).

        When it raises, an operation on a name has not been made. A change of an object may have been made by halves:
        what has an echo is its echo, and what has none is not told.
        """
        self._noted = []
        if not self._is_replaying and not self._is_anyone_listening():
            with self._changes.slow_calls():
                yield expectations
            return
        operation = LocalOperation(self._watcher.drain(), STILL_OPEN, pid, uid, expectations)
        self._hearing.note(operation)
        self.on_operation(operation)
        try:
            with self._changes.slow_calls():
                yield expectations
        except BaseException:
            expectations[:] = [one for one in expectations if one.inode is not None]
            for expectation in expectations:
                expectation.optional = True
            raise
        finally:
            operation.end = self._watcher.drain()
            self._hearing.wake()
        self._noted = expectations

    def is_asked_for(self, uses: int) -> bool:
        """Whether uses of files (open, access, close_nowrite) are asked for somewhere."""
        return bool(self._uses.kinds & uses)

    def use(
        self, use: int, node: Node, pid: int | None, uid: int | None
    ) -> contextlib.AbstractContextManager[list[Expectation]]:
        """Bracket a use of a file, where such uses are asked for; the block clears the list if it was none."""
        if not self.is_asked_for(use):
            return contextlib.nullcontext([])
        return self.operation([Expectation(use, self.memory_of(node), inode=node.key)], pid, uid)

    def name(self, directory: Node, name: bytes) -> Name:
        """Return a directory entry as the watcher will tell of it."""
        return Name(directory.key, self._watcher.wd_of(directory.key), name)

    def memory_of(self, node: Node) -> Name:
        """Return the entry a node was last seen as."""
        return Name(node.directory, self._watcher.wd_of(node.directory), node.name)

    def caller(self, ctx: pyfuse3.RequestContext) -> tuple[int | None, int]:
        """Return process id and user id of the caller, who waits for our answer meanwhile."""
        return (process_of(ctx.pid) if self._is_anyone_listening() else None), ctx.uid

    def watch_at_once(self, parent: Node, directory: Found) -> None:
        """Take a directory under watch before the kernel hears of it, so that no operation in it goes unheard."""
        if self._watcher.wd_of(parent.key) is not None and not self._watcher.has_heard_of(directory.key):
            self._adopt(directory)

    def watch_new(self, parent: Node, directory: Found) -> None:
        """Take a directory under watch that an operation has just made: its number may have been another's before."""
        if self._watcher.wd_of(parent.key) is not None:
            self._adopt(directory)
            for expectation in self._noted:
                expectation.watch = self._watcher.wd_of(directory.key)

    def _adopt(self, directory: Found) -> None:
        with contextlib.suppress(OSError):  # gone, or not ours to read: then the event path meets it again
            fd = os.open(proc_path(directory.fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._watcher.keep(self._watcher.adopt(fd))
            finally:
                os.close(fd)
