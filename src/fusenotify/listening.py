"""The sockets that a daemon listens on, and how each kind finds out who has connected."""

import contextlib
import errno
import os
import socket
import ssl
import stat
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Final, Protocol

import trio

from fusenotify.addresses import Address, TlsAddress, UnixAddress
from fusenotify.callers import Credentials, groups_of
from fusenotify.config import Listening
from fusenotify.errors import EnvironmentProblem
from fusenotify.sockets import Stream, TlsStream

_BACKLOG: Final = 64
_PEERCRED: Final = struct.Struct("iII")
_HANDSHAKE: Final = 10.0  # seconds that a client gets to prove who it is
_MOST_HALF_OPEN: Final = 64  # connections of clients that have not done so
_LONGEST_SOCKET_PATH: Final = 107  # bytes, of sun_path without the zero at its end
_PARTING: Final = 1.0  # seconds that a client which is refused gets to hear why


class Listener(Protocol):
    """Something that clients connect to.

    Attributes:
        address: where it is.
        sockets: what to accept connections from.
    """

    address: Address
    sockets: list[trio.SocketListener]

    async def admit(self, connection: socket.socket) -> tuple[Stream, Credentials]:
        """Take over a connection, and find out with whose rights the client comes (OSError: it may not come in)."""

    async def aclose(self) -> None:
        """Listen no more, and leave nothing behind."""


class UnixListener:
    """A unix socket that only this user, and root, can connect to; the kernel says who does."""

    def __init__(self, address: UnixAddress) -> None:
        """Bind and listen (OSError)."""
        self.address: Address = address
        self.sockets = [trio.SocketListener(trio.socket.from_stdlib_socket(_bound_to(address.path)))]
        self._path = address.path
        self._file = os.lstat(self._path)

    async def admit(self, connection: socket.socket) -> tuple[Stream, Credentials]:
        """Let everybody in who could connect."""
        data = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
        pid, uid, gid = _PEERCRED.unpack(data)
        return Stream(connection), Credentials(uid, gid, groups_of(pid))

    async def aclose(self) -> None:
        """Remove the file, unless another has taken its place, and close."""
        with contextlib.suppress(FileNotFoundError):
            found, ours = os.lstat(self._path), self._file
            if (found.st_dev, found.st_ino, found.st_ctime_ns) == (ours.st_dev, ours.st_ino, ours.st_ctime_ns):
                os.unlink(self._path)
        await self.sockets[0].aclose()


class TlsListener:
    """TCP sockets for clients with a certificate of our authority, each of which has the rights of the daemon's user.

    Until a client has proved who it is, it costs one connection of a bounded number, for a bounded time. When there is
    no more room the oldest goes: those who mean it are through within milliseconds.
    """

    def __init__(self, address: TlsAddress, sockets: list[trio.SocketListener], context: ssl.SSLContext) -> None:
        port: int = sockets[0].socket.getsockname()[1]
        self.address: Address = replace(address, port=port)
        self.sockets = sockets
        self._context = context
        self._half_open: dict[trio.CancelScope, None] = {}  # oldest first
        self._credentials = Credentials(os.geteuid(), os.getegid(), tuple(os.getgroups()))

    async def admit(self, connection: socket.socket) -> tuple[Stream, Credentials]:
        """Shake hands, and let those in whose certificate is right."""
        with contextlib.ExitStack() as undo:
            undo.callback(connection.close)
            with trio.move_on_after(_HANDSHAKE) as scope, self._room(scope):
                stream = TlsStream(connection, self._context)
                undo.callback(stream.close)
                await _shake_hands(stream)
                undo.pop_all()
                return stream, self._credentials
            raise TimeoutError(f"no handshake within {_HANDSHAKE:.0f} s, or before {_MOST_HALF_OPEN} others came")

    @contextlib.contextmanager
    def _room(self, scope: trio.CancelScope) -> Iterator[None]:
        if len(self._half_open) >= _MOST_HALF_OPEN:
            oldest = next(iter(self._half_open))
            del self._half_open[oldest]
            oldest.cancel()
        self._half_open[scope] = None
        try:
            yield
        finally:
            self._half_open.pop(scope, None)

    async def aclose(self) -> None:
        """Close the sockets."""
        for each in self.sockets:
            await each.aclose()


async def _shake_hands(stream: TlsStream) -> None:
    try:
        await stream.handshake()
    except ssl.SSLError:
        with trio.move_on_after(_PARTING):
            await stream.finish()
        raise


@contextlib.asynccontextmanager
async def opened(listening: Listening) -> AsyncIterator[list[Listener]]:
    """Listen while the block runs.

    Raises:
        EnvironmentProblem: an address is taken, or cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        listeners: list[Listener] = []
        for address in listening.addresses:
            try:
                listener = await _listen(address, listening.tls)
            except OSError as error:
                raise EnvironmentProblem(f"cannot listen on {address}: {_why_not(address, error)}") from error
            stack.push_async_callback(listener.aclose)
            listeners.append(listener)
        yield listeners


def _why_not(address: Address, error: OSError) -> str:
    """Say why an address cannot be listened on, and what to do."""
    why = error.strerror or str(error)
    if isinstance(address, TlsAddress):
        return f"{why}. Take another port" if error.errno == errno.EADDRINUSE else why
    if error.errno is None:  # what Python itself refuses
        return f"{why}: it has {len(os.fsencode(address.path))} bytes, and {_LONGEST_SOCKET_PATH} are possible"
    if error.errno == errno.EADDRINUSE:
        return f"{why}: another daemon listens there, or a file of that name is in the way. Take another path"
    return f"{why}. Its directory has to exist, and to be writable for this user"


async def _listen(address: Address, tls: ssl.SSLContext | None) -> Listener:
    if isinstance(address, UnixAddress):
        return UnixListener(address)
    assert tls is not None
    sockets = await trio.open_tcp_listeners(address.port, host=address.host, backlog=_BACKLOG)
    return TlsListener(address, sockets, tls)


def _bound_to(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        _remove_dead_socket(path)
        sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    finally:
        os.umask(umask)
    return sock


def _remove_dead_socket(path: str) -> None:
    """Remove the socket file that a daemon left behind when it was killed."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
