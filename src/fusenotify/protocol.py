"""The messages between a daemon and its clients, and the frames they travel in. docs/protocol.md is its specification.

A frame is a length (4 bytes, little-endian, of what follows) and one MessagePack array whose first element names the
message. The same frames go over the queue file and over sockets. Trailing fields unknown to a reader are ignored.
"""

import struct
from typing import Final

import msgspec

from fusenotify.batch import Batch
from fusenotify.errors import (
    BadCursor,
    DaemonGone,
    FusenotifyError,
    HistoryGone,
    LimitReached,
    NotAMount,
    NotPermitted,
    ProtocolError,
    StaleHandle,
    UsageError,
)
from fusenotify.events import EventRecord
from fusenotify.status import Status

VERSION: Final = 1
MAX_FRAME: Final = 1 << 20  # bytes; more is not a request
MAX_TEXT: Final = 1024  # bytes of an error's message, which may quote what the client sent
_LENGTH: Final = struct.Struct("<I")

INODE: Final = "inode"
DIR: Final = "dir"
SUBTREE: Final = "subtree"
FILESYSTEM: Final = "filesystem"
LOCAL_ORIGIN: Final = 1
REMOTE_ORIGIN: Final = 2

EXISTS: Final = 2  # flag of a changed path, beside `events.IS_DIR`


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """First message of a client: the version it speaks, and the limit of its queue (0: the daemon's default)."""

    version: int
    limit: int = 0


class AddMark(msgspec.Struct, tag="mark", array_like=True):
    """Take an interest in an object of the tree."""

    request: int
    mark: int
    path: bytes
    scope: str
    kinds: int
    origins: int
    exclude_pid: int | None = None
    uids: tuple[int, ...] | None = None
    oneshot: bool = False
    handles: bool = False
    shared: bool = False
    since: str | None = None


class RemoveMark(msgspec.Struct, tag="unmark", array_like=True):
    """Lose that interest."""

    request: int
    mark: int


class Recount(msgspec.Struct, tag="recount", array_like=True):
    """Ask for a recovered create of everything in a mark's reach, or of what of it is below a path."""

    request: int
    mark: int
    path: bytes | None = None


class Sync(msgspec.Struct, tag="sync", array_like=True):
    """Ask for an answer once every change made before this is queued."""

    request: int


class AskStatus(msgspec.Struct, tag="status", array_like=True):
    """Ask how the daemon is."""

    request: int


class Lookup(msgspec.Struct, tag="lookup", array_like=True):
    """Ask for the handle of what is at a path."""

    request: int
    path: bytes


class Locate(msgspec.Struct, tag="locate", array_like=True):
    """Ask for the path at which the object of a handle is now."""

    request: int
    handle: str


class AskCursor(msgspec.Struct, tag="cursor", array_like=True):
    """Ask for the current position in the history of changes, as a cursor that lasts."""

    request: int


class Since(msgspec.Struct, tag="since", array_like=True):
    """Ask what has changed since a cursor; the answer is its first piece."""

    request: int
    path: bytes
    cursor: str


class More(msgspec.Struct, tag="more", array_like=True):
    """Ask for the next piece of the answer to Since."""

    request: int


class CreateSnapshot(msgspec.Struct, tag="snapshot", array_like=True):
    """Have the current position kept under a name."""

    request: int
    name: str


class DeleteSnapshot(msgspec.Struct, tag="forget", array_like=True):
    """Have a snapshot kept no longer."""

    request: int
    name: str


class AskSnapshots(msgspec.Struct, tag="snapshots", array_like=True):
    """Ask which snapshots are kept."""

    request: int


Request = (
    Hello | AddMark | RemoveMark | Recount | Sync | AskStatus | Lookup | Locate
    | AskCursor | Since | More | CreateSnapshot | DeleteSnapshot | AskSnapshots
)  # fmt: skip


class Welcome(msgspec.Struct, tag="welcome", array_like=True):
    """Answer to Hello: the daemon's version of the protocol and its epoch."""

    version: int
    epoch: str


class Done(msgspec.Struct, tag="done", array_like=True):
    """A request was carried out; `seq` is the position in the history of changes from which on it holds.

    Of a mark that was asked for with `since`, that is said again as a cursor that lasts.
    """

    request: int
    seq: int
    since: str | None = None


class Report(msgspec.Struct, tag="report", array_like=True):
    """Answer to AskStatus."""

    request: int
    status: Status


class Handle(msgspec.Struct, tag="handle", array_like=True):
    """Answer to Lookup."""

    request: int
    handle: str
    is_dir: bool = True


class Location(msgspec.Struct, tag="location", array_like=True):
    """Answer to Locate."""

    request: int
    path: bytes


class Position(msgspec.Struct, tag="position", array_like=True):
    """Answer to AskCursor and Snapshot."""

    request: int
    cursor: str


class ChangedPath(msgspec.Struct, array_like=True, gc=False):
    """A path that has changed, and what is there now: `flags` are EXISTS and IS_DIR."""

    path: bytes
    flags: int
    handle: str | None = None


class Changes(msgspec.Struct, tag="changes", array_like=True):
    """A piece of the answer to Since; with `more` there is another one to ask for."""

    request: int
    records: list[ChangedPath]
    cursor: str
    fresh: bool
    more: bool = False


class KeptSnapshot(msgspec.Struct, array_like=True):
    """A name, and the cursor that is kept for it."""

    name: str
    cursor: str


class Snapshots(msgspec.Struct, tag="snapshots", array_like=True):
    """Answer to AskSnapshots."""

    request: int
    snapshots: list[KeptSnapshot]


class Refusal(msgspec.Struct, tag="error", array_like=True):
    """A request was not carried out. `request` is 0 when it could not even be read."""

    request: int
    code: str
    message: str


class Events(msgspec.Struct, tag="events", array_like=True):
    """Some events of one mark (0: of the group as a whole), in order."""

    mark: int
    records: list[EventRecord]


Reply = Welcome | Done | Report | Handle | Location | Position | Changes | Snapshots | Refusal | Events

_CODES: Final[dict[str, type[FusenotifyError]]] = {
    "usage": UsageError,
    "bad-cursor": BadCursor,
    "not-a-mount": NotAMount,
    "not-permitted": NotPermitted,
    "limit-reached": LimitReached,
    "history-gone": HistoryGone,
    "stale-handle": StaleHandle,
    "daemon-gone": DaemonGone,
    "protocol": ProtocolError,
    "internal": FusenotifyError,
}
_CODE_OF: Final = {error: code for code, error in _CODES.items()}

_encoder = msgspec.msgpack.Encoder()
_request_decoder: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)
_EVENTS_HEAD: Final = b"\x93" + _encoder.encode("events")
# What msgspec raises for bytes that make no sense; the last two come of strings that are no UTF-8 and of deep nesting.
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def encode(message: Request | Reply) -> bytes:
    """Return a message as a frame."""
    payload = _encoder.encode(message)
    return _LENGTH.pack(len(payload)) + payload


def encode_events(mark: int, batch: Batch) -> bytes:
    """Return the frame of an Events message whose records have been encoded for everybody already."""
    payload = _EVENTS_HEAD + _encoder.encode(mark) + batch.encoded()
    return _LENGTH.pack(len(payload)) + payload


def refusal(request: int, error: FusenotifyError) -> Refusal:
    """Return the message that tells a client of an error."""
    text = str(error).encode(errors="backslashreplace")  # names in it may be no UTF-8, which strings are here
    if len(text) > MAX_TEXT:
        text = text[: MAX_TEXT - 3] + b"..."
    return Refusal(request, _CODE_OF.get(type(error), "internal"), text.decode(errors="ignore"))


def error_of(message: Refusal) -> FusenotifyError:
    """Return the exception that a refusal stands for."""
    return _CODES.get(message.code, FusenotifyError)(message.message)


def decode_request(payload: bytes) -> Request:
    """Read what a client sent.

    Raises:
        ProtocolError: it is no message of this protocol.
    """
    try:
        return _request_decoder.decode(payload)
    except _UNREADABLE as error:
        raise ProtocolError(f"this is no request of protocol version {VERSION}: {error}") from error


def decode_reply(payload: bytes) -> Reply:
    """Read what a daemon sent.

    Raises:
        ProtocolError: it is no message of this protocol.
    """
    try:
        return _reply_decoder.decode(payload)
    except _UNREADABLE as error:
        raise ProtocolError(f"the daemon speaks another protocol than version {VERSION}: {error}") from error


class FrameBuffer:
    """Cuts a stream of bytes, however it arrives, into the payloads of frames."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._limit = limit
        self._bytes = bytearray()
        self._broken: str | None = None

    def __len__(self) -> int:
        """Return how many bytes wait for the rest of their frame."""
        return len(self._bytes)

    def feed(self, data: bytes) -> list[bytes]:
        """Take some bytes and return the payloads that are complete now.

        Raises:
            ProtocolError: a frame claims to be longer than any can be; nothing behind it can be read, now or later.
        """
        if self._broken is not None:
            raise ProtocolError(self._broken)
        self._bytes += data
        payloads: list[bytes] = []
        start, have = 0, len(self._bytes)
        while have - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes, start)
            if length > self._limit:
                self._broken = f"a frame of {length} bytes is longer than the {self._limit} that are allowed"
                self._bytes.clear()
                raise ProtocolError(self._broken)
            end = start + _LENGTH.size + length
            if end > have:
                break
            payloads.append(bytes(self._bytes[start + _LENGTH.size : end]))
            start = end
        del self._bytes[:start]
        return payloads
