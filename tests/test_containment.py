"""Nothing that anybody does on a mount, or behind it, makes the daemon touch what lies outside the backing tree.

An attack that never works proves nothing. So each is made against a naive implementation as well (a path that is put
together and opened, as a passthrough filesystem does in ten lines), and there it has to succeed.
"""

import contextlib
import errno
import os
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from fusenotify import _linux
from fusenotify.events import DEFAULT
from fusenotify.protocol import AddMark, Done, Hello
from tests.harness import PATIENCE, Mount, mounted, run
from tests.test_queue_file import Opener, QueueFile, opened, settle, status

__all__ = ["opened"]

_SECRET = b"outside"
_ROUNDS = 100
# Exchanges a directory (or file) of the tree with a symbolic link that leads out of it, without a pause.
_ATTACKER = """
import os, sys, time
from fusenotify import _linux
fd = os.open(sys.argv[1], os.O_RDONLY)
pause = float(sys.argv[2])
names = [name.encode() for name in sys.argv[3:]]
print("ready", flush=True)
while True:
    for name in names:
        _linux.renameat2(fd, name, fd, b"link-" + name, _linux.RENAME_EXCHANGE)
        if pause:
            time.sleep(pause)
"""


def snapshot(place: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a directory and what is in it that an intruder could change."""
    found: dict[str, tuple[object, ...]] = {}
    for path in (place, *sorted(place.rglob("*"))):
        now = path.lstat()
        attributes = {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path)}
        content = path.read_bytes() if stat.S_ISREG(now.st_mode) else None
        found[str(path)] = (now.st_mode, now.st_uid, now.st_size, now.st_mtime_ns, now.st_ctime_ns, content, attributes)
    return found


class Filesystem(Protocol):
    """What a program does in a directory that it holds, and with a file in the root."""

    def hold(self, name: str) -> object: ...
    def read(self, directory: object, name: str) -> bytes: ...
    def write(self, directory: object, name: str, data: bytes) -> None: ...
    def names(self, directory: object) -> list[str]: ...
    def chmod(self, directory: object, name: str, mode: int) -> None: ...
    def remove(self, directory: object, name: str) -> None: ...
    def let_go(self, directory: object) -> None: ...


class Mounted:
    """The mount. Symbolic links are not followed: where they lead is the program's affair, not the filesystem's."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def hold(self, name: str) -> object:
        return os.open(self._root / name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)

    def read(self, directory: object, name: str) -> bytes:
        assert isinstance(directory, int)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        with open(fd, "rb") as file:
            return file.read()

    def write(self, directory: object, name: str, data: bytes) -> None:
        assert isinstance(directory, int)
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        with open(fd, "wb") as file:
            file.write(data)

    def names(self, directory: object) -> list[str]:
        assert isinstance(directory, int)
        return os.listdir(directory)

    def chmod(self, directory: object, name: str, mode: int) -> None:
        assert isinstance(directory, int)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def remove(self, directory: object, name: str) -> None:
        assert isinstance(directory, int)
        os.unlink(name, dir_fd=directory)

    def let_go(self, directory: object) -> None:
        assert isinstance(directory, int)
        os.close(directory)


class Naive:
    """A filesystem that remembers a node by its path, checks that it is no link, and then uses it."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def hold(self, name: str) -> object:
        if not stat.S_ISDIR((self._root / name).lstat().st_mode):
            raise NotADirectoryError
        return self._root / name

    def read(self, directory: object, name: str) -> bytes:
        return self._at(directory, name).read_bytes()

    def write(self, directory: object, name: str, data: bytes) -> None:
        self._at(directory, name).write_bytes(data)

    def names(self, directory: object) -> list[str]:
        assert isinstance(directory, Path)
        return os.listdir(directory)

    def chmod(self, directory: object, name: str, mode: int) -> None:
        self._at(directory, name).chmod(mode)

    def remove(self, directory: object, name: str) -> None:
        self._at(directory, name).unlink()

    def let_go(self, directory: object) -> None:
        pass

    def _at(self, directory: object, name: str) -> Path:
        assert isinstance(directory, Path)
        path = directory / name
        if path.is_symlink():
            raise OSError(errno.ELOOP, "a link")
        return path


def has_escaped(filesystem: Filesystem, outside: Path) -> bool:
    """Use a directory while it is attacked; return whether anything of what is outside was seen or changed."""
    before = snapshot(outside)
    for number in range(_ROUNDS):
        with contextlib.suppress(OSError):
            directory = filesystem.hold("attacked")
            try:
                if _uses_what_is_outside(filesystem, directory, number):
                    return True
            finally:
                filesystem.let_go(directory)
        if snapshot(outside) != before:
            return True
    return False


def _uses_what_is_outside(filesystem: Filesystem, directory: object, number: int) -> bool:
    seen: list[str] = []
    uses: tuple[Callable[[], None], ...] = (
        lambda: filesystem.write(directory, "file", b"inside"),
        lambda: filesystem.write(directory, f"made-{number}", b"inside"),
        lambda: filesystem.chmod(directory, "file", 0o640),
        lambda: filesystem.remove(directory, f"made-{number}"),
        lambda: filesystem.write(directory, "target", b"inside"),
    )
    for use in uses:
        with contextlib.suppress(OSError):
            use()
    with contextlib.suppress(OSError):
        seen += filesystem.names(directory)
    for name in ("file", "target"):
        with contextlib.suppress(OSError):
            seen.append(filesystem.read(directory, name).decode())
    return "secret" in seen or _SECRET.decode() in seen


@pytest.fixture
def outside(directory: Path) -> Path:
    outside = directory / "outside"
    outside.mkdir()
    for name in ("file", "secret", "target"):
        (outside / name).write_bytes(_SECRET)
    return outside


@contextlib.contextmanager
def attack(place: Path, *names: str, pause: float = 0) -> Iterator[None]:
    """Have another process swap these names and `link-NAME` in a directory, with so many seconds in between."""
    with subprocess.Popen(
        [sys.executable, "-c", _ATTACKER, str(place), str(pause), *names], stdout=subprocess.PIPE, text=True
    ) as attacker:
        assert attacker.stdout is not None
        try:
            assert attacker.stdout.readline() == "ready\n"
            yield
            assert attacker.poll() is None
        finally:
            attacker.kill()


def prepare(tree: Path, outside: Path) -> None:
    """Make a directory and a file in it that can each be swapped for a link out of the tree."""
    (tree / "attacked").mkdir()
    for name in ("file", "target"):
        (tree / "attacked" / name).write_bytes(b"inside")
    (tree / "link-attacked").symlink_to(outside)
    (tree / "attacked" / "link-target").symlink_to(outside / "target")


def test_a_directory_that_is_swapped_for_a_link_all_the_time(mount: Mount, outside: Path) -> None:
    prepare(mount.source, outside)
    before = snapshot(outside)
    with attack(mount.source, "attacked"):
        assert not has_escaped(Mounted(mount.mountpoint), outside)
    assert snapshot(outside) == before


def test_a_file_that_is_swapped_for_a_link_all_the_time(mount: Mount, outside: Path) -> None:
    prepare(mount.source, outside)
    before = snapshot(outside)
    with attack(mount.source / "attacked", "target"):
        assert not has_escaped(Mounted(mount.mountpoint), outside)
    assert snapshot(outside) == before


@pytest.mark.parametrize("what", ["directory", "file"])
def test_a_naive_filesystem_falls_for_it(directory: Path, outside: Path, what: str) -> None:
    tree = directory / "tree"
    tree.mkdir()
    prepare(tree, outside)
    place, name = (tree, "attacked") if what == "directory" else (tree / "attacked", "target")
    with attack(place, name):
        while not has_escaped(Naive(tree), outside):
            pass  # until the test's time is over


def test_the_event_path_does_not_follow_either(mount: Mount, outside: Path, opened: Opener) -> None:
    """Crawling, adopting and marking go by paths, which somebody swaps; what happens outside is never told."""
    prepare(mount.source, outside)
    (mount.source / "attacked" / "below").mkdir()
    (outside / "below").mkdir()
    queue = opened(mount.mountpoint).mark()
    # Slower than events are told: marks wait for those that are behind.
    with attack(mount.source, "attacked", pause=0.001):
        for number in range(50):
            (outside / f"private-{number}").mkdir()
            (outside / "below" / f"private-{number}").touch()
            marker = opened(mount.mountpoint)
            marker.send(Hello(1), AddMark(1, 1, b"attacked/below", "dir", DEFAULT, 3))
            marker.receive()
            marker.receive()
            marker.close()
    (mount.source / "end").mkdir()
    told = queue.until(b"end")
    assert not [record for record in told if b"private" in (record.path or b"") + (record.old_path or b"")]
    watched = status(mount, opened).watches
    assert watched <= 4  # the root, `attacked`, `below`, `end`


# --- requests ---------------------------------------------------------------------------------------------------------

_CRAFTED = [
    b"..", b"../outside", b"../..", b"./..", b"sub/../..", b"sub/../../outside", b"/", b"//", b"/etc", b"ROOT/outside",
    b"link", b"link/", b"link/sub", b"./link", b"\0", b"sub\0", b"../outside\0", b"\xff\xfe", b"x" * 256, b"x" * 70_000,
    b"a/" * 30_000, b"." * 300, b"...", b" ..", b"sub//..//..", b"proc/self/root",
]  # fmt: skip


@pytest.mark.parametrize("scope", ["dir", "subtree"])
def test_crafted_paths_in_requests(mount: Mount, outside: Path, opened: Opener, scope: str) -> None:
    (outside / "sub").mkdir()
    (mount.source / "sub").mkdir()
    (mount.source / "link").symlink_to(outside)
    settle(mount, opened)
    for path in _CRAFTED:
        for place in (mount.mountpoint, mount.mountpoint / "sub"):
            queue = opened(place)
            queue.send(
                Hello(1), AddMark(1, 1, path.replace(b"ROOT", os.fsencode(mount.source.parent)), scope, DEFAULT, 3)
            )
            queue.receive()
            answer = queue.receive()
            # Slashes alone are the place itself, and a path below it begins at none.
            assert isinstance(answer, Done) == (path.strip(b"/") == b""), (path[:80], answer)
            queue.close()
    assert status(mount, opened).watches == 2


def test_a_naive_filesystem_falls_for_crafted_paths(directory: Path, outside: Path) -> None:
    tree = directory / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "link").symlink_to(outside)
    real = os.fsencode(os.path.realpath(tree))
    out = []
    for path in _CRAFTED:
        with contextlib.suppress(OSError, ValueError):
            there = os.path.realpath(os.path.join(real, path.replace(b"ROOT", os.fsencode(directory))), strict=True)
            if not (there + b"/").startswith(real + b"/"):
                out.append(path)
    assert {b"..", b"sub/../../outside", b"/etc", b"ROOT/outside", b"link", b"link/"} <= set(out)


# --- handles and nodes ------------------------------------------------------------------------------------------------


def made_up_handles(mount: Mount, outside: Path) -> Iterator[tuple[int, int]]:
    """Yield (nodeid, generation) that nobody was given: of what is outside, of nothing, of the daemon's own numbers."""
    numbers = [path.stat().st_ino for path in (outside, outside / "secret", mount.source.parent, mount.source)]
    numbers += [2, 3, 4, 5, 11, 12, 128, 1 << 31, 1 << 32, (1 << 61) + 1, (1 << 61) + 2, (1 << 64) - 1, 1 << 63]
    for number in numbers:
        for generation in (0, 1, 2, 0xFFFFFFFF):
            yield number, generation


def test_made_up_handles_open_nothing_that_is_outside(mount: Mount, outside: Path) -> None:
    (mount.source / "inside").write_bytes(b"inside")
    mount_fd = os.open(mount.mountpoint, os.O_RDONLY)
    try:
        kind, real = _linux.name_to_handle_at(mount_fd, b"inside")
        nodeid, generation = struct.unpack("=QI", struct.pack("=QI", *_parts(real)))
        handles = list(made_up_handles(mount, outside))
        handles += [(nodeid, generation ^ 1), (nodeid ^ 1, generation), (nodeid + (1 << 61), generation)]
        for one in handles:
            data = struct.pack("=III", one[0] >> 32, one[0] & 0xFFFFFFFF, one[1])
            for flags in (os.O_PATH, os.O_RDONLY, os.O_RDWR):
                found = opened_by(mount_fd, kind, data, flags)
                # Number and generation 0 may be those of the root itself, or of `inside`.
                assert found in ("ESTALE", "EISDIR", "inside", "root"), (one, found)
        for length in (0, 4, 8, 16, 20, 128):
            assert opened_by(mount_fd, kind, bytes(range(length)), os.O_PATH) in ("ESTALE", "EINVAL")
    finally:
        os.close(mount_fd)


def _parts(handle: bytes) -> tuple[int, int]:
    """Return nodeid and generation of a handle of the kernel's making (fs/fuse/inode.c: two halves, high first)."""
    high, low, generation = struct.unpack("=III", handle[:12])
    return high << 32 | low, generation


def opened_by(mount_fd: int, kind: int, data: bytes, flags: int) -> str:
    try:
        fd = _linux.open_by_handle_at(mount_fd, kind, data, flags)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    try:
        path = os.readlink(f"/proc/self/fd/{fd}")
        return {"inside": "inside", "mount": "root", "": "root"}.get(os.path.basename(path), path)
    finally:
        os.close(fd)


def test_a_naive_filesystem_opens_any_handle(mount: Mount, outside: Path) -> None:
    """That is what a handle of the backing filesystem does if it is opened as it comes."""
    source_fd = os.open(mount.source, os.O_RDONLY)
    outside_fd = os.open(outside, os.O_RDONLY)
    try:
        kind, data = _linux.name_to_handle_at(outside_fd, b"secret")
        with open(_linux.open_by_handle_at(source_fd, kind, data, os.O_RDONLY), "rb") as file:
            assert file.read() == _SECRET
        mount_fd = os.open(mount.mountpoint, os.O_RDONLY)
        assert opened_by(mount_fd, kind, data, os.O_RDONLY) == "ESTALE"
        os.close(mount_fd)
    finally:
        os.close(source_fd)
        os.close(outside_fd)


# --- links and attributes ---------------------------------------------------------------------------------------------

_ON_A_LINK: list[tuple[str, Callable[[Path], object]]] = [
    ("setxattr", lambda path: os.setxattr(path, "trusted.mine", b"x", follow_symlinks=False)),
    ("getxattr", lambda path: os.getxattr(path, "trusted.secret", follow_symlinks=False)),
    ("listxattr", lambda path: os.listxattr(path, follow_symlinks=False)),
    ("removexattr", lambda path: os.removexattr(path, "trusted.secret", follow_symlinks=False)),
    ("chown", lambda path: os.chown(path, 1, 1, follow_symlinks=False)),
    ("utimes", lambda path: os.utime(path, (1, 1), follow_symlinks=False)),
    ("link", lambda path: os.link(path, path.with_name("linked"), follow_symlinks=False)),
    ("rename", lambda path: path.rename(path.with_name("renamed"))),
    ("unlink", lambda path: path.unlink()),
]


@pytest.mark.parametrize(("name", "act"), _ON_A_LINK, ids=[name for name, _ in _ON_A_LINK])
def test_what_is_done_to_a_link_is_done_to_the_link(
    mount: Mount, outside: Path, name: str, act: Callable[[Path], object]
) -> None:
    os.setxattr(outside / "secret", "trusted.secret", b"secret")
    (mount.source / "link").symlink_to(outside / "secret")
    before = snapshot(outside)
    try:
        found = act(mount.mountpoint / "link")
    except OSError as error:
        assert name in ("getxattr", "removexattr")
        assert error.errno == errno.ENODATA  # noqa: PT017
    else:
        assert found in (None, [], mount.mountpoint / "renamed")
    assert snapshot(outside) == before


def test_a_naive_filesystem_changes_what_a_link_leads_to(directory: Path, outside: Path) -> None:
    (directory / "link").symlink_to(outside / "secret")
    before = snapshot(outside)
    os.setxattr(directory / "link", "trusted.mine", b"x")
    assert snapshot(outside) != before
    before = snapshot(outside)
    os.chown(directory / "link", 1, 1)
    assert snapshot(outside) != before


@pytest.mark.parametrize("name", ["..", ".", "", "x" * 255, "trusted.", "user." + "y" * 251, "../../outside/secret"])
def test_odd_names_of_attributes(mount: Mount, outside: Path, name: str) -> None:
    (mount.source / "file").touch()
    before = snapshot(outside)
    results = []
    for path in (mount.mountpoint / "file", mount.source / "file"):
        try:
            os.setxattr(path, name, b"x")
            results.append("done")
            os.removexattr(path, name)
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])
    assert results[0] == results[1]
    assert snapshot(outside) == before


# --- special files ----------------------------------------------------------------------------------------------------


class Waiting:
    """Programs behind the mount that wait in open(2) of FIFOs for somebody to open the other end."""

    def __init__(self, place: Path) -> None:
        self.read, self.written = place / "read", place / "written"
        for fifo in (self.read, self.written):
            os.mkfifo(fifo)
        # As descriptors of this process would do, these are waits that nothing but the other end's opening can end.
        self._programs = [
            subprocess.Popen(["cat", self.read], stdout=subprocess.DEVNULL),
            subprocess.Popen(["sh", "-c", 'echo x > "$0"', self.written]),
        ]
        for program in self._programs:
            while "wait_for_partner" not in Path(f"/proc/{program.pid}/wchan").read_text():
                assert program.poll() is None

    def still_wait(self) -> bool:
        return all(
            program.poll() is None and "wait_for_partner" in Path(f"/proc/{program.pid}/wchan").read_text()
            for program in self._programs
        )

    def close(self) -> None:
        for program in self._programs:
            program.kill()
            program.wait()


@pytest.fixture
def waiting(directory: Path) -> Iterator[Waiting]:
    (directory / "source").mkdir()
    waiting = Waiting(directory / "source")
    yield waiting
    waiting.close()


def test_the_daemon_opens_no_fifo(directory: Path, waiting: Waiting, opened: Opener) -> None:
    with mounted(directory) as mount:  # which crawls
        queue = opened(mount.mountpoint).mark()
        for name in ("read", "written"):
            path = mount.mountpoint / name
            assert stat.S_ISFIFO(path.lstat().st_mode)
            path.chmod(0o640)
            os.utime(path, (1, 1))
            os.chown(path, 0, 0)
            os.setxattr(path, "trusted.a", b"b")
            os.link(path, mount.mountpoint / f"{name}-2")
            path.rename(mount.mountpoint / f"{name}-3")
            (mount.mountpoint / f"{name}-3").rename(path)
            os.listdir(mount.mountpoint)
            with pytest.raises(OSError, match="Errno"):
                os.truncate(path, 0)
            mark = QueueFile(mount.mountpoint)
            mark.send(Hello(1), AddMark(1, 1, name.encode(), "dir", DEFAULT, 3))
            mark.receive()
            assert not isinstance(mark.receive(), Done)
            mark.close()
            handle = _linux.name_to_handle_at(_linux.AT_FDCWD, os.fsencode(path))
            fd = os.open(mount.mountpoint, os.O_RDONLY)
            os.close(_linux.open_by_handle_at(fd, *handle, os.O_PATH))
            os.close(fd)
        # A directory full of them comes in, and is looked at.
        (directory / "more").mkdir()
        os.link(waiting.read, directory / "more" / "read")
        (directory / "more").rename(mount.source / "more")
        (mount.source / "end").mkdir()
        told = queue.until(b"end")
        assert b"more/read" in [record.path for record in told]
        # The other end on the mount is the mount's own.
        os.close(os.open(mount.mountpoint / "written", os.O_RDONLY | os.O_NONBLOCK))
        for name in ("read-2", "written-2", "more/read"):
            (mount.mountpoint / name).unlink()
        assert waiting.still_wait()
    assert waiting.still_wait()


def test_a_naive_filesystem_opens_them(waiting: Waiting) -> None:
    os.close(os.open(waiting.read, os.O_WRONLY | os.O_NONBLOCK))  # to see what it can do, or as O_TRUNC asks for
    while waiting.still_wait():
        pass  # until the test's time is over


def test_a_fifo_joins_those_on_the_mount_and_keeps_only_its_opener_waiting(mount: Mount) -> None:
    os.mkfifo(mount.source / "fifo")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((mount.mountpoint / "fifo").read_bytes()))
    reader.start()
    (mount.mountpoint / "served").write_text("x")
    assert sorted(os.listdir(mount.mountpoint)) == ["fifo", "served"]
    (mount.mountpoint / "fifo").write_bytes(b"through the mount")
    reader.join(PATIENCE)
    assert found == [b"through the mount"]


def test_sockets_and_devices_are_left_alone(directory: Path, opened: Opener) -> None:
    source = directory / "source"
    source.mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(source / "socket"))
        listener.listen()
        listener.setblocking(False)
        os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        # A block device without a driver: whoever opens it gets an error, and the kernel tries to load a module.
        os.mknod(source / "block", stat.S_IFBLK | 0o666, os.makedev(240, 200))
        with mounted(directory) as mount:
            queue = opened(mount.mountpoint).mark()
            for name in ("socket", "null", "block"):
                path = mount.mountpoint / name
                assert path.lstat().st_mode == (source / name).lstat().st_mode
                assert path.lstat().st_rdev == (source / name).lstat().st_rdev
                path.chmod(0o600)
                path.rename(mount.mountpoint / f"{name}-2")
            (mount.source / "end").mkdir()
            queue.until(b"end")
            for name in ("null-2", "block-2"):
                with pytest.raises(PermissionError):  # nodev
                    os.open(mount.mountpoint / name, os.O_RDONLY)
            assert run("status", mount.mountpoint).returncode == 0
        with pytest.raises(BlockingIOError):
            listener.accept()  # nobody has connected
