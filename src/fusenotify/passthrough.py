"""The operations on names and attributes, on the backing tree.

Synchronous: from the first system call to the note about its echo nothing else runs, so no operation sees another one
half done, and no lock is needed.
"""

import contextlib
import errno
import functools
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pyfuse3

from fusenotify import _linux, events
from fusenotify._linux import proc_path
from fusenotify.attributes import answer_of, change, entry_of, has_names, raised_by
from fusenotify.backing import Backing, Found, acting_as
from fusenotify.callers import rights_of
from fusenotify.echoes import Expectation
from fusenotify.inodes import FIRST_SYNTHETIC, ROOT_NODEID, InodeTable, Node
from fusenotify.recorder import Recorder
from fusenotify.references import stale
from fusenotify.store import NodeRow, Store
from fusenotify.whereabouts import Place, Whereabouts

Context = pyfuse3.RequestContext

_DIRECTORY_DESCRIPTORS: Final = 32  # O_PATH descriptors of directories kept between operations
_ACCESS_CONTROL_LISTS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")


class Passthrough:
    """Looks up, makes, changes and removes what the tree consists of."""

    def __init__(
        self, backing: Backing, table: InodeTable, recorder: Recorder, store: Store, whereabouts: Whereabouts
    ) -> None:
        self.backing = backing
        self.table = table
        self.recorder = recorder
        self._store = store
        self._whereabouts = whereabouts
        self.on_abroad: Callable[[], None] = lambda: None  # called when another filesystem than the root's is touched
        self._directory_fds: OrderedDict[int, int] = OrderedDict()
        self._own_uid, self._own_gid = os.geteuid(), os.getegid()
        with contextlib.closing(backing.find_root()) as root:
            table.add_root(root.identity, root.key, backing.root).directory = root.key  # it has no other, and no name

    def close(self) -> None:
        """Close the descriptors kept between operations."""
        while self._directory_fds:
            self._drop_directory_fd(next(iter(self._directory_fds)))

    # --- reaching objects --------------------------------------------------------------------------------------------

    def directory_fd(self, node: Node) -> int:
        """Return an O_PATH descriptor of a directory, good until the next but one call."""
        self._tell_abroad(node)
        fd = self._directory_fds.get(node.nodeid)
        if fd is not None:
            self._directory_fds.move_to_end(node.nodeid)
            return fd
        fd = node.reference.acquire(os.O_PATH | os.O_DIRECTORY)
        self._directory_fds[node.nodeid] = fd
        if len(self._directory_fds) > _DIRECTORY_DESCRIPTORS:
            self._drop_directory_fd(next(iter(self._directory_fds)))
        return fd

    def _drop_directory_fd(self, nodeid: int) -> None:
        fd = self._directory_fds.pop(nodeid, None)
        if fd is not None:
            os.close(fd)

    def _tell_abroad(self, node: Node) -> None:
        if node.key.device != self.backing.root_key.device:
            self.on_abroad()

    def let_go(self) -> None:
        """Close the descriptors kept on other filesystems than the root's, so that they can be unmounted."""
        for nodeid in list(self._directory_fds):
            if self.table.get(nodeid).key.device != self.backing.root_key.device:
                self._drop_directory_fd(nodeid)
        self.backing.let_go()

    @contextlib.contextmanager
    def descriptor(self, node: Node) -> Iterator[int]:
        """Hold an O_PATH descriptor of any object."""
        if node.is_dir:
            yield self.directory_fd(node)
            return
        self._tell_abroad(node)
        fd = node.reference.acquire(os.O_PATH | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    def remember(self, parent: Node, name: bytes, found: Found) -> Node:
        """Return the node of what was found, counting a lookup; `found` is used up."""
        is_dir = stat.S_ISDIR(found.stat.st_mode)
        if is_dir:
            self.recorder.watch_at_once(parent, found)
            if found.key.device != parent.key.device:
                self.backing.entered(found, parent.reference, name)
        keep = functools.partial(found.keep, parent.reference, name)
        node = self.table.remember(found.identity, found.key, keep, is_dir)
        self._note(node, parent, name)
        self._tell_abroad(node)
        return node

    def _note(self, node: Node, parent: Node, name: bytes) -> None:
        """Take note of the entry that an object was seen as."""
        if node.name != name or node.directory != parent.key:
            node.directory, node.name = parent.key, name
            node.reference.moved(parent.reference, name)
            self._store.put(NodeRow(node.nodeid, node.generation, node.identity.packed(), parent.nodeid, name))

    def entry_at(self, parent: Node, name: bytes) -> pyfuse3.EntryAttributes:
        """Look a name up and return what the kernel is told of it."""
        found = self.backing.find(self.directory_fd(parent), name)
        try:
            return entry_of(self.remember(parent, name, found), found.stat)
        finally:
            found.close()

    # --- looking -----------------------------------------------------------------------------------------------------

    def lookup(self, parent_nodeid: int, name: bytes) -> pyfuse3.EntryAttributes:
        """Look up one name; of `.` see `recall`."""
        parent = self.table.get(parent_nodeid)
        if name == b"..":  # asked for when a handle of the mount is opened
            if parent_nodeid == ROOT_NODEID:
                return self.root_entry()
            return self._entry_above(parent)
        return self.entry_at(parent, name)

    def _entry_above(self, node: Node) -> pyfuse3.EntryAttributes:
        """Look up the directory that a directory lies in; under which name that is known is not learnt by that."""
        fd = self.directory_fd(node)
        if not self.backing.contains(fd):
            raise stale()  # it has left the tree
        with contextlib.closing(self.backing.find(fd, b"..")) as found:
            if found.key == self.backing.root_key:
                return self.root_entry()
            keep = functools.partial(found.keep, node.reference, b"..")
            return entry_of(self.table.remember(found.identity, found.key, keep, True), found.stat)

    def root_entry(self) -> pyfuse3.EntryAttributes:
        """Look up the root itself."""
        root = self.table.get(ROOT_NODEID)
        root.lookups += 1
        return entry_of(root, os.fstat(self.backing.root_fd))

    def recall(self, nodeid: int) -> Callable[[], pyfuse3.EntryAttributes]:
        """Find the object of a handle of the mount that is opened, made by this daemon or an earlier one.

        Slow, for a thread; what it returns is to be called on the thread of the handlers, and makes the answer.

        Raises:
            OSError: ESTALE, when there is no such object in the tree now.
        """
        row = self._store.row(nodeid)
        if row is None:
            raise stale()
        try:
            number = nodeid if nodeid < FIRST_SYNTHETIC else None
            place = self._whereabouts.place(row.identity, number, [nodeid])
        except OSError as error:
            if error.errno == errno.ESTALE and self._whereabouts.is_gone(row):
                self._store.forget(row)
            raise
        return functools.partial(self._recalled, row, place)

    def _recalled(self, row: NodeRow, place: Place) -> pyfuse3.EntryAttributes:
        found = place.found
        with contextlib.closing(found):
            keep = functools.partial(found.keep, place.above, place.name)
            is_dir = stat.S_ISDIR(found.stat.st_mode)
            node = self.table.restore(row.nodeid, row.generation, found.identity, found.key, keep, is_dir)
            node.directory, node.name = place.directory, place.name
            self._tell_abroad(node)
            return entry_of(node, found.stat)

    def forget(self, forgotten: Sequence[tuple[int, int]]) -> None:
        """Take back lookups."""
        for nodeid, lookups in forgotten:
            fd = self._directory_fds.get(nodeid)
            node = self.table.forget(nodeid, lookups)
            if node is not None and fd is not None:
                del self._directory_fds[nodeid]
                os.close(fd)

    def getattr(self, nodeid: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node."""
        node = self.table.get(nodeid)
        with self.descriptor(node) as fd:
            return answer_of(node, os.fstat(fd))

    def readlink(self, nodeid: int) -> bytes:
        """Return the target of a symbolic link."""
        with self.descriptor(self.table.get(nodeid)) as fd:
            return os.readlink(b"", dir_fd=fd)

    def statfs(self) -> pyfuse3.StatvfsData:
        """Return the figures of the backing filesystem."""
        figures = os.fstatvfs(self.backing.root_fd)
        data = pyfuse3.StatvfsData()
        for field in (
            "f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax"
        ):  # fmt: skip
            setattr(data, field, getattr(figures, field))
        return data

    # --- making ------------------------------------------------------------------------------------------------------

    def mknod(self, parent_nodeid: int, name: bytes, mode: int, rdev: int, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make a file, a FIFO, a socket or a device."""
        with self._making(parent_nodeid, name, ctx) as (parent, fd):
            os.mknod(name, mode, rdev, dir_fd=fd)
        return self.entry_at(parent, name)

    def symlink(self, parent_nodeid: int, name: bytes, target: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        with self._making(parent_nodeid, name, ctx) as (parent, fd):
            os.symlink(target, name, dir_fd=fd)
        return self.entry_at(parent, name)

    def mkdir(self, parent_nodeid: int, name: bytes, mode: int, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        with self._making(parent_nodeid, name, ctx, is_dir=True) as (parent, fd):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=fd)
        found = self.backing.find(self.directory_fd(parent), name)
        try:
            self.recorder.watch_new(parent, found)
            return entry_of(self.remember(parent, name, found), found.stat)
        finally:
            found.close()

    def link(self, nodeid: int, parent_nodeid: int, name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make another name for an object."""
        parent = self.table.get(parent_nodeid)
        expectation = Expectation(events.CREATE, self.recorder.name(parent, name))
        directory_fd = self.directory_fd(parent)
        with (
            self.descriptor(self.table.get(nodeid)) as fd,
            self.recorder.operation([expectation], *self.recorder.caller(ctx)),
            self.as_caller(ctx),
        ):
            os.link(proc_path(fd), name, dst_dir_fd=directory_fd, follow_symlinks=True)
        return self.entry_at(parent, name)

    @contextlib.contextmanager
    def _making(
        self, parent_nodeid: int, name: bytes, ctx: Context, *, is_dir: bool = False
    ) -> Iterator[tuple[Node, int]]:
        parent = self.table.get(parent_nodeid)
        fd = self.directory_fd(parent)
        expectation = Expectation(events.CREATE, self.recorder.name(parent, name), is_dir=is_dir)
        with self.recorder.operation([expectation], *self.recorder.caller(ctx)), self.as_caller(ctx):
            yield parent, fd

    @contextlib.contextmanager
    def as_caller(self, ctx: Context) -> Iterator[None]:
        """Do what the block does with the rights of the caller, whom what is made belongs to, and its umask.

        The kernel has checked the rights, but of what was there a moment ago.
        """
        umask = os.umask(ctx.umask)
        try:
            with self.as_user(ctx.uid, ctx.gid, ctx.pid):
                yield
        finally:
            os.umask(umask)

    @contextlib.contextmanager
    def as_user(self, uid: int, gid: int, thread_id: int | None) -> Iterator[None]:
        """Act as a user, in the supplementary groups of a thread of that user's; a user's daemon acts as it is."""
        if self._own_uid != 0 or (uid, gid) == (0, self._own_gid):
            yield
            return
        with acting_as(uid, gid, *rights_of(thread_id or 0)):
            yield

    @contextlib.contextmanager
    def writing_as(self, uid: int) -> Iterator[None]:
        """Use up space as this user, whom quotas and the blocks reserved for root concern; cheaper than `as_user`."""
        if self._own_uid != 0 or uid == 0:
            yield
            return
        _linux.setfsuid(uid)
        try:
            yield
        finally:
            _linux.setfsuid(0)

    # --- removing and renaming ---------------------------------------------------------------------------------------

    def unlink(self, parent_nodeid: int, name: bytes, ctx: Context) -> None:
        """Remove a name of something that is no directory."""
        with self._removing(parent_nodeid, name, ctx, is_dir=False) as fd:
            os.unlink(name, dir_fd=fd)

    def rmdir(self, parent_nodeid: int, name: bytes, ctx: Context) -> None:
        """Remove an empty directory."""
        with self._removing(parent_nodeid, name, ctx, is_dir=True) as fd:
            os.rmdir(name, dir_fd=fd)

    @contextlib.contextmanager
    def _removing(self, parent_nodeid: int, name: bytes, ctx: Context, *, is_dir: bool) -> Iterator[int]:
        parent = self.table.get(parent_nodeid)
        expectation = Expectation(events.DELETE, self.recorder.name(parent, name), is_dir=is_dir)
        fd = self.directory_fd(parent)
        with (
            self._outliving(fd, name),
            self.recorder.operation([expectation], *self.recorder.caller(ctx)),
            self.as_caller(ctx),
        ):
            yield fd

    @contextlib.contextmanager
    def _outliving(self, directory_fd: int, name: bytes) -> Iterator[None]:
        """Keep an object whose last name the block removes.

        Who still has it (as a FIFO, a working directory, or by an O_PATH descriptor) goes on asking for it, and no
        handle opens what is gone.
        """
        try:
            found = self.backing.find(directory_fd, name)
        except OSError:
            yield  # there is nothing, or no descriptor left: then it is the block that says so, or does without
            return
        try:
            yield
            node = self.table.known(found.identity)
            if node is None or node.reference.outlives_names or has_names(os.fstat(found.fd)):
                return
            node.reference.close()
            node.reference = found.hold()
        finally:
            found.close()

    def rename(
        self, parent_nodeid: int, name: bytes, new_parent_nodeid: int, new_name: bytes, flags: int, ctx: Context
    ) -> None:
        """Rename, with the flags of renameat2(2) that the backing filesystem knows."""
        parent, new_parent = self.table.get(parent_nodeid), self.table.get(new_parent_nodeid)
        fd, new_fd = self.directory_fd(parent), self.directory_fd(new_parent)
        is_dir = stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
        exchange = bool(flags & _linux.RENAME_EXCHANGE)
        at, to = self.recorder.name(parent, name), self.recorder.name(new_parent, new_name)
        expectation = Expectation(events.RENAME, at, to, is_dir, exchange=exchange, most=2 if exchange else 1)
        replaced = contextlib.nullcontext() if exchange else self._outliving(new_fd, new_name)
        with replaced, self.recorder.operation([expectation], *self.recorder.caller(ctx)), self.as_caller(ctx):
            if flags:
                _linux.renameat2(fd, name, new_fd, new_name, flags)
            else:
                os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=new_fd)
        self._note_name(new_parent, new_name)
        if exchange:
            self._note_name(parent, name)

    def _note_name(self, parent: Node, name: bytes) -> None:
        with contextlib.suppress(OSError):  # renamed on by somebody else
            found = self.backing.find(self.directory_fd(parent), name)
            node = self.table.known(found.identity)
            if node is not None:
                self._note(node, parent, name)
            found.close()

    # --- changing ----------------------------------------------------------------------------------------------------

    def setattr(
        self,
        nodeid: int,
        wanted: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        open_fd: int | None,
        ctx: Context,
    ) -> pyfuse3.EntryAttributes:
        """Change mode, owner, size and times; `open_fd` is a writable descriptor of the file, where there is one."""
        node = self.table.get(nodeid)
        at = self.recorder.memory_of(node)
        expectations = [
            Expectation(kind, at, is_dir=node.is_dir, inode=node.key, most=most, optional=optional)
            for kind, most, optional in raised_by(fields)
        ]
        if fields.update_size and open_fd is None:  # see attributes._truncate
            expectations.append(Expectation(events.CLOSE_WRITE, at, inode=node.key, optional=True, silent=True))
        with self.descriptor(node) as kept:
            fd = os.dup(kept)  # others may come between the system calls, and close what is only kept
        try:
            with self.recorder.operation(expectations, *self.recorder.caller(ctx)):
                change(fd, open_fd, wanted, fields, lambda: self.as_caller(ctx))
            if node.ends and fields.update_size:
                node.ends.set(wanted.st_size)
            return answer_of(node, os.fstat(fd))
        finally:
            os.close(fd)

    def setxattr(self, nodeid: int, name: bytes, value: bytes, ctx: Context) -> None:
        """Set an extended attribute."""
        with self._changing_attribute(nodeid, ctx) as path, self._as_who_may_set(name, ctx):
            os.setxattr(path, name, value)

    def removexattr(self, nodeid: int, name: bytes, ctx: Context) -> None:
        """Remove an extended attribute."""
        with self._changing_attribute(nodeid, ctx) as path, self._as_who_may_set(name, ctx):
            os.removexattr(path, name)

    def _as_who_may_set(self, name: bytes, ctx: Context) -> contextlib.AbstractContextManager[None]:
        """Give the caller's identity for those attributes that others than root may set.

        What `system.` attributes mean, and who may change them, only the backing filesystem knows: an access ACL takes
        the set-group-id bit away from a file of a group that the caller is not in. `trusted.` and `security.` are
        root's, and the kernel takes capabilities from a file that somebody writes to.
        """
        return self.as_caller(ctx) if name.startswith((b"user.", b"system.")) else contextlib.nullcontext()

    @contextlib.contextmanager
    def _changing_attribute(self, nodeid: int, ctx: Context) -> Iterator[str]:
        node = self.table.get(nodeid)
        expectation = Expectation(
            events.ATTRIB, self.recorder.memory_of(node), is_dir=node.is_dir, inode=node.key, most=2
        )
        with self.descriptor(node) as fd, self.recorder.operation([expectation], *self.recorder.caller(ctx)):
            yield proc_path(fd)

    def getxattr(self, nodeid: int, name: bytes, ctx: Context) -> bytes:
        """Return an extended attribute; who may see those of `system.` only the backing filesystem knows."""
        judged = name.startswith(b"system.") and name not in _ACCESS_CONTROL_LISTS  # which anybody may read
        identity = self.as_caller(ctx) if judged else contextlib.nullcontext()
        with self.descriptor(self.table.get(nodeid)) as fd, identity:
            return os.getxattr(proc_path(fd), name)

    def listxattr(self, nodeid: int, ctx: Context) -> list[bytes]:
        """Return the names of the extended attributes, those of root only to root."""
        with self.descriptor(self.table.get(nodeid)) as fd:
            names = [os.fsencode(name) for name in os.listxattr(proc_path(fd))]
        return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]
