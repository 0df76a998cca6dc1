"""What would go wrong with mounting, said before it does.

Nothing is changed here, but for the lock on the state directory.
"""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from fusenotify import mounting
from fusenotify.addresses import Address, UnixAddress
from fusenotify.config import QUEUE_DIRECTORY, MountFlag, MountOptions, flag_names
from fusenotify.errors import EnvironmentProblem
from fusenotify.mountinfo import MountEntry, is_inside, mount_at, read_mounts
from fusenotify.mounting import CAP_SYS_ADMIN, Target

_ONLY_DIRECTLY: Final = MountFlag.NODIRATIME | MountFlag.STRICTATIME
_HISTORY: Final = "recording a change there would be the next change"
_LOCK: Final = "lock"
_LOCK_PATIENCE: Final = 3.0  # seconds: a daemon whose mount has just been taken away needs one to end


def preflight(source: str, mountpoint: str, state_dir: str | Path, options: MountOptions) -> Target:
    """Check everything that can be known before mounting, changing nothing.

    Raises:
        EnvironmentProblem: the first thing in the way: what, why, and what to do.
    """
    target = Target(_real_source(source), _real_mountpoint(mountpoint), Path(os.path.realpath(state_dir)))
    _check_apart(target)
    if not options.allow_non_empty:
        _check_empty(target.mountpoint)
    _check_state_dir(target.state_dir)
    os.close(mounting.open_device())
    if not mounting.has_capability(CAP_SYS_ADMIN):
        _check_user_can_mount(options)
    return target


def preflight_without_mount(source: str, state_dir: str | Path) -> tuple[Path, Path]:
    """Check what can be known before a tree is served that is not mounted, and return the real paths of both.

    Raises:
        EnvironmentProblem: the first thing in the way: what, why, and what to do.
    """
    real_source, real_state_dir = _real_source(source), Path(os.path.realpath(state_dir))
    _check_state_dir_apart(real_state_dir, f"SOURCE {real_source}", _HISTORY, read_mounts())
    _check_state_dir(real_state_dir)
    return real_source, real_state_dir


def _real_source(source: str) -> Path:
    real = Path(os.path.realpath(source))
    _check_directory("SOURCE", real)
    if not os.access(real, os.R_OK | os.X_OK, effective_ids=True):
        raise EnvironmentProblem(
            f"SOURCE {real} cannot be read by user {os.geteuid()}: Permission denied. Mount as a user who may read it"
        )
    return real


def _real_mountpoint(mountpoint: str) -> Path:
    real = Path(os.path.realpath(mountpoint))
    mount = mount_at(str(real), read_mounts())
    _check_directory("MOUNTPOINT", real, _dead_mount_advice(mount))
    if mount is not None and mount.is_ours and mount.mountpoint == str(real):
        raise EnvironmentProblem(
            f"MOUNTPOINT {real} already is a fusenotify mount, of {mount.source}. "
            f"Unmount it first: fusenotify umount {real}"
        )
    return real


def _check_empty(mountpoint: Path) -> None:
    if _has_entries(mountpoint):
        raise EnvironmentProblem(
            f"MOUNTPOINT {mountpoint} is not empty, and the mount would hide what is in it. "
            "Take an empty directory, or say -o allow_non_empty"
        )


def _check_directory(role: str, path: Path, dead_advice: str = "Remove or mend that mount first") -> None:
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        advice = dead_advice if error.errno == errno.ENOTCONN else f"{role} has to be a directory that exists"
        raise EnvironmentProblem(f"cannot use {role} {path}: {error.strerror}. {advice}") from error
    if not stat.S_ISDIR(mode):
        raise EnvironmentProblem(f"cannot use {role} {path}: it is not a directory. Only directories can be mounted")


def _dead_mount_advice(mount: MountEntry | None) -> str:
    if mount is None:
        return "The daemon of the FUSE mount there is gone. Unmount it first"
    command = "fusenotify umount --lazy" if mount.is_ours else "umount --lazy"
    return f"The daemon of the FUSE mount there is gone. Remove it with: {command} {mount.mountpoint}"


def _has_entries(directory: Path) -> bool:
    try:
        with os.scandir(directory) as entries:
            return next(entries, None) is not None
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot read MOUNTPOINT {directory}: {error.strerror}. Take a directory that you own"
        ) from error


def _check_apart(target: Target) -> None:
    mounts = read_mounts()
    source, mountpoint = str(target.source), str(target.mountpoint)
    own_mount = "the daemon would walk into its own mount and wait for itself forever"
    for origin in _origins(source, mounts):
        if is_inside(mountpoint, origin, mounts):
            where = "is SOURCE itself" if mountpoint == source else f"lies inside SOURCE {source}"
            if origin != source:
                where = f"lies inside {origin}, which SOURCE {source} shows"
            raise EnvironmentProblem(f"MOUNTPOINT {mountpoint} {where}: {own_mount}. Take a mountpoint outside it")
    if is_inside(source, mountpoint, mounts):
        raise EnvironmentProblem(
            f"SOURCE {source} lies inside MOUNTPOINT {mountpoint}, and the mount would cover it: {own_mount}. "
            "Take a mountpoint elsewhere"
        )
    _check_state_dir_apart(target.state_dir, f"SOURCE {source}", _HISTORY, mounts)
    _check_state_dir_apart(target.state_dir, f"MOUNTPOINT {mountpoint}", own_mount, mounts)


def _check_state_dir_apart(state_dir: Path, place: str, reason: str, mounts: list[MountEntry]) -> None:
    if is_inside(str(state_dir), place.partition(" ")[2], mounts):
        raise EnvironmentProblem(
            f"the state directory {state_dir} lies inside {place}: {reason}. Give another with --state-dir DIR"
        )


def _origins(source: str, mounts: list[MountEntry]) -> Iterator[str]:
    """Yield a directory, and what it shows where it lies on a mount of ours, and so on."""
    seen: set[str] = set()
    while source not in seen:
        yield source
        seen.add(source)
        mount = mount_at(source, mounts)
        if mount is not None and mount.is_ours and os.path.isabs(mount.source):
            inside = os.path.relpath(source, mount.mountpoint)
            source = os.path.normpath(os.path.join(mount.source, mount.root.lstrip("/"), inside))


def check_sockets(addresses: Iterable[Address], trees: Mapping[str, Path]) -> None:
    """Refuse a unix socket in one of the trees: a mount would cover it, or its coming and going would be events.

    Raises:
        EnvironmentProblem: it lies in one of them.
    """
    mounts = read_mounts()
    for address in addresses:
        for name, place in trees.items():
            if isinstance(address, UnixAddress) and is_inside(os.path.realpath(address.path), str(place), mounts):
                raise EnvironmentProblem(
                    f"the socket {address.path} lies inside {name} {place}. Listen at a path elsewhere"
                )


def _check_state_dir(state_dir: Path) -> None:
    if not os.path.lexists(state_dir):
        return
    if not state_dir.is_dir() or not os.access(state_dir, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise EnvironmentProblem(
            f"the state directory {state_dir} is no directory that user {os.geteuid()} may write to. "
            "Give another with --state-dir DIR"
        )


def hold_state_dir(state_dir: Path) -> int:
    """Make the state directory this process's own, for as long as the returned descriptor is open in it or a child.

    Raises:
        EnvironmentProblem: another daemon has it, and does not end within seconds; or it cannot be written to.
    """
    try:
        fd = os.open(state_dir / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot use the state directory {state_dir}: {error.strerror}. Give another with --state-dir DIR"
        ) from error
    deadline = time.monotonic() + _LOCK_PATIENCE
    while not _locked(fd):
        if time.monotonic() > deadline:
            os.close(fd)
            raise EnvironmentProblem(
                f"the state directory {state_dir} is in use by another daemon, which may serve the same SOURCE. "
                "Unmount that first (`fusenotify status` lists the mounts), or give another with --state-dir DIR"
            )
        time.sleep(0.05)
    return fd


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_queue_directory_hidden(source: Path) -> bool:
    """Return whether SOURCE has an entry of the name that the mount gives to the directory of its queue file."""
    return os.path.lexists(source / QUEUE_DIRECTORY)


def _check_user_can_mount(options: MountOptions) -> None:
    who = f"user {os.geteuid()} without CAP_SYS_ADMIN"
    if mounting.fusermount_path() is None:
        raise EnvironmentProblem(
            f"cannot mount as {who}: fusermount3 is not in PATH. Install the package fuse3, or mount as root"
        )
    if options.allow_other and os.getuid() != 0 and not mounting.user_allow_other():
        raise EnvironmentProblem(
            f"cannot mount with allow_other as {who}: {mounting.FUSE_CONF} does not allow it. "
            f"Put a line user_allow_other into {mounting.FUSE_CONF}, or mount as root"
        )
    if refused := _refused_to_users(options.flags):
        raise EnvironmentProblem(
            f"cannot mount with {', '.join(refused)} as {who}: fusermount3 refuses it to users. "
            "Leave it out, or mount as root"
        )


def _refused_to_users(flags: MountFlag) -> list[str]:
    lifted = (("suid", MountFlag.NOSUID), ("dev", MountFlag.NODEV))
    return [*(name for name, bit in lifted if not flags & bit), *flag_names(flags & _ONLY_DIRECTLY)]
