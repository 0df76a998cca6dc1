"""What a target names: a daemon, and a path below its root."""

import os
from dataclasses import dataclass

from fusenotify.errors import NotAMount, UsageError
from fusenotify.mountinfo import mount_of
from fusenotify.transports import QueueFile, Transport, UnixSocket


@dataclass(frozen=True)
class Target:
    """A resolved target.

    Attributes:
        given: as the user wrote it.
        daemon: what tells one daemon from another: a mountpoint, or the URL of a socket.
        path: below that root, `.` for the root itself.
    """

    given: str
    daemon: str
    path: bytes

    @property
    def is_socket(self) -> bool:
        """Whether the daemon is reached by a socket."""
        return self.daemon.startswith("unix:")

    async def connect(self) -> Transport:
        """Open a way to the daemon (DaemonGone, NotAMount, NotPermitted)."""
        if self.is_socket:
            return await UnixSocket.connect(self.daemon.partition(":")[2])
        return await QueueFile.open(self.daemon)


def resolve(given: str | os.PathLike[str]) -> Target:
    """Find out what a target names. Blocks: it looks at the filesystem.

    Raises:
        NotAMount: the path is not on a fusenotify mount.
        UsageError: the target has no form we know, or the path does not exist.
    """
    text = os.fspath(given)
    if text.startswith("unix:") and text != "unix:":
        return Target(text, text, b".")
    if "://" in text or text == "unix:":
        raise UsageError(f"{text!r} is no target: give a path on a fusenotify mount, or unix:PATH")
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
