"""What carries frames between a client and a daemon: a queue file or a unix socket. Both run under trio and asyncio."""

import contextlib
import errno
import os
import socket
from typing import Final, Protocol

import anyio

from fusenotify.config import QUEUE_FILE
from fusenotify.errors import DaemonGone, LimitReached, NotAMount, NotPermitted

_READ_SIZE: Final = 1 << 20
GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESTALE, errno.EIO})


class Transport(Protocol):
    """A way to one daemon."""

    async def send(self, data: bytes) -> None:
        """Send whole frames (DaemonGone when there is nobody)."""

    async def receive(self) -> bytes:
        """Wait for some bytes and return them (DaemonGone at their end). Cancelling loses nothing."""

    async def aclose(self) -> None:
        """Hang up."""


class QueueFile:
    """An open queue file of a mount."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        self._path = path

    @classmethod
    async def open(cls, mount_root: str) -> "QueueFile":
        """Open the queue file of a directory of a mount.

        Raises:
            NotAMount: there is no queue file, so it is no fusenotify mount.
            NotPermitted: the directory may not be entered.
            DaemonGone: the daemon of the mount is dead.
            LimitReached: too many files are open, here or there.
        """
        path = os.path.join(mount_root, QUEUE_FILE)
        try:
            fd = await anyio.to_thread.run_sync(
                os.open, path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC, abandon_on_cancel=True
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotAMount(f"{mount_root} is not on a fusenotify mount: it has no {QUEUE_FILE}") from error
        except PermissionError as error:
            raise NotPermitted(f"cannot open {path}: {error.strerror}") from error
        except OSError as error:
            if error.errno in GONE:
                raise DaemonGone(
                    f"the daemon of {mount_root} is dead ({error.strerror}); "
                    f"remove the mount with `fusenotify umount --lazy {mount_root}`"
                ) from error
            raise LimitReached(f"cannot open {path}: {error.strerror}") from error
        return cls(fd, path)

    async def send(self, data: bytes) -> None:
        """Write frames; the file takes each write as a whole or not at all."""
        while True:
            try:
                os.write(self._fd, data)
                return
            except BlockingIOError:
                await anyio.wait_writable(self._fd)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    return  # the daemon does not understand it; what it answers says why
                raise self._translated(error) from error

    async def receive(self) -> bytes:
        """Read frames."""
        while True:
            try:
                data = os.read(self._fd, _READ_SIZE)
            except BlockingIOError:
                await anyio.wait_readable(self._fd)
                continue
            except OSError as error:
                raise self._translated(error) from error
            if not data:
                raise self._gone("the file has ended")
            return data

    def _translated(self, error: OSError) -> Exception:
        return self._gone(error.strerror) if error.errno in GONE else error

    def _gone(self, why: str | None) -> DaemonGone:
        return DaemonGone(f"the daemon behind {self._path} has gone ({why}); mount again to go on")

    async def aclose(self) -> None:
        """Close the file; whoever still waits for it gets an error."""
        anyio.notify_closing(self._fd)
        with contextlib.suppress(OSError):  # ENOTCONN: the daemon has gone before us; closed it is all the same
            os.close(self._fd)


class UnixSocket:
    """A connection to a daemon's unix socket."""

    def __init__(self, sock: socket.socket, path: str) -> None:
        self._socket = sock
        self._path = path

    @classmethod
    async def connect(cls, path: str) -> "UnixSocket":
        """Connect to a socket.

        Raises:
            DaemonGone: nobody listens there.
            NotPermitted: the socket is another user's.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await anyio.to_thread.run_sync(sock.connect, path, abandon_on_cancel=True)
        except PermissionError as error:
            sock.close()
            raise NotPermitted(f"cannot connect to {path}: {error.strerror}") from error
        except OSError as error:
            sock.close()
            raise DaemonGone(f"nobody listens on {path}: {error.strerror or error}") from error
        except BaseException:
            sock.close()
            raise
        sock.setblocking(False)
        return cls(sock, path)

    async def send(self, data: bytes) -> None:
        """Send frames."""
        left = memoryview(data)
        while left:
            try:
                left = left[self._socket.send(left) :]
            except BlockingIOError:
                await anyio.wait_writable(self._socket)
            except OSError as error:
                raise self._gone() from error

    async def receive(self) -> bytes:
        """Receive some bytes."""
        while True:
            try:
                data = self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                await anyio.wait_readable(self._socket)
                continue
            except OSError as error:
                raise self._gone() from error
            if not data:
                raise self._gone()
            return data

    def _gone(self) -> DaemonGone:
        return DaemonGone(f"the daemon behind {self._path} has gone; start it again to go on")

    async def aclose(self) -> None:
        """Close the connection; whoever still waits for it gets an error."""
        anyio.notify_closing(self._socket)
        self._socket.close()
