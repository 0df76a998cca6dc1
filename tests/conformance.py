"""What a directory on a POSIX filesystem of Linux does: one behaviour each, for any directory.

Every function of the name `check_…` takes an empty directory, which root owns and everybody may enter, and the users
who act in it. The same functions run on tmpfs and ext4 to prove that they are right (test_conformance.py). The rules
are those of the manual pages of section 2, of path_resolution(7), acl(5), inode(7) and xattr(7), and of proc_sys_fs(5).
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, ParamSpec

from fusenotify import _linux
from tests.users import GROUP, User, Users, write_file

P = ParamSpec("P")

NOREPLACE: Final = 1
ACCESS_ACL: Final = "system.posix_acl_access"
DEFAULT_ACL: Final = "system.posix_acl_default"
_RENAME_WHITEOUT: Final = 4
_CLOCK_REALTIME_COARSE: Final = 5  # by which files are stamped
_UTIME_NOW: Final = (1 << 30) - 1


def fails(number: int, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Check that a call fails with this errno and no other."""
    try:
        result = repr(function(*args, **kwargs))
    except OSError as error:
        result = errno.errorcode[error.errno or 0]
    assert result == errno.errorcode[number]


@contextlib.contextmanager
def opened(path: Path | str, flags: int, mode: int = 0o666) -> Iterator[int]:
    """Open a file for the block."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def mode_of(path: Path) -> int:
    """Return permissions, set-id and sticky bits."""
    return stat.S_IMODE(path.lstat().st_mode)


def owner_of(path: Path) -> tuple[int, int]:
    """Return user and group."""
    return path.lstat().st_uid, path.lstat().st_gid


def with_mode(path: Path, mode: int, uid: int = 0, gid: int = 0, data: bytes = b"data") -> Path:
    """Make a file of this owner and mode."""
    path.write_bytes(data)
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def folder(path: Path, mode: int, uid: int = 0, gid: int = 0) -> Path:
    """Make a directory of this owner and mode."""
    path.mkdir()
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def rename2(old: Path, new: Path, flags: int) -> None:
    """Rename by renameat2(2)."""
    _linux.renameat2(_linux.AT_FDCWD, os.fsencode(old), _linux.AT_FDCWD, os.fsencode(new), flags)


def acl(*entries: tuple[int, int, int]) -> bytes:
    """Return the bytes of a POSIX ACL: (tag, permissions, id) each, in the order the kernel wants."""
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, bits, id & 0xFFFFFFFF) for tag, bits, id in entries)


def acl_for(user: User, bits: int, *, mask: int = 7, others: int = 0) -> bytes:
    """Return an ACL: the owner rwx, a user with these bits, the group r-x, a mask, others."""
    return acl((1, 7, -1), (2, bits, user.uid), (4, 5, -1), (16, mask, -1), (32, others, -1))


# --- renaming --------------------------------------------------------------------------------------------------------


def check_rename_replaces_a_file(root: Path, users: Users) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    number = (root / "a").stat().st_ino
    with opened(root / "b", os.O_RDONLY) as fd:
        (root / "a").rename(root / "b")
        assert os.read(fd, 9) == b"b"
        assert os.fstat(fd).st_nlink == 0
    assert (root / "b").stat().st_ino == number
    assert os.listdir(root) == ["b"]


def check_rename_noreplace(root: Path, users: Users) -> None:
    (root / "a").write_text("a")
    (root / "b").write_text("b")
    fails(errno.EEXIST, rename2, root / "a", root / "b", NOREPLACE)
    rename2(root / "a", root / "c", NOREPLACE)
    assert sorted(os.listdir(root)) == ["b", "c"]


def check_rename_exchange(root: Path, users: Users) -> None:
    (root / "file").write_text("file")
    (root / "d" / "below").mkdir(parents=True)
    numbers = (root / "file").stat().st_ino, (root / "d").stat().st_ino
    rename2(root / "file", root / "d", _linux.RENAME_EXCHANGE)
    assert (root / "d").read_text() == "file"
    assert os.listdir(root / "file") == ["below"]
    assert ((root / "d").stat().st_ino, (root / "file").stat().st_ino) == numbers
    fails(errno.ENOENT, rename2, root / "file", root / "none", _linux.RENAME_EXCHANGE)
    fails(errno.EINVAL, rename2, root / "file", root / "d", _linux.RENAME_EXCHANGE | NOREPLACE)
    fails(errno.EINVAL, rename2, root / "file", root / "d", 1 << 20)


def check_rename_whiteout(root: Path, users: Users) -> None:
    (root / "a").write_text("a")
    rename2(root / "a", root / "b", _RENAME_WHITEOUT)
    assert (root / "b").read_text() == "a"
    assert stat.S_ISCHR((root / "a").lstat().st_mode)
    assert (root / "a").lstat().st_rdev == 0
    fails(errno.EINVAL, rename2, root / "a", root / "b", _RENAME_WHITEOUT | _linux.RENAME_EXCHANGE)


def check_rename_exchange_of_a_directory_and_what_is_below_it(root: Path, users: Users) -> None:
    (root / "d" / "e").mkdir(parents=True)
    fails(errno.EINVAL, rename2, root / "d", root / "d" / "e", _linux.RENAME_EXCHANGE)
    fails(errno.EINVAL, rename2, root / "d" / "e", root / "d", _linux.RENAME_EXCHANGE)


def check_rename_of_directories(root: Path, users: Users) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "file").touch()
    fails(errno.EINVAL, os.rename, root / "d", root / "d" / "e" / "x")
    fails(errno.ENOTEMPTY, os.rename, root / "empty", root / "d")
    fails(errno.ENOTEMPTY, os.rename, root / "d" / "e", root / "d")
    fails(errno.EISDIR, os.rename, root / "file", root / "empty")
    fails(errno.ENOTDIR, os.rename, root / "empty", root / "file")
    fails(errno.ENOENT, os.rename, root / "none", root / "x")
    fails(errno.ENOENT, os.rename, root / "file", root / "none" / "x")
    fails(errno.EBUSY, os.rename, f"{root}/d/.", root / "x")
    (root / "d").rename(root / "empty")
    assert os.listdir(root / "empty") == ["e"]
    assert ((root / "empty").stat().st_nlink, root.stat().st_nlink) == (3, 3)


def check_rename_between_links_of_one_file_does_nothing(root: Path, users: Users) -> None:
    (root / "a").touch()
    os.link(root / "a", root / "b")
    (root / "a").rename(root / "b")
    assert sorted(os.listdir(root)) == ["a", "b"]


def check_rename_changes_dot_dot(root: Path, users: Users) -> None:
    (root / "a" / "d").mkdir(parents=True)
    (root / "b").mkdir()
    with opened(root / "a" / "d", os.O_RDONLY) as fd:
        (root / "a" / "d").rename(root / "b" / "d")
        assert os.stat("..", dir_fd=fd).st_ino == (root / "b").stat().st_ino
    assert ((root / "a").stat().st_nlink, (root / "b").stat().st_nlink) == (2, 3)


# --- who may do what -------------------------------------------------------------------------------------------------


def check_sticky_directories(root: Path, users: Users) -> None:
    place = folder(root / "sticky", 0o1777)
    users.alice(write_file, place / "hers")
    users.alice(os.mkdir, place / "dir")
    users.bob(write_file, place / "his")
    for call in (os.unlink, os.rmdir):
        fails(errno.EPERM, users.bob, call, place / ("hers" if call is os.unlink else "dir"))
    fails(errno.EPERM, users.bob, os.rename, place / "hers", place / "x")
    fails(errno.EPERM, users.bob, os.rename, place / "his", place / "hers")
    fails(errno.EPERM, users.bob, rename2, place / "his", place / "hers", _linux.RENAME_EXCHANGE)
    users.alice(os.rename, place / "hers", place / "still hers")
    users.bob(os.unlink, place / "his")
    os.chown(place, users.bob.uid, 0)
    users.bob(os.unlink, place / "still hers")  # it is his directory now
    users.alice(os.rmdir, place / "dir")


def check_set_group_id_directories(root: Path, users: Users) -> None:
    place = folder(root / "shared", 0o2777, gid=GROUP)
    for number, user in enumerate(users.all):
        name = place / str(number)
        user(write_file, name)
        user(os.mkdir, name.with_suffix(".d"))
        user(os.mkfifo, name.with_suffix(".p"))
        user(os.symlink, "x", name.with_suffix(".l"))
        for made in (name, *(name.with_suffix(suffix) for suffix in (".d", ".p", ".l"))):
            assert owner_of(made) == (user.uid, GROUP)
        assert mode_of(name.with_suffix(".d")) == 0o2755


def check_set_group_id_is_for_members(root: Path, users: Users) -> None:
    place = folder(root / "shared", 0o2777, gid=GROUP)
    for user, kept in ((users.alice, 0o2000), (users.bob, 0), (users.root, 0o2000)):
        path = place / str(user.uid)
        user(os.umask, 0)
        user(os.close, user(os.open, path, os.O_CREAT | os.O_WRONLY, 0o2775))
        assert mode_of(path) == 0o775 | kept
        user(os.chmod, path, 0o2755)
        assert mode_of(path) == 0o755 | kept


def check_new_files_belong_to_their_maker(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for user in users.all:
        path = place / str(user.uid)
        user(write_file, path)
        user(os.link, path, path.with_suffix(".h"))
        user(os.mkdir, path.with_suffix(".d"))
        user(os.mknod, path.with_suffix(".n"), 0o600 | stat.S_IFREG)
        user(os.mknod, path.with_suffix(".s"), 0o600 | stat.S_IFSOCK)
        for made in place.glob(f"{user.uid}*"):
            assert owner_of(made) == (user.uid, user.gid)


def check_permissions_of_classes(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    with_mode(place / "owner", 0o400, users.alice.uid)
    with_mode(place / "group", 0o040, 0, GROUP)
    with_mode(place / "others", 0o004)
    with_mode(place / "not owner", 0o044, users.alice.uid)
    for name, reads in (("owner", "a"), ("group", "a"), ("others", "ab"), ("not owner", "b")):
        for letter, user in (("a", users.alice), ("b", users.bob)):
            if letter in reads:
                assert user(Path.read_bytes, place / name) == b"data"
            else:
                fails(errno.EACCES, user, Path.read_bytes, place / name)
            fails(errno.EACCES, user, os.open, place / name, os.O_WRONLY)
            fails(errno.EACCES, user, os.open, place / name, os.O_RDONLY | os.O_TRUNC)
            fails(errno.EACCES, user, os.truncate, place / name, 0)
        assert (place / name).read_bytes() == b"data"


def check_supplementary_groups(root: Path, users: Users) -> None:
    place = folder(root / "team", 0o770, gid=GROUP)
    users.alice(write_file, place / "hers", b"x")
    assert users.alice(os.listdir, place) == ["hers"]
    fails(errno.EACCES, users.bob, os.listdir, place)
    fails(errno.EACCES, users.bob, os.stat, place / "hers")
    fails(errno.EACCES, users.bob, write_file, place / "his")
    users.alice(os.chown, place / "hers", -1, GROUP)
    assert owner_of(place / "hers") == (users.alice.uid, GROUP)
    with_mode(place / "rooted", 0o660, 0, GROUP)
    users.alice(write_file, place / "rooted", b"alice")
    users.alice(os.rename, place / "rooted", place / "moved")
    users.alice(os.unlink, place / "moved")


def check_search_permission(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o711)
    (place / "file").touch()
    fails(errno.EACCES, users.bob, os.listdir, place)
    assert users.bob(os.stat, place / "file").st_size == 0
    place.chmod(0o744)
    assert users.bob(os.listdir, place) == ["file"]
    fails(errno.EACCES, users.bob, os.stat, place / "file")
    fails(errno.EACCES, users.bob, os.chdir, place)


def check_changes_need_a_writable_directory(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o755)
    (place / "file").touch()
    (place / "sub").mkdir()
    mine = folder(root / "mine", 0o755, users.bob.uid)
    users.bob(write_file, mine / "x")
    calls: list[Callable[[], object]] = [
        partial(os.unlink, place / "file"),
        partial(os.rmdir, place / "sub"),
        partial(os.mkdir, place / "n"),
        partial(os.symlink, "x", place / "n"),
        partial(os.rename, place / "file", mine / "n"),
        partial(os.rename, mine / "x", place / "n"),
        partial(os.mkfifo, place / "n"),
        partial(os.link, mine / "x", place / "n"),
        partial(write_file, place / "n"),
        partial(os.rename, place / "file", place / "n"),
    ]
    for call in calls:
        fails(errno.EACCES, users.bob, call)
    assert sorted(os.listdir(place)) == ["file", "sub"]


def check_moving_a_directory_needs_to_write_it(root: Path, users: Users) -> None:
    """Its `..` changes (EACCES in rename(2))."""
    place = folder(root / "p", 0o777)
    (place / "q").mkdir()
    (place / "q").chmod(0o777)
    folder(place / "d", 0o755)
    fails(errno.EACCES, users.bob, os.rename, place / "d", place / "q" / "d")
    users.bob(os.rename, place / "d", place / "e")


def check_what_only_owners_may(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o666, users.alice.uid)
    calls: list[Callable[[], object]] = [
        partial(os.chmod, path, 0o777),
        partial(os.chown, path, users.bob.uid, -1),
        partial(os.chown, path, -1, users.bob.gid),
        partial(os.utime, path, (1, 1)),
        partial(os.setxattr, path, ACCESS_ACL, acl_for(users.bob, 7)),
    ]
    for call in calls:
        fails(errno.EPERM, users.bob, call)
    users.alice(os.chmod, path, 0o606)
    users.alice(os.utime, path, (1, 1))
    assert mode_of(path) == 0o606
    assert path.stat().st_mtime == 1


def check_changing_owner_as_an_ordinary_user(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644, users.alice.uid, users.alice.gid)
    fails(errno.EPERM, users.alice, os.chown, path, users.bob.uid, -1)
    fails(errno.EPERM, users.alice, os.chown, path, -1, users.bob.gid)
    users.alice(os.chown, path, users.alice.uid, GROUP)
    assert owner_of(path) == (users.alice.uid, GROUP)
    users.alice(os.chown, path, -1, -1)
    users.alice(os.chown, path, -1, users.alice.gid)
    assert owner_of(path) == (users.alice.uid, users.alice.gid)


def check_times_as_who_may_only_write(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o666, users.alice.uid)
    os.utime(path, (5, 5))
    users.bob(os.utime, path)
    assert path.stat().st_mtime > 1_000_000_000
    users.bob(set_times, path, _UTIME_NOW, _UTIME_NOW)
    fails(errno.EPERM, users.bob, set_times, path, _linux.UTIME_OMIT, _UTIME_NOW)
    fails(errno.EPERM, users.bob, set_times, path, _UTIME_NOW, 0)
    fails(errno.EPERM, users.bob, os.utime, path, (5, 5))
    users.bob(set_times, path, _linux.UTIME_OMIT, _linux.UTIME_OMIT)  # which asks for nothing
    path.chmod(0o644)
    fails(errno.EACCES, users.bob, os.utime, path)
    path.chmod(0)
    users.alice(os.utime, path)  # the owner may always


def set_times(path: Path, atime: int, mtime: int) -> None:
    """Call utimensat(2) with 0 seconds and these nanoseconds, UTIME_NOW and UTIME_OMIT among them."""
    times = struct.pack("4q", 0, atime, 0, mtime)
    if ctypes.CDLL(None, use_errno=True).utimensat(_linux.AT_FDCWD, os.fsencode(path), times, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def check_links_to_files_of_others(root: Path, users: Users) -> None:
    """With fs.protected_hardlinks, only of what one owns, or may read and write and is nothing special."""
    place = folder(root / "open", 0o777)
    with_mode(place / "private", 0o600)
    with_mode(place / "readable", 0o644)
    with_mode(place / "writable", 0o666)
    with_mode(place / "set-id", 0o4777)
    protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
    for name, allowed in (("private", False), ("readable", False), ("writable", True), ("set-id", False)):
        if allowed or not protected:
            users.bob(os.link, place / name, place / f"link to {name}")
        else:
            fails(errno.EPERM, users.bob, os.link, place / name, place / f"link to {name}")
    fails(errno.EPERM, os.link, place, root / "directory")


def check_access(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o640, users.alice.uid, GROUP)
    assert users.alice(os.access, path, os.R_OK | os.W_OK)
    assert not users.alice(os.access, path, os.X_OK)
    assert users.bob(os.access, path, os.F_OK)
    assert not users.bob(os.access, path, os.R_OK)
    assert not os.access(path, os.X_OK)  # root needs one x at least
    path.chmod(0o641)
    assert os.access(path, os.X_OK)
    assert os.access(root, os.R_OK | os.W_OK | os.X_OK)
    assert not os.access(root / "none", os.F_OK)


def check_device_files_need_privilege(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        fails(errno.EPERM, users.alice, os.mknod, place / "device", 0o666 | kind, os.makedev(1, 3))
    os.mknod(place / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(place / "far", 0o660 | stat.S_IFBLK, os.makedev(259, 70000))
    assert (place / "far").stat().st_rdev == os.makedev(259, 70000)
    assert stat.S_ISCHR((place / "null").stat().st_mode)


# --- the umask, ACLs, set-id bits ------------------------------------------------------------------------------------


def check_umask(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for user in users.all:
        for umask in (0, 0o022, 0o077, 0o707):
            user(os.umask, umask)
            base = place / f"{user.uid}-{umask}"
            user(os.close, user(os.open, base, os.O_CREAT | os.O_WRONLY, 0o6777))
            user(os.mkdir, base.with_suffix(".d"), 0o1777)
            user(os.mkfifo, base.with_suffix(".p"), 0o666)
            user(os.symlink, "x", base.with_suffix(".l"))
            assert mode_of(base) == 0o6777 & ~umask
            assert mode_of(base.with_suffix(".d")) == 0o1777 & ~umask
            assert mode_of(base.with_suffix(".p")) == 0o666 & ~umask
            assert mode_of(base.with_suffix(".l")) == 0o777


def check_a_default_acl_takes_the_place_of_the_umask(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o777)
    os.setxattr(place, DEFAULT_ACL, acl_for(users.bob, 6, mask=7, others=0))
    for user in users.all:
        user(os.umask, 0o077)
        path = place / str(user.uid)
        user(os.close, user(os.open, path, os.O_CREAT | os.O_WRONLY, 0o666))
        user(os.mkdir, path.with_suffix(".d"), 0o777)
        user(os.mkfifo, path.with_suffix(".p"), 0o640)
        assert mode_of(path) == 0o660
        assert mode_of(path.with_suffix(".d")) == 0o770
        assert mode_of(path.with_suffix(".p")) == 0o640
        assert os.getxattr(path, ACCESS_ACL) == acl(
            (1, 6, -1), (2, 6, users.bob.uid), (4, 5, -1), (16, 6, -1), (32, 0, -1)
        )
        assert os.getxattr(path.with_suffix(".d"), DEFAULT_ACL) == os.getxattr(place, DEFAULT_ACL)
        users.bob(write_file, path, b"bob may")


def check_an_acl_gives_and_takes_rights(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o600)
    fails(errno.EACCES, users.bob, Path.read_bytes, path)
    os.setxattr(path, ACCESS_ACL, acl_for(users.bob, 6))
    assert mode_of(path) == 0o770  # the mask stands where the group's bits were
    assert users.bob(Path.read_bytes, path) == b"data"
    users.bob(write_file, path, b"bob")
    fails(errno.EACCES, users.alice, Path.read_bytes, path)
    path.chmod(0o700)  # takes the mask away
    fails(errno.EACCES, users.bob, Path.read_bytes, path)
    assert os.getxattr(path, ACCESS_ACL) == acl_for(users.bob, 6, mask=0)
    path.chmod(0o770)
    assert users.bob(Path.read_bytes, path) == b"bob"
    os.setxattr(path, ACCESS_ACL, acl((1, 7, -1), (2, 0, users.bob.uid), (4, 7, -1), (16, 7, -1), (32, 7, -1)))
    fails(errno.EACCES, users.bob, Path.read_bytes, path)
    assert users.alice(Path.read_bytes, path) == b"bob"
    os.removexattr(path, ACCESS_ACL)
    fails(errno.ENODATA, os.getxattr, path, ACCESS_ACL)


def check_malformed_acls(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644)
    fails(errno.EINVAL, os.setxattr, path, ACCESS_ACL, acl((1, 7, -1), (2, 7, 5), (4, 7, -1), (32, 7, -1)))  # no mask
    fails(errno.EACCES, os.setxattr, path, DEFAULT_ACL, acl_for(users.bob, 7))  # no directory
    assert mode_of(path) == 0o644


def check_an_acl_of_only_the_classes_is_the_mode(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o600)
    os.setxattr(path, ACCESS_ACL, acl((1, 6, -1), (4, 4, -1), (32, 4, -1)))
    assert mode_of(path) == 0o644
    fails(errno.ENODATA, os.getxattr, path, ACCESS_ACL)


def check_set_id_bits_go_when_another_writes(root: Path, users: Users) -> None:
    changes: dict[str, Callable[[Path], None]] = {
        "write": lambda path: users.bob(write_to, path, b"x"),
        "truncate": lambda path: users.bob(os.truncate, path, 1),
        "ftruncate": lambda path: users.bob(truncate_open, path, 1),
        "O_TRUNC": lambda path: users.bob(write_file, path),
    }
    for name, change in changes.items():
        path = with_mode(root / name, 0o6777)
        change(path)
        assert mode_of(path) == 0o777, name
    path = with_mode(root / "not executable by the group", 0o2767)
    users.bob(write_to, path, b"x")
    assert mode_of(path) in (0o767, 0o2767)  # was a mark for mandatory locking; since 6.1 the kernel takes it as well


def check_set_group_id_without_execution_stays_for_members(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o2765, users.alice.uid, users.alice.gid)
    users.alice(write_to, path, b"x")
    users.alice(os.truncate, path, 1)
    users.alice(truncate_open, path, 1)
    assert mode_of(path) == 0o2765
    os.chown(path, users.bob.uid, GROUP)
    path.chmod(0o2765)
    users.alice(write_to, path, b"x")
    assert mode_of(path) == 0o2765
    users.alice(write_file, path)
    assert mode_of(path) == 0o2765


def check_set_id_bits_stay_when_root_writes(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o6777)
    write_to(path, b"x")
    os.truncate(path, 1)
    assert mode_of(path) == 0o6777


def check_set_id_bits_go_with_the_owner(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o6777)
    os.chown(path, users.alice.uid, -1)
    assert mode_of(path) == 0o777
    path.chmod(0o6777)
    os.chown(path, -1, GROUP)
    assert mode_of(path) == 0o777
    place = folder(root / "d", 0o2777)
    os.chown(place, users.alice.uid, GROUP)
    assert mode_of(place) == 0o2777  # of a directory they mean something else


def check_capabilities_go_when_written(root: Path, users: Users) -> None:
    capability = struct.pack("<5I", 0x02000000, 1 << 13, 0, 0, 0)
    path = with_mode(root / "file", 0o777)
    os.setxattr(path, "security.capability", capability)
    assert os.getxattr(path, "security.capability") == capability
    write_to(path, b"x")
    fails(errno.ENODATA, os.getxattr, path, "security.capability")
    os.setxattr(path, "security.capability", capability)
    os.chown(path, users.alice.uid, -1)
    fails(errno.ENODATA, os.getxattr, path, "security.capability")
    fails(errno.EPERM, users.alice, os.setxattr, path, "security.capability", capability)


def write_to(path: Path, data: bytes) -> None:
    """Write at the beginning of a file that is there."""
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, data)


def truncate_open(path: Path, size: int) -> None:
    """Truncate by descriptor."""
    with opened(path, os.O_WRONLY) as fd:
        os.ftruncate(fd, size)


# --- extended attributes ---------------------------------------------------------------------------------------------


def check_extended_attributes(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644)
    fails(errno.ENODATA, os.getxattr, path, "user.a")
    fails(errno.ENODATA, os.setxattr, path, "user.a", b"1", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)
    fails(errno.EEXIST, os.setxattr, path, "user.a", b"2", os.XATTR_CREATE)
    os.setxattr(path, "user.a", b"3", os.XATTR_REPLACE)
    os.setxattr(path, "user.empty", b"")
    os.setxattr(path, "user.bytes", bytes(range(256)))
    assert os.getxattr(path, "user.a") == b"3"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.bytes") == bytes(range(256))
    assert sorted(os.listxattr(path)) == ["user.a", "user.bytes", "user.empty"]
    os.removexattr(path, "user.a")
    fails(errno.ENODATA, os.removexattr, path, "user.a")
    fails(errno.EOPNOTSUPP, os.setxattr, path, "nonsense.a", b"")
    fails(errno.ERANGE, os.setxattr, path, "user." + "n" * 251, b"")
    fails(errno.EINVAL, os.setxattr, path, "user.", b"")
    fails(errno.E2BIG, os.setxattr, path, "user.large", b"v" * 65537)


def check_rights_on_extended_attributes(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o604, users.alice.uid)
    os.setxattr(path, "user.a", b"1")
    os.setxattr(path, "trusted.secret", b"1")
    assert users.bob(os.getxattr, path, "user.a") == b"1"
    fails(errno.EACCES, users.bob, os.setxattr, path, "user.a", b"2")
    fails(errno.EACCES, users.bob, os.removexattr, path, "user.a")
    fails(errno.ENODATA, users.bob, os.getxattr, path, "trusted.secret")
    fails(errno.EPERM, users.alice, os.setxattr, path, "trusted.x", b"")
    assert users.alice(os.listxattr, path) == ["user.a"]
    assert sorted(os.listxattr(path)) == ["trusted.secret", "user.a"]
    path.chmod(0o600)
    fails(errno.EACCES, users.bob, os.getxattr, path, "user.a")


def check_user_attributes_are_for_files_and_directories(root: Path, users: Users) -> None:
    os.symlink("x", root / "link")
    os.mkfifo(root / "fifo")
    fails(errno.EPERM, os.setxattr, root / "link", "user.a", b"", follow_symlinks=False)
    fails(errno.EPERM, os.setxattr, root / "fifo", "user.a", b"")
    os.setxattr(root / "link", "trusted.a", b"1", follow_symlinks=False)
    assert os.getxattr(root / "link", "trusted.a", follow_symlinks=False) == b"1"
    place = folder(root / "sticky", 0o1777)
    fails(errno.EPERM, users.bob, os.setxattr, place, "user.a", b"")  # only the owner of a sticky directory
    os.setxattr(place, "user.a", b"")


# --- opening ---------------------------------------------------------------------------------------------------------


def check_append(root: Path, users: Users) -> None:
    path = root / "log"
    with opened(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) as one, opened(path, os.O_WRONLY | os.O_APPEND) as other:
        for number in range(10):
            os.write(one, b"one %d\n" % number)
            os.write(other, b"other %d\n" % number)
        os.lseek(one, 0, os.SEEK_SET)
        os.write(one, b"end\n")
        assert os.lseek(one, 0, os.SEEK_CUR) == path.stat().st_size
        os.pwrite(one, b"pwrite appends too\n", 0)  # BUGS in pwrite(2)
        os.truncate(path, 4)
        os.write(one, b"new")
    assert path.read_bytes() == b"one " + b"new"


def check_append_and_shared_mapping(root: Path, users: Users) -> None:
    """What is stored through a mapping lands where it was stored, whatever flags the file was opened with."""
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"a" * 10_000)
        with mmap.mmap(fd, 10_000) as mapped:
            mapped[5000:5003] = b"bbb"
            mapped.flush()
        os.write(fd, b"c")
    assert path.read_bytes() == b"a" * 5000 + b"bbb" + b"a" * 4997 + b"c"


def check_append_taken_back(root: Path, users: Users) -> None:
    """F_SETFL changes O_APPEND of an open file, both ways."""
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR | os.O_APPEND) as fd:
        os.write(fd, b"0123456789")
        set_flags(fd, 0)
        assert os.pwrite(fd, b"ab", 3) == 2
        assert path.read_bytes() == b"012ab56789"
        os.pwrite(fd, b"far", 20)
        os.ftruncate(fd, 10)
        set_flags(fd, os.O_APPEND)
        os.pwrite(fd, b"cd", 0)
    with opened(path, os.O_RDWR) as fd:
        set_flags(fd, os.O_APPEND)
        os.write(fd, b"ef")
    assert path.read_bytes() == b"012ab56789cdef"


def set_flags(fd: int, flags: int) -> None:
    """Set the status flags of an open file."""
    fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def check_exclusive_creation(root: Path, users: Users) -> None:
    os.symlink("nowhere", root / "dangling")
    os.close(os.open(root / "new", os.O_CREAT | os.O_EXCL))
    fails(errno.EEXIST, os.open, root / "new", os.O_CREAT | os.O_EXCL)
    fails(errno.EEXIST, os.open, root / "dangling", os.O_CREAT | os.O_EXCL)
    os.close(os.open(root / "dangling", os.O_CREAT))
    assert (root / "nowhere").exists()
    fails(errno.EEXIST, os.mkdir, root / "new")
    fails(errno.EEXIST, os.symlink, "x", root / "new")
    fails(errno.EEXIST, os.link, root / "nowhere", root / "new")


def check_creation_with_a_mode_that_forbids_it(root: Path, users: Users) -> None:
    """Whoever makes a file may write to it by that descriptor, whatever its mode."""
    place = folder(root / "open", 0o777)
    assert users.alice(_write_to_new, place / "file", 0o000) == b"written"
    assert mode_of(place / "file") == 0
    fails(errno.EACCES, users.alice, os.open, place / "file", os.O_RDONLY)
    fails(errno.EACCES, users.alice, os.open, place / "file", os.O_CREAT | os.O_WRONLY)


def _write_to_new(path: Path, mode: int) -> bytes:
    with opened(path, os.O_CREAT | os.O_RDWR | os.O_EXCL, mode) as fd:
        os.write(fd, b"written too long")
        os.ftruncate(fd, 7)
        return os.pread(fd, 99, 0)


def check_truncation_at_open(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o666)
    os.utime(path, (1, 1))
    os.close(os.open(path, os.O_WRONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    assert path.stat().st_mtime > 1
    path.write_text("again")
    os.close(os.open(path, os.O_RDONLY | os.O_TRUNC))
    assert path.stat().st_size == 0
    fails(errno.EISDIR, os.open, root, os.O_RDWR)
    fails(errno.EISDIR, os.open, root, os.O_CREAT)


def check_open_flags(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644, users.alice.uid)
    os.symlink("file", root / "link")
    fails(errno.ELOOP, os.open, root / "link", os.O_NOFOLLOW)
    fails(errno.ENOTDIR, os.open, path, os.O_DIRECTORY)
    fails(errno.ENOTDIR, os.open, root / "link", os.O_DIRECTORY)
    fails(errno.EPERM, users.bob, os.open, path, os.O_NOATIME)
    users.alice(os.close, users.alice(os.open, path, os.O_NOATIME))
    with opened(path, os.O_RDONLY) as fd:
        fails(errno.EBADF, os.write, fd, b"x")
        fails(errno.EINVAL, os.ftruncate, fd, 0)
    with opened(path, os.O_WRONLY) as fd:
        fails(errno.EBADF, os.read, fd, 1)
    with opened(root, os.O_RDONLY) as fd:
        fails(errno.EISDIR, os.read, fd, 1)


def check_direct_io(root: Path, users: Users) -> None:
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd, mmap.mmap(-1, 8192) as aligned:
        aligned[:] = b"d" * 8192
        assert os.write(fd, aligned) == 8192
        assert os.preadv(fd, [aligned], 4096) == 4096
        assert os.preadv(fd, [aligned], 8192) == 0
    assert path.read_bytes() == b"d" * 8192


def check_path_descriptors(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644)
    with opened(path, os.O_PATH) as fd:
        assert os.fstat(fd).st_ino == path.stat().st_ino
        fails(errno.EBADF, os.read, fd, 1)
        fails(errno.EBADF, os.fchmod, fd, 0)
        fails(errno.EBADF, os.ftruncate, fd, 0)
        path.rename(root / "renamed")
        assert Path(f"/proc/self/fd/{fd}").read_bytes() == b"data"
        (root / "renamed").unlink()
        assert os.fstat(fd).st_nlink == 0
    os.symlink("x", root / "link")
    with opened(root / "link", os.O_PATH | os.O_NOFOLLOW) as fd:
        assert stat.S_ISLNK(os.fstat(fd).st_mode)
        assert os.readlink("", dir_fd=fd) == "x"


def check_reopening_by_proc(root: Path, users: Users) -> None:
    """The rights that count are those of now."""
    path = with_mode(root / "file", 0o644, users.alice.uid)
    with opened(path, os.O_RDONLY) as fd:
        path.unlink()
        with opened(f"/proc/self/fd/{fd}", os.O_RDWR) as again:
            os.write(again, b"DATA and more")
        assert os.read(fd, 99) == b"DATA and more"


# --- contents --------------------------------------------------------------------------------------------------------


def check_holes(root: Path, users: Users) -> None:
    path = root / "sparse"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 50_000_000)
        os.pwrite(fd, b"end", 100_000_000)
        os.fsync(fd)
        assert os.pread(fd, 4, 49_999_998) == b"\0\0\0\0"
        assert os.fstat(fd).st_size == 100_000_003
        assert os.fstat(fd).st_blocks * 512 <= 16 << 10
        os.ftruncate(fd, 3)
        os.ftruncate(fd, 5)
        assert os.pread(fd, 99, 0) == b"\0\0\0\0\0"


def check_sizes_beyond_four_gigabytes(root: Path, users: Users) -> None:
    path = root / "large"
    place = (1 << 32) + 4095
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"across a page", place)
        assert os.lseek(fd, 0, os.SEEK_END) == place + 13
        assert os.pread(fd, 99, place) == b"across a page"
        with mmap.mmap(fd, 4108, offset=1 << 32) as mapped:
            mapped[4095:4101] = b"ACROSS"
        assert os.pread(fd, 13, place) == b"ACROSS a page"
        os.truncate(path, 1 << 33)
        assert path.stat().st_size == 1 << 33
        assert os.pread(fd, 4, (1 << 33) - 4) == bytes(4)


def check_the_file_size_limit(root: Path, users: Users) -> None:
    assert users.alice.uid
    place = folder(root / "open", 0o777)
    assert users.alice(_write_over_limit, place / "file") == (6, errno.EFBIG, 10)


def _write_over_limit(path: Path) -> tuple[int, int | None, int]:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, old[1]))
    try:
        with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
            os.write(fd, b"0123")
            short = os.write(fd, b"4567890123")
            try:
                os.write(fd, b"x")
            except OSError as error:
                return short, error.errno, os.fstat(fd).st_size
        return short, None, -1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def check_mappings(root: Path, users: Users) -> None:
    path = root / "file"
    path.write_bytes(b"x" * 10_000)
    with (
        opened(path, os.O_RDWR) as fd,
        mmap.mmap(fd, 10_000) as shared,
        mmap.mmap(fd, 10_000, flags=mmap.MAP_PRIVATE) as private,
    ):
        shared[0:5] = b"SHARE"
        assert private[0:5] == b"SHARE"
        private[9000:9003] = b"own"
        assert shared[9000:9003] == b"xxx"
        assert os.pread(fd, 5, 0) == b"SHARE"
        os.pwrite(fd, b"written", 5000)
        assert shared[5000:5007] == b"written"
        shared.flush()
    assert path.read_bytes() == b"SHARE" + b"x" * 4995 + b"written" + b"x" * 4993
    with opened(path, os.O_RDONLY) as fd:
        fails(errno.EACCES, mmap.mmap, fd, 100)
        with mmap.mmap(fd, 10_000, prot=mmap.PROT_READ) as readable:
            assert readable[:5] == b"SHARE"


def check_a_mapping_outlives_its_descriptor_and_name(root: Path, users: Users) -> None:
    path = root / "file"
    path.write_bytes(b"x" * 5000)
    os.link(path, root / "other")
    with opened(path, os.O_RDWR) as fd:
        mapped = mmap.mmap(fd, 5000)
    path.unlink()
    mapped[4000:4005] = b"later"
    mapped.close()
    with opened(root / "other", os.O_RDONLY) as fd:
        os.fsync(fd)
    assert (root / "other").read_bytes()[4000:4005] == b"later"


def check_vectors_and_copies(root: Path, users: Users) -> None:
    with opened(root / "a", os.O_CREAT | os.O_RDWR) as fd, opened(root / "b", os.O_CREAT | os.O_RDWR) as other:
        assert os.writev(fd, [b"ab", b"", b"cdef"]) == 6
        first, second = bytearray(2), bytearray(9)
        assert os.preadv(fd, [first, second], 1) == 5
        assert bytes(first + second[:3]) == b"bcdef"
        assert os.copy_file_range(fd, other, 4, 1, 0) == 4
        assert os.pread(other, 9, 0) == b"bcde"
        assert os.sendfile(other, fd, 0, 6) == 6
        assert os.pread(other, 9, 0) == b"abcdef"


def check_syncing(root: Path, users: Users) -> None:
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd, opened(root, os.O_RDONLY) as directory:
        os.write(fd, b"x")
        for call in (os.fsync, os.fdatasync):
            call(fd)
            call(directory)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 1, 0) == b"x"


# --- what is open without a name -------------------------------------------------------------------------------------


def check_open_files_without_a_name(root: Path, users: Users) -> None:
    place = folder(root / "open", 0o777)
    for user in users.all:
        assert user(_use_unlinked, place / str(user.uid)) == (0, b"conXY", 0o640, 2, b"y")
    assert os.listdir(place) == []


def _use_unlinked(path: Path) -> tuple[int, bytes, int, int, bytes]:
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"content")
        path.unlink()
        path.write_text("another")
        os.ftruncate(fd, 3)
        os.pwrite(fd, b"XY", 3)
        os.fchmod(fd, 0o640)
        os.fchown(fd, -1, -1)
        os.utime(fd, ns=(1, 2))
        os.setxattr(fd, "user.x", b"y")
        os.fsync(fd)
        status = os.fstat(fd)
        path.unlink()
        return (
            status.st_nlink, os.pread(fd, 99, 0), stat.S_IMODE(status.st_mode), status.st_mtime_ns,
            os.getxattr(fd, "user.x"),
        )  # fmt: skip


def check_a_removed_directory_in_use(root: Path, users: Users) -> None:
    place = folder(root / "d", 0o777)
    with opened(place, os.O_RDONLY) as fd:
        place.rmdir()
        assert os.fstat(fd).st_nlink == 0
        assert os.listdir(fd) == []
        fails(errno.ENOENT, os.mkdir, "x", dir_fd=fd)
        fails(errno.ENOENT, os.open, "x", os.O_CREAT, dir_fd=fd)
        fails(errno.ENOENT, os.stat, "x", dir_fd=fd)


# --- links and special files -----------------------------------------------------------------------------------------


def check_hard_links(root: Path, users: Users) -> None:
    path = with_mode(root / "a", 0o644)
    (root / "d").mkdir()
    os.link(path, root / "d" / "b")
    assert path.stat().st_nlink == 2
    assert path.stat().st_ino == (root / "d" / "b").stat().st_ino
    (root / "d" / "b").chmod(0o600)
    (root / "d" / "b").write_text("by b")
    assert mode_of(path) == 0o600
    assert path.read_text() == "by b"
    path.unlink()
    assert (root / "d" / "b").stat().st_nlink == 1
    fails(errno.ENOENT, os.link, path, root / "c")
    fails(errno.EPERM, os.link, root / "d", root / "e")
    os.symlink("d/b", root / "s")
    os.link(root / "s", root / "t", follow_symlinks=False)
    assert os.readlink(root / "t") == "d/b"


def check_symbolic_links(root: Path, users: Users) -> None:
    os.symlink("t" * 4095, root / "longest")
    assert os.readlink(root / "longest") == "t" * 4095
    assert (root / "longest").lstat().st_size == 4095
    fails(errno.ENAMETOOLONG, os.symlink, "t" * 4096, root / "too long")
    fails(errno.ENOENT, os.symlink, "", root / "empty")
    os.symlink(os.fsdecode(b"\xff\xfe"), root / "bytes")
    assert os.readlink(os.fsencode(root / "bytes")) == b"\xff\xfe"
    fails(errno.EINVAL, os.readlink, root)
    os.symlink("file", root / "link")
    (root / "link").write_text("through")
    assert (root / "file").read_text() == "through"
    os.chown(root / "link", 5, 6, follow_symlinks=False)
    os.utime(root / "link", ns=(1, 2), follow_symlinks=False)
    assert owner_of(root / "link") == (5, 6)
    assert (root / "link").lstat().st_mtime_ns == 2
    assert owner_of(root / "file") == (0, 0)


def check_symbolic_link_loops(root: Path, users: Users) -> None:
    os.symlink("self", root / "self")
    os.symlink("b", root / "a")
    os.symlink("a", root / "b")
    for name in ("self", "a", "b", "self/x"):
        fails(errno.ELOOP, os.stat, root / name)
        fails(errno.ELOOP, os.open, root / name, os.O_CREAT | os.O_WRONLY)
    (root / "0").write_text("end")
    for number in range(1, 42):
        os.symlink(str(number - 1), root / str(number))
    assert (root / "40").read_text() == "end"
    fails(errno.ELOOP, os.stat, root / "41")


def check_special_files(root: Path, users: Users) -> None:
    os.mkfifo(root / "fifo", 0o640)
    with opened(root / "fifo", os.O_RDWR) as fd:
        os.write(fd, b"through")
        assert os.read(fd, 99) == b"through"
    fails(errno.ENXIO, os.open, root / "fifo", os.O_WRONLY | os.O_NONBLOCK)
    with (
        opened(root, os.O_PATH) as fd,
        socket.socket(socket.AF_UNIX) as server,
        socket.socket(socket.AF_UNIX) as client,
        socket.socket(socket.AF_UNIX) as another,
    ):
        at = f"/proc/self/fd/{fd}/socket"  # as paths of sockets are short
        server.bind(at)
        server.listen()
        client.connect(at)
        fails(errno.EADDRINUSE, another.bind, at)
    assert stat.S_ISSOCK((root / "socket").stat().st_mode)
    fails(errno.ENXIO, os.open, root / "socket", os.O_RDONLY)
    assert (root / "fifo").stat().st_size == 0
    for name in ("fifo", "socket"):
        os.rename(root / name, root / f"{name}2")
        os.unlink(root / f"{name}2")


# --- names and paths -------------------------------------------------------------------------------------------------


def check_names_of_255_bytes(root: Path, users: Users) -> None:
    longest, too_long = root / ("n" * 255), root / ("n" * 256)
    longest.write_text("x")
    assert os.listdir(root) == ["n" * 255]
    longest.rename(root / ("m" * 255))
    for call in (
        (os.stat, too_long), (os.mkdir, too_long), (os.open, too_long, os.O_CREAT), (os.unlink, too_long),
        (os.rename, root / ("m" * 255), too_long), (os.symlink, "x", too_long), (os.rmdir, too_long),
        (os.link, root / ("m" * 255), too_long), (os.mkfifo, too_long), (os.rename, too_long, longest),
    ):  # fmt: skip
        fails(errno.ENAMETOOLONG, *call)


def check_names_are_bytes(root: Path, users: Users) -> None:
    names = [b"\xff\xfe", b"a\nb", b" ", b"\\", "ä".encode(), "ä".encode("latin-1"), b"a\tb", b"-", b"...", b"\x01"]
    base = os.fsencode(root)
    for name in names:
        os.mkdir(base + b"/" + name)
        os.close(os.open(base + b"/" + name + b"/" + name, os.O_CREAT))
    assert sorted(os.listdir(base)) == sorted(names)
    for name in names:
        assert os.listdir(base + b"/" + name) == [name]
        os.rename(base + b"/" + name + b"/" + name, base + b"/" + name + b"!")
    assert len(os.listdir(base)) == 2 * len(names)


def check_paths_of_4096_bytes(root: Path, users: Users) -> None:
    with opened(root, os.O_RDONLY) as fd:
        path = ""
        for _ in range(20):
            path += "d" * 199 + "/"
            os.mkdir(path, dir_fd=fd)
        rest = 4095 - len(path)
        longest = path + "f" * rest
        os.close(os.open(longest, os.O_CREAT, dir_fd=fd))
        assert os.stat(longest, dir_fd=fd).st_size == 0
        fails(errno.ENAMETOOLONG, os.stat, longest + "f", dir_fd=fd)
        fails(errno.ENAMETOOLONG, os.open, longest + "f", os.O_CREAT, dir_fd=fd)
        os.unlink(longest, dir_fd=fd)


def check_errors_of_paths(root: Path, users: Users) -> None:
    (root / "file").write_text("x")
    (root / "d" / "e").mkdir(parents=True)
    fails(errno.ENOENT, os.stat, root / "none")
    fails(errno.ENOENT, os.stat, root / "none" / "x")
    fails(errno.ENOTDIR, os.stat, root / "file" / "x")
    fails(errno.ENOTDIR, os.stat, f"{root}/file/")
    fails(errno.ENOTDIR, os.open, root / "file" / "x", os.O_CREAT)
    fails(errno.ENOTDIR, os.mkdir, root / "file" / "x")
    fails(errno.ENOTDIR, os.rmdir, root / "file")
    fails(errno.EISDIR, os.unlink, root / "d")
    fails(errno.ENOTEMPTY, os.rmdir, root / "d")
    fails(errno.EINVAL, os.rmdir, f"{root}/d/.")
    fails(errno.ENOTEMPTY, os.rmdir, f"{root}/d/e/..")
    fails(errno.EISDIR, os.open, root / "d", os.O_WRONLY)
    fails(errno.EISDIR, os.truncate, root / "d", 0)
    fails(errno.EINVAL, os.truncate, root / "file", -1)
    fails(errno.EEXIST, os.mkdir, f"{root}/d/")
    fails(errno.ENOTDIR, os.listdir, root / "file")
    fails(errno.EISDIR, os.open, f"{root}/new/", os.O_CREAT)
    fails(errno.EXDEV, os.rename, root / "file", "/proc/x")
    fails(errno.EXDEV, os.link, root / "file", "/dev/shm/x")


# --- attributes ------------------------------------------------------------------------------------------------------


def check_inode_numbers(root: Path, users: Users) -> None:
    """They are stable, unique, and the same in stat(2) and in listings."""
    for number in range(50):
        (root / f"f{number}").touch()
        (root / f"d{number}").mkdir()
    first = {name: (root / name).lstat().st_ino for name in os.listdir(root)}
    assert len(set(first.values())) == 100
    with os.scandir(root) as listing:
        assert {entry.name: entry.inode() for entry in listing} == first
    (root / "f0").rename(root / "d0" / "moved")
    (root / "d1").rename(root / "d0" / "moved too")
    assert (root / "d0" / "moved").stat().st_ino == first["f0"]
    assert (root / "d0" / "moved too").stat().st_ino == first["d1"]
    with opened(root / "f2", os.O_RDONLY) as fd:
        assert os.fstat(fd).st_ino == first["f2"]
        (root / "f2").unlink()
        (root / "f2").touch()
        assert os.fstat(fd).st_ino == first["f2"] != (root / "f2").stat().st_ino


def check_numbers_of_dot_and_dot_dot(root: Path, users: Users) -> None:
    (root / "d").mkdir()
    said = subprocess.run(["ls", "-1aif", root / "d"], check=True, capture_output=True, text=True).stdout
    found = {line.split()[1]: int(line.split()[0]) for line in said.splitlines()}
    assert found == {".": (root / "d").stat().st_ino, "..": root.stat().st_ino}


def check_link_counts(root: Path, users: Users) -> None:
    assert root.stat().st_nlink == 2
    (root / "d").mkdir()
    (root / "file").touch()
    os.symlink("x", root / "link")
    assert (root.stat().st_nlink, (root / "d").stat().st_nlink) == (3, 2)
    (root / "d").rmdir()
    assert root.stat().st_nlink == 2
    assert ((root / "file").stat().st_nlink, (root / "link").lstat().st_nlink) == (1, 1)


def check_blocks(root: Path, users: Users) -> None:
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        assert os.fstat(fd).st_blocks == 0
        os.write(fd, b"x" * 40_960)
        os.fsync(fd)
        assert os.fstat(fd).st_blocks == 80
        assert os.fstat(fd).st_blksize >= 4096
        os.ftruncate(fd, 0)
        assert os.fstat(fd).st_blocks == 0


def check_times(root: Path, users: Users) -> None:
    path = root / "file"
    path.touch()
    for when in (0, 1, -1, -1_500_000_000, 123_456_789, 2_200_000_000_000_000_003, -2_000_000_000_000_000_001,
                 5_000_000_000_123_456_789):  # fmt: skip
        os.utime(path, ns=(when + 7, when))
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (when + 7, when)
    before = path.stat().st_ctime_ns
    _linux.utimensat(os.fsencode(path), 5, None)
    assert path.stat().st_mtime_ns == 5_000_000_000_123_456_789
    _linux.utimensat(os.fsencode(path), None, 6)
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (5, 6)
    assert path.stat().st_ctime_ns >= before
    os.utime(root, ns=(7, 8))
    assert root.stat().st_mtime_ns == 8


def check_what_changes_the_times(root: Path, users: Users) -> None:
    path = root / "d" / "file"
    path.parent.mkdir()
    path.write_text("x")
    changes: list[tuple[Callable[[], None], bool, bool]] = [  # of the file, of the directory
        (lambda: write_to(path, b"y"), True, False),
        (lambda: os.truncate(path, 100), True, False),
        (lambda: path.chmod(0o600), False, False),
        (lambda: os.link(path, path.parent / "link"), False, True),
        (lambda: os.rename(path.parent / "link", path.parent / "other"), False, True),
        (lambda: os.unlink(path.parent / "other"), False, True),
        (lambda: os.setxattr(path, "user.x", b"1"), False, False),
    ]
    for change, of_file, of_directory in changes:
        for one in (path, path.parent):
            os.utime(one, ns=(1, 1))
        before = path.stat().st_ctime_ns
        change()
        assert (path.stat().st_mtime_ns != 1, path.parent.stat().st_mtime_ns != 1) == (of_file, of_directory)
        assert path.stat().st_ctime_ns >= before


def check_changing_the_owner_to_nobody_is_a_change(root: Path, users: Users) -> None:
    """Of the ctime; POSIX leaves that open."""
    path = with_mode(root / "file", 0o644)
    before = path.stat().st_ctime_ns
    while time.clock_gettime_ns(_CLOCK_REALTIME_COARSE) <= before:
        pass
    os.chown(path, -1, -1)
    assert path.stat().st_ctime_ns > before


def check_each_attribute_alone(root: Path, users: Users) -> None:
    path = with_mode(root / "file", 0o644)
    os.chown(path, 7, -1)
    assert owner_of(path) == (7, 0)
    os.chown(path, -1, 8)
    assert owner_of(path) == (7, 8)
    path.chmod(0o7777)
    assert mode_of(path) == 0o7777
    os.chown(path, 4294967294, 4294967294)
    assert owner_of(path) == (4294967294, 4294967294)


def check_statfs(root: Path, users: Users) -> None:
    figures = os.statvfs(root)
    assert figures.f_namemax == 255
    assert 0 < figures.f_bavail <= figures.f_bfree <= figures.f_blocks
    assert 0 < figures.f_ffree < figures.f_files
    assert figures.f_bsize >= 4096
    (root / "file").touch()
    with opened(root / "file", os.O_RDONLY) as fd:
        assert os.fstatvfs(fd).f_blocks == figures.f_blocks
        assert os.fstatvfs(fd).f_ffree < figures.f_ffree


# --- programs and listings -------------------------------------------------------------------------------------------


def check_running_programs(root: Path, users: Users) -> None:
    program = root / "program"
    program.write_bytes(Path("/bin/true").read_bytes())
    program.chmod(0o755)
    subprocess.run([program], check=True)
    users.alice(subprocess.check_call, [program])
    with opened(program, os.O_WRONLY):
        fails(errno.ETXTBSY, subprocess.run, [program])
    program.chmod(0o644)
    fails(errno.EACCES, subprocess.run, [program])
    program.chmod(0o755)
    running = root / "cat"
    running.write_bytes(Path("/bin/cat").read_bytes())
    running.chmod(0o755)
    with subprocess.Popen([running], stdin=subprocess.PIPE) as process:
        fails(errno.ETXTBSY, os.open, running, os.O_WRONLY)
        fails(errno.ETXTBSY, os.truncate, running, 0)
        running.unlink()
        process.communicate()
        assert process.returncode == 0


def check_listing(root: Path, users: Users) -> None:
    kinds = {"file": "f", "dir": "d", "link": "l", "fifo": "p", "null": "c"}
    (root / "file").touch()
    (root / "dir").mkdir()
    os.symlink("x", root / "link")
    os.mkfifo(root / "fifo")
    os.mknod(root / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    with os.scandir(root) as listing:
        entries = {entry.name: entry for entry in listing}
    assert entries.keys() == kinds.keys()
    assert entries["dir"].is_dir(follow_symlinks=False)
    assert entries["link"].is_symlink()
    assert [name for name, entry in entries.items() if entry.is_file(follow_symlinks=False)] == ["file"]


def check_a_listing_while_the_directory_is_emptied(root: Path, users: Users) -> None:
    """Nothing that is there from beginning to end is skipped or doubled."""
    for number in range(2000):
        os.close(os.open(root / f"f{number}", os.O_CREAT))
    seen: list[str] = []
    with os.scandir(root) as listing:
        for entry in listing:
            seen.append(entry.name)
            number = int(entry.name[1:])
            if number % 2:
                os.unlink(root / entry.name)
                os.close(os.open(root / f"g{number}", os.O_CREAT))
    kept = [name for name in seen if name[0] == "f"]
    assert len(kept) == len(set(kept))
    assert {f"f{number}" for number in range(0, 2000, 2)} <= set(kept)
    assert sum(name[0] == "f" for name in os.listdir(root)) == 1000
