"""Clients on sockets: the same protocol as the queue file, for those who see nothing of the mount."""

import functools
import logging
import socket
from typing import Final

import trio

from fusenotify.errors import ProtocolError
from fusenotify.listening import Listener
from fusenotify.peer import Peer, Services
from fusenotify.sockets import Stream
from fusenotify.tree import Tree

log = logging.getLogger(__name__)

_SEND: Final = 256 * 1024
_LAST_WORDS: Final = 5.0  # seconds to send a client why it is hung up on


class Server:
    """Serves clients on listening sockets until it is cancelled."""

    def __init__(self, services: Services, tree: Tree) -> None:
        self._services = services
        self._tree = tree

    async def serve(self, listener: Listener) -> None:
        """Accept clients; a client that misbehaves or goes away ends its own connection only."""
        handler = functools.partial(self._serve_client, listener)
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(handler, listener.sockets, handler_nursery=nursery)

    async def _serve_client(self, listener: Listener, accepted: trio.SocketStream) -> None:
        try:
            stream, credentials = await listener.admit(socket.socket(fileno=accepted.socket.detach()))
        except OSError as error:
            log.info("somebody was not let in at %s: %s", listener.address, error)
            return
        peer = Peer(self._services, credentials, self._tree.root)
        try:
            await _converse(stream, peer)
        except* (OSError, trio.ClosedResourceError):
            pass  # the client has gone
        except* Exception:
            # A bug, and this client's alone: the daemon serves others.
            log.exception("a client's connection failed; it was hung up on")
        finally:
            peer.close()
            stream.close()


async def _converse(stream: Stream, peer: Peer) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.run)
        nursery.start_soon(_send, stream, peer)
        nursery.start_soon(_end_with_the_other, stream)
        try:
            await _receive(stream, peer)
        except ProtocolError as error:
            log.warning("a client of user %d was hung up on: %s", peer.uid, error)
            with trio.move_on_after(_LAST_WORDS):
                await peer.wait_sent()  # the last of it is why
                await stream.finish()
        nursery.cancel_scope.cancel()


async def _receive(stream: Stream, peer: Peer) -> None:
    while data := await stream.receive():
        peer.feed(data)
        await trio.lowlevel.checkpoint()
        await peer.wait_not_busy()


async def _send(stream: Stream, peer: Peer) -> None:
    output_came = trio.Event()

    def wake() -> None:
        output_came.set()

    peer.on_output = wake
    while True:
        while data := peer.output(_SEND):
            await stream.send(data)
            await trio.lowlevel.checkpoint()
        output_came = trio.Event()
        if not peer.has_output:
            await output_came.wait()


async def _end_with_the_other(stream: Stream) -> None:
    await stream.wait_dead()
    raise TimeoutError("the client's machine is dead, or cannot be reached")
