"""What is asked and not read takes bounded memory, however many ask, and keeps nobody from asking."""

import os
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import pytest

from fusenotify import protocol
from fusenotify.events import CREATE
from fusenotify.intake import MODEST, Intake
from fusenotify.protocol import AskStatus, Done, FrameBuffer, Hello, Report, Sync, Welcome
from tests.harness import PATIENCE, Mount, patched
from tests.test_isolation import memory
from tests.test_queue_file import Opener, opened

__all__ = ["opened"]  # a fixture

HALF = (1 << 20).to_bytes(4, "little") + bytes(120_000)  # and more is to come


def connected(mount: Mount) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(mount.socket))  # which waits, where many others have just done so
    sock.settimeout(PATIENCE)
    return sock


def test_who_has_used_up_a_share_has_a_little_room_until_much_is_given_back() -> None:
    intake = Intake(1_000_000, 80_000)
    woken: list[int] = []
    great, small, other = (intake.open(uid) for uid in (1, 1, 2))
    for number, share in enumerate((great, small, other)):
        share.on_room = lambda number=number: woken.append(number)  # type: ignore[misc]
    great.hold(80_000)
    assert great.room is None
    great.hold(80_001)
    small.hold(96)
    assert [share.room for share in (great, small, other)] == [0, MODEST - 96, None]
    great.hold(70_000)
    assert (small.room, woken) == (MODEST - 96, [])
    great.hold(69_000)
    assert (great.room, small.room, woken) == (None, None, [0, 1])


def test_who_has_gone_is_not_told_of_room() -> None:
    intake = Intake(1_000_000, 1000)
    share, other = intake.open(1), intake.open(1)
    share.on_room = lambda: share.hold(1001)
    share.hold(1001)
    share.close()
    assert (share.size, other.room) == (0, None)


def test_what_all_users_hold_together_is_bounded_too() -> None:
    intake = Intake(800, 700)
    shares = [intake.open(uid) for uid in range(5)]
    for share in shares:
        share.hold(170)
    assert {share.room for share in shares} == {MODEST - 170}
    shares[0].close()
    assert {share.room for share in shares} == {None}


def test_half_frames_of_many_clients_take_bounded_memory(mount: Mount, opened: Opener) -> None:
    watcher = opened(mount.mountpoint).mark()
    before = memory(mount)
    with ExitStack() as stack:
        for _ in range(100):
            sock = stack.enter_context(closing(connected(mount)))
            sock.setblocking(False)
            for fd in (sock.fileno(), opened(mount.mountpoint).fd):
                with suppress(BlockingIOError):
                    for _ in range(8):
                        os.write(fd, HALF)
            (mount.source / "x").touch()
            (mount.source / "x").unlink()
        assert memory(mount) - before < 32 << 20
        asking = opened(mount.mountpoint)  # by the same user
        assert isinstance(asking.ask(Hello(1)), Welcome)
        assert isinstance(asking.ask(Sync(1)), Done)
        (mount.source / "end").mkdir()
        assert watcher.until(b"end")[-1].kind == CREATE


def test_answers_that_nobody_reads_take_bounded_memory_and_come_when_they_are_read(
    mount: Mount, opened: Opener
) -> None:
    before = memory(mount)
    count = 8000
    frames = b"".join(protocol.encode(AskStatus(number)) for number in range(1, count + 1))
    silent = [opened(mount.mountpoint) for _ in range(12)]
    for queue in silent:
        os.write(queue.fd, frames)
    assert isinstance(opened(mount.mountpoint).ask(AskStatus(1)), Report)
    for queue in silent:
        assert select.select([queue.fd], [], [], PATIENCE)[0]
    assert memory(mount) - before < 32 << 20
    for queue in silent:
        answers = [queue.receive() for _ in range(count)]
        assert [answer.request for answer in answers if isinstance(answer, Report)] == list(range(1, count + 1))


@pytest.fixture
def poor(directory: Path) -> Iterator[Mount]:
    """A daemon that holds next to nothing of what is asked."""
    with patched(
        directory, "from fusenotify import intake; intake.Intake.__init__.__defaults__ = (1 << 20, 1 << 17)"
    ) as mount:
        yield mount
    assert "Traceback" not in mount.log


def test_who_waits_for_room_goes_on_when_others_have_gone(poor: Mount, opened: Opener) -> None:
    greedy = opened(poor.mountpoint)
    os.write(greedy.fd, HALF)
    os.write(greedy.fd, HALF)
    large = protocol.encode(Hello(1)) + b"".join(protocol.encode(Sync(number)) for number in range(1, 1001))
    waiting = opened(poor.mountpoint)
    with pytest.raises(BlockingIOError):
        os.write(waiting.fd, large)
    with closing(connected(poor)) as sock:
        sock.sendall(large)
        greedy.close()
        frames, told = FrameBuffer(), 0
        while told < 1001:
            told += len(frames.feed(sock.recv(1 << 16)))
    poll = select.poll()
    poll.register(waiting.fd, select.POLLOUT)
    for _ in range(1000):
        assert poll.poll(PATIENCE * 1000)
        with suppress(BlockingIOError):  # there is room again, though not for so much until the other is gone
            os.write(waiting.fd, large)
            break
        assert isinstance(opened(poor.mountpoint).ask(AskStatus(1)), Report)
    assert isinstance(waiting.receive(), Welcome)


# --- connections -----------------------------------------------------------------------------------------------------


def said_hello(mount: Mount) -> socket.socket:
    sock = connected(mount)
    sock.sendall(protocol.encode(Hello(1)))
    assert sock.recv(100)
    return sock


def test_connections_that_never_say_hello_keep_nobody_out(mount: Mount) -> None:
    with ExitStack() as stack:
        listening = stack.enter_context(closing(said_hello(mount)))
        crowd = [stack.enter_context(closing(connected(mount))) for _ in range(600)]
        for silent in crowd[:300]:  # whoever came first has had to make room
            assert silent.recv(1) == b""
        for one in (crowd[-1], listening):
            one.sendall(protocol.encode(AskStatus(1)))
            assert one.recv(100)


def test_connections_are_bounded(directory: Path, opened: Opener) -> None:
    few = "from fusenotify import server; server._MOST_CONNECTIONS = 20"
    with patched(directory, few) as mount, ExitStack() as stack:
        listening = [stack.enter_context(closing(said_hello(mount))) for _ in range(20)]
        with closing(connected(mount)) as late:
            assert late.recv(1) == b""
        listening[0].close()
        bystander = opened(mount.mountpoint)
        while (answer := bystander.ask(AskStatus(1))).status.groups == 20:  # type: ignore[union-attr]
            pass
        assert isinstance(answer, Report)
        said_hello(mount).close()
    assert "Traceback" not in mount.log
