"""What a target names: a daemon, and a path below its root."""

import os
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
    """

    given: str
    daemon: str | Address
    path: bytes

    async def connect(self, tls: Credentials | None) -> Transport:
        """Open a way to the daemon; `tls` is for those behind TLS (errors as `QueueFile.open`, `Socket.connect`)."""
        if isinstance(self.daemon, str):
            return await QueueFile.open(self.daemon)
        return await Socket.connect(self.daemon, tls)


def resolve(given: str | os.PathLike[str]) -> Target:
    """Find out what a target names. Blocks: it looks at the filesystem.

    Raises:
        NotAMount: the path is not on a fusenotify mount.
        UsageError: the target has no form we know, or the path does not exist.
    """
    text = os.fspath(given)
    if is_address(text):
        return Target(text, *parse_place(text))
    if "://" in text:
        raise UsageError(
            f"{text!r} is no target: give a path on a fusenotify mount, unix:PATH or tls://HOST:PORT[/PATH]"
        )
    real = os.path.realpath(text)
    mount = mount_of(real)
    try:
        os.lstat(real)
    except FileNotFoundError as error:
        raise UsageError(f"{text} does not exist") from error
    except OSError:
        pass  # a dead daemon, or no right to look: connecting says so better
    if mount is None:
        raise NotAMount(f"{text} is not on a fusenotify mount; mount one with `fusenotify mount SOURCE DIR`")
    return Target(text, mount.mountpoint, os.fsencode(os.path.relpath(real, mount.mountpoint)))
