"""What a target names: a daemon, and a path below its root."""

import os
import stat
from dataclasses import dataclass

from fusenotify.addresses import Address, is_address, parse_place
from fusenotify.errors import NotAMount, UsageError
from fusenotify.mountinfo import mount_of
from fusenotify.transports import Credentials, QueueFile, Socket, Transport


@dataclass(frozen=True)
class Target:
    """A resolved target.

    Attributes:
        given: as the user wrote it.
        daemon: what tells one daemon from another: a mountpoint, or the address of a socket.
        path: below that root, `.` for the root itself.
        is_dir: whether it is a directory; None where only the daemon can tell.
    """

    given: str
    daemon: str | Address
    path: bytes
    is_dir: bool | None = True

    @property
    def base(self) -> bytes:
        """What the paths of events below it begin with."""
        return b"" if self.path == b"." else self.path

    @property
    def key(self) -> str:
        """What is the same of targets that one connection can serve."""
        return str(self.daemon)

    async def connect(self, tls: Credentials | None) -> Transport:
        """Open a way to the daemon; `tls` is for those behind TLS (errors as `QueueFile.open`, `Socket.connect`)."""
        if isinstance(self.daemon, str):
            return await QueueFile.open(self.daemon)
        return await Socket.connect(self.daemon, tls)


@dataclass(frozen=True)
class LocalTarget:
    """A path that is on no fusenotify mount.

    Attributes:
        given: as the user wrote it.
        real: absolute, without symbolic links.
        is_dir: whether it is a directory.
    """

    given: str
    real: str
    is_dir: bool

    @property
    def base(self) -> bytes:
        """What the paths of events below it begin with."""
        return os.fsencode(self.real.rstrip("/"))


def resolve(given: str | os.PathLike[str]) -> Target:
    """Find out which daemon a target names, and what of its tree. Blocks: it looks at the filesystem.

    Raises:
        NotAMount: the path is not on a fusenotify mount.
        UsageError: the target has no form we know, or the path does not exist.
    """
    target = resolve_any(given)
    if isinstance(target, LocalTarget):
        raise NotAMount(f"{target.given} is not on a fusenotify mount; mount one with `fusenotify mount SOURCE DIR`")
    return target


def resolve_any(given: str | os.PathLike[str]) -> Target | LocalTarget:
    """Find out what a target names, on a mount of ours or elsewhere. Blocks: it looks at the filesystem.

    Raises:
        UsageError: the target has no form we know, or the path does not exist.
    """
    text = os.fspath(given)
    if not text:
        raise UsageError("an empty text is no target: for the current directory give `.`")
    if is_address(text):
        address, path = parse_place(text)
        return Target(text, address, path, is_dir=True if path == b"." else None)
    if "://" in text:
        raise UsageError(f"{text!r} is no target: give a path, unix:PATH or tls://HOST:PORT[/PATH]")
    real = os.path.realpath(text)
    mount = mount_of(real)
    is_dir: bool | None = None  # a dead daemon, or no right to look: who asks the daemon hears why
    try:
        is_dir = stat.S_ISDIR(os.lstat(real).st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{text} does not exist") from error
    except OSError:
        pass
    if mount is None:
        return LocalTarget(text, real, is_dir is not False)
    return Target(text, mount.mountpoint, os.fsencode(os.path.relpath(real, mount.mountpoint)), is_dir)
