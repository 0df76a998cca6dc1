"""The inode table on real filesystems: numbers that are used again, several filesystems, what becomes of dead nodes."""

import contextlib
import errno
import os
import random
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from inotify_simple import INotify, flags

from fusenotify import _linux
from fusenotify.client import status
from fusenotify.inodes import FIRST_SYNTHETIC
from tests.filesystems import filesystem
from tests.harness import FUSENOTIFY, PATIENCE, Mount, mounted, patched
from tests.soak import examples

_MS_BIND = 4096


@contextlib.contextmanager
def ext4_mounted(directory: Path) -> Iterator[Mount]:
    with filesystem("ext4", directory) as place, mounted(place) as mount:
        yield mount


@contextlib.contextmanager
def tmpfs_at(place: Path) -> Iterator[None]:
    _linux.mount(b"fusenotify-test", os.fsencode(place), b"tmpfs", 0, b"")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            _linux.umount2(os.fsencode(place), _linux.MNT_DETACH)


def nodeid(path: Path) -> int:
    """What the kernel calls a node."""
    return nodeid_in(_linux.name_to_handle_at(-100, os.fsencode(path)))


def nodeid_in(handle: tuple[int, bytes]) -> int:
    """What the kernel calls the node of a handle that FUSE made: two words, the upper one first."""
    upper, lower = struct.unpack_from("=II", handle[1])
    return int(upper << 32 | lower)


def descriptors(mount: Mount) -> int:
    return len(os.listdir(f"/proc/{mount.pid}/fd"))


def devices(mount: Mount) -> set[int]:
    """Which filesystems the daemon's descriptors are on."""
    found = set()
    for number in os.listdir(f"/proc/{mount.pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.stat(f"/proc/{mount.pid}/fd/{number}").st_dev)
    return found


def make_with_number(path: Path, number: int) -> None:
    """Make a file of a number that has become free; ext4 mostly takes it at once."""
    for _ in range(10_000):
        path.write_text(path.name)
        if path.stat().st_ino == number:
            return
        path.rename(path.with_name(f"not-{path.stat().st_ino}"))
    raise AssertionError(f"number {number} is not used again")


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that the daemon does by itself, and tells nobody."""
    ticks = threading.Event()
    for _ in range(int(PATIENCE / 0.02)):
        if is_so():
            return
        ticks.wait(0.02)
    raise AssertionError("it never came to be so")


def drop_caches() -> None:
    """Have the kernel forget every node that nobody uses."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def error_of(function: Callable[[], object]) -> str | None:
    try:
        function()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


# --- one number, several objects -------------------------------------------------------------------------------------


def test_a_number_used_again_while_the_old_file_is_held(directory: Path) -> None:
    """`rm a; touch b` behind the mount, on ext4, which gives b the number of a; a is watched, or held open."""
    displaced = 0
    with ext4_mounted(directory) as mount, contextlib.ExitStack() as stack:
        watcher = INotify(nonblocking=True)
        stack.callback(watcher.close)
        for turn in range(examples(600, 10_000)):
            old, new = (mount.source / f"{name}{turn % 7}" for name in ("a", "b"))
            old.write_text(f"old {turn}")
            seen_old, seen_new = mount.mountpoint / old.name, mount.mountpoint / new.name
            held = os.open(seen_old, (os.O_PATH, os.O_RDWR)[turn % 3 == 0])
            wd = watcher.add_watch(seen_old, flags.MODIFY | flags.DELETE_SELF)
            number = old.stat().st_ino
            old.unlink()
            new.write_text(f"new {turn}")
            with seen_new.open("r+") as file:
                assert file.read() == f"new {turn}"
                assert os.fstat(file.fileno()).st_ino == new.stat().st_ino == os.stat(seen_new).st_ino
                file.write("!")
                file.flush()
                displaced += nodeid(seen_new) >= FIRST_SYNTHETIC
                if turn % 3 == 0:  # open: it lives on without a name
                    assert os.pread(held, 100, 0) == f"old {turn}".encode()
                    assert os.pwrite(held, b"OLD", 0) == 3
                    os.ftruncate(held, 3)
                    assert (os.fstat(held).st_ino, os.fstat(held).st_size) == (number, 3)
                else:
                    assert error_of(lambda fd=held: os.fstat(fd)) == "ESTALE"  # type: ignore[misc]
                assert os.fstat(file.fileno()).st_size == len(f"new {turn}!")
            os.close(held)  # EIO, if the kernel had given it up
            if turn % 5 == 0:
                with contextlib.suppress(OSError):  # it has gone, as the watcher has heard that the file has
                    watcher.rm_watch(wd)
            new.unlink()
        assert displaced > 100


def test_a_displaced_file_keeps_its_node(directory: Path) -> None:
    """Also when its number has become free, and when the daemon is restarted."""
    with filesystem("ext4", directory) as place:
        with mounted(place) as mount:
            (mount.source / "a").touch()
            held = os.open(mount.mountpoint / "a", os.O_PATH)
            number = (mount.source / "a").stat().st_ino
            (mount.source / "a").unlink()
            make_with_number(mount.source / "b", number)
            before = nodeid(mount.mountpoint / "b")
            assert before >= FIRST_SYNTHETIC
            os.close(held)
            drop_caches()
            assert nodeid(mount.mountpoint / "b") == before
            assert mount.stop() == 0
        with mounted(place) as mount:
            assert nodeid(mount.mountpoint / "b") == before
            assert os.stat(mount.mountpoint / "b").st_ino == (mount.source / "b").stat().st_ino


def test_the_root_has_the_number_of_the_backing_directory(directory: Path) -> None:
    with mounted(directory) as mount:
        assert os.stat(mount.mountpoint).st_ino == os.stat(mount.source).st_ino
        (mount.source / "d").mkdir()
        assert os.stat(mount.mountpoint / "d" / "..").st_ino == os.stat(mount.source).st_ino


# --- several filesystems ---------------------------------------------------------------------------------------------


def fill(place: Path, mark: str) -> None:
    """Make the same tree on every filesystem, with other contents."""
    for number in range(5):
        (place / f"d{number}").mkdir()
        (place / f"d{number}" / "file").write_text(f"{mark} {number}")
    (place / "hard").hardlink_to(place / "d0" / "file")
    (place / "link").symlink_to("d1/file")


def contents(place: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return number, size and content of every file."""
    return {
        str(path.relative_to(place)): (path.lstat().st_ino, path.lstat().st_size, path.read_bytes())
        for base, _, names in os.walk(place)
        for path in (Path(base) / name for name in names)
    }


def test_filesystems_with_the_same_numbers(directory: Path) -> None:
    """Copies of one ext4 and two tmpfs below a root of the same kinds; one of them has inode 1 at its root."""
    with filesystem("ext4", directory) as place, contextlib.ExitStack() as stack:
        source = place / "source"
        fill_at = [source, *(source / name for name in ("one", "two", "memory", "memory2"))]
        for where in fill_at:
            where.mkdir()
        images = [stack.enter_context(filesystem("ext4", directory)) for _ in range(2)]
        for image, name in zip(images, ("one", "two"), strict=True):
            _linux.mount(os.fsencode(image), os.fsencode(source / name), b"", _MS_BIND, b"")
            stack.callback(_linux.umount2, os.fsencode(source / name), _linux.MNT_DETACH)
        for name in ("memory", "memory2"):
            stack.enter_context(tmpfs_at(source / name))
        for where in fill_at:
            fill(where, where.name)
        numbers = [(source / name / "d0" / "file").stat().st_ino for name in ("one", "two")]
        assert numbers[0] == numbers[1]
        assert os.stat(source / "memory").st_ino == 1
        with mounted(place) as mount:
            assert contents(mount.mountpoint) == contents(source)
            files = [
                stack.enter_context((mount.mountpoint / w.relative_to(source) / "hard").open("r+")) for w in fill_at
            ]
            for file, where in zip(files, fill_at, strict=True):
                assert file.read() == f"{where.name} 0"
                file.write(" more")
                file.flush()
                assert (where / "d0" / "file").read_text() == f"{where.name} 0 more"
            assert os.lstat(mount.mountpoint / "memory").st_ino == 1
            assert os.lstat(mount.mountpoint).st_ino == os.lstat(source).st_ino
            assert error_of(lambda: os.rename(mount.mountpoint / "hard", mount.mountpoint / "one" / "x")) == "EXDEV"
            drop_caches()
            assert contents(mount.mountpoint) == contents(source)
            for file in files:
                file.close()


def test_a_filesystem_below_is_unmounted_and_another_one_mounted_there(directory: Path) -> None:
    """What the daemon keeps does not keep it busy; nothing of the old one is taken for something of the new one."""
    with mounted(directory) as mount:
        place, seen = mount.source / "below", mount.mountpoint / "below"
        place.mkdir()
        for turn in range(5):
            with tmpfs_at(place):
                fill(place, f"turn {turn}")
                assert contents(seen) == contents(place)
                with (seen / "d0" / "file").open() as file:
                    held = os.open(seen / "d1" / "file", os.O_PATH)
                    assert error_of(lambda: _linux.umount2(os.fsencode(place), 0)) == "EBUSY"
                    assert file.read() == f"turn {turn} 0"
                device = place.stat().st_dev
                wait_until(lambda dev=device: dev not in devices(mount))  # type: ignore[misc]
                _linux.umount2(os.fsencode(place), 0)
                assert error_of(lambda fd=held: os.fstat(fd)) == "ESTALE"  # type: ignore[misc]
                os.close(held)
                assert os.listdir(seen) == []


# --- nodes that come and go ------------------------------------------------------------------------------------------


def look_around(mount: Mount, choose: random.Random) -> None:
    """Look at one of 400 files in one of several ways."""
    number, name = choose.randrange(20), choose.randrange(20)
    path = mount.mountpoint / f"d{number}" / f"f{name}"
    match choose.randrange(4):
        case 0:
            assert path.read_text() == f"{number} {name}"
        case 1:
            assert os.stat(path).st_ino == os.stat(mount.source / f"d{number}" / f"f{name}").st_ino
        case 2:
            assert len(os.listdir(path.parent)) == 20
        case 3:
            handle = _linux.name_to_handle_at(-100, os.fsencode(path))
            fd = os.open(mount.mountpoint, os.O_RDONLY)
            try:
                opened = _linux.open_by_handle_at(fd, *handle, os.O_RDONLY)
            finally:
                os.close(fd)
            with open(opened) as file:
                assert file.read() == f"{number} {name}"


async def test_forgetting_while_looking_up(mount: Mount) -> None:
    """Threads look up, open and list, while the kernel forgets whatever it may."""
    for number in range(20):
        (mount.source / f"d{number}").mkdir()
        for name in range(20):
            (mount.source / f"d{number}" / f"f{name}").write_text(f"{number} {name}")
    errors: list[BaseException] = []

    def look(seed: int) -> None:
        choose = random.Random(seed)
        try:
            for _ in range(examples(300, 5000)):
                look_around(mount, choose)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            drop_caches()
            thread.join(0.01)
    assert not errors, errors
    drop_caches()
    assert (await status(mount.mountpoint)).nodes <= 3  # the root, and what asking takes


def test_a_walk_leaves_no_descriptors_and_little_memory(directory: Path) -> None:
    files, directories = examples(100, 1000), 200
    for number in range(directories):
        (directory / "source" / f"d{number}").mkdir(parents=True)
        for index in range(files):
            (directory / "source" / f"d{number}" / f"a-file-with-a-name-{index}").touch()
    with mounted(directory) as mount:
        before, most = memory_of(mount.pid), 0
        for base, _, names in os.walk(mount.mountpoint):
            for name in names:
                os.lstat(os.path.join(base, name))
            most = max(most, descriptors(mount))
        # The kernel holds them all, unless somebody on this machine drops its caches meanwhile.
        assert most < 100
        assert (memory_of(mount.pid) - before) / (files * directories) < 1024


def memory_of(pid: int) -> int:
    """Resident memory in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) * 1024


# --- a tree that changes wildly --------------------------------------------------------------------------------------


def rampage(place: Path, outside: Path, choose: random.Random) -> None:
    """Do something unkind behind the mount."""
    one, other = (place / f"d{choose.randrange(5)}" for _ in range(2))
    for link in (one, other):
        if link.is_symlink():
            link.unlink()  # ours are not to be led outside either
    with contextlib.suppress(OSError):
        match choose.randrange(7):
            case 0:
                os.rename(one, other / f"in{choose.randrange(3)}")
            case 1:
                os.rename(one / f"in{choose.randrange(3)}", other)
            case 2:
                _linux.renameat2(-100, os.fsencode(one), -100, os.fsencode(other), _linux.RENAME_EXCHANGE)
            case 3:
                os.rename(one, outside / f"aside{choose.randrange(3)}")
                os.symlink(outside / "secrets", one)
            case 4:
                one.mkdir()
            case 5:
                new = place / f"new{choose.randrange(1000)}"
                new.write_text("inside")
                os.rename(new, one / f"f{choose.randrange(3)}")
            case 6:
                os.unlink(one / f"f{choose.randrange(3)}")


def use(root_fd: int, choose: random.Random) -> None:
    """Walk down from a directory of the mount as tar does, never following a link; whatever is read is from inside."""
    fd = os.open(f"d{choose.randrange(5)}", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root_fd)
    try:
        for name in os.listdir(fd):
            status = os.stat(name, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                file_fd = os.open(name, os.O_RDWR | os.O_NOFOLLOW, dir_fd=fd)
                with open(file_fd, "r+b", buffering=0) as file:
                    assert file.read() in (b"inside", b"")
                    os.fstat(file_fd)
                    file.seek(0)
                    file.write(b"inside")
        made = os.open(f"f{choose.randrange(3)}", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=fd)
        os.write(made, b"inside")
        os.close(made)
    finally:
        os.close(fd)


_EXPECTED = {"ENOENT", "ESTALE", "ENOTDIR", "ELOOP", "EEXIST", "ENOTEMPTY", "EISDIR"}


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_the_tree_changes_wildly_while_it_is_used(directory: Path, kind: str) -> None:
    with filesystem("ext4", directory, "1024M") if kind == "ext4" else contextlib.nullcontext(directory) as place:
        outside = place / "outside"
        (outside / "secrets").mkdir(parents=True)
        for name in range(3):
            (outside / "secrets" / f"f{name}").write_text("outside")
        with mounted(place) as mount:
            for number in range(5):
                (mount.source / f"d{number}").mkdir()
            seed = random.randrange(1 << 32)
            print(f"seed {seed}")
            failures: list[str] = []
            end = threading.Event()

            def attack() -> None:
                choose = random.Random(seed)
                while not end.is_set():
                    rampage(mount.source, outside, choose)

            attacker = threading.Thread(target=attack)
            attacker.start()
            root_fd = os.open(mount.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
            try:
                choose = random.Random(seed + 1)
                for _ in range(examples(250, 10_000)):
                    failed = error_of(lambda: use(root_fd, choose))
                    if failed is not None and failed not in _EXPECTED:
                        failures.append(failed)
            finally:
                os.close(root_fd)
                end.set()
                attacker.join()
                # Directories that were moved into each other all the time are too deep for Python to remove.
                subprocess.run(["rm", "-rf", *mount.source.iterdir()], check=True)
            assert failures == []
            assert {(outside / "secrets" / f"f{name}").read_text() for name in range(3)} == {"outside"}


# --- where handles do not do -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def overlay_mounted(directory: Path) -> Iterator[Mount]:
    """Mount over an overlayfs, the lower layer of which has 40 directories of 40 files."""
    for name in ("lower", "upper", "work", "source"):
        (directory / name).mkdir()
    for number in range(40):
        (directory / "lower" / f"d{number}").mkdir()
        for index in range(40):
            (directory / "lower" / f"d{number}" / f"f{index}").write_text(f"{number} {index}")
    options = {"lowerdir": "lower", "upperdir": "upper", "workdir": "work"}
    data = ",".join(f"{option}={directory / place}" for option, place in options.items())
    _linux.mount(b"overlay", os.fsencode(directory / "source"), b"overlay", 0, data.encode())
    try:
        limited = ["prlimit", "--nofile=256:256", *FUSENOTIFY]
        with mounted(directory, command=limited) as mount:
            yield mount
    finally:
        _linux.umount2(os.fsencode(directory / "source"), _linux.MNT_DETACH)


def test_an_overlay_with_few_descriptors(directory: Path) -> None:
    """Without handles that can be opened, 1600 files with 256 descriptors: the tree behaves, what is open stays."""
    with overlay_mounted(directory) as mount:
        held = os.open(mount.mountpoint / "d3" / "f3", os.O_RDWR)
        doomed = os.open(mount.mountpoint / "d4" / "f4", os.O_RDWR)
        place = os.open(mount.mountpoint / "d5", os.O_RDONLY | os.O_DIRECTORY)
        by_path = os.open(mount.mountpoint / "d6" / "f6", os.O_PATH)
        moved = os.open(mount.mountpoint / "d7" / "f7", os.O_PATH)
        os.unlink(mount.mountpoint / "d4" / "f4")
        os.rename(mount.mountpoint / "d7" / "f7", mount.mountpoint / "renamed")
        for _ in range(2):
            for number in set(range(40)) - {4, 7}:  # without those in which a file is missing
                for index in range(40):
                    path = mount.mountpoint / f"d{number}" / f"f{index}"
                    assert path.read_text() == f"{number} {index}"
                    assert os.stat(path).st_ino == (mount.source / f"d{number}" / f"f{index}").stat().st_ino
            assert descriptors(mount) < 200
        assert os.fstat(held).st_size == 3
        os.fchmod(held, 0o640)
        assert os.pread(held, 10, 0) == b"3 3"
        os.ftruncate(doomed, 1)
        assert (os.fstat(doomed).st_nlink, os.fstat(doomed).st_size) == (0, 1)
        assert len(os.listdir(place)) == 40
        assert os.stat("f5", dir_fd=place).st_size == 3
        assert os.fstat(by_path).st_size == os.fstat(moved).st_size == 3
        for fd in (held, doomed, place, by_path, moved):
            os.close(fd)


def test_a_walk_to_another_object_is_stale(directory: Path) -> None:
    """What an evicted node's name leads to is compared before it is used."""
    with overlay_mounted(directory) as mount:
        replaced, moved, gone = (os.open(mount.mountpoint / "d1" / f"f{name}", os.O_PATH) for name in (1, 2, 3))
        with contextlib.ExitStack() as stack:
            for fd in (replaced, moved, gone):
                stack.callback(os.close, fd)
            for path in (
                mount.mountpoint / f"d{number}" / f"f{index}" for number in range(2, 40) for index in range(40)
            ):
                os.stat(path)
            behind = mount.source / "d1"
            (behind / "new").write_text("another")
            os.rename(behind / "new", behind / "f1")
            os.rename(behind / "f2", behind / "elsewhere")
            os.unlink(behind / "f3")
            assert [error_of(lambda fd=fd: os.fstat(fd)) for fd in (replaced, moved, gone)] == ["ESTALE"] * 3  # type: ignore[misc]
            assert (mount.mountpoint / "d1" / "f1").read_text() == "another"
            assert (mount.mountpoint / "d1" / "elsewhere").read_text() == "1 2"
            assert os.fstat(moved).st_size == 3  # found again, as somebody has looked


def test_a_file_of_the_lower_layer_stays_the_same_when_it_is_copied_up(directory: Path) -> None:
    with overlay_mounted(directory) as mount:
        path = mount.mountpoint / "d1" / "f1"
        before = nodeid(path)
        held = os.open(path, os.O_PATH)
        with path.open("a") as file:
            file.write(" more")
        assert nodeid(path) == before
        assert os.fstat(held).st_size == 8
        os.close(held)


# A filesystem that gives no handles at all, not even for comparison.
_NO_HANDLES = """
import errno
from fusenotify import _linux

def name_to_handle_at(dir_fd, name, flags=0):
    raise OSError(errno.EOPNOTSUPP, "no handles")

_linux.name_to_handle_at = name_to_handle_at
"""


def test_without_any_handles(directory: Path) -> None:
    """Device, number and time of birth tell objects apart; handles of the mount are never those of another file."""
    with filesystem("ext4", directory) as place:
        with patched(place, _NO_HANDLES) as mount, contextlib.ExitStack() as stack:
            (mount.source / "d").mkdir()
            for turn in range(300):
                (mount.source / "d" / "f").write_text(f"old {turn}")
                held = os.open(mount.mountpoint / "d" / "f", (os.O_PATH, os.O_RDONLY)[turn % 2])
                stack.callback(os.close, held)
                (mount.source / "d" / "f").unlink()
                (mount.source / "d" / f"f{turn}").write_text(f"new {turn}")
                assert (mount.mountpoint / "d" / f"f{turn}").read_text() == f"new {turn}"
                assert os.fstat(held).st_nlink == 0
            handle = _linux.name_to_handle_at(-100, os.fsencode(mount.mountpoint / "d" / "f7"))
            assert "Traceback" not in mount.log
        (place / "source" / "d" / "f7").unlink()
        (place / "source" / "d" / "f7").write_text("another")
        with patched(place, _NO_HANDLES) as mount:
            assert len(contents(mount.mountpoint)) == 300
            mount_fd = os.open(mount.mountpoint, os.O_RDONLY)
            assert error_of(lambda: _linux.open_by_handle_at(mount_fd, *handle, os.O_RDONLY)) == "ESTALE"
            os.close(mount_fd)
