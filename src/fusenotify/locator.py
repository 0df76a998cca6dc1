"""Handles for clients: from a path to the handle of what is there, and back to the path where that is now.

Both with the rights of the client: what its user cannot reach, it does not learn of.
"""

import contextlib
import errno
import functools
import stat
from collections.abc import Callable
from typing import Final, TypeVar

import anyio

from fusenotify.backing import Backing, Found, as_user, find_readable
from fusenotify.callers import Credentials
from fusenotify.config import QUEUE_DIRECTORY
from fusenotify.errors import NotPermitted, StaleHandle, UsageError, quoted
from fusenotify.handles import Sealer
from fusenotify.identity import Identity, InodeKey
from fusenotify.inodes import InodeTable, synthetic_nodeid
from fusenotify.threads import run_abandonable
from fusenotify.tree import Directory, Tree
from fusenotify.whereabouts import Whereabouts

_GONE: Final = "the object of this handle is gone, or lies outside the tree now"
_ATTEMPTS: Final = 5
_THREADS: Final = 4  # that look at the tree at the same time for the clients of one user

T = TypeVar("T")


class Locator:
    """Answers for all clients."""

    def __init__(
        self, backing: Backing, table: InodeTable, tree: Tree, whereabouts: Whereabouts, sealer: Sealer
    ) -> None:
        self._backing = backing
        self._table = table
        self._tree = tree
        self._whereabouts = whereabouts
        self._sealer = sealer
        self._limiters: dict[int, anyio.CapacityLimiter] = {}

    async def lookup(self, base: Directory, path: bytes, user: Credentials) -> tuple[str, bool]:
        """Return the handle of what is at a path below `base`, and whether it is a directory.

        Args:
            base: a directory of the tree.
            path: below it; no component is followed that is a symbolic link.
            user: uid, gid and supplementary groups of who asks.

        Raises:
            UsageError: there is nothing.
            NotPermitted: the user cannot reach it.
        """
        if path.startswith(b"/") or {b"..", QUEUE_DIRECTORY.encode()} & set(path.split(b"/")):
            raise UsageError(f"{quoted(path)} is no path of an object of the tree")
        try:
            with contextlib.closing(await self._find(base.prefix + path if path != b"." else base.path, user)) as found:
                handle = self._sealer.seal(found.identity, found.key.number)
                return handle, stat.S_ISDIR(found.stat.st_mode)
        except PermissionError as error:
            raise NotPermitted(f"user {user.uid} cannot reach {quoted(path)}: {error.strerror}") from error
        except OSError as error:
            raise UsageError(f"there is no {quoted(path)} in the tree: {error.strerror}") from error

    async def locate(self, base: Directory, handle: str, user: Credentials) -> bytes:
        """Return the path below `base` at which the object of a handle is now.

        Raises:
            StaleHandle: the handle is not one of ours, or its object is gone or not below `base`.
            NotPermitted: the user cannot reach it.
        """
        identity, number = self._sealer.unseal(handle)
        for _ in range(_ATTEMPTS):
            path = await self._path_of(identity, number, user)
            if base.is_root or path == base.path:
                below = path if base.is_root else b"."
            elif path.startswith(base.prefix):
                below = path[len(base.prefix) :]
            else:
                raise StaleHandle(_GONE)
            try:
                with contextlib.closing(await self._find(path, user)) as found:
                    if found.identity == identity:
                        return below
            except PermissionError as error:
                raise NotPermitted(f"user {user.uid} cannot reach the object of this handle") from error
            except OSError:
                pass  # renamed in between
        raise StaleHandle("the object of this handle is renamed again and again; ask anew when that has ended")

    async def _path_of(self, identity: Identity, number: int, user: Credentials) -> bytes:
        with contextlib.closing(self._backing.find_root()) as root:
            if root.identity == identity:
                return b"."
        nodeids = [number, synthetic_nodeid(identity)]
        guesses = self._guesses(identity, number)

        def place() -> bytes:
            placed = self._whereabouts.place(identity, number, nodeids, guesses)
            placed.found.close()
            return placed.path

        try:
            return await self._in_thread(user, place, lambda _: None)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise StaleHandle(_GONE) from error

    def _guesses(self, identity: Identity, number: int) -> list[bytes]:
        """Return where the object was seen last, as a node or as a watched directory."""
        guesses = []
        node = self._table.known(identity)
        above = self._tree.by_key.get(node.directory) if node is not None else None
        if node is not None and above is not None:
            guesses.append(above.prefix + node.name)
        directory = self._tree.by_key.get(InodeKey(self._backing.root_key.device, number))
        if directory is not None:
            guesses.append(directory.path)
        return guesses

    async def find_readable(self, path: bytes, user: Credentials) -> Found:
        """Look up what a user may read at a path; see `backing.find_readable`."""
        return await self._in_thread(user, functools.partial(find_readable, self._backing, path, *user), Found.close)

    async def _find(self, path: bytes, user: Credentials) -> Found:
        def find() -> Found:
            with as_user(*user):
                return self._backing.find_beneath(path)

        return await self._in_thread(user, find, Found.close)

    async def _in_thread(self, user: Credentials, work: Callable[[], T], close: Callable[[T], None]) -> T:
        """Look at the tree, parts of which may be silent: it is left behind when the client goes or the daemon ends."""
        limiter = self._limiters.setdefault(user.uid, anyio.CapacityLimiter(_THREADS))
        return await run_abandonable(work, close, limiter)
