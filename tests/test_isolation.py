"""Clients that do not read, send rubbish, die or ask for too much cost the others nothing, and the daemon little."""

import itertools
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusenotify import protocol
from fusenotify.events import CREATE, DEFAULT, DELETE, DELETE_SELF, IGNORED, OVERFLOW
from fusenotify.protocol import AddMark, Done, Events, FrameBuffer, Hello, Lookup, Refusal, Reply, Sync
from tests.harness import PATIENCE, Mount, patched
from tests.soak import examples
from tests.test_queue_file import Opener, QueueFile, opened, settle

__all__ = ["opened"]  # a fixture

CLIENTS = 100
CHANGES = 60
MARK = AddMark(1, 1, b".", "subtree", DEFAULT, 3)


def memory(mount: Mount) -> int:
    """Resident memory of the daemon in bytes."""
    pages = int(Path(f"/proc/{mount.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


# --- others ----------------------------------------------------------------------------------------------------------


class Rubbish:
    """Two clients, one on each transport, that send what is no request whenever they can."""

    def __init__(self, mount: Mount, dice: random.Random) -> None:
        self._mount = mount
        self._dice = dice
        self._queue = os.open(mount.mountpoint / ".fusenotify" / "queue", os.O_RDWR)

    def send(self) -> None:
        """Send once."""
        rubbish = self._dice.choice(
            [self._dice.randbytes(300), b"\xff" * 500, b"\x05\0\0\0\x91" * 60, protocol.encode(Hello(9)) * 20]
        )
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.connect(str(self._mount.socket))
            sock.sendall(rubbish)
        for use in (lambda: os.write(self._queue, rubbish), lambda: os.read(self._queue, 1 << 17)):
            with suppress(OSError):  # it is told so, in one way or another
                use()

    def close(self) -> None:
        os.close(self._queue)


def delays(mount: Mount, readers: list[QueueFile], rubbish: list[Rubbish]) -> list[float]:
    """Change the tree and return how long each change took to the last of the readers, in seconds."""
    taken = []
    for number in range(CHANGES):
        for one in rubbish:
            one.send()
        name = f"change{number}".encode()
        started = time.perf_counter()
        (mount.source / os.fsdecode(name)).mkdir()
        for reader in readers:
            told = [(record.kind, record.path) for record in reader.until(name)]
            assert told == [(CREATE, name)]
        taken.append(time.perf_counter() - started)
        (mount.source / os.fsdecode(name)).rmdir()
        for reader in readers:
            assert [(record.kind, record.path) for record in reader.until(name)] == [(DELETE, name)]
    return sorted(taken)


def test_among_a_hundred_clients_those_that_misbehave_delay_nobody(mount: Mount, opened: Opener) -> None:
    readers = [opened(mount.mountpoint).mark() for _ in range(CLIENTS * 8 // 10)]
    alone = delays(mount, readers, [])
    silent = []
    for number in range(CLIENTS // 10):
        queue = opened(mount.mountpoint)
        queue.send(Hello(1, 20), MARK)  # and nothing of it is ever read
        silent.append(queue)
        (mount.source / f"x{number}").touch()
    names = [f"x{number}".encode() for number in range(CLIENTS // 10)]
    for reader in readers:
        assert {record.path for record in reader.until(names[-1])} == set(names)
        reader.send(Sync(7))
        while not isinstance(reader.receive(), Done):
            pass
    with ExitStack() as stack:
        rubbish = [stack.enter_context(closing(Rubbish(mount, random.Random(seed)))) for seed in range(CLIENTS // 10)]
        crowded = delays(mount, readers, rubbish)
    # The median: a single change may have to wait for the processor, whoever else is there.
    assert crowded[CHANGES // 2] < 3 * alone[CHANGES // 2] + 0.05
    assert mount.process.poll() is None


def test_ten_thousand_changes_for_a_thousand_who_do_not_read(mount: Mount, opened: Opener) -> None:
    reader = opened(mount.mountpoint).mark()
    silent = [opened(mount.mountpoint).mark() for _ in range(1000)]
    before = memory(mount)
    for number in range(10_000 // 3):
        (mount.source / "changing").touch()
        (mount.source / "changing").unlink()
        if number % 1000 == 0:
            settle(mount, opened)
    (mount.source / "end").mkdir()
    reader.until(b"end")
    # What waits is kept once: 130 bytes or so each and not a thousand times that.
    assert memory(mount) - before < 16 << 20
    for queue in silent[:3]:
        assert queue.until(b"end")


# How much memory unread events may take, so small that it is soon too little.
_POOR = """
from fusenotify import ledger, sharedlog
ledger.Ledger.__init__.__defaults__ = (1 << 16, 1 << 15)
sharedlog.SharedLog.__init__.__defaults__ = (1 << 15,)
"""


@pytest.fixture
def poor(directory: Path) -> Iterator[Mount]:
    with patched(directory, _POOR) as mount:
        yield mount
    assert "Traceback" not in mount.log


@pytest.mark.parametrize("kinds", [DEFAULT, DEFAULT & ~DELETE], ids=["shared", "own"])
def test_who_lags_behind_gives_way_and_is_told_all_the_same(poor: Mount, opened: Opener, kinds: int) -> None:
    silent, reader = opened(poor.mountpoint), opened(poor.mountpoint)
    for queue in (silent, reader):
        queue.send(Hello(1), AddMark(1, 1, b".", "subtree", kinds, 3))
        assert [type(queue.receive()).__name__ for _ in range(2)] == ["Welcome", "Done"]
    for number in range(3000):
        (poor.source / f"name{number}").mkdir()
        if number % 10 == 0:
            reader.until(f"name{number}".encode())
    missing = {b"name%d" % number for number in range(3000)}
    overflows = 0
    while missing:
        message = silent.receive()
        assert isinstance(message, Events)
        overflows += sum(record.kind == OVERFLOW for record in message.records)
        missing -= {record.path for record in message.records}
    assert overflows > 0


def test_the_end_of_a_mark_outlasts_what_is_given_up(poor: Mount, opened: Opener) -> None:
    silent, reader = opened(poor.mountpoint), opened(poor.mountpoint).mark()
    (poor.source / "file").touch()
    silent.send(Hello(1), AddMark(1, 1, b".", "subtree", CREATE, 3), AddMark(2, 2, b"file", "inode", DEFAULT, 3))
    assert [type(silent.receive()).__name__ for _ in range(3)] == ["Welcome", "Done", "Done"]
    for number in range(3000):
        (poor.source / f"name{number}").mkdir()
        if number == 1000:
            (poor.source / "file").unlink()
        if number % 10 == 0:
            reader.until(f"name{number}".encode())
    told: list[int] = []
    while IGNORED not in told:
        message = silent.receive()
        assert isinstance(message, Events)
        told += [record.kind for record in message.records]
    assert told[0] == OVERFLOW
    assert told[-2:] == [DELETE_SELF, IGNORED]


# --- the end of clients ----------------------------------------------------------------------------------------------


_HALF_A_FRAME = """
import os, socket, sys, time
from fusenotify import protocol
from fusenotify.protocol import AddMark, Hello
frames = protocol.encode(Hello(1)) + protocol.encode(AddMark(1, 1, b".", "subtree", 255, 3))
queue = os.open(sys.argv[1], os.O_RDWR)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[2])
for send in (lambda data: os.write(queue, data), sock.sendall):
    send(frames[:-7])
print("sent", flush=True)
time.sleep(600)
"""


def test_a_client_that_is_killed_in_the_middle_of_a_frame_leaves_nothing(mount: Mount, opened: Opener) -> None:
    reader = opened(mount.mountpoint).mark()
    client = subprocess.Popen(
        [sys.executable, "-c", _HALF_A_FRAME, str(mount.mountpoint / ".fusenotify" / "queue"), str(mount.socket)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == "sent\n"
        client.send_signal(signal.SIGKILL)
    while (answer := reader.ask(protocol.AskStatus(2))).status.groups > 1:  # type: ignore[union-attr]
        pass
    assert isinstance(answer, protocol.Report)
    (mount.source / "x").mkdir()
    reader.until(b"x")


def test_one_of_two_copies_of_a_descriptor_is_closed(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    os.close(os.dup(queue.fd))
    child = os.fork()
    if child == 0:
        os.close(queue.fd)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    (mount.source / "x").mkdir()
    queue.until(b"x")


_READ_ALONG = """
import os, select, sys
fd, poll = int(sys.argv[1]), select.poll()
poll.register(fd, select.POLLIN)
while poll.poll():
    try:
        data = os.read(fd, 300)
    except BlockingIOError:
        continue
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    if b"the end" in data:
        break
"""


def test_two_processes_read_one_queue_and_each_event_is_read_once(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READ_ALONG, str(queue.fd)], stdout=subprocess.PIPE, pass_fds=(queue.fd,)
        )
        for _ in range(2)
    ]
    for number in range(500):
        (mount.source / f"name{number}").mkdir()
    for number in itertools.count():  # until both have read of an end
        (mount.source / f"the end {number}").mkdir()
        settle(mount, opened)
        if all(reader.poll() is not None for reader in readers):
            break
    told: list[bytes | None] = []
    for reader in readers:
        data, _ = reader.communicate(timeout=PATIENCE)
        for payload in FrameBuffer().feed(data):  # whole frames only, whoever reads
            message = protocol.decode_reply(payload)
            assert isinstance(message, Events)
            told += [record.path for record in message.records]
    assert len(told) == len(set(told))
    assert set(told) >= {b"name%d" % number for number in range(500)}


# --- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        AddMark(2, 0, b".", "dir", DEFAULT, 3),
        AddMark(2, -1, b".", "dir", DEFAULT, 3),
        AddMark(2, 1, b"", "dir", DEFAULT, 3),
        AddMark(2, 1, b"a\0b", "dir", DEFAULT, 3),
        AddMark(2, 1, b"\0", "dir", DEFAULT, 3),
        Lookup(2, b""),
        Lookup(2, b"a\0b"),
    ],
    ids=["mark 0", "mark -1", "empty path", "NUL", "only NUL", "lookup of nothing", "lookup of NUL"],
)
def test_requests_that_make_no_sense_are_refused(mount: Mount, opened: Opener, request_: protocol.Request) -> None:
    queue = opened(mount.mountpoint).mark()
    refusal = queue.ask(request_)
    assert isinstance(refusal, Refusal)
    assert (refusal.request, refusal.code) == (2, "usage")


requests: list[protocol.Request] = [
    Hello(1),
    Hello(1, 1 << 62),
    MARK,
    AddMark(1, 1, b"a", "dir", 1, 1, 1, (1, 2)),
    Sync(1),
    Lookup(3, b"a"),
]
valid = st.sampled_from([protocol.encode(request) for request in requests])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A valid frame of which some bytes are others, or one that is cut, or doubled."""
    frame = bytearray(draw(valid))
    for _ in range(draw(st.integers(0, 3))):
        frame[draw(st.integers(0, len(frame) - 1))] = draw(st.integers(0, 255))
    return bytes(frame[: draw(st.integers(1, len(frame)))]) if draw(st.booleans()) else bytes(frame)


@given(st.lists(valid | damaged() | st.binary(max_size=40), max_size=6))
@settings(max_examples=examples(60, 5000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_written_the_daemon_serves_others(mount: Mount, pieces: list[bytes]) -> None:
    with closing(QueueFile(mount.mountpoint)) as hostile, closing(QueueFile(mount.mountpoint)) as bystander:
        for piece in pieces:
            with suppress(OSError):
                os.write(hostile.fd, piece)
        assert isinstance(bystander.ask(protocol.AskStatus(1)), protocol.Report)
        with suppress(BlockingIOError):
            while data := os.read(hostile.fd, 1 << 17):
                for payload in FrameBuffer().feed(data):
                    reply = protocol.decode_reply(payload)
                    assert not isinstance(reply, Refusal) or reply.code != "internal", reply


def test_a_burst_of_requests_delays_nobody(mount: Mount, opened: Opener) -> None:
    reader, burst = opened(mount.mountpoint).mark(), opened(mount.mountpoint).mark()
    frames = b"".join(protocol.encode(Sync(number)) for number in range(1, 8001))
    os.write(burst.fd, frames)
    (mount.source / "x").mkdir()
    reader.until(b"x")
    # The other's requests are carried out one by one in between, and were not all done first.
    assert select.select([burst.fd], [], [], 0)[0]
    answers: list[Reply] = []
    while len(answers) < 8000:
        answer = burst.receive()
        if isinstance(answer, Done):
            answers.append(answer)
    assert [answer.request for answer in answers if isinstance(answer, Done)] == list(range(1, 8001))
