"""The operations on names and attributes, on the backing tree.

Synchronous: from the first system call to the note about its echo nothing else runs, so no operation sees another one
half done, and no lock is needed.
"""

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import Final

import pyfuse3

from fusenotify import _linux, events
from fusenotify._linux import proc_path
from fusenotify.attributes import answer_of, change, entry_of, has_names, raised_by, unchecked
from fusenotify.echoes import Expectation, opened_by_us
from fusenotify.inodes import Node
from fusenotify.nodes import Nodes, check_made
from fusenotify.recorder import Recorder
from fusenotify.rights import Rights

Context = pyfuse3.RequestContext

_ACCESS_CONTROL_LISTS: Final = (b"system.posix_acl_access", b"system.posix_acl_default")


class Passthrough:
    """Looks at, makes, changes and removes what the tree consists of."""

    def __init__(self, nodes: Nodes, recorder: Recorder, rights: Rights) -> None:
        self._nodes = nodes
        self._recorder = recorder
        self._rights = rights

    # --- looking -----------------------------------------------------------------------------------------------------

    def getattr(self, nodeid: int) -> pyfuse3.EntryAttributes:
        """Return the attributes of a node."""
        node = self._nodes.table.get(nodeid)
        with self._nodes.descriptor(node) as fd:
            return answer_of(node, os.fstat(fd))

    def readlink(self, nodeid: int) -> bytes:
        """Return the target of a symbolic link."""
        with self._nodes.descriptor(self._nodes.table.get(nodeid)) as fd:
            return os.readlink(b"", dir_fd=fd)

    def statfs(self) -> pyfuse3.StatvfsData:
        """Return the figures of the backing filesystem."""
        figures = os.fstatvfs(self._nodes.backing.root_fd)
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
        return self._nodes.entry_at(parent, name, stat.S_IFMT(mode) or stat.S_IFREG)

    def symlink(self, parent_nodeid: int, name: bytes, target: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make a symbolic link."""
        with self._making(parent_nodeid, name, ctx) as (parent, fd):
            os.symlink(target, name, dir_fd=fd)
        return self._nodes.entry_at(parent, name, stat.S_IFLNK)

    def mkdir(self, parent_nodeid: int, name: bytes, mode: int, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make a directory."""
        with self._making(parent_nodeid, name, ctx, is_dir=True) as (parent, fd):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=fd)
        with contextlib.closing(self._nodes.backing.find(self._nodes.directory_fd(parent), name)) as found:
            check_made(found, stat.S_IFDIR)
            self._recorder.watch_new(parent, found)
            return entry_of(self._nodes.remember(parent, name, found), found.stat)

    def link(self, nodeid: int, parent_nodeid: int, name: bytes, ctx: Context) -> pyfuse3.EntryAttributes:
        """Make another name for an object."""
        parent = self._nodes.table.get(parent_nodeid)
        expectation = Expectation(events.CREATE, self._recorder.name(parent, name))
        directory_fd = self._nodes.directory_fd(parent)
        with (
            self._nodes.descriptor(self._nodes.table.get(nodeid)) as fd,
            self._recorder.operation([expectation], *self._recorder.caller(ctx)),
            self._rights.as_caller(ctx),
        ):
            os.link(proc_path(fd), name, dst_dir_fd=directory_fd, follow_symlinks=True)
        return self._nodes.entry_at(parent, name)

    @contextlib.contextmanager
    def _making(
        self, parent_nodeid: int, name: bytes, ctx: Context, *, is_dir: bool = False
    ) -> Iterator[tuple[Node, int]]:
        parent = self._nodes.table.get(parent_nodeid)
        fd = self._nodes.directory_fd(parent)
        expectation = Expectation(events.CREATE, self._recorder.name(parent, name), is_dir=is_dir)
        with self._recorder.operation([expectation], *self._recorder.caller(ctx)), self._rights.as_caller(ctx):
            yield parent, fd

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
        parent = self._nodes.table.get(parent_nodeid)
        expectation = Expectation(events.DELETE, self._recorder.name(parent, name), is_dir=is_dir)
        fd = self._nodes.directory_fd(parent)
        with (
            self._outliving(fd, name),
            self._recorder.operation([expectation], *self._recorder.caller(ctx)),
            self._rights.as_caller(ctx),
        ):
            yield fd
        self._nodes.note_removal(parent, name)

    @contextlib.contextmanager
    def _outliving(self, directory_fd: int, name: bytes) -> Iterator[None]:
        """Keep an object whose last name the block removes.

        Who still has it (as a FIFO, a working directory, or by an O_PATH descriptor) goes on asking for it, and no
        handle opens what is gone.
        """
        try:
            found = self._nodes.backing.find(directory_fd, name)
        except OSError:
            yield  # there is nothing, or no descriptor left: then it is the block that says so, or does without
            return
        try:
            yield
            node = self._nodes.table.known(found.identity)
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
        parent, new_parent = self._nodes.table.get(parent_nodeid), self._nodes.table.get(new_parent_nodeid)
        fd, new_fd = self._nodes.directory_fd(parent), self._nodes.directory_fd(new_parent)
        at, to = self._recorder.name(parent, name), self._recorder.name(new_parent, new_name)
        expectation = Expectation(events.RENAME, at, to, _is_directory(fd, name))
        exchange = bool(flags & _linux.RENAME_EXCHANGE)
        if exchange:
            expectation.exchange, expectation.most = True, 2
            expectation.other_is_dir = _is_directory(new_fd, new_name)
        replaced = contextlib.nullcontext() if exchange else self._outliving(new_fd, new_name)
        with (
            replaced,
            self._recorder.operation([expectation], *self._recorder.caller(ctx)),
            self._rights.as_caller(ctx),
        ):
            if flags:
                _linux.renameat2(fd, name, new_fd, new_name, flags)
            else:
                os.rename(name, new_name, src_dir_fd=fd, dst_dir_fd=new_fd)
        self._nodes.note_removal(parent, name)
        self._nodes.note_removal(new_parent, new_name)
        self._nodes.note_name(new_parent, new_name)
        if exchange:
            self._nodes.note_name(parent, name)

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
        node = self._nodes.table.get(nodeid)
        at = self._recorder.memory_of(node)
        expectations = [
            Expectation(kind, at, is_dir=node.is_dir, inode=node.key, most=most, optional=optional)
            for kind, most, optional in raised_by(fields)
        ]
        if fields.update_size and open_fd is None:  # see attributes._truncate
            expectations += opened_by_us(at, node.key)
        with self._nodes.descriptor(node) as kept:
            fd = os.dup(kept)  # others may come between the system calls, and close what is only kept
        try:
            with self._recorder.operation(expectations, *self._recorder.caller(ctx)):
                change(fd, open_fd, wanted, fields, lambda: self._rights.as_caller(ctx))
            if node.ends and fields.update_size:
                node.ends.set(wanted.st_size)
            return unchecked(answer_of(node, os.fstat(fd)))
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
        return self._rights.as_caller(ctx) if name.startswith((b"user.", b"system.")) else contextlib.nullcontext()

    @contextlib.contextmanager
    def _changing_attribute(self, nodeid: int, ctx: Context) -> Iterator[str]:
        node = self._nodes.table.get(nodeid)
        expectation = Expectation(
            events.ATTRIB, self._recorder.memory_of(node), is_dir=node.is_dir, inode=node.key, most=2
        )
        with self._nodes.descriptor(node) as fd, self._recorder.operation([expectation], *self._recorder.caller(ctx)):
            yield proc_path(fd)

    def getxattr(self, nodeid: int, name: bytes, ctx: Context) -> bytes:
        """Return an extended attribute; who may see those of `system.` only the backing filesystem knows."""
        judged = name.startswith(b"system.") and name not in _ACCESS_CONTROL_LISTS  # which anybody may read
        identity = self._rights.as_caller(ctx) if judged else contextlib.nullcontext()
        with self._nodes.descriptor(self._nodes.table.get(nodeid)) as fd, identity:
            return os.getxattr(proc_path(fd), name)

    def listxattr(self, nodeid: int, ctx: Context) -> list[bytes]:
        """Return the names of the extended attributes, those of root only to root."""
        with self._nodes.descriptor(self._nodes.table.get(nodeid)) as fd:
            names = [os.fsencode(name) for name in os.listxattr(proc_path(fd))]
        return [name for name in names if ctx.uid == 0 or not name.startswith(b"trusted.")]


def _is_directory(parent_fd: int, name: bytes) -> bool:
    return stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode)
