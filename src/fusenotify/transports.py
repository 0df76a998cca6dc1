"""What carries frames between a client and a daemon: a queue file or a socket. Both run under trio and asyncio."""

import contextlib
import errno
import os
import ssl
from typing import Final, Protocol

import anyio

from fusenotify.addresses import Address, TlsAddress, UnixAddress
from fusenotify.config import QUEUE_FILE
from fusenotify.errors import DaemonGone, EnvironmentProblem, LimitReached, NotAMount, NotPermitted, UsageError
from fusenotify.sockets import Stream, TlsStream, connect_tls, connect_unix
from fusenotify.threads import run_abandonable
from fusenotify.tls import REFUSED, Tls

Credentials = Tls | ssl.SSLContext  # of a client, for daemons behind TLS

_READ_SIZE: Final = 1 << 20
_CLOSED: Final = -1  # no descriptor
_CONNECT: Final = 10.0  # seconds for a connection and its handshake
GONE: Final = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV, errno.ESTALE, errno.EIO})


class Transport(Protocol):
    """A way to one daemon.

    Attributes:
        shares_processes: whether the number of a process means the same to the daemon as here.
    """

    shares_processes: bool

    async def send(self, data: bytes) -> None:
        """Send whole frames (DaemonGone when there is nobody)."""

    async def receive(self) -> bytes:
        """Wait for some bytes and return them (DaemonGone at their end). Cancelling loses nothing."""

    async def aclose(self) -> None:
        """Hang up."""


class QueueFile:
    """An open queue file of a mount."""

    shares_processes = True

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
            fd = await run_abandonable(lambda: os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC), os.close)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotAMount(f"{mount_root} is not on a fusenotify mount: it has no {QUEUE_FILE}") from error
        except PermissionError as error:
            raise NotPermitted(
                f"cannot open {path}: {error.strerror}. Only who mounted it can enter a mount, not even root, "
                "unless it was mounted with -o allow_other; and every directory on the way has to be searchable"
            ) from error
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
        if self._fd == _CLOSED:
            return anyio.ClosedResourceError()
        return self._gone(error.strerror) if error.errno in GONE else error

    def _gone(self, why: str | None) -> DaemonGone:
        return DaemonGone(f"the daemon behind {self._path} has gone ({why}); mount again to go on")

    async def aclose(self) -> None:
        """Close the file; whoever still waits for it gets an error."""
        fd, self._fd = self._fd, _CLOSED  # its number may soon be another file's
        if fd == _CLOSED:
            return
        anyio.notify_closing(fd)
        with contextlib.suppress(OSError):  # ENOTCONN: the daemon has gone before us; closed it is all the same
            os.close(fd)


class Socket:
    """A connection to a daemon's socket."""

    def __init__(self, stream: Stream, address: Address) -> None:
        self._stream = stream
        self._address = address
        # Over a network, the number of a process of ours is that of another one at the daemon's.
        self.shares_processes = stream.is_from_here

    @classmethod
    async def connect(cls, address: Address, tls: Credentials | None) -> "Socket":
        """Connect to a daemon; `tls` is what an address that begins with `tls:` needs.

        Raises:
            DaemonGone: nobody listens there.
            NotPermitted: the socket is another user's.
            EnvironmentProblem: who listens there is not who we look for, or our credentials cannot be used.
            UsageError: there are no credentials.
        """
        if isinstance(address, UnixAddress):
            return cls(await _connect_unix(address), address)
        if tls is None:
            raise UsageError(
                f"{address} needs a certificate, its key and an authority to check the daemon by: give --cert, "
                "--key and --ca, in Python tls=fusenotify.Tls(cert, key, ca)"
            )
        return cls(await _connect_tls(address, tls), address)

    async def send(self, data: bytes) -> None:
        """Send frames."""
        try:
            await self._stream.send(data)
        except OSError as error:
            raise self._translated(error) from error

    async def receive(self) -> bytes:
        """Receive some bytes."""
        try:
            data = await self._stream.receive()
        except OSError as error:
            raise self._translated(error) from error
        if not data:
            raise self._gone()
        return data

    def _translated(self, error: OSError) -> Exception:
        if isinstance(error, ssl.SSLError) and REFUSED in (error.reason or ""):
            return NotPermitted(
                f"the daemon at {self._address} does not accept our certificate ({error.reason}): "
                "it has to be valid, and signed by the authority that the daemon was given"
            )
        return self._gone()

    def _gone(self) -> DaemonGone:
        return DaemonGone(f"the daemon behind {self._address} has gone; start it again to go on")

    async def aclose(self) -> None:
        """Close the connection; whoever still waits for it gets an error."""
        self._stream.close()


async def _connect_unix(address: UnixAddress) -> Stream:
    try:
        return await connect_unix(address.path)
    except PermissionError as error:
        raise NotPermitted(
            f"cannot connect to {address}: {error.strerror}. A daemon's socket is for its user and root"
        ) from error
    except OSError as error:
        raise DaemonGone(
            f"nobody listens on {address}: {error.strerror or error}. Start a daemon with --listen {address}"
        ) from error


async def _connect_tls(address: TlsAddress, tls: Credentials) -> TlsStream:
    context = await anyio.to_thread.run_sync(tls.client_context) if isinstance(tls, Tls) else tls
    try:
        with anyio.fail_after(_CONNECT):
            return await connect_tls(address.host, address.port, context)
    except ssl.SSLCertVerificationError as error:
        raise EnvironmentProblem(
            f"the certificate of who listens at {address} is not that of the daemon we look for: {error.verify_message}"
        ) from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise DaemonGone(f"who listens at {address} hung up before both ends knew each other") from error
    except ssl.SSLError as error:
        raise EnvironmentProblem(f"who listens at {address} does not speak our TLS: {error.reason}") from error
    except OSError as error:
        why = error.strerror or f"not within {_CONNECT:.0f} s"
        raise DaemonGone(f"nobody answers at {address}: {why}") from error
