"""What a daemon is asked to be: the options of `-o`, where it listens, and where its state directory lies.

Pure data: no system calls beyond resolving a path.
"""

import difflib
import hashlib
import os
import re
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntFlag
from pathlib import Path
from typing import Any, Final

from fusenotify.addresses import Address
from fusenotify.errors import EnvironmentProblem, UsageError

# The queue file: in every directory of a mount, and never listed.
QUEUE_DIRECTORY: Final = ".fusenotify"
QUEUE_NAME: Final = "queue"
QUEUE_FILE: Final = f"{QUEUE_DIRECTORY}/{QUEUE_NAME}"


class MountFlag(IntFlag):
    """The bits of mount(2) that options can set; the kernel's numbers (MS_*)."""

    RDONLY = 1
    NOSUID = 2
    NODEV = 4
    NOEXEC = 8
    SYNCHRONOUS = 16
    DIRSYNC = 128
    NOATIME = 1024
    NODIRATIME = 2048
    RELATIME = 1 << 21
    STRICTATIME = 1 << 24


_NONE: Final = MountFlag(0)
_ATIME_RULES: Final = MountFlag.NOATIME | MountFlag.RELATIME | MountFlag.STRICTATIME

# name -> (bits cleared, bits set): the last word on a bit wins, as with mount(8).
_FLAGS: Final = {
    "ro": (_NONE, MountFlag.RDONLY),
    "rw": (MountFlag.RDONLY, _NONE),
    "nosuid": (_NONE, MountFlag.NOSUID),
    "suid": (MountFlag.NOSUID, _NONE),
    "nodev": (_NONE, MountFlag.NODEV),
    "dev": (MountFlag.NODEV, _NONE),
    "noexec": (_NONE, MountFlag.NOEXEC),
    "exec": (MountFlag.NOEXEC, _NONE),
    "sync": (_NONE, MountFlag.SYNCHRONOUS),
    "async": (MountFlag.SYNCHRONOUS, _NONE),
    "dirsync": (_NONE, MountFlag.DIRSYNC),
    "noatime": (_ATIME_RULES, MountFlag.NOATIME),
    "atime": (MountFlag.NOATIME, _NONE),
    "nodiratime": (_NONE, MountFlag.NODIRATIME),
    "diratime": (MountFlag.NODIRATIME, _NONE),
    "relatime": (_ATIME_RULES, MountFlag.RELATIME),
    "strictatime": (_ATIME_RULES, MountFlag.STRICTATIME),
}
_SWITCHES: Final = ("allow_other", "watch_other", "exclusive", "strict_journal", "allow_non_empty")
_VALUES: Final = ("fsname", "max_read")
_KNOWN: Final = (*_SWITCHES, *_FLAGS, "default_permissions", *(f"{name}=" for name in _VALUES))

# What mount(8) and fstab pass along for themselves, and what is always so here.
_IGNORED: Final = frozenset(
    (
        *("defaults", "auto", "noauto", "nofail", "user", "nouser", "users", "owner", "group", "_netdev", "comment"),
        *("silent", "loud", "uhelper", "helper"),
        *("default_permissions", "subtype"),
    )
)
_REFUSED: Final = {
    "auto_unmount": "after a crash the dead mount has to stay, or an empty mountpoint would be taken for an empty tree "
    "(and backed up, or synced, as one). Remove it with: fusenotify umount --lazy MOUNTPOINT",
    "remount": "the options of a mount are fixed; unmount it and mount again",
    "allow_root": "the kernel knows no such thing; use allow_other, permissions are checked all the same",
}


@dataclass(frozen=True)
class MountOptions:
    """The options of one mount; permissions are always checked by the kernel (`default_permissions`).

    Attributes:
        flags: the MS_* bits for mount(2); nosuid and nodev unless said otherwise.
        fsname: what mount tables show as the source; None for SOURCE's own path.
        max_read: the largest read request in bytes; None leaves it to the kernel.
        allow_other: users other than the mounting one may enter the mount.
        watch_other: they may also have subtree and filesystem marks.
        exclusive: nobody else changes the backing tree.
        strict_journal: nothing is changed through the mount that the journal cannot take note of before (EIO).
        allow_non_empty: the mountpoint may have entries, which the mount then hides.
    """

    flags: MountFlag = MountFlag.NOSUID | MountFlag.NODEV
    fsname: str | None = None
    max_read: int | None = None
    allow_other: bool = False
    watch_other: bool = False
    exclusive: bool = False
    strict_journal: bool = False
    allow_non_empty: bool = False

    def kernel_data(self) -> tuple[str, ...]:
        """Return the words of the FUSE data string, without those that name a descriptor or a user."""
        words = ["default_permissions"]
        if self.allow_other:
            words.append("allow_other")
        if self.max_read is not None:
            words.append(f"max_read={self.max_read}")
        return tuple(words)


@dataclass(frozen=True)
class JournalRules:
    """What the journal may rely on, and what may rely on it.

    Attributes:
        exclusive: nobody else changes the backing tree.
        strict: nothing is changed through the mount that could not be taken note of before.
    """

    exclusive: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Listening:
    """Where a daemon is to listen, besides the queue file.

    Attributes:
        addresses: in this order.
        tls: its side of TLS, where one of the addresses needs it.
    """

    addresses: Sequence[Address] = ()
    tls: ssl.SSLContext | None = None


def flag_names(flags: MountFlag) -> tuple[str, ...]:
    """Return the option names of the MS_* bits that are set, such as ("nosuid", "nodev")."""
    return tuple(name for name, (_, bits) in _FLAGS.items() if flags & bits)


def parse_mount_options(values: Sequence[str]) -> MountOptions:
    r"""Read the values of a repeatable `-o a,b`; in a value, `\,` stands for a comma.

    Raises:
        UsageError: an option is unknown (close matches are named), refused, or has a malformed value.
    """
    options = MountOptions()
    for word in _words(values):
        options = _with_option(options, word)
    return options


def _words(values: Iterable[str]) -> Iterable[str]:
    for value in values:
        yield from re.findall(r"(?:\\.|[^,])+", value)


def _with_option(options: MountOptions, word: str) -> MountOptions:
    name, equals, value = word.partition("=")
    if name in _VALUES:
        return _VALUE_PARSERS[name](options, re.sub(r"\\(.)", r"\1", value))
    if name in _IGNORED or name.lower().startswith("x-"):
        return options
    if name in _REFUSED:
        raise UsageError(f"mount option '{name}' is not supported: {_REFUSED[name]}")
    if equals or name not in _KNOWN:
        raise UsageError(_unknown(word))
    if name in _SWITCHES:
        switch: dict[str, Any] = {name: True}
        return replace(options, **switch)
    cleared, added = _FLAGS[name]
    return replace(options, flags=options.flags & ~cleared | added)


def _unknown(word: str) -> str:
    name = word.partition("=")[0]
    if name in _KNOWN:
        return f"mount option '{name}' takes no value, but '{word}' was given"
    close = difflib.get_close_matches(name, _KNOWN, cutoff=0.5)
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    return f"unknown mount option '{name}'.{hint} Known are: {', '.join(_KNOWN)}"


def _with_fsname(options: MountOptions, value: str) -> MountOptions:
    if not value:
        raise UsageError("mount option 'fsname' needs a name: fsname=NAME")
    return replace(options, fsname=value)


def _with_max_read(options: MountOptions, value: str) -> MountOptions:
    # The kernel reads an unsigned 32 bit number.
    if not re.fullmatch(r"[0-9]{1,10}", value) or not 0 < int(value) < 1 << 32:
        raise UsageError(f"mount option 'max_read' needs a number of bytes, not '{value}': max_read=131072")
    return replace(options, max_read=int(value))


_VALUE_PARSERS: Final[dict[str, Callable[[MountOptions, str], MountOptions]]] = {
    "fsname": _with_fsname,
    "max_read": _with_max_read,
}


def default_state_dir(source: str) -> Path:
    """Return the state directory of a SOURCE that was given none; it is not created.

    Root's is always below /var/lib: XDG_STATE_HOME may have come through sudo from a user, who could then put another
    journal under a root daemon.

    Raises:
        EnvironmentProblem: the user has no home directory.
    """
    real = os.path.realpath(source)
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", os.path.basename(real))[:40] or "root"
    digest = hashlib.sha256(os.fsencode(real)).hexdigest()[:12]
    return _state_home() / "fusenotify" / f"{readable}-{digest}"


def _state_home() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib")
    configured = os.environ.get("XDG_STATE_HOME", "")
    if os.path.isabs(configured):  # the XDG rules: a relative one is to be ignored
        return Path(configured)
    try:
        return Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise EnvironmentProblem(
            f"no place for the state directory: user {os.geteuid()} has no home directory. "
            "Give one with --state-dir DIR"
        ) from error
