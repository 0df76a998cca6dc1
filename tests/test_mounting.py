"""Preflight, mounting, unmounting, and reading mount tables; on real mounts, most of which nobody serves.

Whoever touches an unserved mount waits forever: the tests here only look at it through /proc, or end it first.
"""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from fusenotify import _linux, doctor, mountinfo, mounting
from fusenotify.config import MountFlag, MountOptions, parse_mount_options
from fusenotify.errors import EnvironmentProblem, NotAMount, NotPermitted
from fusenotify.mountinfo import MountEntry, find_mounts, is_inside, mount_at, mount_of, parse_mountinfo_line
from fusenotify.mounting import Target, mount_fuse, unmount
from fusenotify.preflight import hold_state_dir, preflight
from tests.harness import Mount

# Serves a root with a file `hello`, and `.fusenotify/queue` in it, until the mount goes.
_SERVER = """
import stat, sys
import pyfuse3, trio

NODES = {b"hello": 2, b".fusenotify": 3, b"queue": 4}

class Server(pyfuse3.Operations):
    async def getattr(self, inode, ctx=None):
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFDIR | 0o755 if inode in (1, 3) else stat.S_IFREG | 0o644
        return entry

    async def lookup(self, parent, name, ctx=None):
        if name not in NODES:
            raise pyfuse3.FUSEError(2)
        return await self.getattr(NODES[name])

    async def open(self, inode, flags, ctx):
        return pyfuse3.FileInfo(fh=inode)

pyfuse3.init(Server(), f"/dev/fd/{sys.argv[1]}", set())
trio.run(pyfuse3.main)
pyfuse3.close(unmount=False)
"""


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """Directories to mount; whatever a test leaves mounted on them is detached."""
    target = Target(tmp_path / "source", tmp_path / "mount", tmp_path / "state")
    target.source.mkdir()
    target.mountpoint.mkdir()
    yield target
    for mount in reversed(mountinfo.read_mounts()):
        if mount.holds(str(target.mountpoint)) and mount.mountpoint == str(target.mountpoint):
            _linux.umount2(os.fsencode(target.mountpoint), _linux.MNT_DETACH)


@dataclass
class Mounted:
    """A mount made by the test process; `fd` is the descriptor that nobody serves."""

    target: Target
    fd: int

    @property
    def path(self) -> str:
        return str(self.target.mountpoint)

    def is_mounted(self) -> bool:
        return any(mount.mountpoint == self.path for mount in find_mounts())

    def die(self) -> None:
        """Do what the end of a daemon does to its mount."""
        os.close(self.fd)
        self.fd = -1


@pytest.fixture
def mounted(target: Target) -> Iterator[Mounted]:
    mounted = Mounted(target, mount_fuse(target, MountOptions()))
    yield mounted
    if mounted.fd >= 0:
        os.close(mounted.fd)


@dataclass
class Served:
    path: Path
    server: subprocess.Popen[bytes]


@pytest.fixture
def served(mounted: Mounted) -> Iterator[Served]:
    server = subprocess.Popen([sys.executable, "-c", _SERVER, str(mounted.fd)], pass_fds=[mounted.fd])
    mounted.die()
    yield Served(mounted.target.mountpoint, server)
    server.kill()
    server.wait()


def _check(target: Target, *options: str) -> Target:
    return preflight(str(target.source), str(target.mountpoint), target.state_dir, parse_mount_options(options))


def _problem(target: Target, *options: str) -> str:
    with pytest.raises(EnvironmentProblem) as raised:
        _check(target, *options)
    return str(raised.value)


def _entry(mount_id: int, parent_id: int, mountpoint: str, device: str = "0:1", root: str = "/") -> MountEntry:
    return MountEntry(mount_id, parent_id, device, root, mountpoint, "fuse.fusenotify", "x", ())


# --- preflight


def test_preflight_returns_real_paths_and_changes_nothing(target: Target, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(target.source)
    through_link = Target(tmp_path / "link", target.mountpoint, tmp_path / "link" / ".." / "state")
    assert _check(through_link) == target
    assert not target.state_dir.exists()


def test_preflight_names_a_missing_source(target: Target) -> None:
    target.source.rmdir()
    said = _problem(target)
    assert f"SOURCE {target.source}" in said
    assert "No such file or directory" in said


def test_preflight_refuses_files(target: Target, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert f"cannot use SOURCE {file}: it is not a directory" in _problem(Target(file, target.mountpoint, tmp_path))
    assert f"cannot use MOUNTPOINT {file}: it is not a directory" in _problem(Target(target.source, file, tmp_path))


def test_preflight_names_a_missing_mountpoint(target: Target) -> None:
    target.mountpoint.rmdir()
    assert f"MOUNTPOINT {target.mountpoint}: No such file or directory" in _problem(target)
    target.mountpoint.mkdir()


def test_preflight_names_an_unreadable_source(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_, **__: False)  # root may read everything
    assert f"SOURCE {target.source} cannot be read" in _problem(target)


def test_preflight_refuses_to_hide_entries_unless_told(target: Target) -> None:
    (target.mountpoint / "precious").touch()
    assert "is not empty" in _problem(target)
    assert _check(target, "allow_non_empty") == target


def test_preflight_says_first_that_the_trees_are_one(target: Target) -> None:
    (target.source / "precious").touch()  # "not empty, say -o allow_non_empty" would be no help
    assert "is SOURCE itself" in _problem(Target(target.source, target.source, target.state_dir))


def test_a_state_directory_has_one_daemon(target: Target) -> None:
    target.state_dir.mkdir()
    fd = hold_state_dir(target.state_dir)
    with pytest.raises(EnvironmentProblem, match=rf"{target.state_dir} is in use by another daemon.*--state-dir"):
        hold_state_dir(target.state_dir)
    os.close(fd)
    os.close(hold_state_dir(target.state_dir))


def test_preflight_keeps_the_trees_apart(target: Target, tmp_path: Path) -> None:
    inside = target.source / "inside"
    inside.mkdir()
    assert "is SOURCE itself" in _problem(Target(inside, inside, tmp_path / "state"))
    assert "lies inside SOURCE" in _problem(Target(target.source, inside, tmp_path / "state"))
    said = _problem(Target(inside, target.source, tmp_path / "state"), "allow_non_empty")
    assert "lies inside MOUNTPOINT" in said
    assert "its own mount" in said


@pytest.mark.parametrize("below", ["source", "source/deep/state", "mount", "mount/state"])
def test_preflight_keeps_the_state_directory_out_of_both_trees(target: Target, tmp_path: Path, below: str) -> None:
    said = _problem(Target(target.source, target.mountpoint, tmp_path / below))
    assert "--state-dir" in said
    assert f"lies inside {'SOURCE' if below.startswith('source') else 'MOUNTPOINT'}" in said


def test_preflight_refuses_a_file_as_state_directory(target: Target) -> None:
    target.state_dir.touch()
    assert f"the state directory {target.state_dir} is no directory" in _problem(target)


def test_preflight_names_a_missing_device(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "DEVICE", str(tmp_path / "missing"))
    said = _problem(target)
    assert "No such file or directory" in said
    assert "modprobe fuse" in said
    assert "--device /dev/fuse" in said


def test_preflight_tells_the_mode_of_a_device_it_cannot_open(
    target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = tmp_path / "directory"  # which cannot be opened for writing even by root
    device.mkdir(mode=0o750)
    monkeypatch.setattr(mounting, "DEVICE", str(device))
    assert "mode drwxr-x---, owner 0, group 0, we are user 0" in _problem(target)


def test_preflight_of_a_user(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = tmp_path / "fuse.conf"
    monkeypatch.setattr(mounting, "has_capability", lambda number: False)
    monkeypatch.setattr(mounting, "FUSE_CONF", str(conf))
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert _check(target) == target
    assert f"user_allow_other into {conf}" in _problem(target, "allow_other")
    conf.write_text("# user_allow_other\nmount_max = 9\n")
    assert f"user_allow_other into {conf}" in _problem(target, "allow_other")
    conf.write_text("mount_max = 9\n  user_allow_other # said root\n")
    assert _check(target, "allow_other") == target
    assert "with suid, dev, strictatime as user" in _problem(target, "suid,dev,strictatime")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "Install the package fuse3" in _problem(target)


def test_preflight_of_a_dead_mount_says_how_to_remove_it(mounted: Mounted) -> None:
    mounted.die()
    said = _problem(mounted.target)
    assert "Transport endpoint is not connected" in said
    assert f"fusenotify umount --lazy {mounted.path}" in said


def test_preflight_refuses_to_mount_twice(mounted: Mounted, served: Served) -> None:
    assert f"already is a fusenotify mount, of {mounted.target.source}" in _problem(mounted.target)


# --- mounting


def _has_right_descriptor_flags(fd: int) -> bool:
    return not os.get_blocking(fd) and bool(fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


def test_a_mount_shows_its_source_and_options(target: Target) -> None:
    fd = mount_fuse(target, parse_mount_options(["allow_other,ro,max_read=65536"]))
    try:
        (mount,) = [mount for mount in find_mounts() if mount.mountpoint == str(target.mountpoint)]
        assert _has_right_descriptor_flags(fd)
        assert mount.source == str(target.source)
        assert {"ro", "user_id=0", "allow_other", "default_permissions", "max_read=65536"} <= set(mount.super_options)
        assert mount_of(f"{target.mountpoint}/a/b") == mount
    finally:
        os.close(fd)


def test_fusermount_mounts_and_unmounts_too(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "has_capability", lambda number: False)
    fd = mount_fuse(target, parse_mount_options([r"ro,relatime,fsname=a\,b \\c"]))
    try:
        (mount,) = [mount for mount in find_mounts() if mount.mountpoint == str(target.mountpoint)]
        assert _has_right_descriptor_flags(fd)
        assert mount.source == r"a,b \c"
        assert "ro" in mount.super_options
        unmount(str(target.mountpoint), lazy=False)
        assert mount_of(str(target.mountpoint)) is None
    finally:
        os.close(fd)


def test_fusermounts_complaint_is_told(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "has_capability", lambda number: False)
    target.mountpoint.rmdir()
    with pytest.raises(EnvironmentProblem, match=r"cannot mount on .*fusermount3: .*No such file or directory"):
        mount_fuse(target, MountOptions())


def test_the_kernels_complaint_is_told(target: Target) -> None:
    target.mountpoint.rmdir()
    with pytest.raises(EnvironmentProblem, match=r"cannot mount on .*: No such file or directory"):
        mount_fuse(target, MountOptions())


def test_the_flags_of_the_backing_are_kept(target: Target) -> None:
    flags = MountFlag.RDONLY | MountFlag.NOEXEC
    _linux.mount(b"none", os.fsencode(target.source), b"tmpfs", flags, b"")
    with ExitStack() as stack:
        stack.callback(_linux.umount2, os.fsencode(target.source), _linux.MNT_DETACH)
        stack.callback(os.close, mount_fuse(target, parse_mount_options(["rw,exec"])))
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        (line,) = [line for line in lines if f" {target.mountpoint} " in line]
        assert {"ro", "noexec", "nosuid", "nodev"} <= set(line.split()[5].split(","))


# --- unmounting


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_a_mount_nobody_uses_goes(mounted: Mounted, lazy: bool, dead: bool) -> None:
    if dead:
        mounted.die()
    unmount(mounted.path + "/", lazy=lazy)
    assert not mounted.is_mounted()


def test_a_mount_goes_by_the_name_of_a_link(mounted: Mounted, tmp_path: Path) -> None:
    mounted.die()
    (tmp_path / "link").symlink_to(mounted.path)
    unmount(str(tmp_path / "link"), lazy=False)
    assert not mounted.is_mounted()


def test_only_our_own_mounts_are_unmounted(target: Target) -> None:
    with pytest.raises(NotAMount, match="is not a mountpoint"):
        unmount(str(target.mountpoint), lazy=True)
    with pytest.raises(NotAMount, match="/proc is a mount of type proc"):
        unmount("/proc", lazy=True)


def test_a_path_inside_a_mount_names_its_mountpoint(mounted: Mounted) -> None:
    mounted.die()
    with pytest.raises(NotAMount, match=f"fusenotify umount {mounted.path}"):
        unmount(f"{mounted.path}/inside", lazy=False)
    assert mounted.is_mounted()


def test_a_users_mount_is_not_anothers_to_unmount(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounting, "has_capability", lambda number: False)
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    with pytest.raises(NotPermitted, match="another user"):
        unmount(mounted.path, lazy=True)
    assert mounted.is_mounted()


@pytest.mark.parametrize("as_user", [False, True])
def test_a_busy_mount_stays_and_its_holders_are_named(
    served: Served, as_user: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if as_user:
        monkeypatch.setattr(mounting, "has_capability", lambda number: False)
    with (served.path / "hello").open("rb"), subprocess.Popen(["sleep", "60"], cwd=served.path) as sleeper:
        with pytest.raises(EnvironmentProblem) as raised:
            unmount(str(served.path), lazy=False)
        sleeper.kill()
    assert f"({os.getpid()}): open file {served.path}/hello" in str(raised.value)
    assert f"({sleeper.pid}): working directory {served.path}" in str(raised.value)
    assert mount_of(str(served.path)) is not None
    unmount(str(served.path), lazy=False)
    assert served.server.wait(30) == 0


def test_five_holders_are_named_and_the_rest_counted(served: Served) -> None:
    with ExitStack() as stack:
        for _ in range(7):
            sleeper = stack.enter_context(subprocess.Popen(["sleep", "60"], cwd=served.path))
            stack.callback(sleeper.kill)
        with pytest.raises(EnvironmentProblem) as raised:
            unmount(str(served.path), lazy=False)
    assert str(raised.value).count("working directory") == 5
    assert "and 2 more" in str(raised.value)


def test_watchers_do_not_keep_a_mount(served: Served) -> None:
    with (served.path / ".fusenotify" / "queue").open("rb"):
        unmount(str(served.path), lazy=False)
        assert mount_of(str(served.path)) is None
        assert served.server.poll() is None  # it serves the watcher until that lets go
    assert served.server.wait(30) == 0


def test_a_watcher_beside_a_real_user_does_not_let_the_mount_go(served: Served) -> None:
    queue = served.path / ".fusenotify" / "queue"
    with queue.open("rb"), (served.path / "hello").open("rb"):
        with pytest.raises(EnvironmentProblem, match="/hello") as raised:
            unmount(str(served.path), lazy=False)
        assert str(queue) not in str(raised.value)
        assert mount_of(str(served.path)) is not None


def test_a_file_opened_before_the_mount_is_no_holder(target: Target) -> None:
    covered = target.mountpoint / "covered"
    covered.touch()
    with covered.open("rb"), ExitStack() as stack:
        stack.callback(os.close, mount_fuse(target, MountOptions()))
        (mount,) = [mount for mount in find_mounts() if mount.mountpoint == str(target.mountpoint)]
        assert mountinfo.find_holders(mount) == []


def test_a_mount_below_keeps_a_mount_and_is_named(served: Served) -> None:
    below = served.path / ".fusenotify"
    with ExitStack() as stack:
        stack.enter_context((below / "queue").open("rb"))
        _linux.mount(b"none", os.fsencode(below), b"tmpfs", 0, b"")
        stack.callback(_linux.umount2, os.fsencode(below), _linux.MNT_DETACH)
        assert mount_of(str(below / "file")) is None
        with pytest.raises(EnvironmentProblem, match=f"held by a mount at {below}"):
            unmount(str(served.path), lazy=False)


# --- mount tables


def test_a_line_of_mountinfo() -> None:
    line = (
        r"42 27 0:39 /a\040b /m\134n\011t\012\043x rw,nosuid shared:1 master:2 - fuse.fusenotify /s\040t rw,user_id=0"
    )
    entry = parse_mountinfo_line(line + "\n")
    expected = ("rw", "user_id=0")
    assert entry == MountEntry(42, 27, "0:39", "/a b", "/m\\n\tt\n#x", "fuse.fusenotify", "/s t", expected)
    assert entry.is_ours


def test_a_line_without_optional_fields_or_source_and_with_other_blanks() -> None:
    entry = parse_mountinfo_line("1 1 0:2 / /a\u00a0b\x85c rw - tmpfs  rw")
    assert (entry.mountpoint, entry.source, entry.is_ours) == ("/a\u00a0b\x85c", "", False)


def test_an_escaped_backslash_is_not_read_twice() -> None:
    assert parse_mountinfo_line(r"1 1 0:2 / /a\134040 rw - tmpfs x rw").mountpoint == r"/a\040"


def test_a_path_lies_on_the_mount_the_kernel_would_find() -> None:
    root, data, deep = _entry(1, 0, "/"), _entry(2, 1, "/data"), _entry(3, 2, "/data/deep")
    stacked, cover = _entry(4, 2, "/data"), _entry(5, 1, "/a")
    covered = _entry(6, 1, "/a/b")
    mounts = [root, data, deep]
    assert mount_at("/data/deep/x", mounts) == deep
    assert mount_at("/data/deeper", mounts) == data
    assert mount_at("/database", mounts) == root
    assert mount_at("/data/deep", [root, data, stacked]) == stacked
    assert mount_at("/a/b/c", [root, covered, cover]) == cover
    assert mount_at("/elsewhere", [data]) is None


def test_a_bind_mount_does_not_hide_that_a_directory_is_inside_another() -> None:
    mounts = [_entry(1, 0, "/"), _entry(2, 1, "/bind", root="/srv/data"), _entry(3, 1, "/other", device="0:2")]
    assert is_inside("/bind/mnt", "/srv", mounts)
    assert is_inside("/srv/data/mnt", "/bind", mounts)
    assert not is_inside("/srv/database", "/bind", mounts)
    assert not is_inside("/other/srv", "/srv", mounts)


# --- doctor


def test_the_doctor_finds_dead_mounts(mounted: Mounted) -> None:
    mounted.die()
    (check,) = [check for check in doctor.run_checks() if check.name == "mounts"]
    assert not check.ok
    assert f"{mounted.path} is dead" in check.detail
    assert f"fusenotify umount --lazy {mounted.path}" in str(check.advice)


def test_the_doctor_finds_what_a_mount_hides(mounted: Mounted) -> None:
    def names() -> doctor.Check:
        (check,) = [check for check in doctor.run_checks() if check.name == "names"]
        return check

    mounted.die()
    hidden = mounted.target.source / ".fusenotify"
    assert str(hidden) not in names().detail
    hidden.symlink_to("nowhere")
    assert str(hidden) in names().detail
    assert names().advice == "rename it"


def test_the_doctors_report_has_a_line_for_each_check() -> None:
    checks = [doctor.Check("kernel", True, "Linux 9"), doctor.Check("mounts", False, "dead", "remove it")]
    assert doctor.format_report(checks).splitlines() == [
        "ok   kernel  Linux 9",
        "BAD  mounts  dead",
        "             → remove it",
        "1 of 2 checks failed",
    ]


def test_files_are_read_ahead_in_the_largest_requests(mount: Mount) -> None:
    device = mount.mountpoint.stat().st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    assert setting.read_text() == "1024\n"
