"""What becomes of a mount whose backing tree goes, fills up, is read-only, or has strange mounts in it."""

import contextlib
import errno
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fusenotify import _linux, mounting
from fusenotify.config import MountFlag, MountOptions
from fusenotify.mountinfo import mount_of
from tests.filesystems import filesystem
from tests.harness import Mount, Watch, mounted, patched, run, wait_for

_MS_BIND = 4096

Start = Callable[..., Watch]


def state_of(target: str | Path) -> str:
    done = run("status", "--json", target)
    assert done.returncode == 0, done.stderr
    found: str = json.loads(done.stdout)["state"]
    return found


def next_event(watch: Watch) -> dict[str, Any]:
    event = watch.next()
    assert event is not None
    return event


def error_of(function: Callable[[], object]) -> str:
    with pytest.raises(OSError) as caught:  # noqa: PT011 - whichever it is, the caller compares it
        function()
    return errno.errorcode[caught.value.errno or 0]


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def detached(stack: ExitStack, path: Path) -> None:
    """See to it that nothing stays mounted at a path."""

    def detach() -> None:
        with contextlib.suppress(OSError):
            _linux.umount2(os.fsencode(path), _linux.MNT_DETACH)

    stack.callback(detach)


def mount_on(stack: ExitStack, source: Path, directory: Path, *arguments: str) -> Mount:
    for name in ("mount", "state"):
        (directory / name).mkdir(exist_ok=True)
    mount = Mount(source, directory / "mount", directory / "state", arguments)
    stack.callback(mount.close)
    return mount


# --- the root goes -------------------------------------------------------------------------------------------------


def test_a_deleted_root(mount: Mount, watching: Start) -> None:
    (mount.source / "a").mkdir()
    (mount.source / "a" / "file").touch()
    watches = [watching(mount.mountpoint), watching(f"unix:{mount.socket}")]
    assert state_of(mount.mountpoint) == "in place"
    with open(mount.mountpoint / "a" / "file", "ab", buffering=0) as file:
        subprocess.run(["rm", "-r", mount.source], check=True)
        for watch in watches:
            told = [(line["kind"], line["path"]) for line in until_unmount(watch)]
            assert told == [("delete", "a/file"), ("delete", "a"), ("unmount", None)]
        assert state_of(f"unix:{mount.socket}") == "deleted"
        file.write(b"what is open stays open")
    assert error_of((mount.mountpoint / "new").mkdir) == "ENOENT"
    assert error_of((mount.mountpoint / "a").stat) == "ENOENT"
    assert os.listdir(mount.mountpoint) == []
    # A new directory of that name is another one.
    mount.source.mkdir()
    (mount.source / "other").touch()
    assert os.listdir(mount.mountpoint) == []
    assert mount.stop() == 0
    assert f"SOURCE {mount.source} has been deleted" in mount.log


def until_unmount(watch: Watch) -> list[dict[str, Any]]:
    told = []
    while (line := watch.next()) is not None:
        told.append(line)
        if line["kind"] == "unmount":
            return told
    raise AssertionError(f"no unmount, but {told}")


def test_a_moved_root(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint)
    mount.source.rename(mount.source.parent / "elsewhere")
    assert [line["kind"] for line in until_unmount(watch)] == ["unmount"]
    assert state_of(mount.mountpoint) == "moved"


def test_an_unmounted_root(directory: Path, stack: ExitStack, watching: Start) -> None:
    source = directory / "source"
    source.mkdir()
    _linux.mount(b"none", os.fsencode(source), b"tmpfs", 0, b"")
    detached(stack, source)
    mount = mount_on(stack, source, directory)
    watch = watching(mount.mountpoint)
    assert subprocess.run(["umount", source], check=False, stderr=subprocess.DEVNULL).returncode != 0  # it is in use
    assert state_of(mount.mountpoint) == "in place"
    subprocess.run(["umount", "--lazy", source], check=True)
    assert [line["kind"] for line in until_unmount(watch)] == ["unmount"]
    assert state_of(mount.mountpoint) == "unmounted"


_NO_INSTANCE = """
from fusenotify import root

def none_left(**kwargs):
    raise OSError(24, "Too many open files")

root.INotify = none_left
"""


def test_a_root_whose_parent_cannot_be_watched(directory: Path) -> None:
    with patched(directory, _NO_INSTANCE) as mount:
        (mount.mountpoint / "file").write_text("served")
        mount.source.joinpath("file").unlink()
        mount.source.rmdir()
        assert error_of((mount.mountpoint / "new").mkdir) == "ENOENT"
        assert mount.stop() == 0


def test_deletions_beside_the_root_do_not_matter(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint)
    for _ in range(3):
        beside = mount.source.parent / "beside"
        beside.mkdir()
        beside.rmdir()
    (mount.source / "x").mkdir()
    assert [line["kind"] for line in watch.until("x")] == ["create"]
    assert state_of(mount.mountpoint) == "in place"


# --- strange mounts inside ------------------------------------------------------------------------------------------


def test_the_own_mount_inside_the_tree_is_not_entered(mount: Mount, stack: ExitStack, watching: Start) -> None:
    """Root can mount it there by hand; a daemon that goes in waits for its own answer, and so does everybody."""
    inside = mount.source / "inside"
    inside.mkdir()
    (mount.source / "file").touch()
    watch = watching(mount.mountpoint)
    _linux.mount(os.fsencode(mount.mountpoint), os.fsencode(inside), b"", _MS_BIND, b"")
    detached(stack, inside)
    while "its own mount inside" not in mount.log:
        assert mount.process.poll() is None
        os.stat(mount.mountpoint)
    assert error_of((mount.mountpoint / "inside").stat) == "ELOOP"
    assert error_of((mount.mountpoint / "inside" / "file").touch) == "ELOOP"
    assert error_of((mount.mountpoint / "inside").rmdir) in ("ELOOP", "EBUSY")
    assert sorted(os.listdir(mount.mountpoint)) == ["file", "inside"]
    (mount.source / "remote").mkdir()
    watch.until("remote")
    _linux.umount2(os.fsencode(inside), 0)
    while True:
        with contextlib.suppress(OSError):
            assert (mount.mountpoint / "inside").is_dir()
            (mount.mountpoint / "inside").stat()
            break
    assert os.listdir(mount.mountpoint / "inside") == []


def test_a_dead_mount_inside_the_tree_is_listed_and_says_what_it_is(directory: Path, stack: ExitStack) -> None:
    source = directory / "source"
    (source / "dead").mkdir(parents=True)
    (source / "file").touch()
    (directory / "empty").mkdir()
    with mounted(directory) as mount:
        target = mounting.Target(directory / "empty", source / "dead", directory / "none")
        detached(stack, source / "dead")
        os.close(mounting.mount_fuse(target, MountOptions()))
        assert error_of((source / "dead").stat) == "ENOTCONN"
        assert sorted(os.listdir(mount.mountpoint)) == ["dead", "file"]
        assert error_of((mount.mountpoint / "dead").stat) == "ENOTCONN"
        _linux.umount2(os.fsencode(source / "dead"), _linux.MNT_DETACH)
        assert (mount.mountpoint / "dead").is_dir()


def test_a_tree_is_not_mounted_inside_itself_by_way_of_another_mount(mount: Mount, directory: Path) -> None:
    (mount.source / "place").mkdir()
    done = run("mount", mount.mountpoint, mount.source / "place", "--state-dir", directory / "other-state")
    assert done.returncode == 4
    assert f"lies inside {mount.source}, which SOURCE {mount.mountpoint} shows" in done.stderr


def test_what_is_mounted_in_the_tree_later_is_heard(mount: Mount, stack: ExitStack, watching: Start) -> None:
    place = mount.source / "place"
    place.mkdir()
    watch = watching(mount.mountpoint)
    _linux.mount(b"fusenotify-test", os.fsencode(place), b"tmpfs", 0, b"")
    detached(stack, place)
    assert next_event(watch)["kind"] == "overflow"  # nothing tells what is in there
    (place / "file").touch()
    watch.until("place/file")
    _linux.umount2(os.fsencode(place), 0)  # not busy: nothing of it is kept
    while next_event(watch)["kind"] != "overflow":
        pass
    (place / "other").touch()
    watch.until("place/other")


# --- kinds of backing -----------------------------------------------------------------------------------------------


def test_a_read_only_backing(directory: Path, stack: ExitStack, watching: Start) -> None:
    source = directory / "source"
    source.mkdir()
    (source / "file").write_text("content")
    _linux.mount(os.fsencode(source), os.fsencode(source), b"", _MS_BIND, b"")
    detached(stack, source)
    _linux.mount(b"", os.fsencode(source), b"", _MS_BIND | 32 | MountFlag.RDONLY, b"")
    mount = mount_on(stack, source, directory)
    watching(f"unix:{mount.socket}")
    assert (mount.mountpoint / "file").read_text() == "content"
    assert error_of((mount.mountpoint / "new").touch) == "EROFS"
    assert error_of(lambda: (mount.mountpoint / "file").open("w")) == "EROFS"
    assert error_of((mount.mountpoint / "file").unlink) == "EROFS"


def test_an_overlay_as_backing(directory: Path, stack: ExitStack, watching: Start) -> None:
    """As in a container: no file handles there, and objects change their identity when they are copied up."""
    layers = [directory / name for name in ("lower", "upper", "work", "source")]
    for layer in layers:
        layer.mkdir()
    lower, upper, work, source = layers
    (lower / "sub").mkdir()
    (lower / "sub" / "file").write_text("below")
    data = f"lowerdir={lower},upperdir={upper},workdir={work}"
    _linux.mount(b"overlay", os.fsencode(source), b"overlay", 0, data.encode())
    detached(stack, source)
    mount = mount_on(stack, source, directory)
    watch = watching(mount.mountpoint)
    with (mount.mountpoint / "sub" / "file").open("a") as file:
        file.write(" and above")
    assert (source / "sub" / "file").read_text() == "below and above"
    assert (lower / "sub" / "file").read_text() == "below"
    (mount.mountpoint / "sub" / "file").rename(mount.mountpoint / "sub" / "renamed")
    (source / "sub" / "remote").write_text("x")
    assert (mount.mountpoint / "sub" / "remote").read_text() == "x"
    assert {"sub/renamed"} <= {line["path"] for line in watch.until("sub/remote")}
    assert sorted(os.listdir(mount.mountpoint / "sub")) == ["remote", "renamed"]


# --- no space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ext4", "xfs"])
def test_a_full_disk(directory: Path, stack: ExitStack, watching: Start, kind: str) -> None:
    """What the backing took is there, and no more is said to be written than was."""
    source = stack.enter_context(filesystem(kind, directory, "16M")) / "tree"
    source.mkdir()
    (source / "kept").write_bytes(b"kept" * 1000)
    mount = mount_on(stack, source, directory)
    watch = watching(mount.mountpoint)
    written = 0
    block = bytes(range(256)) * 4096
    with open(mount.mountpoint / "big", "wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012 - whichever does not fit
            while True:
                written += file.write(block)
        assert os.fstat(file.fileno()).st_size == written
    found = (source / "big").read_bytes()
    assert len(found) == written
    assert found == (block * (written // len(block) + 1))[:written]
    filled(source)
    assert error_of(lambda: (mount.mountpoint / "kept").write_bytes(b"other" * 10_000_000)) == "ENOSPC"
    assert (mount.mountpoint / "kept").read_bytes() == (source / "kept").read_bytes()
    (mount.mountpoint / "big").unlink()
    wait_for(
        lambda: os.statvfs(source).f_bavail * os.statvfs(source).f_frsize > 2 * len(block)
    )  # it is freed some time
    (mount.mountpoint / "after").write_bytes(block)
    assert (source / "after").read_bytes() == block
    assert "after" in [line["path"] for line in watch.until("after")]


def filled(directory: Path) -> None:
    """Use up what is left behind the mount."""
    fd = os.open(directory / "kept", os.O_WRONLY | os.O_APPEND)
    for size in (65536, 4096, 512):
        with contextlib.suppress(OSError):
            while True:
                os.write(fd, bytes(size))
    os.close(fd)


# After 100 000 bytes the backing filesystem says that a quota is used up. (Kernels without quotas run these tests too.)
_QUOTA = """
import errno, os
from fusenotify.files import Files
write = Files.write

def limited(self, fh, offset, data):
    if offset >= 100_000:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    return write(self, fh, offset, data[: 100_000 - offset])

Files.write = limited
"""


def test_a_quota_that_is_used_up(directory: Path) -> None:
    with patched(directory, _QUOTA) as mount:
        written = 0
        fd = os.open(mount.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match="Disk quota exceeded"):  # noqa: PT012 - whichever does not fit
            while True:
                written += os.write(fd, bytes(30_000))
        os.close(fd)
        assert (mount.source / "file").stat().st_size == written == 100_000


def test_no_inode_left(directory: Path, stack: ExitStack, watching: Start) -> None:
    source = directory / "source"
    source.mkdir()
    _linux.mount(b"none", os.fsencode(source), b"tmpfs", 0, b"nr_inodes=8")
    detached(stack, source)
    mount = mount_on(stack, source, directory)
    watch = watching(mount.mountpoint)
    made = []
    with pytest.raises(OSError, match="No space left on device"):  # noqa: PT012 - whichever does not fit
        for number in range(20):
            (mount.mountpoint / f"{number}").mkdir()
            made.append(f"{number}")
    assert sorted(os.listdir(source)) == sorted(made)
    assert [(line["kind"], line["path"]) for line in watch.until(made[-1])] == [("create", name) for name in made]


def closed(fd: int) -> None:
    """Close what nobody serves any more, which close(2) says."""
    with contextlib.suppress(OSError):
        os.close(fd)


# --- the end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unmounts_with_open_files(mount: Mount, how: signal.Signals) -> None:
    (mount.source / "directory").mkdir()
    with ExitStack() as stack:
        file = os.open(mount.mountpoint / "file", os.O_CREAT | os.O_WRONLY)
        stack.callback(closed, file)
        os.write(file, b"written before")
        fd = os.open(mount.mountpoint / "directory", os.O_RDONLY)
        stack.callback(closed, fd)
        sleeper = subprocess.Popen(["sleep", "60"], cwd=mount.mountpoint / "directory")
        stack.callback(sleeper.wait)
        stack.callback(sleeper.kill)
        assert mount.stop(how) == 0
        assert mount_of(str(mount.mountpoint)) is None
        assert os.listdir(mount.mountpoint) == []
        assert error_of(lambda: os.listdir(fd)) in ("ENOTCONN", "ECONNABORTED")
    assert (mount.source / "file").read_text() == "written before"


def test_after_a_kill_the_mount_is_dead_and_can_be_made_anew(mount: Mount, directory: Path) -> None:
    (mount.mountpoint / "file").write_text("before")
    with ExitStack() as stack:
        file = os.open(mount.mountpoint / "file", os.O_RDONLY)
        stack.callback(closed, file)
        mount.stop(signal.SIGKILL)
        assert error_of((mount.mountpoint / "file").stat) == "ENOTCONN"
        assert error_of(lambda: os.pread(file, 1, 0)) in ("ENOTCONN", "ECONNABORTED")
        again = ("mount", mount.source, mount.mountpoint, "--daemon", "--state-dir", directory / "state")
        refused = run(*again)
        assert refused.returncode == 4
        assert f"fusenotify umount --lazy {mount.mountpoint}" in refused.stderr
        assert run("umount", "--lazy", mount.mountpoint).returncode == 0
        done = run(*again)
        assert (done.returncode, done.stderr) == (0, "")
        try:
            assert (mount.mountpoint / "file").read_text() == "before"
        finally:
            assert run("umount", mount.mountpoint).returncode == 0
