"""Operation by operation: the mount answers as a plain directory on the same filesystem does, results and errnos."""

import errno
import fcntl
import json
import mmap
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fusenotify import _linux
from tests.compare import Entry, assert_same, survey
from tests.harness import FUSENOTIFY, PATIENCE, Mount, mounted, patched, run

# Its filesystem has no room for what was written, and says so at close(2).
_FULL_AT_CLOSE = """
import errno
from pyfuse3 import FUSEError
from fusenotify.operations import Operations

async def flush(self, fh):
    raise FUSEError(errno.EDQUOT)

Operations.flush = flush
"""
# Tells in the log of each FLUSH.
_TOLD_FLUSHES = """
import sys
from fusenotify.operations import Operations
answer = Operations.flush

async def flush(self, fh):
    print("FLUSH", file=sys.stderr, flush=True)
    await answer(self, fh)

Operations.flush = flush
"""
NOREPLACE = 1
MTIME_2001 = 1_000_000_000_123_456_789
OTHER = 12345  # a user without any rights of its own
GROUP = 54321


def outcome(function: Callable[[], object]) -> object:
    """Return what a call returns, or the name of the errno it fails with."""
    try:
        return function()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


class Both:
    """A directory on the mount and a plain one beside the backing tree, to do the same in."""

    def __init__(self, mount: Mount, plain: Path) -> None:
        self.mount = mount
        self.on_mount = mount.mountpoint / "work"
        self.behind = mount.source / "work"
        self.plain = plain
        for place in (self.on_mount, self.plain):
            place.mkdir()
            place.chmod(0o755)

    def run(self, *steps: Callable[[Path], object]) -> list[object]:
        """Do the steps in both places: the outcomes and the trees are the same. Return the outcomes."""
        done = [[outcome(lambda: step(place)) for step in steps] for place in (self.on_mount, self.plain)]  # noqa: B023
        assert done[0] == done[1]
        assert_same(survey(self.on_mount), survey(self.plain))
        assert_same(survey(self.on_mount, times=True, numbers=True), survey(self.behind, times=True, numbers=True))
        return done[1]


@pytest.fixture
def both(mount: Mount, directory: Path) -> Both:
    return Both(mount, directory / "plain")


@pytest.fixture
def shared(directory: Path) -> Iterator[Both]:
    """Both places, open to other users."""
    with mounted(directory, ["-o", "allow_other"]) as mount:
        directory.chmod(0o755)
        yield Both(mount, directory / "plain")


def descriptors(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.pid}/fd"))


def as_other(script: str, where: Path, uid: int = OTHER, gid: int = OTHER, groups: tuple[int, ...] = ()) -> object:
    """Run a Python expression as another user in a directory and return its value, or the errno it fails with."""
    program = (
        "import os, sys, json, errno\n"
        f"os.chdir({str(where)!r})\nos.setgroups({list(groups)})\n"
        f"os.setresgid({gid}, {gid}, {gid})\nos.setresuid({uid}, {uid}, {uid})\n"
        f"try:\n    print(json.dumps(eval({script!r})))\n"
        "except OSError as error:\n    print(json.dumps(errno.errorcode[error.errno]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=PATIENCE)
    value: object = json.loads(done.stdout)
    return value


def times(path: Path) -> tuple[int, int]:
    status = path.lstat()
    return status.st_atime_ns, status.st_mtime_ns


def write(path: Path, data: bytes, flags: int = 0) -> int:
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        return os.write(fd, data)
    finally:
        os.close(fd)


def read_through(path: Path, flags: int = 0, size: int = 1 << 20) -> bytes:
    fd = os.open(path, os.O_RDONLY | flags)
    try:
        return os.read(fd, size)
    finally:
        os.close(fd)


def rename(old: Path, new: Path, flags: int) -> None:
    _linux.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)


# --- names -----------------------------------------------------------------------------------------------------------


def test_lookup(both: Both) -> None:
    both.run(
        lambda root: (root / "file").write_text("x"),
        lambda root: os.stat(root / "none"),
        lambda root: os.stat(root / "file" / "below"),
        lambda root: os.stat(root / ("n" * 255)),
        lambda root: os.stat(root / ("n" * 256)),
        lambda root: (root / os.fsdecode(b"\xff\xfe bytes")).write_text("y"),
        lambda root: sorted(os.listdir(os.fsencode(root))),
        lambda root: (root / ("n" * 255)).touch(),
        lambda root: (root / "sub").mkdir(),
        lambda root: os.stat(root / "sub" / ".." / "file").st_size,
        lambda root: stat.S_ISDIR(os.stat(root / "." / "sub" / ".").st_mode),
    )


def test_mknod(both: Both) -> None:
    def bind(root: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / "s"))

    def fifo(root: Path) -> bytes:
        fd = os.open(root / "fifo", os.O_RDWR)
        os.write(fd, b"through")
        try:
            return os.read(fd, 100)
        finally:
            os.close(fd)

    both.run(
        lambda root: os.mknod(root / "file", 0o640 | stat.S_IFREG),
        lambda root: os.mknod(root / "file", 0o640 | stat.S_IFREG),
        lambda root: os.mkfifo(root / "fifo", 0o600),
        fifo,
        lambda root: os.mknod(root / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3)),
        lambda root: os.mknod(root / "block", 0o660 | stat.S_IFBLK, os.makedev(259, 70000)),
        bind,
        bind,
        lambda root: stat.S_ISSOCK((root / "s").stat().st_mode),
        lambda root: os.mknod(root / "none" / "x", 0o600),
    )


def test_directories(both: Both) -> None:
    said = both.run(
        lambda root: os.mkdir(root / "d", 0o1750),
        lambda root: os.mkdir(root / "d"),
        lambda root: (root / "d" / "file").touch(),
        lambda root: os.rmdir(root / "d"),
        lambda root: os.unlink(root / "d"),
        lambda root: os.rmdir(root / "d" / "file"),
        lambda root: os.unlink(root / "d" / "file"),
        lambda root: os.rmdir(root / "d"),
        lambda root: os.rmdir(root / "d"),
        lambda root: os.rmdir(root / "none" / "d"),
        lambda root: os.mkdir(root / "none" / "d"),
    )
    assert said[1:4:2] == ["EEXIST", "ENOTEMPTY"]


def test_symbolic_links(both: Both) -> None:
    both.run(
        lambda root: os.symlink("target", root / "link"),
        lambda root: os.symlink("t" * 4000, root / "long"),
        lambda root: os.symlink("target", root / "link"),
        lambda root: os.readlink(root / "link"),
        lambda root: os.readlink(root / "long"),
        lambda root: os.stat(root / "link"),
        lambda root: os.open(root / "link", os.O_RDONLY | os.O_NOFOLLOW),
        lambda root: os.chown(root / "link", 5, 6, follow_symlinks=False),
        lambda root: os.utime(root / "link", ns=(1, MTIME_2001), follow_symlinks=False),
        lambda root: times(root / "link")[1],
        lambda root: os.link(root / "link", root / "hard", follow_symlinks=False),
        lambda root: os.readlink(root / "hard"),
        lambda root: os.setxattr(root / "link", "trusted.x", b"1", follow_symlinks=False),
        lambda root: os.setxattr(root / "link", "user.x", b"1", follow_symlinks=False),
        lambda root: os.symlink("link2", root / "link2"),
        lambda root: os.stat(root / "link2"),
        os.readlink,
        lambda root: os.symlink(str(root / "file"), root / "absolute"),
        lambda root: (root / "absolute").write_text("through"),
        lambda root: (root / "absolute").unlink(),
    )


def test_rename(both: Both) -> None:
    said = both.run(
        lambda root: (root / "a").write_text("a"),
        lambda root: (root / "b").write_text("b"),
        lambda root: rename(root / "a", root / "b", NOREPLACE),
        lambda root: rename(root / "a", root / "c", NOREPLACE),
        lambda root: rename(root / "b", root / "c", _linux.RENAME_EXCHANGE),
        lambda root: ((root / "b").read_text(), (root / "c").read_text()),
        lambda root: rename(root / "b", root / "none", _linux.RENAME_EXCHANGE),
        lambda root: rename(root / "b", root / "c", NOREPLACE | _linux.RENAME_EXCHANGE),
        lambda root: os.rename(root / "b", root / "c"),
        lambda root: (root / "c").read_text(),
        lambda root: os.makedirs(root / "d" / "e"),
        lambda root: os.makedirs(root / "f" / "g"),
        lambda root: os.rename(root / "d", root / "d" / "e" / "x"),
        lambda root: os.rename(root / "d", root / "f"),
        lambda root: os.rename(root / "d", root / "f" / "g"),
        lambda root: os.rename(root / "c", root / "f"),
        lambda root: os.rename(root / "f", root / "c"),
        lambda root: os.rename(root / "none", root / "c"),
        lambda root: os.rename(root / "c", root / "f" / "g" / "e" / "c"),
        lambda root: rename(root / "f" / "g" / "e", root / "file", 0),
        lambda root: os.link(root / "file" / "c", root / "same"),
        lambda root: os.rename(root / "same", root / "file" / "c"),
        lambda root: rename(root / "same", root / "f", _linux.RENAME_EXCHANGE),
    )
    assert said[2] == "EEXIST"
    assert said[5] == ("a", "b")


def test_hard_links(both: Both) -> None:
    both.run(
        lambda root: (root / "a").write_text("x"),
        lambda root: os.link(root / "a", root / "b"),
        lambda root: os.link(root / "a", root / "b"),
        lambda root: os.link(root / "none", root / "c"),
        lambda root: os.link(root, root / "c"),
        lambda root: (root / "a").samefile(root / "b"),
        lambda root: (root / "b").write_text("by b"),
        lambda root: (root / "a").read_text(),
        lambda root: os.unlink(root / "a"),
        lambda root: (root / "b").stat().st_nlink,
    )


def test_inode_numbers_outlive_a_remount(directory: Path) -> None:
    seen: list[dict[str, Entry]] = []
    for _ in range(2):
        with mounted(directory) as mount:
            if not seen:
                (mount.mountpoint / "d").mkdir()
                (mount.mountpoint / "d" / "a").touch()
                os.link(mount.mountpoint / "d" / "a", mount.mountpoint / "b")
            seen.append(survey(mount.mountpoint, times=True, numbers=True))
            assert (mount.mountpoint / "b").stat().st_ino == (mount.mountpoint / "d" / "a").stat().st_ino
            assert_same(survey(mount.source, times=True, numbers=True), seen[-1])
    assert_same(*seen)


# --- attributes ------------------------------------------------------------------------------------------------------


def test_each_attribute_alone(both: Both) -> None:
    def unchanged(function: Callable[[Path], object], which: int) -> Callable[[Path], object]:
        def step(root: Path) -> object:
            before = times(root / "file")
            result = outcome(lambda: function(root))
            return result, times(root / "file")[which] == before[which]

        return step

    both.run(
        lambda root: (root / "file").write_text("content"),
        lambda root: os.chmod(root / "file", 0o4755),
        lambda root: os.chmod(root / "file", 0),
        lambda root: os.chmod(root / "file", 0o7777),
        lambda root: os.chown(root / "file", 7, -1),
        lambda root: os.chown(root / "file", -1, 8),
        lambda root: os.chown(root / "file", -1, -1),
        lambda root: os.truncate(root / "file", 3),
        lambda root: os.truncate(root / "file", 10_000),
        lambda root: os.truncate(root / "file", -1),
        lambda root: os.truncate(root, 0),
        lambda root: os.truncate(root / "none", 0),
        lambda root: os.utime(root / "file", ns=(MTIME_2001 + 1, MTIME_2001)),
        lambda root: times(root / "file"),
        lambda root: os.utime(root / "file", ns=(-1, -1_500_000_000)),
        lambda root: times(root / "file"),
        unchanged(lambda root: _linux.utimensat(os.fsencode(root / "file"), 5, None), 1),
        unchanged(lambda root: _linux.utimensat(os.fsencode(root / "file"), None, 6), 0),
        lambda root: os.utime(root, ns=(7, 8)),
        lambda root: times(root)[1],
        lambda root: os.utime(root / "none"),
    )


def test_now_is_never_ahead_of_what_is_written_next(both: Both) -> None:
    for _ in range(50):
        (both.on_mount / "stamp").touch()
        (both.on_mount / "made").write_text("later")
        assert (both.on_mount / "stamp").stat().st_mtime_ns <= (both.on_mount / "made").stat().st_mtime_ns


def test_statfs(both: Both) -> None:
    ours, theirs = os.statvfs(both.on_mount), os.statvfs(both.behind)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(ours, field) == getattr(theirs, field)


def test_extended_attributes(both: Both) -> None:
    long = b"v" * 4000

    both.run(
        lambda root: (root / "file").touch(),
        lambda root: os.getxattr(root / "file", "user.none"),
        lambda root: os.setxattr(root / "file", "user.a", b"1", os.XATTR_CREATE),
        lambda root: os.setxattr(root / "file", "user.a", b"2", os.XATTR_CREATE),
        lambda root: os.setxattr(root / "file", "user.b", b"3", os.XATTR_REPLACE),
        lambda root: os.setxattr(root / "file", "user.a", long, os.XATTR_REPLACE),
        lambda root: os.setxattr(root / "file", "user.c", b""),
        lambda root: os.getxattr(root / "file", "user.a"),
        lambda root: os.getxattr(root / "file", "user.c"),
        lambda root: sorted(os.listxattr(root / "file")),
        lambda root: os.setxattr(root / "file", "trusted.t", bytes(range(256))),
        lambda root: os.removexattr(root / "file", "user.a"),
        lambda root: os.removexattr(root / "file", "user.a"),
        lambda root: os.setxattr(root / "file", "nonsense.a", b"1"),
        lambda root: os.setxattr(root / "file", "user." + "n" * 255, b"1"),
        lambda root: os.setxattr(root, "user.d", b"dir"),
        lambda root: os.listxattr(root / "none"),
        lambda root: os.setxattr(root / "file", "security.capability", struct.pack("<5I", 0x02000000, 8192, 0, 0, 0)),
    )


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return the bytes of a POSIX ACL: (tag, permissions, id) each, in the order the kernel wants."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, id & 0xFFFFFFFF) for tag, bits, id in entries)


# Owner rwx, OTHER rw, group r, mask rwx, others nothing.
_ACL = acl((1, 7, -1), (2, 6, OTHER), (4, 4, -1), (16, 7, -1), (32, 0, -1))


def test_access_control_lists(shared: Both) -> None:
    access, default = "system.posix_acl_access", "system.posix_acl_default"
    shared.run(
        lambda root: (root / "file").write_text("x"),
        lambda root: os.setxattr(root / "file", access, _ACL),
        lambda root: os.getxattr(root / "file", access),
        lambda root: oct((root / "file").stat().st_mode),
        lambda root: as_other("open('file').read()", root),
        lambda root: as_other("open('file').read()", root, uid=OTHER + 1),
        lambda root: os.chmod(root / "file", 0o600),
        lambda root: as_other("open('file').read()", root),
        lambda root: os.removexattr(root / "file", access),
        lambda root: os.mkdir(root / "d"),
        lambda root: os.setxattr(root / "d", default, _ACL),
        lambda root: os.umask(0o077) and None,
        lambda root: (root / "d" / "file").touch(0o666),
        lambda root: (root / "d" / "d").mkdir(0o777),
        lambda root: os.mkfifo(root / "d" / "fifo", 0o666),
        lambda root: (root / "plain").touch(0o666),
        lambda root: os.umask(0o022) and None,
        lambda root: os.setxattr(root / "file", default, _ACL),
        lambda root: os.setxattr(root / "file", access, b"nonsense"),
    )


def test_an_access_list_takes_the_set_group_id_bit(shared: Both) -> None:
    script = f"os.setxattr('file', 'system.posix_acl_access', {_ACL!r}), os.stat('file').st_mode"
    shared.run(
        lambda root: (root / "file").touch(),
        lambda root: os.chown(root / "file", OTHER, GROUP),
        lambda root: os.chmod(root / "file", 0o2775),
        lambda root: as_other(script, root),
        lambda root: os.chmod(root / "file", 0o2775),
        lambda root: as_other(script, root, groups=(GROUP,)),
    )


# --- who -------------------------------------------------------------------------------------------------------------


_REPLACED = """
import os
_mknod, _mkdir = os.mknod, os.mkdir

def mknod(name, *arguments, dir_fd=None):
    _mknod(name, *arguments, dir_fd=dir_fd)
    os.unlink(name, dir_fd=dir_fd)
    _mkdir(name, dir_fd=dir_fd)

def mkdir(name, *arguments, dir_fd=None):
    _mkdir(name, *arguments, dir_fd=dir_fd)
    if dir_fd is not None:
        os.rmdir(name, dir_fd=dir_fd)
        _mknod(name, dir_fd=dir_fd)

os.mknod, os.mkdir = mknod, mkdir
"""


def test_what_is_replaced_as_soon_as_it_is_made_is_gone(directory: Path) -> None:
    """By something of another type, behind the mount: the kernel would say EIO of it."""
    with patched(directory, _REPLACED) as mount:
        with pytest.raises(FileNotFoundError):
            os.mknod(mount.mountpoint / "file")
        with pytest.raises(FileNotFoundError):
            (mount.mountpoint / "directory").mkdir()
        assert (mount.mountpoint / "file").is_dir()
        assert (mount.mountpoint / "directory").is_file()


@pytest.mark.parametrize("umask", [0, 0o022, 0o077, 0o707])
def test_umask(shared: Both, umask: int) -> None:
    make = (
        f"os.umask({umask}), os.close(os.open('file', os.O_CREAT | os.O_WRONLY, 0o6777)), os.mkdir('dir', 0o7777),"
        "os.mkfifo('fifo', 0o666), os.symlink('x', 'link'), [oct(os.lstat(n).st_mode) for n in sorted(os.listdir('.'))]"
    )
    shared.run(
        lambda root: os.chmod(root, 0o777),
        lambda root: as_other(make, root, uid=0, gid=0),
        lambda root: (
            subprocess.run(["sh", "-c", "mkdir old; mv -t old dir fifo file link"], check=True, cwd=root).returncode
        ),
        lambda root: as_other(make, root),
    )


def test_files_belong_to_who_made_them(shared: Both) -> None:
    make = (
        "open('{0}', 'w').write('mine'), os.mkdir('{0}d'), os.mkfifo('{0}p'), os.symlink('t', '{0}l'),"
        "os.link('{0}', '{0}h'), [(s.st_uid, s.st_gid, s.st_mode) for s in map(os.lstat, sorted(os.listdir('.')))]"
    )
    shared.run(
        lambda root: os.chmod(root, 0o777),
        lambda root: as_other(make.format("a"), root),
        lambda root: as_other(make.format("b"), root, uid=0, gid=GROUP),
        lambda root: os.chown(root, 0, GROUP),
        lambda root: os.chmod(root, 0o2770),
        lambda root: as_other(make.format("c"), root),
        lambda root: as_other(make.format("d"), root, groups=(GROUP, 3)),
        lambda root: as_other(make.format("e"), root, gid=GROUP),
    )


def test_rights_of_another_user(shared: Both) -> None:
    rights: list[str] = [
        "open('private').read()", "open('public').read()", "open('public', 'a').close()", "os.unlink('public')",
        "os.listdir('closed')", "os.stat('closed/x')", "os.chmod('public', 0o777)", "os.chown('public', 1, 1)",
        "os.utime('public')", "os.truncate('public', 0)", "os.setxattr('public', 'user.x', b'')", "os.mkdir('new')",
        "os.rename('public', 'mine/x')", "os.unlink('sticky/file')", "os.rename('sticky/file', 'sticky/other')",
        "os.access('private', os.R_OK)", "os.access('public', os.R_OK)", "os.access('public', os.W_OK)",
        "open('grouped').read()", "os.link('private', 'mine/link')", "os.mknod('mine/null', 0o20666, 259)",
        "os.chmod('mine', 0o2777), os.stat('mine').st_mode", "os.chown('mine', -1, 77)", "os.listxattr('public')",
        "os.getxattr('public', 'trusted.secret')", "os.utime('public', (1, 1))",
    ]  # fmt: skip

    def prepare(root: Path) -> None:
        for name, mode in (("private", 0o600), ("public", 0o644), ("grouped", 0o640)):
            (root / name).write_text(name)
            (root / name).chmod(mode)
        os.chown(root / "grouped", 0, GROUP)
        os.setxattr(root / "public", "trusted.secret", b"x")
        for name, mode in (("closed", 0o700), ("sticky", 0o1777), ("mine", 0o755)):
            (root / name).mkdir()
            (root / name).chmod(mode)
        (root / "closed" / "x").touch()
        (root / "sticky" / "file").touch()
        os.chown(root / "mine", OTHER, 77)

    said = shared.run(
        prepare,
        *(lambda root, right=right: as_other(right, root) for right in rights),
        lambda root: as_other("open('grouped').read()", root, groups=(GROUP,)),
    )
    assert said[1:4] == ["EACCES", "public", "EACCES"]
    assert said[-1] == "grouped"


def test_writing_clears_set_id_bits(shared: Both) -> None:
    both_bits = 0o6777
    script = "open('file', 'a').write('x'), oct(os.stat('file').st_mode)"
    shared.run(
        lambda root: (root / "file").write_text("x"),
        lambda root: os.chmod(root / "file", both_bits),
        lambda root: as_other(script, root),
        lambda root: os.chmod(root / "file", both_bits),
        lambda root: as_other("os.truncate('file', 0), oct(os.stat('file').st_mode)", root),
        lambda root: os.chmod(root / "file", both_bits),
        lambda root: as_other("open('file', 'w').close(), oct(os.stat('file').st_mode)", root),
        lambda root: os.chmod(root / "file", both_bits),
        lambda root: os.chown(root / "file", 3, 4),
        lambda root: os.chmod(root / "file", both_bits),
        lambda root: write(root / "file", b"by root"),
        lambda root: oct((root / "file").stat().st_mode),
    )


def test_a_caller_from_outside_our_pid_namespace(directory: Path) -> None:
    """The kernel tells no thread id then: no supplementary groups, but nothing fails."""
    command = ["unshare", "--pid", "--fork", *FUSENOTIFY]
    with mounted(directory, ["-o", "allow_other"], command=command) as mount:
        directory.chmod(0o755)
        mount.source.chmod(0o777)
        assert as_other("os.mkdir('d'), os.stat('d').st_uid", mount.mountpoint) == [None, OTHER]
        assert as_other("open('f', 'w').write('x'), os.stat('f').st_uid", mount.mountpoint) == [1, OTHER]
        _linux.umount2(os.fsencode(mount.mountpoint), _linux.MNT_DETACH)
        assert mount.process.wait(PATIENCE) == 0


# --- open files ------------------------------------------------------------------------------------------------------


def test_flags_of_open(both: Both) -> None:
    def append(root: Path) -> bytes:
        fd = os.open(root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"one ")
        os.pwrite(fd, b"two ", 0)
        os.lseek(fd, 0, os.SEEK_SET)
        os.write(fd, b"three")
        os.close(fd)
        return (root / "log").read_bytes()

    both.run(
        append,
        lambda root: os.close(os.open(root / "x", os.O_CREAT | os.O_EXCL | os.O_RDONLY, 0o000)),
        lambda root: os.open(root / "x", os.O_CREAT | os.O_EXCL),
        lambda root: os.close(os.open(root / "x", os.O_CREAT)),
        lambda root: write(root / "log", b"T", os.O_TRUNC),
        lambda root: os.open(root / "none", os.O_RDONLY),
        lambda root: os.open(root, os.O_WRONLY),
        lambda root: os.open(root / "x", os.O_DIRECTORY),
        lambda root: os.open(root / "new", os.O_CREAT | os.O_DIRECTORY),
        lambda root: os.close(os.open(root / "log", os.O_RDONLY | os.O_TRUNC)),
        lambda root: write(root / "log", b"nonblocking", os.O_NONBLOCK),
        lambda root: write(root / "log", b"sync", os.O_SYNC | os.O_NOATIME),
        lambda root: read_through(root / "log", os.O_NOATIME | os.O_NONBLOCK),
        lambda root: os.read(os.open(root / "log", os.O_WRONLY), 1),
        lambda root: os.write(os.open(root / "log", os.O_RDONLY), b"x"),
        lambda root: os.open(root / "none" / "x", os.O_CREAT),
        lambda root: os.symlink("made", root / "dangling"),
        lambda root: os.open(root / "dangling", os.O_CREAT | os.O_EXCL),
        lambda root: os.close(os.open(root / "dangling", os.O_CREAT)),
    )


def test_reading_and_writing(both: Both) -> None:
    big = os.urandom(5_000_000)

    def vectors(root: Path) -> object:
        fd = os.open(root / "v", os.O_CREAT | os.O_RDWR)
        done: list[object] = [os.writev(fd, [b"ab", b"", b"cdef"]), os.pread(fd, 3, 2), os.pread(fd, 3, 100)]
        done.append(os.lseek(fd, -1, os.SEEK_END))
        os.ftruncate(fd, 4)
        done.append(os.preadv(fd, [bytearray(2), bytearray(9)], 1))
        os.copy_file_range(fd, fd, 2, 0, 10)
        done.append(os.sendfile(fd, os.open(root / "v", os.O_RDONLY), 0, 4))
        os.close(fd)
        return done

    both.run(
        lambda root: (root / "big").write_bytes(big),
        lambda root: (root / "big").read_bytes() == big,
        lambda root: (root / "empty").write_bytes(b""),
        lambda root: read_through(root / "empty"),
        lambda root: os.truncate(root / "big", 1_234_567),
        lambda root: (root / "sparse").touch(),
        lambda root: os.truncate(root / "sparse", 10_000_000),
        lambda root: os.pwrite(os.open(root / "sparse", os.O_RDWR), b"end", 20_000_000),
        lambda root: (root / "sparse").stat().st_blocks,
        vectors,
        lambda root: os.read(os.open(root, os.O_RDONLY), 1),
    )


def test_direct_io_has_no_alignment_rules(both: Both) -> None:
    path = both.on_mount / "direct"
    fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.write(fd, b"unaligned") == 9
        assert os.pread(fd, 5, 2) == b"align"
        (both.behind / "direct").write_bytes(b"from behind")
        assert os.pread(fd, 100, 0) == b"from behind"
        with mmap.mmap(fd, 11) as mapped:
            assert mapped[:4] == b"from"
            mapped[0:4] = b"FROM"
        assert (both.behind / "direct").read_bytes() == b"FROM behind"
    finally:
        os.close(fd)


def test_syncing(both: Both) -> None:
    def sync(root: Path) -> None:
        fd = os.open(root / "file", os.O_CREAT | os.O_RDWR)
        directory = os.open(root, os.O_RDONLY)
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
        os.fsync(directory)
        os.fdatasync(directory)
        os.close(fd)
        os.close(directory)

    both.run(sync)


def test_what_a_distant_filesystem_says_at_close_is_told_each_time(directory: Path) -> None:
    inner_place, outer_place = directory / "inner", directory / "outer"
    for place in (inner_place, outer_place):
        place.mkdir()
    with patched(inner_place, _FULL_AT_CLOSE) as inner:
        (outer_place / "source").symlink_to(inner.mountpoint)
        with mounted(outer_place) as outer:
            for number in range(3):
                fd = os.open(outer.mountpoint / f"file{number}", os.O_CREAT | os.O_WRONLY)
                os.write(fd, b"written")
                assert outcome(lambda: os.close(fd)) == "EDQUOT"  # noqa: B023 - called at once


def test_closing_asks_the_daemon_once_where_nothing_is_distant(directory: Path) -> None:
    with patched(directory, _TOLD_FLUSHES) as mount:
        for number in range(5):
            (mount.mountpoint / f"file{number}").write_text("written")
        assert mount.stop() == 0
    assert mount.log.count("FLUSH") == 1


@pytest.mark.parametrize("lost", ["unlink", "rename over"])
def test_an_open_file_without_a_name_lives(both: Both, lost: str) -> None:
    def use(root: Path) -> object:
        path = root / "gone"
        fd = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        os.write(fd, b"content")
        if lost == "unlink":
            path.unlink()
        else:
            (root / "new").touch()
            (root / "new").rename(path)
            path.unlink()
        done: list[object] = [os.fstat(fd).st_nlink, os.fstat(fd).st_size, os.pread(fd, 100, 0)]
        os.ftruncate(fd, 3)
        os.pwrite(fd, b"XY", 2)
        os.fchmod(fd, 0o640)
        os.fchown(fd, 3, 4)
        os.utime(fd, ns=(1, 2))
        os.setxattr(fd, "user.x", b"y")
        os.fsync(fd)
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        status = os.fstat(again)
        done += [os.read(again, 9), oct(status.st_mode), status.st_uid, status.st_mtime_ns]
        done.append(os.getxattr(again, "user.x"))
        os.close(again)
        os.close(fd)
        return done

    both.run(use)


def test_what_is_held_without_being_open_outlives_its_name(both: Both) -> None:
    def held(make: Callable[[Path], object], remove: Callable[[Path], object]) -> Callable[[Path], object]:
        def step(root: Path) -> object:
            make(root / "held")
            fd = os.open(root / "held", os.O_PATH | os.O_NOFOLLOW)
            remove(root / "held")
            try:
                return os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode)
            finally:
                os.close(fd)

        return step

    def fifo(root: Path) -> object:  # as shells do for process substitution
        os.mkfifo(root / "fifo")
        fd = os.open(root / "fifo", os.O_RDWR)
        os.unlink(root / "fifo")
        os.fchmod(fd, 0o640)
        os.write(fd, b"still")
        done = os.fstat(fd).st_nlink, oct(os.fstat(fd).st_mode), os.read(fd, 10)
        os.close(fd)
        return done

    def overwritten(path: Path) -> None:
        path.with_name("new").touch()
        path.with_name("new").rename(path)
        path.unlink()

    def working_directory(root: Path) -> object:
        script = "mkdir cwd; cd cwd; rmdir ../cwd; stat -c %h .; ls; touch x 2>/dev/null || echo refused"
        return subprocess.run(["sh", "-c", script], check=False, cwd=root, capture_output=True).stdout

    before = descriptors(both.mount)
    both.run(
        fifo,
        working_directory,
        held(Path.touch, os.unlink),
        held(os.mkdir, os.rmdir),
        held(lambda path: path.symlink_to("x"), os.unlink),
        held(Path.touch, overwritten),
    )
    both.run(*[held(os.mkdir, os.rmdir)] * 50)
    assert descriptors(both.mount) < before + 40  # FORGET and RELEASE come when the kernel likes


def test_locks_hold_among_those_on_the_mount(both: Both) -> None:
    def lock(root: Path) -> object:
        path = root / "lock"
        with path.open("w") as one, path.open("w") as other:
            fcntl.flock(one, fcntl.LOCK_EX)
            done = [outcome(lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))]
            fcntl.lockf(one, fcntl.LOCK_EX, 10)
            script = f"import fcntl; fcntl.lockf(open({str(path)!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB, 10)"
            done.append(subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode)
            return done

    both.run(lock)


def test_a_lease_keeps_only_its_own_openers_waiting(both: Both) -> None:
    path = both.on_mount / "leased"
    (both.behind / "leased").write_text("content")
    holder = os.open(both.behind / "leased", os.O_RDONLY)
    old = signal.signal(signal.SIGIO, signal.SIG_IGN)  # by which the holder is told that somebody waits
    try:
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        assert outcome(lambda: os.open(path, os.O_WRONLY | os.O_NONBLOCK)) == "EAGAIN"
        openers = [
            subprocess.Popen([sys.executable, "-c", f"{call}; print('done')"], stdout=subprocess.PIPE)
            for call in (f"open({str(path)!r}, 'a').write('!')", f"import os; os.truncate({str(path)!r}, 3)")
        ]
        assert path.read_text() == "content"  # and everything else goes on
        (both.on_mount / "other").touch()
        fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert [opener.communicate(timeout=PATIENCE)[0] for opener in openers] == [b"done\n"] * 2
        assert path.read_text() in ("con!", "con")
    finally:
        os.close(holder)
        signal.signal(signal.SIGIO, old)


# --- listing ---------------------------------------------------------------------------------------------------------

_LISTING = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
libc.opendir.argtypes = [ctypes.c_char_p]
for function in (libc.readdir, libc.rewinddir, libc.telldir, libc.closedir):
    function.argtypes = [ctypes.c_void_p]
libc.telldir.restype = ctypes.c_long
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]

def entry():
    found = libc.readdir(stream)
    return found and ctypes.string_at(found + 19)

def rest():
    return list(iter(entry, None))

stream = libc.opendir(os.fsencode(sys.argv[1]))
names = rest()
assert len(names) == len(set(names)) == 5002, len(names)
assert entry() is None
os.unlink(sys.argv[1] + "/f0")
os.close(os.open(sys.argv[1] + "/new", os.O_CREAT))
libc.rewinddir(stream)
again = rest()
assert set(again) == set(names) - {b"f0"} | {b"new"}
libc.rewinddir(stream)
first = [entry() for _ in range(1000)]
place = libc.telldir(stream)
then = [entry() for _ in range(1500)]
libc.seekdir(stream, place)
assert [entry() for _ in range(1500)] == then
libc.seekdir(stream, place)
assert first + rest() == again
libc.closedir(stream)
"""


def test_listing_five_thousand_names(both: Both) -> None:
    for place in (both.behind, both.plain):
        for number in range(5000):
            os.close(os.open(place / f"f{number}", os.O_CREAT))
    for place in (both.on_mount, both.plain):
        subprocess.run([sys.executable, "-c", _LISTING, str(place)], check=True, timeout=PATIENCE)
    assert sorted(os.listdir(both.on_mount)) == sorted(os.listdir(both.plain))
    subprocess.run(["rm", "-r", both.on_mount, both.plain], check=True)
    assert os.listdir(both.mount.source) == []


# Somebody has taken the disk away below one of the files.
_BAD_ENTRY = """
from fusenotify.backing import Backing
find = Backing.find

def failing(self, directory_fd, name):
    if name == b"bad":
        raise OSError(5, "Input/output error")
    return find(self, directory_fd, name)

Backing.find = failing
"""


def test_an_entry_that_cannot_be_read_ends_the_listing_and_leaves_no_node(directory: Path) -> None:
    with patched(directory, _BAD_ENTRY) as mount:
        for name in (*(f"before{n}" for n in range(20)), "bad", *(f"behind{n}" for n in range(20))):
            (mount.source / name).touch()
        names: list[str] = []
        with pytest.raises(OSError, match="Input/output error"), os.scandir(mount.mountpoint) as listing:
            names += (entry.name for entry in listing)
        with pytest.raises(OSError, match="Input/output error"):
            os.listdir(mount.mountpoint)
        while json.loads(run("status", mount.mountpoint, "--json").stdout)["nodes"] > 1:
            Path("/proc/sys/vm/drop_caches").write_text("2")  # and the kernel forgets what it was told of
        assert mount.stop() == 0
    assert "Traceback" not in mount.log


def test_numbers_in_listings(both: Both) -> None:
    (both.on_mount / "d").mkdir()
    (both.on_mount / "d" / "f").touch()
    found = {}
    for place in (both.on_mount, both.behind):
        said = subprocess.run(["ls", "-1aif", place / "d"], check=True, capture_output=True, text=True).stdout
        found[place] = sorted(line.split() for line in said.splitlines())
    assert found[both.on_mount] == found[both.behind]


def test_deep_trees(both: Both) -> None:
    """Deeper than a path can be long, and than the daemon keeps descriptors."""

    def make(root: Path) -> str:
        fd = os.open(root, os.O_RDONLY)
        for _ in range(1000):
            os.mkdir("n234567890", dir_fd=fd)
            below = os.open("n234567890", os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(os.open("file", os.O_CREAT, dir_fd=fd))
        os.close(fd)
        script = "find . | wc; find . -name file -execdir mv file moved ';'; find . -name moved; rm -r *"
        return subprocess.run(["sh", "-c", script], check=True, cwd=root, capture_output=True, text=True).stdout

    both.run(make)


def test_more_directories_than_descriptors_are_kept(both: Both) -> None:
    def use(root: Path) -> object:
        for number in range(300):
            (root / f"d{number}").mkdir()
            (root / f"d{number}" / "file").write_text(str(number))
        fds = [os.open(root / f"d{number}", os.O_RDONLY) for number in range(300)]
        for number in range(300):
            os.rename("file", "moved", src_dir_fd=fds[number], dst_dir_fd=fds[(number + 150) % 300])
        for number in reversed(range(300)):
            os.link("moved", "link", src_dir_fd=fds[number], dst_dir_fd=fds[(number + 77) % 300])
            os.unlink("moved", dir_fd=fds[number])
        for fd in fds:
            os.close(fd)
        return sorted((root / f"d{number}" / "link").read_text() for number in range(300))

    both.run(use)
    both.run(lambda root: subprocess.run(["rm", "-r", *map(str, root.iterdir())], check=True).returncode)


# --- changes behind the mount ----------------------------------------------------------------------------------------


def test_changes_behind_are_visible_at_once(both: Both) -> None:
    mount, behind = both.on_mount, both.behind
    for number in range(20):
        (behind / "file").write_text("x" * number)
        assert (mount / "file").stat().st_size == number
        assert (mount / "file").read_text() == "x" * number
        (behind / "file").unlink()
        assert not (mount / "file").exists()
        assert os.listdir(mount) == []
    with (mount / "open").open("w+b", buffering=0) as file:
        file.write(b"local")
        (behind / "open").write_bytes(b"remote content")
        assert os.fstat(file.fileno()).st_size == 14
        assert os.pread(file.fileno(), 100, 0) == b"remote content"
        (behind / "open").write_bytes(b"REMOTE CONTENT")
        assert os.pread(file.fileno(), 100, 0) == b"REMOTE CONTENT"
        (behind / "open").chmod(0o604)
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o604
        (behind / "open").rename(behind / "renamed")
        assert os.fstat(file.fileno()).st_size == 14
        (behind / "renamed").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert os.pread(file.fileno(), 100, 0) == b"REMOTE CONTENT"
        os.pwrite(file.fileno(), b"still", 0)


def test_appending_goes_behind_what_was_appended_behind(both: Both) -> None:
    fd = os.open(both.on_mount / "log", os.O_CREAT | os.O_RDWR | os.O_APPEND)
    expected = b""
    for number in range(20):
        os.write(fd, b"local %d\n" % number)
        write(both.behind / "log", b"remote %d\n" % number, os.O_APPEND)
        expected += b"local %d\nremote %d\n" % (number, number)
        assert os.pread(fd, 10_000, 0) == expected == (both.behind / "log").read_bytes()
    os.close(fd)


def test_a_directory_renamed_behind_while_in_use(both: Both) -> None:
    mount, behind = both.on_mount, both.behind
    (mount / "d" / "e").mkdir(parents=True)
    with (mount / "d" / "e" / "file").open("w") as file:
        directory = os.open(mount / "d" / "e", os.O_RDONLY)
        (behind / "d").rename(behind / "moved")
        assert not (mount / "d").exists()
        file.write("written after")
        file.flush()
        assert (mount / "moved" / "e" / "file").read_text() == "written after"
        os.mkdir("by descriptor", dir_fd=directory)
        assert sorted(os.listdir(directory)) == ["by descriptor", "file"]
        assert (behind / "moved" / "e" / "by descriptor").is_dir()
        os.close(directory)


def test_a_directory_swapped_for_a_symlink_leads_nowhere(both: Both, directory: Path) -> None:
    outside = directory / "outside"
    outside.mkdir()
    (outside / "file").write_text("outside")
    mount, behind = both.on_mount, both.behind
    (mount / "d").mkdir()
    (mount / "d" / "file").write_text("inside")
    fd = os.open(mount / "d", os.O_RDONLY)
    with (mount / "d" / "file").open() as file:
        (behind / "d").rename(behind / "was d")
        (behind / "d").symlink_to(outside)
        assert file.read() == "inside"
        assert os.readlink(mount / "d") == str(outside)
        for name in ("file", "new"):
            other = os.open(name, os.O_CREAT | os.O_RDWR | os.O_TRUNC, dir_fd=fd)
            os.write(other, b"by descriptor")
            os.close(other)
        os.unlink("new", dir_fd=fd)
    os.close(fd)
    assert (outside / "file").read_text() == "outside"
    assert os.listdir(outside) == ["file"]
    assert (behind / "was d" / "file").read_text() == "by descriptor"


def test_a_handle_does_not_lead_above_a_directory_that_left_the_tree(both: Both, directory: Path) -> None:
    mount, behind = both.on_mount, both.behind
    (mount / "d" / "e").mkdir(parents=True)
    fd = os.open(mount / "d", os.O_RDONLY)
    handle = _linux.name_to_handle_at(fd, b"e")
    inner = _linux.open_by_handle_at(fd, *handle, os.O_PATH)
    assert os.listdir(f"/proc/self/fd/{inner}/..") == ["e"]
    os.close(inner)
    outside = directory / "outside"
    outside.mkdir()
    (behind / "d" / "e").rename(outside / "e")
    subprocess.run(["sysctl", "-qw", "vm.drop_caches=2"], check=True)
    found = outcome(lambda: os.close(_linux.open_by_handle_at(fd, *handle, os.O_PATH)))
    assert found in (None, "ESTALE")
    os.close(fd)


def test_another_object_under_the_same_name(both: Both) -> None:
    mount, behind = both.on_mount, both.behind
    (behind / "x").write_text("first")
    with (mount / "x").open() as file:
        for make in (os.mkdir, os.mkfifo, lambda path: path.symlink_to("y"), lambda path: path.write_text("last")):
            (behind / "x").rename(behind / "old") if not (behind / "old").exists() else subprocess.run(
                ["rm", "-r", behind / "x"], check=True
            )
            make(behind / "x")
            assert (mount / "x").lstat().st_mode == (behind / "x").lstat().st_mode
            assert (mount / "x").lstat().st_ino == (behind / "x").lstat().st_ino
        assert file.read() == "first"
        assert (mount / "x").read_text() == "last"


# --- the queue file's directory --------------------------------------------------------------------------------------


def test_the_queue_directory_is_hidden_and_resolves_everywhere(both: Both) -> None:
    (both.on_mount / "a" / "b").mkdir(parents=True)
    for place in (both.on_mount, both.on_mount / "a", both.on_mount / "a" / "b", both.mount.mountpoint):
        assert ".fusenotify" not in os.listdir(place)
        assert os.listdir(place / ".fusenotify") == ["queue"]
        assert stat.S_ISREG((place / ".fusenotify" / "queue").stat().st_mode)
        assert outcome((place / ".fusenotify" / "none").stat) == "ENOENT"
    assert outcome((both.on_mount / ".fusenotify" / "queue" / "x").stat) == "ENOTDIR"


def test_the_queue_directory_cannot_be_changed(both: Both) -> None:
    root, name = both.on_mount, both.on_mount / ".fusenotify"
    (root / "file").touch()
    (root / "d").mkdir()
    # What exists already is EEXIST before the filesystem is asked; it exists in every directory.
    refused = ("EPERM", "EEXIST", "EISDIR")
    changes: list[Callable[[], object]] = [
        name.mkdir, lambda: name.symlink_to("x"), lambda: os.mknod(name), lambda: os.link(root / "file", name),
        lambda: os.open(name, os.O_CREAT | os.O_WRONLY), lambda: os.open(name, os.O_CREAT | os.O_EXCL),
        name.unlink, lambda: rename(root / "d", name, NOREPLACE), lambda: os.rename(root / "file", name),
    ]  # fmt: skip
    for change in changes:
        assert outcome(change) in refused
    permitted: list[Callable[[], object]] = [
        lambda: os.rename(root / "d", name), lambda: os.rename(name, root / "x"), lambda: os.rmdir(name),
        lambda: os.rename(name / "queue", root / "x"), lambda: os.unlink(name / "queue"), lambda: os.mkdir(name / "x"),
        lambda: os.link(name / "queue", root / "x"), lambda: rename(root / "d", name, _linux.RENAME_EXCHANGE),
        lambda: os.rename(root / "file", name / "queue"), lambda: os.setxattr(name, "user.x", b""),
        lambda: os.open(name / "x", os.O_CREAT | os.O_WRONLY), lambda: os.symlink("x", name / "x"),
    ]  # fmt: skip
    for change in permitted:
        assert outcome(change) == "EPERM"
    assert sorted(os.listdir(both.behind)) == ["d", "file"]


def test_a_backing_entry_of_that_name_is_shadowed(both: Both) -> None:
    (both.behind / ".fusenotify").write_text("theirs")
    assert os.listdir(both.on_mount) == []
    assert stat.S_ISDIR((both.on_mount / ".fusenotify").stat().st_mode)
    assert (both.behind / ".fusenotify").read_text() == "theirs"


# --- nothing is left -------------------------------------------------------------------------------------------------


def test_no_descriptor_is_left(both: Both) -> None:
    """Whatever fails on its way, the daemon's descriptors return to what they were."""
    mount = both.on_mount

    def everything() -> None:
        (mount / "d").mkdir()
        (mount / "file").write_text("x")
        failures: list[Callable[[], object]] = [
            (mount / "none").read_text, (mount / "d").mkdir, (mount / "file" / "x").touch,
            lambda: os.rmdir(mount / "none"), lambda: os.unlink(mount / "none"), lambda: os.rmdir(mount / "file"),
            lambda: os.rename(mount / "none", mount / "x"), lambda: os.rename(mount / "d", mount / "file"),
            lambda: os.link(mount / "file", mount / "d"), lambda: os.readlink(mount / "file"),
            lambda: os.getxattr(mount / "file", "user.none"), lambda: os.setxattr(mount / "file", "bad", b""),
            lambda: os.open(mount / "file", os.O_CREAT | os.O_EXCL), lambda: os.listdir(mount / "file"),
            (mount / ("n" * 256)).touch, lambda: os.symlink("", mount / "x"), lambda: os.truncate(mount, 1),
            lambda: os.open(mount / ("n" * 256), os.O_CREAT), lambda: rename(mount / "d", mount / "file", NOREPLACE),
        ]  # fmt: skip
        for failure in failures:
            assert isinstance(outcome(failure), str)
        (mount / "file").unlink()
        (mount / "d").rmdir()

    everything()
    before = descriptors(both.mount)
    for _ in range(40):
        everything()
    assert descriptors(both.mount) < before + 20  # FORGET and RELEASE come when the kernel likes
