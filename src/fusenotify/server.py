"""Unix sockets: the same protocol as the queue file, for clients that see nothing of the mount."""

import logging
import os
import socket
import stat
import struct
from typing import Final

import trio

from fusenotify.callers import Credentials, groups_of
from fusenotify.errors import EnvironmentProblem, ProtocolError, UsageError
from fusenotify.peer import Peer, Services
from fusenotify.tree import Tree

log = logging.getLogger(__name__)

_SEND: Final = 256 * 1024
_BACKLOG: Final = 64
_LAST_WORDS: Final = 5.0  # seconds to send a client why it is hung up on
_PEERCRED: Final = struct.Struct("iII")


def listen(url: str) -> trio.SocketListener:
    """Bind a `unix:PATH` socket that only this user (and root) can connect to.

    Raises:
        UsageError: the URL is of another form.
        EnvironmentProblem: the path is taken, or cannot be bound.
    """
    scheme, _, path = url.partition(":")
    if scheme != "unix" or not path:
        raise UsageError(f"--listen takes unix:PATH, not {url!r}")
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    umask = os.umask(0o177)
    try:
        _remove_dead_socket(path)
        sock.bind(path)
    except OSError as error:
        sock.close()
        raise EnvironmentProblem(f"cannot listen on {path}: {error.strerror or error}") from error
    finally:
        os.umask(umask)
    sock.listen(_BACKLOG)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


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


class Server:
    """Serves clients on listening sockets until it is cancelled."""

    def __init__(self, services: Services, tree: Tree) -> None:
        self._services = services
        self._tree = tree

    async def serve(self, listener: trio.SocketListener) -> None:
        """Accept clients; a client that misbehaves or goes away ends its own connection only."""
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(self._serve_client, [listener], handler_nursery=nursery)

    async def _serve_client(self, stream: trio.SocketStream) -> None:
        try:
            await self._converse(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except* Exception:
            # A bug, and this client's alone: the daemon serves others.
            log.exception("a client's connection failed; it was hung up on")
        finally:
            await trio.aclose_forcefully(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        peer = Peer(self._services, _credentials(stream), self._tree.root)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(peer.run)
                nursery.start_soon(_send, stream, peer)
                try:
                    await _receive(stream, peer)
                except ProtocolError as error:
                    log.warning("a client of user %d was hung up on: %s", peer.uid, error)
                    with trio.move_on_after(_LAST_WORDS):
                        await peer.wait_sent()  # the last of it is why
                nursery.cancel_scope.cancel()
        finally:
            peer.close()


async def _receive(stream: trio.SocketStream, peer: Peer) -> None:
    async for data in stream:
        peer.feed(bytes(data))
        await peer.wait_not_busy()


async def _send(stream: trio.SocketStream, peer: Peer) -> None:
    output_came = trio.Event()

    def wake() -> None:
        output_came.set()

    peer.on_output = wake
    while True:
        while data := peer.output(_SEND):
            await stream.send_all(data)
        output_came = trio.Event()
        if not peer.has_output:
            await output_came.wait()


def _credentials(stream: trio.SocketStream) -> Credentials:
    data = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEERCRED.size)
    pid, uid, gid = _PEERCRED.unpack(data)
    return Credentials(uid, gid, groups_of(pid))
