"""Whose files are, and with whose rights the daemon of root acts for those who use its mount."""

import ctypes
import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from fusenotify import _linux
from tests.filesystems import filesystem
from tests.harness import Mount, Watch, mounted, patched
from tests.ordinary import NOBODY
from tests.users import User, Users, users

CAP_SYS_RESOURCE = 24
_CLONE_NEWUSER = 0x10000000


@pytest.fixture(scope="module")
def everybody() -> Iterator[Users]:
    with users() as who:
        yield who


@pytest.fixture
def shared(directory: Path) -> Iterator[Mount]:
    """A mount that everybody may use and write to."""
    directory.chmod(0o755)
    with mounted(directory, ["-o", "allow_other"]) as mount:
        mount.source.chmod(0o777)
        yield mount


def make_many(place: Path) -> None:
    """Make objects of every kind that an ordinary user can make."""
    for number in range(300):
        with open(place / f"file{number}", "w") as file:
            file.write("x")
        os.mkdir(place / f"dir{number}")
        os.symlink("x", place / f"link{number}")
        os.mkfifo(place / f"fifo{number}")
        os.mknod(place / f"sock{number}", stat.S_IFSOCK | 0o600)
        os.link(place / f"file{number}", place / f"hard{number}")


def test_new_files_belong_at_no_moment_to_root(shared: Mount, everybody: Users) -> None:
    owners: set[tuple[int, int]] = set()
    ended = threading.Event()

    def look() -> None:
        while not ended.is_set():
            with os.scandir(shared.source) as listing:
                for entry in listing:
                    status = entry.stat(follow_symlinks=False)
                    owners.add((status.st_uid, status.st_gid))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        everybody.alice(make_many, shared.mountpoint)
    finally:
        ended.set()
        looking.join()
    assert owners == {(everybody.alice.uid, everybody.alice.gid)}
    assert len(os.listdir(shared.source)) == 1800


def unlink_as_root_of_a_namespace(path: Path) -> None:
    """Remove a file with all capabilities that an ordinary user can give itself."""
    child = os.fork()
    if child == 0:
        try:
            assert ctypes.CDLL(None).unshare(_CLONE_NEWUSER) == 0
            os.unlink(path)
        except PermissionError:
            os._exit(1)
        finally:
            os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1:
        raise PermissionError


# What is behind the name is another user's by the time that the request arrives.
_REPLACED = """
import os
from fusenotify.passthrough import Passthrough

def after_replacing(method):
    def call(self, *args):
        if os.path.exists("{private}/theirs"):
            os.rename("{private}/theirs", "{place}/name")
        return method(self, *args)
    return call

for name in ("unlink", "rename"):
    setattr(Passthrough, name, after_replacing(getattr(Passthrough, name)))
"""


@pytest.mark.parametrize("call", ["unlink", "rename from", "rename onto", "unlink as root of a namespace"])
def test_what_was_replaced_after_the_kernel_had_looked_is_safe(directory: Path, everybody: Users, call: str) -> None:
    directory.chmod(0o755)
    place, private = directory / "source" / "sticky", directory / "private"
    place.mkdir(parents=True)
    place.chmod(0o1777)
    private.mkdir()
    patch = _REPLACED.format(private=private, place=place)
    with patched(directory, patch, ["-o", "allow_other"]) as mount:
        sticky = mount.mountpoint / "sticky"
        everybody.alice(Path.touch, sticky / "name")
        everybody.alice(Path.touch, sticky / "hers")
        (private / "theirs").write_text("root's")
        calls: dict[str, Callable[[], None]] = {
            "unlink": partial(os.unlink, sticky / "name"),
            "rename from": partial(os.rename, sticky / "name", sticky / "moved"),
            "rename onto": partial(os.rename, sticky / "hers", sticky / "name"),
            "unlink as root of a namespace": partial(unlink_as_root_of_a_namespace, sticky / "name"),
        }
        with pytest.raises(PermissionError):
            everybody.alice(calls[call])
        assert (place / "name").read_text() == "root's"


# A filesystem with attributes of its own, such as NFS version 4 with `system.nfs4_acl`, which notes who sets them.
_OWN_ATTRIBUTE = """
import os
setxattr = os.setxattr

def noting(path, name, value):
    if name != b"system.own":
        return setxattr(path, name, value)
    with open("/proc/thread-self/status") as file:
        fields = dict(line.rstrip().split(":\\t", 1) for line in file)
    setxattr(path, b"user.said", f"{fields['Uid'].split()[3]} {fields['Gid'].split()[3]} {fields['Groups']}".encode())

os.setxattr = noting
"""


def test_system_attributes_are_set_as_the_caller(directory: Path, everybody: Users) -> None:
    directory.chmod(0o755)
    with patched(directory, _OWN_ATTRIBUTE, ["-o", "allow_other"]) as mount:
        path = mount.mountpoint / "file"
        path.touch()
        path.chmod(0o666)
        everybody.alice(os.setxattr, path, "system.own", b"x")
        assert os.getxattr(path, "user.said").split() == b"12345 12345 54321".split()


def test_blocks_reserved_for_root_are_not_for_others(directory: Path, everybody: Users) -> None:
    directory.chmod(0o755)
    with filesystem("ext4", directory, "16M") as place, mounted(place, ["-o", "allow_other"]) as mount:
        mount.source.chmod(0o777)
        reserved = os.statvfs(place).f_bfree - os.statvfs(place).f_bavail
        assert reserved > 100
        filled = [everybody.alice(fill, mount.mountpoint / name) for name in ("by write", "by truncate")]
        assert filled == [errno.ENOSPC] * 2
        assert os.statvfs(mount.mountpoint).f_bfree >= reserved - 8
        (mount.mountpoint / "root's").write_bytes(b"x" * 100_000)
        os.sync()
        assert os.statvfs(mount.mountpoint).f_bfree < reserved - 8


def fill(path: Path) -> int | None:
    """Write until nothing more goes; return the errno."""
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        while True:
            os.write(fd, b"x" * 65536)
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)


def test_the_daemon_has_no_right_to_exceed_quotas(mount: Mount) -> None:
    for task in Path(f"/proc/{mount.pid}/task").iterdir():
        fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
        for name in ("CapEff", "CapPrm"):
            assert not int(fields[name], 16) >> CAP_SYS_RESOURCE & 1


def test_the_daemon_of_a_user_may_say_now_where_it_may_write(directory: Path, nobody: list[str]) -> None:
    """To set both times to now takes the right to write; to anything else, the owner."""
    directory.chmod(0o755)
    for name in ("source", "mount", "state"):
        (directory / name).mkdir()
        os.chown(directory / name, NOBODY, NOBODY)
    theirs = directory / "source" / "theirs"
    theirs.touch()
    theirs.chmod(0o666)
    os.utime(theirs, (1, 1))
    with mounted(directory, command=[*nobody, "-m", "fusenotify"]) as mount, User(NOBODY, NOBODY, ()) as user:
        user(os.utime, mount.mountpoint / "theirs")
        assert theirs.stat().st_mtime > 1
        with pytest.raises(PermissionError):
            user(os.utime, mount.mountpoint / "theirs", (1, 1))


CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER = 0, 1, 3
_PR_SET_KEEPCAPS = 8


def use_capabilities(place: Path, uid: int, capabilities: int) -> list[str]:
    """Become a user that keeps some of root's rights, use them, and return what was refused."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    assert ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setresuid(uid, uid, uid)
    _linux.raise_capabilities(capabilities)
    refused = []
    calls: dict[str, Callable[[], object]] = {
        "make": partial(os.mkdir, place / "new"),
        "link": partial(os.link, place / "file", place / "link"),
        "rename": partial(os.rename, place / "old", place / "renamed"),
        "remove": partial(os.unlink, place / "gone"),
        "truncate": partial(os.truncate, place / "file", 1),
        "write": partial(Path(place / "file").write_text, "written"),
        "attribute": partial(os.setxattr, place / "file", "user.x", b"1"),
        "mode": partial(os.chmod, place / "file", 0o640),
        "owner": partial(os.chown, place / "file", 5, 6),
    }
    for name, call in calls.items():
        try:
            call()
        except PermissionError:
            refused.append(name)
    return refused


@pytest.mark.parametrize("number", [None, CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER])
def test_who_has_rights_without_being_root(shared: Mount, directory: Path, number: int | None) -> None:
    refused = []
    for place in (shared.mountpoint, directory):
        (place / "theirs").mkdir()
        for name in ("file", "old", "gone"):
            (place / "theirs" / name).write_text("x")
        with User(0, 0, ()) as user:
            refused.append(user(use_capabilities, place / "theirs", 12345, 0 if number is None else 1 << number))
    assert refused[0] == refused[1]
    assert len(refused[0]) == {None: 9, CAP_CHOWN: 8, CAP_DAC_OVERRIDE: 2, CAP_FOWNER: 8}[number]


FEW_DESCRIPTORS = """
import resource
from fusenotify import process
process._raise_descriptor_limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (600, 600))
"""


def open_until_refused(place: Path) -> tuple[list[int], int]:
    """Open a file again and again; return the descriptors, and why that came to an end."""
    found: list[int] = []
    try:
        while True:
            found.append(os.open(place / "file", os.O_RDONLY))
    except OSError as error:
        return found, error.errno or 0


def close_all(descriptors: list[int]) -> None:
    for fd in descriptors:
        os.close(fd)


def test_no_user_has_all_descriptors(directory: Path, everybody: Users, watching: Callable[..., Watch]) -> None:
    directory.chmod(0o755)
    with patched(directory, FEW_DESCRIPTORS, ["-o", "allow_other"]) as mount:
        (mount.source / "file").touch(mode=0o644)
        watch = watching(mount.mountpoint)
        opened, why = everybody.alice(open_until_refused, mount.mountpoint)
        assert (len(opened) > 100, why) == (True, errno.ENFILE)
        fds, _ = everybody.bob(open_until_refused, mount.mountpoint)
        assert fds  # there is something left for others
        (mount.mountpoint / "new").mkdir()
        (mount.source / "new" / "file").touch()
        watch.until("new/file")  # and for the daemon itself
        everybody.alice(close_all, opened)
        everybody.bob(close_all, fds)
