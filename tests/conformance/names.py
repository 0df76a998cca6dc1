"""Names: renaming, links, special files, long names and paths, listings, programs."""

import errno
import os
import socket
import stat
import subprocess
from pathlib import Path

from fusenotify import _linux
from tests.conformance.tools import NOREPLACE, RENAME_WHITEOUT, fails, mode_of, opened, owner_of, rename2, with_mode
from tests.users import Users

# --- renaming ---------------------------------------------------------------------------------------------------------


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
    rename2(root / "a", root / "b", RENAME_WHITEOUT)
    assert (root / "b").read_text() == "a"
    assert stat.S_ISCHR((root / "a").lstat().st_mode)
    assert (root / "a").lstat().st_rdev == 0
    fails(errno.EINVAL, rename2, root / "a", root / "b", RENAME_WHITEOUT | _linux.RENAME_EXCHANGE)


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


# --- links and special files ------------------------------------------------------------------------------------------


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


# --- names and paths --------------------------------------------------------------------------------------------------


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


# --- programs and listings --------------------------------------------------------------------------------------------


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
