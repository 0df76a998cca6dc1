"""`fusenotify doctor`: what this machine gives us, and what to do where it does not."""

import errno
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fusenotify.config import QUEUE_DIRECTORY
from fusenotify.errors import EnvironmentProblem
from fusenotify.mountinfo import MountEntry, find_mounts
from fusenotify.mounting import (
    CAP_DAC_READ_SEARCH,
    CAP_SYS_ADMIN,
    DEVICE,
    FUSE_CONF,
    fusermount_path,
    has_capability,
    open_device,
    user_allow_other,
)
from fusenotify.preflight import is_queue_directory_hidden
from fusenotify.watchers.fanotify import open_group

# Since 5.14 the kernel retires an inode whose number comes back with another generation; we reuse numbers that way.
_OLDEST_KERNEL: Final = (5, 14)
_ANSWER_SECONDS: Final = 2.0
_DAEMON_PACKAGES: Final = (("pyfuse3", "pyfuse3"), ("trio", "trio"), ("inotify_simple", "inotify-simple"))
# Limit -> (what it means, the value below which large trees will meet it)
_INOTIFY_LIMITS: Final = {
    "max_user_watches": ("directories that one user can watch; a mount needs one for each in its tree", 65536),
    "max_user_instances": ("inotify descriptors that one user can have; a mount needs one, each program its own", 128),
    "max_queued_events": (
        "events that may wait unread; beyond it the kernel drops them, which is told as `overflow`",
        16384,
    ),
}


@dataclass(frozen=True)
class Check:
    """One thing looked at: whether it is as it should be, what was found, and what to do about it (None: nothing)."""

    name: str
    ok: bool
    detail: str
    advice: str | None = None


def run_checks() -> list[Check]:
    """Look at this machine and return what was found; changes nothing."""
    return [
        _check_kernel(platform.release()),
        _check_device(),
        _check_fusermount(),
        _check_allow_other(),
        _check_rights(),
        *(_check_limit(name) for name in _INOTIFY_LIMITS),
        _check_fanotify(),
        *(_check_package(module, package) for module, package in _DAEMON_PACKAGES),
        _check_mounts(find_mounts()),
        _check_hidden(find_mounts()),
    ]


def format_report(checks: Sequence[Check]) -> str:
    """Return the checks as text, one a line, each failed one with its advice below it."""
    lines: list[str] = []
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        lines.append(f"{'ok ' if check.ok else 'BAD'}  {check.name:<{width}}  {check.detail}")
        if check.advice is not None:
            lines.append(f"{'':<{width + 7}}→ {check.advice}")
    failed = sum(not check.ok for check in checks)
    lines.append(f"{failed} of {len(checks)} checks failed" if failed else f"all {len(checks)} checks passed")
    return "\n".join(lines)


def _check_kernel(release: str) -> Check:
    numbers = tuple(int(part) for part in release.partition("-")[0].split(".")[:2] if part.isdigit())
    if numbers >= _OLDEST_KERNEL:
        return Check("kernel", True, f"Linux {release}")
    return Check(
        "kernel", False, f"Linux {release} confuses files with reused inode numbers", "use Linux 5.14 or later"
    )


def _check_device() -> Check:
    try:
        os.close(open_device())
    except EnvironmentProblem as problem:
        what, _, advice = str(problem).partition(". ")
        return Check(DEVICE, False, what, advice)
    return Check(DEVICE, True, "can be opened")


def _check_fusermount() -> Check:
    program = fusermount_path()
    if program is not None:
        return Check("fusermount3", True, program)
    direct = has_capability(CAP_SYS_ADMIN)
    detail = "not in PATH" + (
        "; not needed as root" if direct else ", and without CAP_SYS_ADMIN it has to mount for us"
    )
    return Check("fusermount3", direct, detail, None if direct else "install the package fuse3")


def _check_allow_other() -> Check:
    if user_allow_other():
        return Check("allow_other", True, "users may mount with allow_other")
    if has_capability(CAP_SYS_ADMIN):
        return Check(
            "allow_other", True, f"root may mount with it; users may not ({FUSE_CONF} has no user_allow_other)"
        )
    detail = "only root may mount with allow_other; without it nobody else, root included, can enter your mounts"
    return Check("allow_other", True, detail, f"if you need it, put a line user_allow_other into {FUSE_CONF}")


def _check_rights() -> Check:
    held = [
        f"{name}: {'yes' if has_capability(number) else 'no'}"
        for name, number in (("CAP_SYS_ADMIN", CAP_SYS_ADMIN), ("CAP_DAC_READ_SEARCH", CAP_DAC_READ_SEARCH))
    ]
    inside = "" if _in_first_user_namespace() else "; in a user namespace, where they count only for what it owns"
    detail = f"user {os.geteuid()}, {', '.join(held)}{inside}"
    if has_capability(CAP_DAC_READ_SEARCH) and has_capability(CAP_SYS_ADMIN) and not inside:
        return Check("rights", True, detail)
    advice = "it works as it is; as root files are found by handle (no descriptor for each) and belong to who made them"
    return Check("rights", True, detail, advice)


def _in_first_user_namespace() -> bool:
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _check_limit(name: str) -> Check:
    meaning, enough = _INOTIFY_LIMITS[name]
    try:
        value = int(Path(f"/proc/sys/fs/inotify/{name}").read_text())
    except OSError as error:
        return Check(name, False, f"cannot be read: {error.strerror}", "use a kernel with inotify, and mount /proc")
    advice = f"raise it: sysctl fs.inotify.{name}={max(enough, 8 * value)}" if value < enough else None
    return Check(name, value >= enough, f"{value} {meaning}", advice)


def _check_fanotify() -> Check:
    try:
        os.close(open_group())
    except EnvironmentProblem as problem:
        what, _, advice = str(problem).partition(". ")
        return Check("fanotify", True, f"{what}; inotify does as well", advice)
    if not (has_capability(CAP_SYS_ADMIN) and has_capability(CAP_DAC_READ_SEARCH)):
        return Check("fanotify", True, "only root may hear a whole filesystem; inotify does as well")
    return Check("fanotify", True, "can be used: who makes a change is known, and large trees need no watches")


def _check_package(module: str, package: str) -> Check:
    try:
        importlib.import_module(module)
        return Check(module, True, importlib.metadata.version(package))
    except ImportError as error:
        advice = (
            "needed by the daemon only: pip install 'fusenotify[daemon]' (pyfuse3 needs a C compiler, libfuse3-dev)"
        )
        if importlib.util.find_spec(module) is None:  # the client alone is installed, and that is enough to listen
            return Check(module, True, "not installed", advice)
        return Check(module, False, f"cannot be imported: {error}", advice)


def _check_mounts(mounts: Sequence[MountEntry]) -> Check:
    troubled = [(mount.mountpoint, trouble) for mount in mounts if (trouble := _trouble_with(mount.mountpoint))]
    if not troubled:
        return Check(
            "mounts", True, f"fusenotify mounts that answer: {len(mounts)}" if mounts else "no fusenotify mount"
        )
    detail = "; ".join(f"{mountpoint} {trouble}" for mountpoint, trouble in troubled)
    commands = "; ".join(f"fusenotify umount --lazy {mountpoint}" for mountpoint, _ in troubled)
    return Check("mounts", False, detail, commands)


def _check_hidden(mounts: Sequence[MountEntry]) -> Check:
    """Whether a mount hides an entry of its backing tree; only where mount tables show the tree's own path."""
    sources = sorted({mount.source for mount in mounts if os.path.isabs(mount.source)})
    hidden = [source for source in sources if is_queue_directory_hidden(Path(source))]
    if not hidden:
        return Check("names", True, f"no backing tree has an entry {QUEUE_DIRECTORY}, which its mount would hide")
    entries = ", ".join(os.path.join(source, QUEUE_DIRECTORY) for source in hidden)
    return Check("names", True, f"hidden by the mount's own directory of that name: {entries}", "rename it")


def _trouble_with(mountpoint: str) -> str | None:
    """What is wrong with a mount; asked on a thread of its own, as a daemon that hangs never answers."""
    found: list[str | None] = []
    thread = threading.Thread(target=lambda: found.append(_answer_of(mountpoint)), daemon=True)
    thread.start()
    thread.join(_ANSWER_SECONDS)
    return found[0] if found else f"does not answer within {_ANSWER_SECONDS:.0f} s"


def _answer_of(mountpoint: str) -> str | None:
    try:
        os.statvfs(mountpoint)  # unlike a stat never answered from the kernel's cache
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            return "is dead, its daemon is gone"
        return None if error.errno == errno.EACCES else f"answers: {error.strerror}"
    return None
