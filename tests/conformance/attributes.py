"""Attributes: numbers, times, owners, extended attributes."""

import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from fusenotify import _linux
from tests.conformance.tools import CLOCK_REALTIME_COARSE, fails, folder, mode_of, opened, owner_of, with_mode, write_to
from tests.users import Users

# --- extended attributes ----------------------------------------------------------------------------------------------


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


# --- attributes -------------------------------------------------------------------------------------------------------


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
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= before:
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
