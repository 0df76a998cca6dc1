"""The mount itself, and taking it away.

The mount is made here and not by libfuse, which would say `fuse_session_mount failed` whatever is wrong. What comes out
is a descriptor that `pyfuse3.init(ops, f"/dev/fd/{fd}")` takes.
"""

import contextlib
import errno
import os
import shutil
import socket
import stat
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from fusenotify import _linux
from fusenotify.config import MountFlag, MountOptions, flag_names
from fusenotify.errors import EnvironmentProblem, NotAMount, NotPermitted
from fusenotify.mountinfo import FS_TYPE, Holder, MountEntry, find_holders, mount_at, read_mounts

DEVICE: Final = "/dev/fuse"
FUSE_CONF: Final = "/etc/fuse.conf"
CAP_DAC_READ_SEARCH: Final = 2
CAP_SYS_ADMIN: Final = 21

_CONTAINER_ADVICE: Final = "In a container: start it with --device /dev/fuse --cap-add SYS_ADMIN"
_KEPT_FROM_BACKING: Final = MountFlag.RDONLY | MountFlag.NOSUID | MountFlag.NODEV | MountFlag.NOEXEC
_HOLDERS_NAMED: Final = 5
_READ_AHEAD: Final = 1024  # KiB, as much as fits into a request


@dataclass(frozen=True)
class Target:
    """What is to be mounted where; real absolute paths that passed the preflight."""

    source: Path
    mountpoint: Path
    state_dir: Path


def has_capability(number: int) -> bool:
    """Return whether this process has a capability (CAP_*) in its effective set."""
    status = Path("/proc/self/status").read_text(errors="replace")
    effective = next(line for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)


def fusermount_path() -> str | None:
    """Return where `fusermount3` is, None when it is not installed."""
    return shutil.which("fusermount3")


def user_allow_other() -> bool:
    """Return whether /etc/fuse.conf lets users mount with allow_other; yes where we may not read it."""
    try:
        lines = Path(FUSE_CONF).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return False
    except OSError:
        return True  # fusermount3 is privileged and will see
    return any(line.partition("#")[0].strip() == "user_allow_other" for line in lines)


def open_device() -> int:
    """Open /dev/fuse without blocking reads and return the descriptor.

    Raises:
        EnvironmentProblem: with the device's mode and owner, and what gives access.
    """
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise EnvironmentProblem(f"cannot open {DEVICE}: {error.strerror}. {_device_advice(error)}") from error


def _device_advice(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return f"Load the module with: modprobe fuse. {_CONTAINER_ADVICE}"
    found = os.stat(DEVICE)
    access = f"It has mode {stat.filemode(found.st_mode)}, owner {found.st_uid}, group {found.st_gid}"
    return f"{access}, we are user {os.geteuid()}. Make it accessible with: chmod 666 {DEVICE}. {_CONTAINER_ADVICE}"


def mount_fuse(target: Target, options: MountOptions) -> int:
    """Mount and return the descriptor that serves the mount: non-blocking, closed on exec.

    Until it is served, everybody who touches the mount waits; when it is closed, the mount is dead but still there.

    Raises:
        EnvironmentProblem: with what the kernel or fusermount3 said.
    """
    try:
        # statvfs(3) names these flags ST_*, with the bits of MS_*.
        flags = options.flags | MountFlag(os.statvfs(target.source).f_flag) & _KEPT_FROM_BACKING
    except OSError as error:
        raise EnvironmentProblem(f"cannot use SOURCE {target.source}: {error.strerror}") from error
    fs_name = options.fsname or str(target.source)
    if has_capability(CAP_SYS_ADMIN):
        return _mount_directly(target.mountpoint, fs_name, flags, options)
    return _mount_by_fusermount(target.mountpoint, fs_name, flags, options)


def _mount_directly(mountpoint: Path, fs_name: str, flags: MountFlag, options: MountOptions) -> int:
    fd = open_device()
    identity = (f"fd={fd}", f"rootmode={stat.S_IFDIR:o}", f"user_id={os.getuid()}", f"group_id={os.getgid()}")
    data = ",".join((*identity, *options.kernel_data()))
    try:
        # With MS_POSIXACL a mode arrives without the caller's umask taken off, and default ACLs come out right.
        _linux.mount(
            os.fsencode(fs_name),
            os.fsencode(mountpoint),
            FS_TYPE.encode(),
            flags | _linux.MS_POSIXACL,
            data.encode(),
        )
    except OSError as error:
        os.close(fd)
        advice = _CONTAINER_ADVICE if error.errno == errno.EPERM else f"The mount data was {data}"
        raise EnvironmentProblem(f"cannot mount on {mountpoint}: {error.strerror}. {advice}") from error
    return fd


def _mount_by_fusermount(mountpoint: Path, fs_name: str, flags: MountFlag, options: MountOptions) -> int:
    escaped = fs_name.replace("\\", "\\\\").replace(",", "\\,")
    words = (f"fsname={escaped}", f"subtype={FS_TYPE.removeprefix('fuse.')}", *options.kernel_data())
    # relatime is what every mount has anyway, and fusermount3 does not know the word.
    names = flag_names(flags & ~MountFlag.RELATIME)
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            complaint = _run_fusermount(["-o", ",".join((*words, *names)), "--", str(mountpoint)], theirs.fileno())
        if complaint:
            raise EnvironmentProblem(f"cannot mount on {mountpoint}: {complaint}. {_fusermount_advice(complaint)}")
        return _received_descriptor(ours)


def _received_descriptor(channel: socket.socket) -> int:
    # Not socket.recv_fds(): Python 3.11 drops its flags, and the descriptor would leak into every child.
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_LEN(struct.calcsize("i")), socket.MSG_CMSG_CLOEXEC)
    if not ancillary:
        raise EnvironmentProblem("fusermount3 mounted, but gave us no descriptor. Reinstall the package fuse3")
    (fd,) = struct.unpack("i", ancillary[0][2])
    os.set_blocking(fd, False)
    return int(fd)


def _run_fusermount(arguments: list[str], comm_fd: int | None = None) -> str:
    """Run fusermount3 to its end and return its complaint, empty when it did what it was told."""
    program = fusermount_path()
    if program is None:
        raise EnvironmentProblem("fusermount3 is not in PATH. Install the package fuse3, or do it as root")
    kept = () if comm_fd is None else (comm_fd,)
    environment = {**os.environ, "LC_ALL": "C", "_FUSE_COMMFD": "".join(map(str, kept))}
    try:
        done = subprocess.run(
            [program, *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=kept,
            env=environment,
        )
    except OSError as error:
        raise EnvironmentProblem(f"cannot run {program}: {error.strerror}. Reinstall the package fuse3") from error
    if done.returncode == 0:
        return ""
    return os.fsdecode(done.stderr).strip() or f"{program} ended with {done.returncode}"


def _fusermount_advice(complaint: str) -> str:
    if "username" in complaint:
        return f"Give user {os.getuid()} an entry in /etc/passwd"
    if os.strerror(errno.EPERM) in complaint:
        return f"fusermount3 has to be setuid root. {_CONTAINER_ADVICE}"
    return "fusermount3 mounts only where the user may write, and owns the directory if it is sticky"


def read_ahead(mountpoint: str) -> None:
    """Have the kernel ask for as much at a time as it can when a file is read in order, where root may say so.

    Fuse leaves it at 128 KiB, so that a request costs more than what it brings.
    """
    device = os.stat(mountpoint).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    with contextlib.suppress(OSError):  # as a container may say, which has no right to
        setting.write_text(f"{_READ_AHEAD}\n")


def unmount(mountpoint: str, *, lazy: bool) -> MountEntry:
    """Take a fusenotify mount away and return it; with `lazy` at once, also a dead one, whoever still uses it.

    Watchers hold the mount through its queue file. They do not count: when nothing else is in the way the mount is
    detached, and they hear that it went.

    Raises:
        NotAMount: there is no fusenotify mount at that path.
        NotPermitted: it belongs to another user.
        EnvironmentProblem: it is busy, with who holds it; or what the kernel said.
    """
    mount = _our_mount_at(mountpoint)
    if _detach(mount, lazy=lazy):
        return mount
    below = [entry.mountpoint for entry in read_mounts() if entry.parent_id == mount.mount_id]
    holders = find_holders(mount)
    if not below and not holders and _detach(mount, lazy=False):
        return mount  # whoever held it ended while we looked
    in_the_way = [holder for holder in holders if not holder.is_queue]
    if below or in_the_way or not holders:
        _raise_busy(mount, below, in_the_way)
    _detach(mount, lazy=True)
    return mount


def _our_mount_at(path: str) -> MountEntry:
    mounts = read_mounts()
    real = _without_touching(path)
    mount = mount_at(real, mounts)
    if mount is None or mount.mountpoint != real:
        real = os.path.realpath(path)
        mount = mount_at(real, mounts)
    if mount is not None and mount.is_ours and mount.mountpoint == real:
        return mount
    if mount is not None and mount.is_ours:
        raise NotAMount(f"{real} is not a mountpoint, it lies inside one. Say: fusenotify umount {mount.mountpoint}")
    if mount is not None and mount.mountpoint == real:
        raise NotAMount(f"{real} is a mount of type {mount.fs_type}, not of fusenotify. Say: umount {real}")
    raise NotAMount(f"{real} is not a mountpoint. `fusenotify status` lists the mounts")


def _without_touching(path: str) -> str:
    """The real path, without looking at its last component: that may be a mount whose daemon hangs."""
    parent, name = os.path.split(path.rstrip("/"))
    return os.path.join(os.path.realpath(parent), name)


def _detach(mount: MountEntry, *, lazy: bool) -> bool:
    """Unmount and return True; False when it is busy."""
    if has_capability(CAP_SYS_ADMIN):
        return _detach_directly(mount, lazy=lazy)
    if f"user_id={os.getuid()}" not in mount.super_options:
        raise NotPermitted(f"{mount.mountpoint} was mounted by another user. Unmount it as that user, or as root")
    complaint = _run_fusermount(["-u", *(["-z"] if lazy else []), "--", mount.mountpoint])
    if complaint and os.strerror(errno.EBUSY) not in complaint:
        raise EnvironmentProblem(f"cannot unmount {mount.mountpoint}: {complaint}. Try it as root")
    return not complaint


def _detach_directly(mount: MountEntry, *, lazy: bool) -> bool:
    try:
        _linux.umount2(os.fsencode(mount.mountpoint), _linux.MNT_DETACH if lazy else 0)
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        raise EnvironmentProblem(f"cannot unmount {mount.mountpoint}: {error.strerror}") from error
    return True


def _raise_busy(mount: MountEntry, below: list[str], holders: list[Holder]) -> NoReturn:
    reasons = [f"a mount at {path}" for path in below]
    by_process = {holder.pid: holder for holder in reversed(holders)}
    reasons += [str(holder) for holder in reversed(by_process.values())]
    more = len(reasons) - _HOLDERS_NAMED
    named = reasons[:_HOLDERS_NAMED] + ([f"and {more} more"] if more > 0 else [])
    unseen = "by something that we may not see (another user, another container, a loop device)"
    raise EnvironmentProblem(
        f"{mount.mountpoint} is busy, held {'by ' + '; '.join(named) if named else unseen}. It stays mounted. "
        f"End what uses it, or detach it all the same: fusenotify umount --lazy {mount.mountpoint}"
    )
