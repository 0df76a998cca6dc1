"""Messages and frames: what docs/protocol.md promises to clients in other languages."""

import contextlib
import re
import struct
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fusenotify import errors, protocol
from fusenotify.batch import Batch
from fusenotify.errors import FusenotifyError, ProtocolError
from fusenotify.events import CREATE, DEFAULT, EXCHANGE, IS_DIR, LOCAL, OVERFLOW, RENAME, EventRecord
from fusenotify.protocol import (
    EXISTS,
    AddMark,
    AskCursor,
    AskSnapshots,
    AskStatus,
    ChangedPath,
    Changes,
    CreateSnapshot,
    DeleteSnapshot,
    Done,
    Events,
    FrameBuffer,
    Hello,
    KeptSnapshot,
    More,
    Position,
    Recount,
    Refusal,
    RemoveMark,
    Report,
    Since,
    Snapshots,
    Sync,
    Welcome,
)
from fusenotify.status import Replays, Status

SPECIFICATION = Path(__file__).parent.parent / "docs" / "protocol.md"

STATUS = Status(
    pid=1, source=b"/src", mountpoint=b"/mnt", watcher="inotify", native="off", cursor="c:ab:7", watches=2,
    overflows=0, recoveries=0, deaf=0, groups=1, nodes=3, replays=Replays(4, 5),
)  # fmt: skip
RECORDS = [
    EventRecord(7, 1_700_000_000_000_000_000, CREATE, LOCAL, b"a/\xff", None, 42, 1000),
    EventRecord(8, 1_700_000_000_000_000_000, RENAME, EXCHANGE, b"b", b"a", None, None, "", "h:", "h;", "h<"),
    EventRecord(9, 1_700_000_000_000_000_000, OVERFLOW, 0, None, reason="queue"),
]

# The bytes of every message, frame included. They change with the version of the protocol only.
GOLDEN: list[tuple[protocol.Request | protocol.Reply, str]] = [
    (Hello(1, 0), "09000000 93 a568656c6c6f 01 00"),
    (Hello(1, 131072), "0d000000 93 a568656c6c6f 01 ce00020000"),
    (
        AddMark(1, 2, b".", "subtree", DEFAULT, 3),
        "1c000000 9d a46d61726b 01 02 c4012e a773756274726565 ccff 03 c0 c0 c2 c2 c2 c0",
    ),
    (
        AddMark(300, 2, b"a/\xff", "dir", CREATE | RENAME, 2, 4711, (0, 1000)),
        "21000000 9d a46d61726b cd012c 02 c403612fff a3646972 21 02 cd1267 92 00 cd03e8 c2 c2 c2 c0",
    ),
    (
        AddMark(1, 3, b"f", "inode", CREATE, 3, None, None, True, True, True, "c:ab:7"),
        "1f000000 9d a46d61726b 01 03 c40166 a5696e6f6465 01 03 c0 c0 c3 c3 c3 a6633a61623a37",
    ),
    (RemoveMark(3, 2), "0a000000 93 a6756e6d61726b 03 02"),
    (Recount(3, 2), "0c000000 94 a77265636f756e74 03 02 c0"),
    (Recount(3, 2, b"a"), "0e000000 94 a77265636f756e74 03 02 c40161"),
    (Sync(4), "07000000 92 a473796e63 04"),
    (AskStatus(5), "09000000 92 a6737461747573 05"),
    (Welcome(1, "0a1b2c3d4e5f"), "17000000 93 a777656c636f6d65 01 ac306131623263336434653566"),
    (AskCursor(6), "09000000 92 a6637572736f72 06"),
    (Since(7, b"a", "@x"), "0e000000 94 a573696e6365 07 c40161 a24078"),
    (More(8), "07000000 92 a46d6f7265 08"),
    (CreateSnapshot(9, "x"), "0d000000 93 a8736e617073686f74 09 a178"),
    (DeleteSnapshot(10, "x"), "0b000000 93 a6666f72676574 0a a178"),
    (AskSnapshots(11), "0c000000 92 a9736e617073686f7473 0b"),
    (Done(4, 70000), "0d000000 94 a4646f6e65 04 ce00011170 c0"),
    (Done(4, 5, "c:ab:7"), "0f000000 94 a4646f6e65 04 05 a6633a61623a37"),
    (Position(6, "c:ab:7"), "12000000 93 a8706f736974696f6e 06 a6633a61623a37"),
    (
        Changes(7, [ChangedPath(b"a", EXISTS | IS_DIR, "h:"), ChangedPath(b"b", 0)], "c:ab:7", False, True),
        "22000000 96 a76368616e676573 07 92 93 c40161 03 a2683a 93 c40162 00 c0 a6633a61623a37 c2 c3",
    ),
    (
        Snapshots(11, [KeptSnapshot("x", "c:ab:7")]),
        "17000000 93 a9736e617073686f7473 0b 91 92 a178 a6633a61623a37",
    ),
    (
        Report(5, STATUS),
        "90010000 93 a67265706f7274 05 de0017 a370696401 a6736f75726365 c4042f737263 "
        "aa6d6f756e74706f696e74 c4042f6d6e74 a777617463686572a7696e6f74696679 a66e6174697665a36f6666 "
        "a6637572736f72a6633a61623a37 a777617463686573 02 "
        "a96f766572666c6f7773 00 aa7265636f766572696573 00 a464656166 00 a667726f757073 01 a56e6f646573 03 "
        "a77265706c617973 83 a964656c697665726564 04 a966656c6c5f6261636b 05 a5737475636b 00 "
        "a57374617465 a8696e20706c616365 "
        "aa646561665f7061746873 90 ab77617463685f6c696d6974 00 a4746f6c64 00 a764726f70706564 00 a6717565756573 90 "
        "a76c6174656e6379 82 a6717565756564 82 a6636f756e7473 99 000000000000000000 a5746f74616c cb0000000000000000 "
        "a473656e74 82 a6636f756e7473 99 000000000000000000 a5746f74616c cb0000000000000000 "
        "ae776174636865725f726561736f6e a0 ad6e61746976655f726561736f6e a0 "
        "a76a6f75726e616c 84 a57374617465 a0 a473697a65 00 a66f6c64657374 a0 a8636f6d7061726564 00",
    ),
    (
        Refusal(6, "usage", "this group has no mark 2"),
        "27000000 94 a56572726f72 06 a57573616765 b8746869732067726f757020686173206e6f206d61726b2032",
    ),
    (
        Events(2, RECORDS),
        "5e000000 93 a66576656e7473 02 93 "
        "9c 07 cf17979cfe362a0000 01 08 c403612fff c0 2a cd03e8 a0 c0 c0 c0 "
        "9c 08 cf17979cfe362a0000 20 02 c40162 c40161 c0 c0 a0 a2683a a2683b a2683c "
        "9c 09 cf17979cfe362a0000 40 00 c0 c0 c0 c0 a57175657565 c0 c0 c0",
    ),
]


def is_request(message: object) -> bool:
    return isinstance(message, get_args(protocol.Request))


def payload_of(frame: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", frame)
    assert len(frame) == 4 + length
    return frame[4:]


# --- messages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "golden"), GOLDEN, ids=[f"{type(message).__name__}-{n}" for n, (message, _) in enumerate(GOLDEN)]
)
def test_golden_bytes(message: protocol.Request | protocol.Reply, golden: str) -> None:
    frame = protocol.encode(message)
    assert frame.hex() == golden.replace(" ", "")
    decode = protocol.decode_request if is_request(message) else protocol.decode_reply
    assert decode(payload_of(frame)) == message


def test_events_that_were_encoded_once_for_everybody_are_the_same_bytes() -> None:
    assert protocol.encode_events(2, Batch(RECORDS)) == protocol.encode(Events(2, RECORDS))


numbers = st.integers(0, 2**63 - 1)
texts = st.text(max_size=20)
names = st.none() | st.binary(max_size=20)
records = st.builds(
    EventRecord,
    numbers,
    numbers,
    numbers,
    numbers,
    names,
    names,
    st.none() | numbers,
    st.none() | numbers,
    texts,
    *[st.none() | texts] * 3,
)
messages: st.SearchStrategy[Any] = st.one_of(
    st.builds(Hello, numbers, numbers),
    st.builds(
        AddMark, numbers, numbers, st.binary(max_size=40), texts, numbers, numbers, st.none() | numbers,
        st.none() | st.lists(numbers, max_size=5).map(tuple), st.booleans(), st.booleans(),
        st.booleans(),
    ),
    st.builds(RemoveMark, numbers, numbers),
    st.builds(Recount, numbers, numbers, st.none() | st.binary()),
    st.builds(Sync, numbers),
    st.builds(AskStatus, numbers),
    st.builds(Welcome, numbers, texts),
    st.builds(Done, numbers, numbers),
    st.builds(Refusal, numbers, texts, texts),
    st.builds(Events, numbers, st.lists(records, max_size=5)),
)  # fmt: skip


@given(messages)
def test_what_is_encoded_is_decoded(message: protocol.Request | protocol.Reply) -> None:
    decode = protocol.decode_request if is_request(message) else protocol.decode_reply
    assert decode(payload_of(protocol.encode(message))) == message


@given(messages, st.lists(st.none() | st.integers() | st.text() | st.binary() | st.lists(st.booleans()), max_size=3))
def test_trailing_fields_that_are_not_known_are_ignored(message: Any, trailing: list[Any]) -> None:
    trailing = [field if not isinstance(field, int) else field % 2**63 for field in trailing]
    fields = msgspec.msgpack.decode(payload_of(protocol.encode(message)))
    decode = protocol.decode_request if is_request(message) else protocol.decode_reply
    assert decode(msgspec.msgpack.encode([*fields, *trailing])) == message


def test_trailing_fields_of_a_record_and_new_figures_of_a_status_are_ignored() -> None:
    fields = msgspec.msgpack.decode(payload_of(protocol.encode(Events(2, RECORDS))))
    fields[2] = [[*record, "new"] for record in fields[2]]
    assert protocol.decode_reply(msgspec.msgpack.encode(fields)) == Events(2, RECORDS)
    fields = msgspec.msgpack.decode(payload_of(protocol.encode(Report(5, STATUS))))
    fields[2]["new"] = 1
    assert protocol.decode_reply(msgspec.msgpack.encode(fields)) == Report(5, STATUS)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (["hello", 1], Hello(1, 0)),
        (["mark", 1, 2, b"a", "dir", 1, 3], AddMark(1, 2, b"a", "dir", 1, 3, None, None)),
        (["mark", 1, 2, b"a", "dir", 1, 3, 7], AddMark(1, 2, b"a", "dir", 1, 3, 7, None)),
    ],
)
def test_fields_at_the_end_may_be_left_out(fields: list[Any], expected: protocol.Request) -> None:
    assert protocol.decode_request(msgspec.msgpack.encode(fields)) == expected


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x90",
        b"\x92\xa4sync",
        b"\x92\xa7unknown\x01",
        b"\x92\xa4sync\xc0",
        b"\x81\xa4type\xa4sync",
        b"\x92\xa4sync\x01\x02",
        b"\x92\xa4syn\xff\x01",
        b"\x97\xa4mark\x01\x02\xc4\x01a\xa3di\xff\x01\x03",
        b"\x93\xa4sync\x01" + b"\x91" * 300_000,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_message(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(payload)
    with pytest.raises(ProtocolError):
        protocol.decode_reply(payload)


@given(st.binary(max_size=200))
@example(b"\x92\xa4sync\x01")
def test_rubbish_is_a_protocol_error_or_a_message(payload: bytes) -> None:
    for decode in (protocol.decode_request, protocol.decode_reply):
        with contextlib.suppress(ProtocolError):
            decode(payload)


@given(messages, st.data())
def test_a_damaged_message_is_a_protocol_error_or_another_message(message: Any, data: st.DataObject) -> None:
    payload = bytearray(payload_of(protocol.encode(message)))
    payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    test_rubbish_is_a_protocol_error_or_a_message.hypothesis.inner_test(bytes(payload))  # type: ignore[attr-defined]


# --- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", protocol._CODES)
def test_every_error_comes_out_as_it_went_in(code: str) -> None:
    error = protocol._CODES[code]("what, why, what to do")
    answer = protocol.refusal(9, error)
    assert answer == Refusal(9, code, "what, why, what to do")
    again = protocol.error_of(answer)
    assert (type(again), str(again)) == (type(error), str(error))


def test_errors_without_a_code_and_codes_without_an_error_are_the_base() -> None:
    assert protocol.refusal(1, errors.EnvironmentProblem("x")).code == "internal"
    assert type(protocol.error_of(Refusal(1, "of-the-future", "x"))) is FusenotifyError


def test_a_refusal_is_short_whatever_it_quotes() -> None:
    for quoted in ("\udcff" * 100_000, "ä" * 100_000, "ä" + "x" * 100_000):
        message = protocol.refusal(1, errors.UsageError(f"{quoted} is no directory"))
        assert 1000 < len(message.message.encode()) <= protocol.MAX_TEXT
        assert message.message.endswith("...")


def test_a_message_with_a_name_that_is_no_utf8_can_be_sent() -> None:
    answer = protocol.refusal(1, errors.UsageError("cannot read /a/\udcff"))
    assert protocol.decode_reply(payload_of(protocol.encode(answer))) == Refusal(1, "usage", "cannot read /a/\\udcff")


# --- frames --------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=40), max_size=6), st.data())
def test_frames_come_out_however_the_stream_is_cut(payloads: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(struct.pack("<I", len(payload)) + payload for payload in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    buffer = FrameBuffer()
    told: list[bytes] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        told += buffer.feed(stream[start:end])
    assert told == payloads


def test_frames_come_out_byte_by_byte_as_soon_as_they_are_complete() -> None:
    stream = protocol.encode(Sync(1)) + protocol.encode(Hello(1))
    buffer = FrameBuffer()
    came = {n: told for n, byte in enumerate(stream) if (told := buffer.feed(bytes([byte])))}
    assert list(came) == [10, len(stream) - 1]


def test_a_frame_of_the_largest_length_passes_and_a_longer_one_does_not() -> None:
    assert [len(payload) for payload in FrameBuffer(100).feed(struct.pack("<I", 100) + bytes(100))] == [100]
    with pytest.raises(ProtocolError, match="101 bytes is longer than the 100"):
        FrameBuffer(100).feed(struct.pack("<I", 101))
    with pytest.raises(ProtocolError, match=f"than the {1 << 20}"):
        FrameBuffer().feed(b"\xff\xff\xff\xff")


def test_nothing_is_kept_or_read_behind_a_frame_that_is_too_long() -> None:
    buffer = FrameBuffer(100)
    with pytest.raises(ProtocolError):
        buffer.feed(b"\xff" * 50)
    for _ in range(3):
        with pytest.raises(ProtocolError, match="longer than the 100"):
            buffer.feed(protocol.encode(Sync(1)))
    assert len(buffer._bytes) == 0


@given(st.lists(st.binary(max_size=50), max_size=10))
def test_a_stream_of_rubbish_is_frames_or_a_protocol_error(pieces: list[bytes]) -> None:
    buffer = FrameBuffer(1000)
    for piece in pieces:
        with contextlib.suppress(ProtocolError):
            buffer.feed(piece)
        assert len(buffer._bytes) <= 1000 + 4


# --- the specification ---------------------------------------------------------------------------------------------


def test_the_specification_names_every_message_code_and_field() -> None:
    text = SPECIFICATION.read_text()
    described = set(re.findall(r"`([a-z_-]+)`", text))
    structs = [type(message) for message, _ in GOLDEN] + [EventRecord, Status, Replays]
    assert described >= {field for struct_ in structs for field in struct_.__struct_fields__}
    assert described >= {str(struct_.__struct_config__.tag) for struct_ in structs[:-3]}
    assert described >= set(protocol._CODES)


def test_the_annotated_example_is_what_is_sent() -> None:
    text = SPECIFICATION.read_text()
    example_ = text[text.index("## Example") :]
    told = [bytes.fromhex(line.partition(";")[0]) for line in re.findall(r"^[<>] (.*)$", example_, re.MULTILINE)]
    hello, welcome, mark, done, told_events = FrameBuffer().feed(b"".join(told))
    assert protocol.decode_request(hello) == Hello(1, 0)
    assert protocol.decode_reply(welcome) == Welcome(1, "e081184eaf2a")
    assert protocol.decode_request(mark) == AddMark(1, 1, b".", "subtree", DEFAULT, 3)
    assert protocol.decode_reply(done) == Done(1, 5)
    assert protocol.decode_reply(told_events) == Events(
        1, [EventRecord(6, 1795272181406159083, CREATE, LOCAL | IS_DIR, b"hi", None, 27921, 0)]
    )
