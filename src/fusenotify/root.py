"""Whether the backing root is still where it was: hears of its deletion, of its unmounting, and of mounts below it.

inotify tells nothing of a deleted directory that somebody holds open, as the daemon holds its root. So its parent is
watched for deletions, and the mount table for changes. Both are silent while nobody deletes or mounts anything there.
"""

import contextlib
import logging
import os
import select
from collections.abc import Awaitable, Callable, Iterator
from typing import Final

import anyio
from inotify_simple import INotify, flags

from fusenotify._linux import proc_path
from fusenotify.beneath import Beneath
from fusenotify.filesystems import Filesystems
from fusenotify.mountinfo import MountEntry, is_below, is_inside, mount_id_of, read_mounts

log = logging.getLogger(__name__)

IN_PLACE: Final = "in place"
MOVED: Final = "moved"
DELETED: Final = "deleted"
UNMOUNTED: Final = "unmounted"
_RETRY: Final = 1.0  # seconds


class Root:
    """Looks after the backing root while the daemon runs."""

    def __init__(self, backing: Beneath, source: str, filesystems: Filesystems) -> None:
        self._backing = backing
        self._source = source
        self._filesystems = filesystems
        self._mount_id = mount_id_of(backing.root_fd)
        self._state = IN_PLACE

    def state(self, *, has_left: bool) -> str:
        """Return what has become of the root; `has_left` is whether the watcher has heard of its end."""
        return MOVED if has_left and self._state == IN_PLACE else self._state

    async def run(
        self, mountpoint: str | None, on_gone: Callable[[], Awaitable[None]], on_mounts: Callable[[], None]
    ) -> None:
        """Follow what becomes of the root, for ever.

        Args:
            mountpoint: where the root is shown: that mount is not to be touched where it is seen inside the root. None
                where it is shown nowhere: then no mount of ours inside it is touched.
            on_gone: called once, when the root has been deleted or unmounted.
            on_mounts: called whenever something has been mounted in the tree, or unmounted.
        """
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._await_deletion, on_gone)
            tasks.start_soon(self._follow_mounts, mountpoint, on_gone, on_mounts)

    async def _await_deletion(self, on_gone: Callable[[], Awaitable[None]]) -> None:
        if self._backing.root_key.device in self._filesystems.distant:
            return  # where even looking may take for ever, and deletions are not heard
        with contextlib.ExitStack() as stack:
            try:
                deletions = _deletions_in_parent(self._backing.root_fd, stack)
            except OSError as error:
                log.info("a deletion of SOURCE will not be heard, its parent cannot be watched: %s", error.strerror)
                return
            while os.fstat(self._backing.root_fd).st_nlink > 0:
                await anyio.wait_readable(deletions.fileno())
                deletions.read(timeout=0)
        await self._lose(DELETED, on_gone)

    async def _follow_mounts(
        self, mountpoint: str | None, on_gone: Callable[[], Awaitable[None]], on_mounts: Callable[[], None]
    ) -> None:
        own: str | None = None
        known: set[int] | None = None
        with changes_of_mounts() as changes:
            while True:
                try:
                    mounts = read_mounts()
                except OSError as error:
                    log.warning("cannot read what is mounted: %s. It is tried again", error.strerror)
                    await anyio.sleep(_RETRY)
                    continue
                self._filesystems.look(mounts)
                below = {mount.mount_id for mount in mounts if is_below(mount.mountpoint, self._source)}
                if known is not None and below != known:
                    on_mounts()
                known = below
                shown = (mount.device for mount in mounts if mount.is_ours and mount.mountpoint == mountpoint)
                own = own or next(shown, None)
                if mountpoint is None:
                    self.forbid_ours(mounts)
                else:
                    self._forbid_own([mount for mount in mounts if mount.device == own], mounts)
                if self._mount_id not in (mount.mount_id for mount in mounts):
                    await self._lose(UNMOUNTED, on_gone)
                await anyio.wait_readable(changes.fileno())

    def forbid_ours(self, mounts: list[MountEntry]) -> None:
        """Keep out of every fusenotify mount inside the root: those who want to hear of it mark it itself."""
        inside = (mount for mount in mounts if mount.is_ours and is_below(mount.mountpoint, self._source))
        self._backing.forbidden_mounts = frozenset(mount.mount_id for mount in inside)

    def _forbid_own(self, own: list[MountEntry], mounts: list[MountEntry]) -> None:
        """Keep out of our own mount where somebody has mounted it inside SOURCE: we would wait for ourselves."""
        known = self._backing.forbidden_mounts
        inside = [mount for mount in own if is_inside(mount.mountpoint, self._source, mounts)]
        for mount in inside:
            if mount.mount_id not in known:
                log.warning("SOURCE has its own mount inside it, at %s: that is ELOOP", mount.mountpoint)
        self._backing.forbidden_mounts = frozenset(mount.mount_id for mount in inside)

    async def _lose(self, state: str, on_gone: Callable[[], Awaitable[None]]) -> None:
        if self._state == IN_PLACE:
            self._state = state
            log.warning("SOURCE %s has been %s: nothing more is heard of it", self._source, state)
            await on_gone()


@contextlib.contextmanager
def changes_of_mounts() -> Iterator[select.epoll]:
    """Yield what becomes readable, once, whenever something has been mounted or unmounted."""
    with open("/proc/self/mountinfo", "rb") as table, select.epoll() as changes:
        changes.register(table.fileno(), select.EPOLLPRI)  # proc(5): of this file, a change is an exception
        yield changes


def _deletions_in_parent(root_fd: int, stack: contextlib.ExitStack) -> INotify:
    inotify = stack.enter_context(INotify(nonblocking=True))
    parent = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    stack.callback(os.close, parent)
    inotify.add_watch(proc_path(parent), flags.DELETE | flags.ONLYDIR)
    return inotify
