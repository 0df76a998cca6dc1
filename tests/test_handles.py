"""Handles that last: of the mount (name_to_handle_at), and those that clients get; never to another file."""

import asyncio
import base64
import contextlib
import errno
import json
import os
import select
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

import fusenotify
from fusenotify import StaleHandle, UsageError, _linux
from tests.filesystems import filesystem
from tests.harness import PATIENCE, Mount, mounted
from tests.test_inodes import drop_caches, make_with_number, nodeid_in, tmpfs_at, wait_until

OTHER = 12345  # a user without any rights of its own
Handle = tuple[int, bytes]


@pytest.fixture(params=["tmpfs", "ext4", "xfs"])
def place(directory: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory on each kind of filesystem."""
    if request.param == "tmpfs":
        yield directory
        return
    with filesystem(request.param, directory) as where:
        yield where


def handle_of(path: Path) -> Handle:
    return _linux.name_to_handle_at(-100, os.fsencode(path))


def opened(mount: Mount, handle: Handle) -> object:
    """Return what a handle of the mount opens: a file's content or a directory's entries; or the name of the errno."""
    mount_fd = os.open(mount.mountpoint, os.O_RDONLY)
    try:
        fd = _linux.open_by_handle_at(mount_fd, *handle, os.O_RDONLY)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(mount_fd)
    try:
        return sorted(os.listdir(fd)) if os.path.isdir(f"/proc/self/fd/{fd}") else os.read(fd, 100).decode()
    finally:
        os.close(fd)


def fill(source: Path) -> None:
    (source / "d" / "sub").mkdir(parents=True)
    for name in ("same", "renamed", "moved", "deleted", "replaced", "left"):
        (source / "d" / name).write_text(name)
    (source / "d" / "link").symlink_to("same")
    os.mkfifo(source / "d" / "fifo")


def change(source: Path) -> None:
    """What happens behind the mount while nobody is there."""
    (source / "d" / "renamed").rename(source / "d" / "other name")
    (source / "away").mkdir()
    (source / "d" / "moved").rename(source / "away" / "elsewhere")
    (source / "d" / "deleted").unlink()
    (source / "d" / "new").write_text("another")
    (source / "d" / "new").rename(source / "d" / "replaced")
    (source / "d" / "left").rename(source.parent / "outside")
    (source / "d").rename(source / "away" / "d")


_AFTERWARDS = {
    "same": "same",
    "renamed": "renamed",
    "moved": "moved",
    "deleted": "ESTALE",
    "replaced": "ESTALE",
    "left": "ESTALE",
    "sub": [],
}


# --- handles of the mount --------------------------------------------------------------------------------------------


def test_handles_of_the_mount_outlive_the_daemon(place: Path) -> None:
    with mounted(place) as mount:
        fill(mount.source)
        handles = {name: handle_of(mount.mountpoint / "d" / name) for name in _AFTERWARDS}
        root = handle_of(mount.mountpoint)
        assert mount.stop() == 0
    with mounted(place) as mount:
        assert {name: opened(mount, handle) for name, handle in handles.items()} == {
            name: [] if name == "sub" else name for name in handles
        }
        assert opened(mount, root) == ["d"]
        assert mount.stop() == 0
    change(place / "source")
    for _ in range(2):  # and again: nothing was forgotten
        with mounted(place) as mount:
            assert {name: opened(mount, handle) for name, handle in handles.items()} == _AFTERWARDS
            assert mount.stop() == 0


def test_handles_of_the_mount_while_the_tree_changes(place: Path) -> None:
    """The kernel has forgotten the nodes; the daemon has not been restarted."""
    with mounted(place) as mount:
        fill(mount.source)
        handles = {name: handle_of(mount.mountpoint / "d" / name) for name in _AFTERWARDS}
        change(mount.source)
        drop_caches()
        assert {name: opened(mount, handle) for name, handle in handles.items()} == _AFTERWARDS
        (mount.source.parent / "outside").rename(mount.source / "back")
        assert (mount.mountpoint / "back").read_text() == "left"
        assert opened(mount, handles["left"]) == "left"


def test_a_handle_of_a_number_that_is_another_files_by_now(directory: Path) -> None:
    with filesystem("ext4", directory) as place:
        with mounted(place) as mount:
            (mount.source / "a").write_text("a")
            handle, number = handle_of(mount.mountpoint / "a"), (mount.source / "a").stat().st_ino
            assert mount.stop() == 0
        (place / "source" / "a").unlink()
        make_with_number(place / "source" / "b", number)
        with mounted(place) as mount:
            assert opened(mount, handle) == "ESTALE"
            assert (mount.mountpoint / "b").read_text() == "b"
            assert handle_of(mount.mountpoint / "b")[1][:8] == handle[1][:8]  # one nodeid, two generations
            assert opened(mount, handle) == "ESTALE"
            drop_caches()
            assert opened(mount, handle) == "ESTALE"
            assert opened(mount, handle_of(mount.mountpoint / "b")) == "b"


def test_crafted_handles_open_nothing(directory: Path) -> None:
    """Numbers that were never given out: of files outside, of nodes of other kinds, of nothing."""
    (directory / "source").mkdir()
    outside = directory / "outside"
    outside.write_text("secret")
    with mounted(directory) as mount:
        (mount.source / "unseen").write_text("never looked up")
        numbers = [os.stat(path).st_ino for path in (outside, directory, mount.source, mount.source / "unseen")]
        for number in (*numbers, 0, 2, 1 << 61, 1 << 62, (1 << 62) + 20, (1 << 64) - 1):
            words = struct.pack("=III", number >> 32, number & 0xFFFFFFFF, 0)
            for handle in ((0x81, words), (0x82, words * 2), (1, words), (0x81, words[:8])):
                assert opened(mount, handle) == "ESTALE"


def test_a_handle_of_a_file_on_a_filesystem_below(directory: Path) -> None:
    (directory / "source" / "below").mkdir(parents=True)
    with tmpfs_at(directory / "source" / "below"):
        (directory / "source" / "below" / "d").mkdir()
        (directory / "source" / "below" / "d" / "file").write_text("below")
        with mounted(directory) as mount:
            # Not `d`: the kernel finds the way up from a directory by numbers in listings, which are not the backing's.
            handles = [handle_of(mount.mountpoint / "below" / name) for name in (".", "d/file")]
            assert mount.stop() == 0
        with mounted(directory) as mount:
            for _ in range(2):
                assert [opened(mount, handle) for handle in reversed(handles)] == ["below", ["d"]]
                drop_caches()
            assert mount.stop() == 0
        _linux.umount2(os.fsencode(directory / "source" / "below"), 0)
        with mounted(directory) as mount:
            assert [opened(mount, handle) for handle in handles] == ["ESTALE"] * 2


def test_a_killed_daemon_knows_what_it_had_written(mount: Mount, directory: Path) -> None:
    fill(mount.source)
    handle = handle_of(mount.mountpoint / "d" / "same")
    nodeid = nodeid_in(handle)

    def is_written() -> bool:
        with contextlib.closing(sqlite3.connect(directory / "state" / "store.sqlite")) as database:
            return bool(list(database.execute("SELECT 1 FROM node WHERE nodeid = ?", (nodeid,))))

    wait_until(is_written)
    mount.stop(signal.SIGKILL)
    _linux.umount2(os.fsencode(mount.mountpoint), _linux.MNT_DETACH)
    with mounted(directory) as again:
        assert opened(again, handle) == "same"


# --- handles of clients ----------------------------------------------------------------------------------------------


async def stale(target: Path | str, handle: str) -> str:
    """Return why a handle is refused."""
    with pytest.raises(StaleHandle) as caught:
        await fusenotify.locate(target, handle)
    return str(caught.value)


async def test_lookup_and_locate(place: Path) -> None:
    names = ("same", "renamed", "moved", "deleted", "replaced", "left", "sub", "fifo")
    with mounted(place) as mount:
        fill(mount.source)
        handles = {name: await fusenotify.lookup(mount.mountpoint / "d" / name) for name in names}
        assert len(set(handles.values())) == len(handles)
        assert await fusenotify.lookup(mount.mountpoint / "d" / "link") == handles["same"]
        root = await fusenotify.lookup(mount.mountpoint)
        assert await fusenotify.locate(mount.mountpoint / "d", root) == "."
        for name, handle in handles.items():
            assert await fusenotify.locate(mount.mountpoint, handle) == f"d/{name}"
            assert await fusenotify.locate(f"unix:{mount.socket}", handle) == f"d/{name}"
        change(mount.source)
        where = {"same": "away/d/same", "renamed": "away/d/other name", "moved": "away/elsewhere", "sub": "away/d/sub"}
        for name in names:
            if name in where:
                assert await fusenotify.locate(mount.mountpoint, handles[name]) == where[name]
            elif name != "fifo":
                assert "gone, or lies outside" in await stale(mount.mountpoint, handles[name])
        assert mount.stop() == 0
    with mounted(place) as mount:
        for name, path in where.items():
            assert await fusenotify.locate(mount.mountpoint, handles[name]) == path
        for name in ("deleted", "replaced", "left"):
            assert "gone, or lies outside" in await stale(mount.mountpoint, handles[name])
        assert await fusenotify.lookup(mount.mountpoint / where["same"]) == handles["same"]
        with pytest.raises(UsageError, match="does not exist"):
            await fusenotify.lookup(mount.mountpoint / "none")


def test_under_asyncio(mount: Mount) -> None:
    (mount.source / "file").touch()
    handle = asyncio.run(fusenotify.lookup(mount.mountpoint / "file"))
    assert asyncio.run(fusenotify.locate(mount.mountpoint, handle)) == "file"


async def test_deep_below(place: Path) -> None:
    """Deeper than a path can be long: the kernel tells no path there."""
    (place / "source").mkdir()
    fd = os.open(place / "source", os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=fd)
        deeper = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=fd))
    os.close(fd)
    path = "/".join(["d" * 100] * 60 + ["file"])
    with mounted(place) as mount:
        kind, text = asked_as_root(str(mount.mountpoint / ".fusenotify" / "queue"), path.encode())
        assert kind == "handle"
        handle = text[2:].partition("'")[0]
        assert await fusenotify.locate(mount.mountpoint, handle) == path
        assert mount.stop() == 0
    with mounted(place) as mount:
        assert await fusenotify.locate(mount.mountpoint, handle) == path


async def test_a_name_that_is_no_text(mount: Mount) -> None:
    name = os.fsdecode(b"\xff\n\xfe")
    (mount.source / name).touch()
    handle = await fusenotify.lookup(mount.mountpoint / name)
    assert await fusenotify.locate(mount.mountpoint, handle) == name


async def test_forged_handles(mount: Mount, directory: Path) -> None:
    (mount.source / "file").touch()
    handle = await fusenotify.lookup(mount.mountpoint / "file")
    data = bytearray(base64.urlsafe_b64decode(handle[2:] + "=" * (-len(handle[2:]) % 4)))
    for index in range(8, len(data)):
        data[index] ^= 1
        forged = "h:" + base64.urlsafe_b64encode(data).rstrip(b"=").decode()
        assert "forged" in await stale(mount.mountpoint, forged)
        data[index] ^= 1
    for nonsense in ("", "h:", "h:!", "h:AAAA", "x" * 5000, handle[2:], handle + "é", handle[:-4], "h:" + "A" * 200):
        await stale(mount.mountpoint, nonsense)
    assert await fusenotify.locate(mount.mountpoint, handle) == "file"
    other = directory / "other"
    other.mkdir()
    with mounted(other) as another:
        (another.source / "file").touch()
        assert "another tree" in await stale(another.mountpoint, handle)


def asked_as_other(path: str, *arguments: str) -> list[str]:
    """Ask through the queue file as a user without rights; return the kind of answer, and what it says."""
    program = (
        "import os, sys, json, msgspec, struct, select\n"
        f"os.setgroups([]); os.setresgid({OTHER}, {OTHER}, {OTHER}); os.setresuid({OTHER}, {OTHER}, {OTHER})\n"
        f"fd = os.open({path!r}, os.O_RDWR | os.O_NONBLOCK)\n"
        f"payload = msgspec.msgpack.encode([{arguments[0]!r}, 1, {arguments[1]}])\n"
        "os.write(fd, struct.pack('<I', len(payload)) + payload)\n"
        "select.select([fd], [], [])\n"
        "answer = msgspec.msgpack.decode(os.read(fd, 1 << 16)[4:])\n"
        "print(json.dumps([answer[0], repr(answer[2:])]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=PATIENCE, check=True, text=True)
    answer: list[str] = json.loads(done.stdout)
    return answer


def let_others_in(mount: Mount) -> None:
    mount.source.parent.chmod(0o755)
    mount.source.chmod(0o755)


async def test_who_cannot_reach_an_object_does_not_learn_where_it_is(directory: Path) -> None:
    with mounted(directory, ["-o", "allow_other"]) as mount:
        let_others_in(mount)
        (mount.source / "open").mkdir(mode=0o755)
        (mount.source / "hidden").mkdir(mode=0o700)
        for name in ("open/file", "hidden/secret"):
            (mount.source / name).touch()
        queue = str(mount.mountpoint / ".fusenotify" / "queue")
        seen, unseen = [await fusenotify.lookup(mount.mountpoint / name) for name in ("open/file", "hidden/secret")]
        assert asked_as_other(queue, "lookup", "b'open/file'") == ["handle", f"[{seen!r}, False]"]
        assert asked_as_other(queue, "locate", repr(seen)) == ["location", "[b'open/file']"]
        for question in (("lookup", "b'hidden/secret'"), ("lookup", "b'hidden/none'"), ("locate", repr(unseen))):
            kind, text = asked_as_other(queue, *question)
            assert (kind, "not-permitted" in text) == ("error", True)
            assert "secret" not in text or question[0] == "lookup"


async def test_a_queue_file_in_a_subdirectory_tells_of_nothing_outside(directory: Path) -> None:
    with mounted(directory, ["-o", "allow_other"]) as mount:
        let_others_in(mount)
        (mount.source / "sub" / "dir").mkdir(parents=True)
        (mount.source / "sub" / "file").touch()
        (mount.source / "sub" / ".fusenotify").touch()
        (mount.source / "outside").touch()
        queue = str(mount.mountpoint / "sub" / ".fusenotify" / "queue")
        inside, itself, outside = [
            await fusenotify.lookup(mount.mountpoint / name) for name in ("sub/file", "sub", "outside")
        ]
        assert asked_as_other(queue, "lookup", "b'file'") == ["handle", f"[{inside!r}, False]"]
        assert asked_as_other(queue, "lookup", "b'.'") == ["handle", f"[{itself!r}, True]"]
        assert asked_as_other(queue, "locate", repr(inside)) == ["location", "[b'file']"]
        assert asked_as_other(queue, "locate", repr(itself)) == ["location", "[b'.']"]
        for question in (
            ("locate", repr(outside)),
            ("lookup", "b'../outside'"),
            ("lookup", "b'/outside'"),
            ("lookup", "b'.fusenotify'"),
        ):
            assert asked_as_other(queue, *question)[0] == "error"


async def test_a_link_that_is_swapped_in_leads_nowhere(mount: Mount, directory: Path) -> None:
    (directory / "secret").touch()
    (mount.source / "d").symlink_to(directory)
    queue = str(mount.mountpoint / ".fusenotify" / "queue")
    kind, text = asked_as_root(queue, b"d/secret")
    assert (kind, "usage" in text) == ("error", True)


def asked_as_root(path: str, lookup: bytes) -> tuple[str, str]:
    """Look a path up without having the client resolve links."""
    fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        payload = msgspec.msgpack.encode(["lookup", 1, lookup])
        os.write(fd, struct.pack("<I", len(payload)) + payload)
        select.select([fd], [], [], PATIENCE)
        answer = msgspec.msgpack.decode(os.read(fd, 1 << 16)[4:])
    finally:
        os.close(fd)
    return answer[0], repr(answer[2:])
