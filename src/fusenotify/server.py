"""Clients on sockets: the same protocol as the queue file, for those who see nothing of the mount."""

import contextlib
import errno
import functools
import logging
import resource
import socket
from collections.abc import Iterator
from typing import Final

import trio

from fusenotify.errors import ProtocolError
from fusenotify.listening import Listener
from fusenotify.peer import Peer, Services
from fusenotify.sockets import READ_SIZE, Stream
from fusenotify.tree import Tree

log = logging.getLogger(__name__)

_SEND: Final = 256 * 1024
_LAST_WORDS: Final = 5.0  # seconds to send a client why it is hung up on
_MOST_CONNECTIONS: Final = 4096
_CONNECTIONS_PART: Final = 8  # one descriptor in so many may be of a connection
_MOST_SILENT: Final = 256  # connections without a group


class Crowd:
    """The connections that one listener has let in, of which there are only so many.

    Of those without a group the oldest is hung up on when there are too many: who means to open one, or has a question,
    is through in milliseconds, so a crowd that says nothing keeps nobody out.
    """

    def __init__(self) -> None:
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(_MOST_CONNECTIONS, descriptors // _CONNECTIONS_PART)
        self._most_silent = min(_MOST_SILENT, self._most // 2)
        self._count = 0
        self._silent: dict[Peer, trio.CancelScope] = {}  # oldest first; among them some that are so no more

    @contextlib.contextmanager
    def joined(self, peer: Peer) -> Iterator[None]:
        """Let a connection be one of them while the block runs, which is cancelled if it has to go.

        Raises:
            OSError: there is no room for it.
        """
        if self._count >= self._most:
            raise OSError(errno.EMFILE, f"{self._most} clients are connected, which is the limit")
        self._count += 1
        try:
            with trio.CancelScope() as self._silent[peer]:
                self._bound_silent()
                yield
        finally:
            self._count -= 1
            self._silent.pop(peer, None)

    def _bound_silent(self) -> None:
        if len(self._silent) > self._most_silent:
            self._silent = {peer: scope for peer, scope in self._silent.items() if not peer.has_group}
        if len(self._silent) > self._most_silent:
            self._silent.pop(next(iter(self._silent))).cancel()


class Server:
    """Serves clients on listening sockets until it is cancelled."""

    def __init__(self, services: Services, tree: Tree) -> None:
        self._services = services
        self._tree = tree

    async def serve(self, listener: Listener) -> None:
        """Accept clients; a client that misbehaves or goes away ends its own connection only."""
        handler = functools.partial(self._serve_client, listener, Crowd())
        async with trio.open_nursery() as nursery:
            await trio.serve_listeners(handler, listener.sockets, handler_nursery=nursery)

    async def _serve_client(self, listener: Listener, crowd: Crowd, accepted: trio.SocketStream) -> None:
        try:
            stream, credentials = await listener.admit(socket.socket(fileno=accepted.socket.detach()))
        except OSError as error:
            log.info("somebody was not let in at %s: %s", listener.address, error)
            return
        peer = Peer(self._services, credentials, self._tree.root)
        try:
            with crowd.joined(peer):
                await _converse(stream, peer)
        except* (OSError, trio.ClosedResourceError) as gone:
            log.debug("a client of user %d at %s has gone: %s", peer.uid, listener.address, gone.exceptions[0])
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
    while data := await stream.receive(READ_SIZE if peer.room is None else peer.room):
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
