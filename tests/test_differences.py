"""What is not as on the backing filesystem, and why, stands in docs/guarantees.md. Here: that it is as told there."""

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusenotify import _linux
from tests.conformance.tools import DEFAULT_ACL, acl, fails, mode_of, opened
from tests.filesystems import filesystem
from tests.harness import Mount, mounted
from tests.ordinary import NOBODY
from tests.users import User, write_file

FS_IOC_GETFLAGS = 0x80086601
SEEK_DATA, SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE


@pytest.fixture(scope="module")
def on_ext4(tmpfs: Path) -> Iterator[Mount]:
    """A mount over ext4, which has everything that is missing here."""
    with filesystem("ext4", tmpfs) as place, mounted(place, ["-o", "allow_other"]) as mount:
        yield mount


def both(mount: Mount, name: str) -> tuple[Path, Path]:
    """Return a path on the mount and behind it."""
    return mount.mountpoint / name, mount.source / name


def test_allocating_ahead(on_ext4: Mount) -> None:
    """posix_fallocate() of the C library writes zeros instead; musl's fails."""
    ours, behind = both(on_ext4, "allocated")
    with opened(ours, os.O_CREAT | os.O_RDWR) as fd:
        fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        length = ctypes.c_long(100_000)
        assert fallocate(fd, 0, ctypes.c_long(0), length) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(fd, 0, 100_000)
        os.fsync(fd)
    assert behind.stat().st_size == 100_000
    assert behind.stat().st_blocks >= 100_000 // 512


def test_holes_are_not_seen(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "sparse")
    with opened(behind, os.O_CREAT | os.O_RDWR) as fd:
        os.pwrite(fd, b"x", 1_000_000)
        assert os.lseek(fd, 0, SEEK_HOLE) == 0
    with opened(ours, os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, SEEK_HOLE) == 1_000_001
        assert os.lseek(fd, 5, SEEK_DATA) == 5
        fails(errno.ENXIO, os.lseek, fd, 1_000_001, SEEK_DATA)
    copy = ours.with_name("copy")
    subprocess.run(["cp", "--sparse=always", ours, copy], check=True)  # which looks for zeros
    assert copy.stat().st_blocks < 100


def test_nameless_files(on_ext4: Mount) -> None:
    """Programs make one under a name and unlink it instead, as `tempfile` does."""
    fails(errno.EOPNOTSUPP, os.open, on_ext4.mountpoint, os.O_TMPFILE | os.O_RDWR)


def test_flags_of_files_and_other_requests_to_the_filesystem(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "flags")
    behind.touch()
    with opened(behind, os.O_RDONLY) as fd:
        fcntl.ioctl(fd, FS_IOC_GETFLAGS, bytes(8))
    with opened(ours, os.O_RDONLY) as fd:
        fails(errno.ENOTTY, fcntl.ioctl, fd, FS_IOC_GETFLAGS, bytes(8))


def test_flags_set_behind_the_mount_hold_on_it(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "append only")
    behind.write_text("begin ")
    subprocess.run(["chattr", "+a", behind], check=True)
    try:
        fails(errno.EPERM, os.open, ours, os.O_WRONLY)
        fails(errno.EPERM, os.unlink, ours)
        with opened(ours, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"end")
    finally:
        subprocess.run(["chattr", "-a", behind], check=True)
    assert behind.read_text() == "begin end"


def test_time_of_birth(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "born")
    behind.touch()
    assert birth(behind) > 0
    assert birth(ours) == 0


def birth(path: Path) -> int:
    with opened(path, os.O_PATH) as fd:
        buffer = ctypes.create_string_buffer(256)
        assert ctypes.CDLL(None).statx(fd, b"", _linux.AT_EMPTY_PATH, 0xFFF, buffer) == 0
    mask, seconds = struct.unpack_from("=I", buffer)[0], struct.unpack_from("=q", buffer, 0x50)[0]
    return int(seconds) if mask & 0x800 else 0


def test_locks_are_not_shared_with_the_backing(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "locked")
    behind.write_text("x")
    script = f"import fcntl; fcntl.lockf(open({str(behind)!r}, 'r+'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    with ours.open("r+") as file, behind.open("r+") as theirs:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(file, fcntl.LOCK_EX)
        subprocess.run([sys.executable, "-c", script], check=True)


def test_direct_io_need_not_be_aligned(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "direct")
    with opened(behind, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as fd:
        fails(errno.EINVAL, os.write, fd, b"unaligned")
    with opened(ours, os.O_RDWR | os.O_DIRECT) as fd:
        assert os.write(fd, b"unaligned") == 9


def test_running_programs_are_not_protected_from_the_other_side(on_ext4: Mount) -> None:
    ours, behind = both(on_ext4, "program")
    behind.write_bytes(Path("/bin/cat").read_bytes())
    behind.chmod(0o755)
    with subprocess.Popen([ours], stdin=subprocess.PIPE) as process:
        fails(errno.ETXTBSY, os.open, ours, os.O_WRONLY)
        os.close(os.open(behind, os.O_WRONLY))
        process.communicate()


def test_the_end_of_a_directory(on_ext4: Mount) -> None:
    with opened(on_ext4.mountpoint, os.O_RDONLY) as fd:
        assert os.lseek(fd, 0, os.SEEK_END) == os.fstat(fd).st_size


def test_figures_are_those_of_the_roots_filesystem(on_ext4: Mount, directory: Path) -> None:
    ours, behind = both(on_ext4, "below")
    behind.mkdir()
    _linux.mount(b"below", os.fsencode(behind), b"tmpfs", 0, b"size=1m")
    try:
        assert os.statvfs(behind).f_blocks == 256
        assert os.statvfs(ours).f_blocks == os.statvfs(on_ext4.source).f_blocks
        (ours / "file").write_text("x")
        assert (behind / "file").read_text() == "x"
    finally:
        _linux.umount2(os.fsencode(behind), _linux.MNT_DETACH)


def test_a_shared_mapping_keeps_what_it_has_read(on_ext4: Mount) -> None:
    """Until the file is opened anew, or read(2) or stat(2) see that it has changed."""
    ours, behind = both(on_ext4, "mapped")
    behind.write_bytes(b"old" * 2000)
    with opened(ours, os.O_RDWR) as fd, mmap.mmap(fd, 6000) as mapped:
        assert mapped[:3] == b"old"
        behind.write_bytes(b"NEW" * 2000)
        assert mapped[:3] in (b"old", b"NEW")
        assert os.pread(fd, 3, 0) == b"NEW"
        assert mapped[:3] == b"NEW"


def test_default_acls_on_the_mount_of_an_ordinary_user(directory: Path, nobody: list[str]) -> None:
    """fusermount3 has no MS_POSIXACL: the kernel takes the umask off before it asks."""
    directory.chmod(0o755)
    for name in ("source", "mount", "state"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    everything = acl((1, 7, -1), (4, 7, -1), (32, 7, -1))
    with mounted(directory, command=[*nobody, "-m", "fusenotify"]) as mount, User(NOBODY, NOBODY, ()) as user:
        user(os.umask, 0o077)
        for place in (mount.mountpoint, mount.source):
            user(os.mkdir, place / place.name)
            user(os.setxattr, place / place.name, DEFAULT_ACL, everything)
            user(write_file, place / place.name / "file")
        assert mode_of(mount.source / "source" / "file") == 0o666
        assert mode_of(mount.source / "mount" / "file") == 0o600


def test_a_directory_without_search_permission_on_the_mount_of_an_ordinary_user(
    directory: Path, nobody: list[str]
) -> None:
    directory.chmod(0o755)
    for name in ("source", "mount", "state"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    with mounted(directory, command=[*nobody, "-m", "fusenotify"]) as mount, User(NOBODY, NOBODY, ()) as user:
        for name in ("empty", "full", "full/sub"):
            (mount.source / name).mkdir()
        for name in ("empty", "full"):
            (mount.source / name).chmod(0o744)
        assert user(os.listdir, mount.source / "full") == ["sub"]
        assert user(os.listdir, mount.mountpoint / "empty") == []
        fails(errno.EACCES, user, os.listdir, mount.mountpoint / "full")


def test_who_is_outside_our_pid_namespace_is_in_no_group(directory: Path) -> None:
    """So rights by group do not help it to make, remove, rename or link anything, nor to truncate by name."""
    directory.chmod(0o755)
    command = ["unshare", "--pid", "--fork", sys.executable, "-m", "fusenotify"]
    with mounted(directory, ["-o", "allow_other"], command) as mount, User(12345, 12345, (54321,)) as user:
        mount.source.chmod(0o770)
        os.chown(mount.source, 0, 54321)
        (mount.source / "file").write_text("content")
        (mount.source / "file").chmod(0o660)
        os.chown(mount.source / "file", 0, 54321)
        assert user(Path.read_text, mount.mountpoint / "file") == "content"
        user(write_file, mount.mountpoint / "file", b"written")
        assert (mount.source / "file").read_text() == "written"
        fails(errno.EACCES, user, os.truncate, mount.mountpoint / "file", 1)
        fails(errno.EACCES, user, os.unlink, mount.mountpoint / "file")
        fails(errno.EACCES, user, os.mkdir, mount.mountpoint / "d")
        _linux.umount2(os.fsencode(mount.mountpoint), _linux.MNT_DETACH)
        assert mount.process.wait(30) == 0


def test_device_files_and_kinds(on_ext4: Mount) -> None:
    """Unless mounted with `-o dev`."""
    ours = on_ext4.mountpoint / "null"
    os.mknod(ours, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    fails(errno.EACCES, os.open, ours, os.O_RDONLY)
