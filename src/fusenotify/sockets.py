"""Connected sockets that never block, plain or TLS, for both ends of a connection. They run under trio and asyncio.

TLS is done by the socket itself (`ssl.SSLSocket`): other than the TLS streams of trio and anyio it tells the other end
why it is refused, and a write that was cancelled can be taken up again.
"""

import errno
import fcntl
import os
import socket
import ssl
import struct
import termios
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

T = TypeVar("T")

READ_SIZE: Final = 1 << 18
# Seconds without a sign of life after which the machine at the other end, or the way to it, is taken for dead. The
# kernels ask and answer, so nobody is woken up for it here, and a program that is merely busy or stopped is alive.
DEAD_AFTER = 30
_PROBES: Final = 3
_INT: Final = struct.Struct("=i")
_TCP_INFO: Final = struct.Struct("=24xI28xI")  # of struct tcp_info: tcpi_unacked, tcpi_last_ack_recv


class Stream:
    """A connected socket; its methods raise OSError when the other end has gone.

    Attributes:
        is_from_here: whether both ends are on the same machine, as far as one can tell.
    """

    is_from_here = True

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._unsent = bytearray()

    async def send(self, data: bytes) -> None:
        """Send all of it. If this is cancelled, what is left goes ahead of what is sent next: no frame is torn."""
        self._unsent += data
        while self._unsent:
            sent = await self._when_ready(lambda: self._socket.send(self._unsent), anyio.wait_writable)
            del self._unsent[:sent]

    async def receive(self, most: int = READ_SIZE) -> bytes:
        """Wait for some bytes and return them; none at their end. Cancelling loses nothing."""
        return await self._when_ready(lambda: self._socket.recv(most), anyio.wait_readable)

    async def finish(self) -> None:
        """Send nothing more, and return when the other end has hung up.

        To close a TCP socket that holds unread bytes would throw away what the other end has not received yet.
        """
        self._socket.shutdown(socket.SHUT_WR)
        while await self.receive():
            pass

    async def wait_dead(self) -> None:
        """Return when the other end is dead although nothing says so: that cannot be on one machine."""
        await anyio.sleep_forever()

    async def _when_ready(self, call: Callable[[], T], wait: Callable[[socket.socket], Awaitable[None]]) -> T:
        while True:
            try:
                return call()
            except BlockingIOError:
                await wait(self._socket)
            except ssl.SSLWantReadError:
                await anyio.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(self._socket)

    def close(self) -> None:
        """Close it; whoever still waits for it gets an error."""
        anyio.notify_closing(self._socket)
        self._socket.close()


class TlsStream(Stream):
    """A connected TCP socket with TLS on it; before anything else, both ends shake hands.

    What TLS has to say against the other end, or that against us, is raised as `ssl.SSLError`, an OSError.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str | None = None) -> None:
        """Take over a connected socket: the client's, who wants to reach `host`, or the daemon's if there is none.

        Raises:
            OSError: the other end has gone already.
        """
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _keep_alive(sock)
        sock.setblocking(False)
        self._tls = context.wrap_socket(
            sock, server_side=host is None, server_hostname=host, do_handshake_on_connect=False
        )
        super().__init__(self._tls)
        self._has_sent = anyio.Event()
        self.is_from_here = bool(self._tls.getsockname()[0] == self._tls.getpeername()[0])

    async def handshake(self) -> None:
        """Agree on keys, and find out who the other end is."""
        await self._when_ready(self._tls.do_handshake, anyio.wait_readable)

    async def send(self, data: bytes) -> None:
        """Send all of it, as `Stream.send`."""
        self._has_sent.set()
        await super().send(data)

    async def wait_dead(self) -> None:
        """Return when what was sent has had no answer from the other end's kernel for `DEAD_AFTER` seconds.

        The kernel would try for a quarter of an hour. Its own shorter timeout (TCP_USER_TIMEOUT) would also end the
        connection of somebody who is alive and has not read for so long.
        """
        while True:
            await anyio.sleep(DEAD_AFTER / _PROBES)
            (queued,) = _INT.unpack(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(_INT.size)))
            if not queued:  # all has arrived: from now on it is the kernel that asks
                self._has_sent = anyio.Event()
                await self._has_sent.wait()
                continue
            info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            unacknowledged, silence = _TCP_INFO.unpack(info)
            # Who has no room for more acknowledges what is under way, and nothing is.
            if unacknowledged and silence >= DEAD_AFTER * 1000:
                return


async def connect_unix(path: str) -> Stream:
    """Connect to a unix socket (OSError where nobody listens, or it is not for us)."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await anyio.to_thread.run_sync(sock.connect, path, abandon_on_cancel=True)
    except BaseException:
        sock.close()
        raise
    return Stream(sock)


async def connect_tls(host: str, port: int, context: ssl.SSLContext) -> TlsStream:
    """Connect to a host, at the first of its addresses that answers, and shake hands.

    Raises:
        ssl.SSLError: the other end is not who it should be, or speaks no TLS.
        OSError: nobody listens there.
    """
    sock = await _connect_tcp(host, port)
    try:
        # What we sent and is not acknowledged, or what a daemon does not take from us for so long, is given up too.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_AFTER * 1000)
        stream = TlsStream(sock, context, host)
    except BaseException:
        sock.close()
        raise
    try:
        await stream.handshake()
    except BaseException:
        stream.close()
        raise
    return stream


async def _connect_tcp(host: str, port: int) -> socket.socket:
    failure = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, number, _, address in await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        sock.setblocking(False)
        try:
            await _connect(sock, address)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise failure


async def _connect(sock: socket.socket, address: tuple[str, int]) -> None:
    number = sock.connect_ex(address)
    if number == errno.EINPROGRESS:
        await anyio.wait_writable(sock)
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


def _keep_alive(sock: socket.socket) -> None:
    """Have the kernel ask the other end's now and then whether it is there, and end the connection if it is not."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, DEAD_AFTER // 2)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, DEAD_AFTER // 2 // _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
