"""What a target names: a daemon, and a path below its root."""

import os
from dataclasses import dataclass

from fusenotify.config import QUEUE_FILE
from fusenotify.errors import DaemonGone, NotAMount, NotPermitted, UsageError
from fusenotify.transports import GONE, QueueFile, Transport, UnixSocket


@dataclass(frozen=True)
class Target:
    """A resolved target.

    Attributes:
        given: as the user wrote it.
        daemon: what tells one daemon from another: the root of a mount, or the URL of a socket.
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
        NotPermitted: the path is not for this user to look at.
        DaemonGone: the path is on a mount whose daemon is dead.
    """
    text = os.fspath(given)
    if text.startswith("unix:") and text != "unix:":
        return Target(text, text, b".")
    if "://" in text or text == "unix:":
        raise UsageError(f"{text!r} is no target: give a path on a fusenotify mount, or unix:PATH")
    real = os.path.realpath(text)
    try:
        root = _mount_root(real)
        os.stat(os.path.join(root, QUEUE_FILE))
    except FileNotFoundError as error:
        if not os.path.lexists(real):
            raise UsageError(f"{text} does not exist") from error
        raise NotAMount(f"{text} is not on a fusenotify mount; mount one with `fusenotify mount SOURCE DIR`") from error
    except NotADirectoryError as error:
        raise NotAMount(f"{text} is not on a fusenotify mount") from error
    except PermissionError as error:
        raise NotPermitted(f"cannot look at {text}: {error.strerror}") from error
    except OSError as error:
        if error.errno not in GONE:
            raise UsageError(f"{text} is no target: {error.strerror}") from error
        raise DaemonGone(
            f"the daemon of the mount at {text} is dead ({error.strerror}); "
            f"remove the mount with `fusenotify umount --lazy {text}`"
        ) from error
    return Target(text, root, os.fsencode(os.path.relpath(real, root)))


def _mount_root(real: str) -> str:
    """Return the topmost directory of the filesystem that a path is on, as far as it can be seen from here."""
    device = os.stat(real).st_dev
    root = real
    while root != "/" and os.stat(os.path.dirname(root)).st_dev == device:
        root = os.path.dirname(root)
    return root
