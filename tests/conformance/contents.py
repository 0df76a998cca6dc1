"""Contents: opening, reading, writing, mapping, and what is open without a name."""

import errno
import fcntl
import mmap
import os
import resource
import signal
import stat
from pathlib import Path

from tests.conformance.tools import fails, folder, mode_of, opened, with_mode
from tests.users import Users

# --- opening ----------------------------------------------------------------------------------------------------------


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
        os.pwrite(fd, b"back", 23)
        os.ftruncate(fd, 10)
        os.pwrite(fd, b"0", 0)
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


# --- contents ---------------------------------------------------------------------------------------------------------


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


# --- what is open without a name --------------------------------------------------------------------------------------


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
