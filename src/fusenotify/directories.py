"""The operations on open directories."""

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from typing import Final

import pyfuse3

from fusenotify._linux import proc_path
from fusenotify.attributes import entry_of
from fusenotify.config import QUEUE_DIRECTORY
from fusenotify.filesystems import Filesystems
from fusenotify.inodes import FIRST_VIRTUAL, ROOT_NODEID, Node
from fusenotify.listing import Listing
from fusenotify.nodes import Nodes
from fusenotify.room import Room

_HIDDEN: Final = QUEUE_DIRECTORY.encode()
# What looking up the place of a dead or forbidden mount says.
_UNREACHABLE: Final = frozenset({errno.ENOTCONN, errno.ELOOP, errno.ESTALE, errno.EHOSTDOWN})


@dataclass(slots=True)
class OpenDirectory:
    """A directory being listed."""

    fd: int
    node: Node
    uid: int
    listing: Listing


class Directories:
    """The directories that programs on the mount list. A handle is the number of our descriptor."""

    def __init__(self, nodes: Nodes, filesystems: Filesystems, room: Room) -> None:
        self._nodes = nodes
        self._filesystems = filesystems
        self._room = room
        self._directories: dict[int, OpenDirectory] = {}
        self._nowhere = FIRST_VIRTUAL  # numbers below it are of no node

    def close(self) -> None:
        """Close everything, after the filesystem is unmounted."""
        for fd in self._directories:
            os.close(fd)

    def device_of(self, fh: int) -> int:
        """Return the device number of the filesystem of an open directory."""
        return self._directories[fh].node.key.device

    def user_of(self, fh: int) -> int:
        """Return who has opened a directory."""
        return self._directories[fh].uid

    def open(self, nodeid: int, uid: int) -> pyfuse3.FileHandleT:
        """Open a directory for listing."""
        self._room.check(uid)
        node = self._nodes.table.get(nodeid)
        fd = os.open(proc_path(self._nodes.directory_fd(node)), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        node.reference.lend(fd)
        self._room.take(uid)
        self._directories[fd] = OpenDirectory(fd, node, uid, Listing(fd))
        return pyfuse3.FileHandleT(fd)

    def read(self, fh: int, offset: int, token: pyfuse3.ReaddirToken) -> None:
        """Answer with the entries behind `offset` that fit, each of them a lookup as well."""
        directory = self._directories[fh]
        has_entries = False
        for name, end, number, _ in directory.listing.entries(offset):
            try:
                listed = self._look_up(directory, name, number)
            except OSError:
                # Nobody would take back the lookups of an answer that is an error: the next one begins with it.
                if has_entries:
                    return
                raise
            if listed is None:
                continue
            entry, node = listed
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), entry, end):
                if node is not None:
                    self._nodes.forget([(node.nodeid, 1)])
                return
            has_entries = True

    def _look_up(
        self, directory: OpenDirectory, name: bytes, number: int
    ) -> tuple[pyfuse3.EntryAttributes, Node | None] | None:
        """Return what is listed of a name, and the node that a lookup was counted for; None if it is not listed."""
        if name in (b".", b".."):
            return _dot(directory.node.key.number if directory.node.nodeid == ROOT_NODEID else number), None
        if name == _HIDDEN:
            return None
        if name in self._filesystems.doors and not all(map(self._filesystems.answers, self._filesystems.doors[name])):
            return self._unreachable(), None
        try:
            found = self._nodes.backing.find(directory.fd, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno not in _UNREACHABLE:
                raise
            return self._unreachable(), None
        with contextlib.closing(found):
            node = self._nodes.remember(directory.node, name, found)
            return entry_of(node, found.stat), node

    def _unreachable(self) -> pyfuse3.EntryAttributes:
        """Return what is listed of a name behind which a mount is dead, or may be silent: looking it up says more."""
        self._nowhere -= 1
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(self._nowhere)  # of no node, so that every use of it is ESTALE
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR)
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    def release(self, fh: int) -> None:
        """Close a directory."""
        directory = self._directories.pop(fh)
        self._room.give_back(directory.uid)
        directory.node.reference.take_back(fh)
        os.close(fh)

    def sync(self, fh: int, datasync: bool) -> None:
        """Make a directory durable. Slow: for a thread."""
        (os.fdatasync if datasync else os.fsync)(fh)


def _dot(number: int) -> pyfuse3.EntryAttributes:
    """Return what is listed of `.` and `..`, of which the kernel takes no more than type and number."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(number)
    entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR)
    return entry
