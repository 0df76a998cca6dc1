"""The queue file: `.fusenotify/queue` in every directory of the mount, a remote event queue that needs no socket.

Opening it makes a group that sees what is below that directory, writing takes requests, reading and polling give
answers and events, frame by frame (docs/protocol.md). Neither is ever listed. Nothing here touches the backing tree.
"""

import errno
import logging
import os
import select
import stat
from collections import Counter
from collections.abc import Callable
from typing import Final

import pyfuse3
import trio

from fusenotify.callers import Credentials, groups_of
from fusenotify.config import QUEUE_NAME
from fusenotify.errors import ProtocolError
from fusenotify.groups import MOST_GROUPS_PER_UID
from fusenotify.inodes import FIRST_VIRTUAL, Node
from fusenotify.peer import Peer, Services
from fusenotify.session import FuseLoop
from fusenotify.tree import Directory, Tree

log = logging.getLogger(__name__)

_NAME: Final = QUEUE_NAME.encode()
MOST_OPEN: Final = 16384  # queue files of all users together
_READY_TO_WRITE: Final = select.POLLOUT | select.POLLWRNORM
_READY_TO_READ: Final = select.POLLIN | select.POLLRDNORM
_READY_TO_FAIL: Final = _READY_TO_WRITE | _READY_TO_READ | select.POLLERR


class _Place:
    """The two nodes that one directory of the mount has on top of its own: the directory and the file in it."""

    __slots__ = ("lookups", "node", "number")

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number
        self.lookups = [0, 0]

    def nodeid(self, is_file: bool) -> int:
        return FIRST_VIRTUAL + 2 * self.number + is_file


class _OpenQueue:
    """One open queue file.

    Attributes:
        failed: whether nobody carries out requests any more.
    """

    __slots__ = ("_poll_handle", "failed", "peer", "scope")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.failed = False
        self.scope = trio.CancelScope()
        self._poll_handle: pyfuse3.PollHandle | None = None
        peer.on_output = self.wake

    def remember(self, handle: pyfuse3.PollHandle | None) -> None:
        if handle is not None:
            self._poll_handle = handle

    def wake(self) -> None:
        """Have whoever polls look again."""
        handle, self._poll_handle = self._poll_handle, None
        if handle is None:
            return
        try:
            handle.notify()
        except (OSError, RuntimeError) as error:
            # Who publishes an event goes on: the mount is ending, or it is this one client that is not woken.
            log.debug("a queue file's poll could not be woken: %s", error)


class QueueFiles:
    """The nodes and open files that are not of the backing tree."""

    def __init__(self, services: Services, tree: Tree, loop: FuseLoop, spawn: Callable[..., None]) -> None:
        """`spawn` starts a task for the lifetime of the mount."""
        self._services = services
        self._tree = tree
        self._loop = loop
        self._spawn = spawn
        self._places: dict[int, _Place] = {}
        self._place_of: dict[Node, _Place] = {}
        self._open: dict[int, _OpenQueue] = {}
        self._open_by: Counter[int] = Counter()  # user id
        self._serial = 0

    def __len__(self) -> int:
        return len(self._open)

    # --- nodes -------------------------------------------------------------------------------------------------------

    def lookup_in(self, node: Node) -> pyfuse3.EntryAttributes:
        """Look up `.fusenotify` in a directory of the tree."""
        place = self._place_of.get(node)
        if place is None:
            self._serial += 1
            place = self._place_of[node] = self._places[self._serial] = _Place(node, self._serial)
        return self._looked_up(place, is_file=False)

    def lookup(self, nodeid: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Look up a name in `.fusenotify`."""
        place, is_file = self._at(nodeid)
        if is_file:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if name == _NAME:
            return self._looked_up(place, is_file=True)
        if name == b".":
            return self._looked_up(place, is_file=False)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _looked_up(self, place: _Place, *, is_file: bool) -> pyfuse3.EntryAttributes:
        place.lookups[is_file] += 1
        return self._entry(place, is_file=is_file)

    def forget(self, nodeid: int, lookups: int) -> None:
        """Take back lookups."""
        place, is_file = self._at(nodeid)
        place.lookups[is_file] -= lookups
        if place.lookups == [0, 0]:
            del self._places[place.number]
            del self._place_of[place.node]

    def getattr(self, nodeid: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node."""
        place, is_file = self._at(nodeid)
        return self._entry(place, is_file=is_file)

    def _at(self, nodeid: int) -> tuple[_Place, bool]:
        number, is_file = divmod(nodeid - FIRST_VIRTUAL, 2)
        place = self._places.get(number)
        if place is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return place, bool(is_file)

    def _entry(self, place: _Place, *, is_file: bool) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(place.nodeid(is_file))
        entry.entry_timeout = entry.attr_timeout = 0
        # Anybody may open it: what a group may see is decided mark by mark.
        entry.st_mode = pyfuse3.ModeT(stat.S_IFREG | 0o666 if is_file else stat.S_IFDIR | 0o555)
        entry.st_nlink = 1 if is_file else 2
        return entry

    # --- listing -----------------------------------------------------------------------------------------------------

    def opendir(self, nodeid: int) -> pyfuse3.FileHandleT:
        """Open `.fusenotify` for listing."""
        self._at(nodeid)
        return pyfuse3.FileHandleT(nodeid)

    def readdir(self, fh: int, offset: int, token: pyfuse3.ReaddirToken) -> None:
        """List the one file."""
        place, _ = self._at(fh)
        if offset == 0:
            place.lookups[True] += 1
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(_NAME), self._entry(place, is_file=True), 1):
                place.lookups[True] -= 1

    # --- the file ----------------------------------------------------------------------------------------------------

    async def open(self, nodeid: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """Open a queue file: a new group of the caller's."""
        place, is_file = self._at(nodeid)
        if not is_file:
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if len(self._open) >= MOST_OPEN or (ctx.uid != 0 and self._open_by[ctx.uid] >= MOST_GROUPS_PER_UID):
            raise OSError(errno.ENFILE, os.strerror(errno.ENFILE))
        credentials = Credentials(ctx.uid, ctx.gid, groups_of(ctx.pid))
        base = await self._base(place.node)
        queue = _OpenQueue(Peer(self._services, credentials, base))
        self._serial += 1
        fh = FIRST_VIRTUAL + self._serial
        self._open[fh] = queue
        self._open_by[ctx.uid] += 1
        self._spawn(self._serve, queue)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(fh), direct_io=True, keep_cache=False, nonseekable=True)

    async def _base(self, node: Node) -> Directory:
        base = self._tree.by_key.get(node.key)
        if base is None:  # so new that the event path has not come to it
            self._loop.hand_over()
            await self._services.caught_up()
            base = self._tree.by_key.get(node.key)
        if base is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return base

    async def _serve(self, queue: _OpenQueue) -> None:
        with queue.scope:
            try:
                await queue.peer.run()
            except Exception:
                # A bug, and this client's alone: the daemon serves others.
                log.exception("a queue file of user %d failed", queue.peer.uid)
                queue.failed = True
                queue.wake()
            finally:
                queue.peer.close()

    def read(self, fh: int, size: int) -> bytes:
        """Return whole frames; EAGAIN where there is none, also to a blocking reader: no signal could interrupt it."""
        queue = self._working(fh)
        was_busy = queue.peer.is_busy
        try:
            data = queue.peer.output(size)
        except ValueError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        if not data:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if was_busy and not queue.peer.is_busy:
            queue.wake()  # whoever waits to write
        return data

    def write(self, fh: int, data: bytes) -> int:
        """Take requests; EAGAIN while too many are unanswered, EINVAL for what is no request."""
        queue = self._working(fh)
        room = queue.peer.room
        if room is not None and len(data) > room:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        try:
            queue.peer.feed(data)
        except ProtocolError as error:
            raise OSError(errno.EINVAL, str(error)) from error
        return len(data)

    def _working(self, fh: int) -> _OpenQueue:
        queue = self._open[fh]
        if queue.failed:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return queue

    def poll(self, fh: int, handle: pyfuse3.PollHandle | None) -> int:
        """Tell what the file is ready for, and remember whom to wake."""
        queue = self._open[fh]
        queue.remember(handle)
        if queue.failed:
            return _READY_TO_FAIL
        ready = 0 if queue.peer.is_busy else _READY_TO_WRITE
        return ready | (_READY_TO_READ if queue.peer.has_output else 0)

    def release(self, fh: int) -> None:
        """Close a queue file; its group is dropped when nothing is carried out for it any more."""
        queue = self._open.pop(fh)
        self._open_by[queue.peer.uid] -= 1
        if not self._open_by[queue.peer.uid]:
            del self._open_by[queue.peer.uid]
        queue.scope.cancel()
