"""The queue file by nothing but open, read, write and poll."""

import errno
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fusenotify import _linux, protocol
from fusenotify.events import DEFAULT, IGNORED, EventRecord
from fusenotify.protocol import AddMark, AskStatus, Done, Events, FrameBuffer, Hello, Refusal, Reply, Report, Sync
from tests.harness import PATIENCE, Mount, Watch, mounted, patched, run

MS_BIND = 4096


class QueueFile:
    """An open queue file."""

    def __init__(self, directory: Path, flags: int = os.O_NONBLOCK) -> None:
        self.fd = os.open(directory / ".fusenotify" / "queue", os.O_RDWR | flags)
        self.poll = select.poll()
        self.poll.register(self.fd, select.POLLIN)
        self._frames = FrameBuffer()
        self._replies: list[Reply] = []

    def send(self, *messages: protocol.Request) -> None:
        os.write(self.fd, b"".join(map(protocol.encode, messages)))

    def receive(self) -> Reply:
        """Wait for the next message and return it."""
        while not self._replies:
            assert self.poll.poll(PATIENCE * 1000), "nothing came"
            try:
                data = os.read(self.fd, 1 << 17)
            except BlockingIOError:
                continue
            self._replies += [protocol.decode_reply(payload) for payload in self._frames.feed(data)]
        return self._replies.pop(0)

    def ask(self, message: protocol.Request) -> Reply:
        self.send(message)
        return self.receive()

    def mark(self, path: bytes = b".", scope: str = "subtree") -> "QueueFile":
        """Open the group and take a mark."""
        self.send(Hello(1), AddMark(1, 1, path, scope, DEFAULT, 3))
        assert isinstance(self.receive(), protocol.Welcome)
        assert isinstance(self.receive(), Done)
        return self

    def until(self, path: bytes) -> list[EventRecord]:
        """Return the events up to the first on a path."""
        told: list[EventRecord] = []
        while True:
            message = self.receive()
            assert isinstance(message, Events), message
            for count, record in enumerate(message.records, 1):
                told.append(record)
                if path in (record.path, record.old_path):
                    if rest := message.records[count:]:
                        self._replies.insert(0, Events(message.mark, rest))
                    return told

    def close(self) -> None:
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            with suppress(OSError):  # ENOTCONN, where the daemon has gone before
                os.close(fd)


Opener = Callable[..., QueueFile]


@pytest.fixture
def opened() -> Iterator[Opener]:
    """Open queue files that are closed after the test."""
    with ExitStack() as stack:

        def open_(*args: Any, **kwargs: Any) -> QueueFile:
            queue = QueueFile(*args, **kwargs)
            stack.callback(queue.close)
            return queue

        yield open_


def settle(mount: Mount, opened: Opener) -> None:
    """Return when everything that was done so far is in the queue of every group."""
    queue = opened(mount.mountpoint)
    assert isinstance(queue.ask(Hello(1)), protocol.Welcome)
    assert isinstance(queue.ask(Sync(1)), Done)
    queue.close()


def status(mount: Mount, opened: Opener) -> Any:
    queue = opened(mount.mountpoint)
    answer = queue.ask(AskStatus(1))
    queue.close()
    assert isinstance(answer, Report)
    return answer.status


def error_of(function: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(OSError, match=r"Errno") as caught:
        function(*args)
    return errno.errorcode[caught.value.errno or 0]


# --- the directory -------------------------------------------------------------------------------------------------


def test_it_resolves_everywhere_and_is_listed_nowhere(mount: Mount) -> None:
    (mount.source / "a" / "b").mkdir(parents=True)
    for directory in (mount.mountpoint, mount.mountpoint / "a", mount.mountpoint / "a" / "b"):
        assert ".fusenotify" not in os.listdir(directory)
        assert os.listdir(directory / ".fusenotify") == ["queue"]
        assert not (directory / ".fusenotify" / "other").exists()
    assert not (mount.source / ".fusenotify").exists()
    assert not (mount.mountpoint / ".fusenotify" / ".fusenotify").exists()


def test_nothing_can_be_changed_there(mount: Mount) -> None:
    virtual = mount.mountpoint / ".fusenotify"
    (mount.mountpoint / "file").touch()
    assert error_of(os.mkdir, virtual) in ("EPERM", "EEXIST")
    assert error_of(os.rmdir, virtual) == "EPERM"
    assert error_of(os.unlink, virtual / "queue") == "EPERM"
    assert error_of(os.mkdir, virtual / "new") == "EPERM"
    assert error_of(os.rename, mount.mountpoint / "file", virtual / "new") == "EPERM"
    assert error_of(os.rename, virtual, mount.mountpoint / "other") == "EPERM"
    assert error_of(os.link, virtual / "queue", mount.mountpoint / "other") == "EPERM"


def test_a_backing_entry_of_that_name_is_shadowed(directory: Path, opened: Opener) -> None:
    (directory / "source").mkdir()
    (directory / "source" / ".fusenotify").mkdir()
    (directory / "source" / ".fusenotify" / "mine").touch()
    with mounted(directory) as mount:
        assert os.listdir(mount.mountpoint) == []
        assert os.listdir(mount.mountpoint / ".fusenotify") == ["queue"]
        opened(mount.mountpoint).close()


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, os.O_NONBLOCK], ids=["blocking", "nonblocking"])
def test_a_read_with_nothing_there_is_eagain(mount: Mount, opened: Opener, flags: int) -> None:
    queue = opened(mount.mountpoint, flags)
    assert error_of(os.read, queue.fd, 4096) == "EAGAIN"
    queue.mark()
    assert error_of(os.read, queue.fd, 4096) == "EAGAIN"


def test_a_buffer_too_small_for_a_frame_is_einval_and_loses_nothing(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint)
    queue.send(Hello(1))
    assert queue.poll.poll(PATIENCE * 1000)
    assert error_of(os.read, queue.fd, 10) == "EINVAL"
    assert isinstance(queue.receive(), protocol.Welcome)
    assert isinstance(queue.ask(AddMark(1, 1, b".", "subtree", DEFAULT, 3)), Done)
    (mount.source / ("n" * 200)).mkdir()
    (mount.source / "end").mkdir()
    settle(mount, opened)
    for size in (1, 4, 50, 200):
        assert error_of(os.read, queue.fd, size) == "EINVAL"
    # With room for one of the two there is one; frames are split to fit.
    payloads = FrameBuffer().feed(os.read(queue.fd, 250))
    assert len(payloads) == 1
    one = protocol.decode_reply(payloads[0])
    assert isinstance(one, Events)
    assert [record.path for record in one.records] == [b"n" * 200]
    assert [record.path for record in queue.until(b"end")] == [b"end"]


def test_reads_return_whole_frames_whatever_the_buffer(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    for n in range(300):
        (mount.source / f"{n:03}").mkdir()
    settle(mount, opened)
    told: list[bytes | None] = []
    size = 80
    while len(told) < 300:
        data = os.read(queue.fd, size)
        (*frames,) = FrameBuffer().feed(data)
        assert sum(len(frame) + 4 for frame in frames) == len(data) <= size
        for frame in frames:
            message = protocol.decode_reply(frame)
            assert isinstance(message, Events)
            told += [record.path for record in message.records]
        size += 37
    assert told == [b"%03d" % n for n in range(300)]
    assert error_of(os.read, queue.fd, 1 << 17) == "EAGAIN"


# --- waiting -------------------------------------------------------------------------------------------------------


def test_poll_tells_what_can_be_done(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    poll = select.poll()
    poll.register(queue.fd, select.POLLIN | select.POLLOUT)
    assert poll.poll(0) == [(queue.fd, select.POLLOUT)]
    (mount.source / "x").mkdir()
    settle(mount, opened)
    assert poll.poll(0) == [(queue.fd, select.POLLIN | select.POLLOUT)]
    queue.until(b"x")
    assert poll.poll(0) == [(queue.fd, select.POLLOUT)]


def test_an_event_wakes_poll_select_and_epoll(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    with select.epoll() as level, select.epoll() as edge:
        level.register(queue.fd, select.EPOLLIN)
        edge.register(queue.fd, select.EPOLLIN | select.EPOLLET)
        waits: list[Callable[[], Any]] = [
            lambda: queue.poll.poll(PATIENCE * 1000),
            lambda: select.select([queue.fd], [], [], PATIENCE)[0],
            lambda: level.poll(PATIENCE),
            lambda: edge.poll(PATIENCE),
        ]
        for n, wait in enumerate(waits):
            with subprocess.Popen(["mkdir", mount.source / f"{n}"]):
                assert wait()
            queue.until(b"%d" % n)


def test_a_writer_that_was_put_off_is_woken_when_answers_are_read(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    writable = select.epoll()
    with writable:
        sent = 0
        try:
            while True:
                queue.send(Sync(sent))
                sent += 1
        except BlockingIOError:
            pass
        assert 256 <= sent < 1000
        writable.register(queue.fd, select.EPOLLOUT | select.EPOLLET)
        assert writable.poll(0) == []
        for n in range(sent):
            answer = queue.receive()
            assert isinstance(answer, Done)
            assert answer.request == n
        assert writable.poll(PATIENCE)
        assert isinstance(queue.ask(Sync(9999)), Done)


# --- writing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rubbish",
    [
        b"hello\n\n\n\n",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x02\0\0\0\x91\xc1",
        b"\x07\0\0\0\x92\xa5" + b"\xff" * 5,
        struct.pack("<I", 100_007) + b"\x93\xa4sync\x01" + b"\x91" * 100_000,
    ],
    ids=["text", "empty", "too long", "no array", "no text", "deep"],
)
def test_rubbish_is_einval_for_who_wrote_it(mount: Mount, opened: Opener, rubbish: bytes) -> None:
    queue, bystander = opened(mount.mountpoint), opened(mount.mountpoint).mark()
    for _ in range(3):
        assert error_of(os.write, queue.fd, rubbish) == "EINVAL"
        answer = queue.receive()
        assert isinstance(answer, Refusal)
        assert (answer.request, answer.code) == (0, "protocol")
    (mount.source / "x").mkdir()
    bystander.until(b"x")


def test_rubbish_without_end_is_put_off(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint)
    errors = {error_of(os.write, queue.fd, b"\xff" * 100) for _ in range(1000)}
    assert errors == {"EINVAL", "EAGAIN"}


def test_a_frame_may_come_in_several_writes_and_a_write_may_hold_several(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint)
    mark = AddMark(1, 1, b".", "subtree", DEFAULT, 3)
    frames = b"".join([protocol.encode(request) for request in (Hello(1), mark, Sync(2), Sync(3))])
    for n in range(len(frames) - 20):
        os.write(queue.fd, frames[n : n + 1])
    os.write(queue.fd, frames[-20:])
    assert isinstance(queue.receive(), protocol.Welcome)
    answers = [queue.receive() for _ in range(3)]
    assert [answer.request for answer in answers if isinstance(answer, Done)] == [1, 2, 3]


def test_requests_out_of_place_are_refused_and_the_group_goes_on(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint)
    refused: list[tuple[protocol.Request, int, str]] = [
        (Sync(5), 5, "protocol"),
        (Hello(2), 0, "protocol"),
        (Hello(1, -3), 0, "usage"),
    ]
    for request, number, code in refused:
        answer = queue.ask(request)
        assert isinstance(answer, Refusal)
        assert (answer.request, answer.code) == (number, code)
    queue.mark()
    refused = [
        (Hello(1), 0, "protocol"),
        (AddMark(6, 2, b"nothing", "dir", 1, 3), 6, "usage"),
        (AddMark(7, 2, b"../..", "dir", 1, 3), 7, "usage"),
        (AddMark(8, 2, b".", "dir", 1, 3, None, tuple(range(2000))), 8, "limit-reached"),
        (protocol.RemoveMark(9, 77), 9, "usage"),
    ]
    for request, number, code in refused:
        answer = queue.ask(request)
        assert isinstance(answer, Refusal)
        assert (answer.request, answer.code) == (number, code)
    (mount.source / "x").mkdir()
    queue.until(b"x")


def test_what_cannot_be_read_is_told_in_its_turn(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint)
    frames = [protocol.encode(request) for request in (Hello(1), Sync(1), Sync(2))]
    assert error_of(os.write, queue.fd, b"".join(frames) + b"\x01\0\0\0\xc1" + protocol.encode(Sync(3))) == "EINVAL"
    assert isinstance(queue.receive(), protocol.Welcome)
    assert [queue.receive(), queue.receive()] == [Done(1, 0), Done(2, 0)]
    refused = queue.receive()
    assert isinstance(refused, Refusal)
    assert (refused.request, refused.code) == (0, "protocol")
    assert queue.ask(Sync(4)) == Done(4, 0)


def test_one_write_is_taken_as_a_whole_however_many_requests_it_holds(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint)
    queue.send(Hello(1), *(Sync(n) for n in range(1000)))
    assert error_of(queue.send, Sync(1000)) == "EAGAIN"
    assert isinstance(queue.receive(), protocol.Welcome)
    assert [queue.receive() for _ in range(1000)] == [Done(n, 0) for n in range(1000)]


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (AddMark(2, 2, b"\xff" * 60_000, "dir", DEFAULT, 3), "usage"),
        (AddMark(2, 2, b"\xff" * 100_000, "dir", DEFAULT, 3), "usage"),
        (AddMark(2, 2, b".", "\xff" * 10_000, DEFAULT, 3), "usage"),
        (AddMark(2, 2, b".", "dir", DEFAULT, 3, None, (0,) * 100_000), "limit-reached"),
    ],
    ids=["path", "longer path", "scope", "users"],
)
def test_an_absurdly_long_request_is_refused(
    mount: Mount, opened: Opener, request_: protocol.Request, code: str
) -> None:
    queue = opened(mount.mountpoint).mark()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(mount.socket))
        sock.sendall(protocol.encode(Hello(1)) + protocol.encode(request_))
        frames, told = FrameBuffer(), list[Reply]()
        while len(told) < 2:
            data = sock.recv(1 << 20)
            assert data
            told += map(protocol.decode_reply, frames.feed(data))
    refusals = [told[1], queue.ask(request_)]
    for refused in refusals:
        assert isinstance(refused, Refusal)
        assert (refused.request, refused.code) == (2, code)
    (mount.source / "x").mkdir()
    queue.until(b"x")


# --- bugs ----------------------------------------------------------------------------------------------------------

# The kernel refuses to wake whoever polls.
_NOT_WOKEN = """
from fusenotify.queuefile import _OpenQueue

class Handle:
    def notify(self):
        raise OSError(2, "there is no such poll")

_OpenQueue.remember = lambda self, handle: setattr(self, "_poll_handle", Handle())
"""


def test_a_poll_that_cannot_be_woken_keeps_nobody_from_events(
    directory: Path, opened: Opener, watching: Callable[..., Watch]
) -> None:
    with patched(directory, _NOT_WOKEN) as mount:
        watch = watching(f"unix:{mount.socket}")
        queue = opened(mount.mountpoint)
        os.write(queue.fd, protocol.encode(Hello(1)) + protocol.encode(AddMark(1, 1, b".", "subtree", DEFAULT, 3)))
        queue.poll.poll(0)
        for name in ("x", "y"):
            (mount.source / name).mkdir()
            watch.until(name)
            queue.poll.poll(0)
        assert mount.stop() == 0
    assert "Traceback" not in mount.log


# Requests to remove mark 13 end the task that carries out requests.
_UNLUCKY = """
from fusenotify import peer
reply_to = peer.Peer._reply_to

async def unlucky(self, request):
    if getattr(request, "mark", 0) == 13:
        raise ZeroDivisionError("a bug")
    return await reply_to(self, request)

peer.Peer._reply_to = unlucky
"""


def test_a_bug_costs_the_client_its_connection_and_no_other_client_anything(directory: Path, opened: Opener) -> None:
    with patched(directory, _UNLUCKY) as mount:
        bystander, queue = opened(mount.mountpoint).mark(), opened(mount.mountpoint).mark()
        queue.send(protocol.RemoveMark(2, 13))
        assert queue.poll.poll(PATIENCE * 1000)[0][1] & select.POLLERR
        assert error_of(os.read, queue.fd, 4096) == "EIO"
        assert error_of(queue.send, Sync(3)) == "EIO"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(mount.socket))
            sock.sendall(protocol.encode(protocol.RemoveMark(2, 13)))
            assert sock.recv(4096) == b""
        (mount.source / "x").mkdir()
        bystander.until(b"x")
        assert status(mount, opened).groups == 1
        assert mount.stop() == 0
    assert mount.log.count("ZeroDivisionError: a bug") == 2


def test_opening_with_o_trunc_changes_nothing(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint, os.O_TRUNC | os.O_CREAT)
    queue.mark()


# --- a directory of the mount --------------------------------------------------------------------------------------


@contextmanager
def bound(source: Path, target: Path) -> Iterator[Path]:
    target.mkdir()
    _linux.mount(os.fsencode(source), os.fsencode(target), b"none", MS_BIND, b"")
    try:
        yield target
    finally:
        _linux.umount2(os.fsencode(target), _linux.MNT_DETACH)


@pytest.mark.parametrize("way", ["directly", "through a bind mount"])
def test_a_subdirectory_shows_what_is_below_it_only(mount: Mount, opened: Opener, directory: Path, way: str) -> None:
    (mount.source / "a" / "sub").mkdir(parents=True)
    (mount.source / "b").mkdir()
    with ExitStack() as stack:
        place = mount.mountpoint / "a"
        if way != "directly":
            place = stack.enter_context(bound(place, directory / "bound"))
        queue = opened(place).mark()
        stack.callback(queue.close)
        (mount.source / "b" / "secret").mkdir()
        (mount.source / "b" / "secret").rename(mount.source / "a" / "in")
        (place / "sub" / "x").mkdir()
        (mount.source / "a" / "in").rename(mount.source / "b" / "out")
        (mount.source / "a").chmod(0o700)
        (mount.source / "a" / "end").mkdir()
        told = [(record.path, record.old_path) for record in queue.until(b"end")]
        assert told == [(b"in", None), (b"sub/x", None), (None, b"in"), (b"end", None)]
        refused = queue.ask(AddMark(2, 2, b"../b", "dir", 1, 3))
        assert isinstance(refused, Refusal)


def test_a_directory_that_was_made_a_moment_ago(mount: Mount, opened: Opener) -> None:
    for n in range(20):
        place = mount.mountpoint if n % 2 else mount.source
        (place / f"{n}" / "deep").mkdir(parents=True)
        queue = opened(mount.mountpoint / f"{n}" / "deep").mark()
        (mount.source / f"{n}" / "deep" / "x").mkdir()
        assert [record.path for record in queue.until(b"x")] == [b"x"]


def test_the_directory_of_a_queue_is_moved_and_deleted(mount: Mount, opened: Opener) -> None:
    (mount.source / "a" / "sub").mkdir(parents=True)
    (mount.source / "b").mkdir()
    queue = opened(mount.mountpoint / "a" / "sub").mark()
    (mount.source / "a" / "sub").rename(mount.source / "b" / "sub")
    (mount.source / "b" / "sub" / "x").mkdir()
    assert [record.path for record in queue.until(b"x")] == [b"x"]
    (mount.source / "b" / "sub" / "x").rmdir()
    (mount.source / "b" / "sub").rmdir()
    (mount.source / "b" / "sub").mkdir()
    (mount.source / "b" / "sub" / "x").mkdir()
    assert [(record.kind, record.path) for record in queue.until(b"x")] == [(2, b"x")]
    assert [(record.kind, record.path) for record in queue.until(b".")] == [(IGNORED, b".")]
    assert isinstance(queue.ask(AddMark(2, 2, b".", "dir", 1, 3)), Refusal)
    assert error_of(os.read, queue.fd, 4096) == "EAGAIN"


# --- lifetime ------------------------------------------------------------------------------------------------------


def test_a_child_that_inherits_it_shares_the_group(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    (mount.source / "x").mkdir()
    settle(mount, opened)
    child = "import os, sys; print(b'x' in os.read(int(sys.argv[1]), 4096), flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", child, str(queue.fd)], pass_fds=[queue.fd],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        assert error_of(os.read, queue.fd, 4096) == "EAGAIN"
        (mount.source / "y").mkdir()
        assert [record.path for record in queue.until(b"y")] == [b"y"]
        queue.close()
        assert status(mount, opened).groups == 1  # the child's
    while status(mount, opened).groups:
        pass  # RELEASE comes after close(2) has returned


def test_many_opened_and_closed_leave_no_group(mount: Mount, opened: Opener) -> None:
    (mount.source / "a").mkdir()
    queues = [opened(mount.mountpoint / ("a" if n % 2 else ".")) for n in range(500)]
    for queue in queues:
        queue.mark()
    assert status(mount, opened).groups == 500
    (mount.source / "a" / "x").mkdir()
    for n, queue in enumerate(queues):
        queue.until(b"x" if n % 2 else b"a/x")
    for queue in queues:
        queue.close()
    while status(mount, opened).groups:
        pass  # RELEASE comes after close(2) has returned
    (mount.source / "a" / "y").mkdir()
    opened(mount.mountpoint).mark()


def test_a_queue_does_not_keep_the_mount_busy_and_ends_with_it(mount: Mount, opened: Opener) -> None:
    queue = opened(mount.mountpoint).mark()
    assert run("umount", mount.mountpoint).returncode == 0
    assert error_of(os.read, queue.fd, 4096) in ("ENOTCONN", "ECONNABORTED")


# --- other users ---------------------------------------------------------------------------------------------------

_ASK = """
import os, sys, select
from fusenotify import protocol
os.setgroups([int(group) for group in sys.argv[5:]])
os.setgid(4712)
os.setuid(4711)
fd = os.open(sys.argv[1] + "/.fusenotify/queue", os.O_RDWR | os.O_NONBLOCK)
request = protocol.AddMark(1, 1, os.fsencode(sys.argv[2]), sys.argv[3], 255, 3)
os.write(fd, protocol.encode(protocol.Hello(1, int(sys.argv[4]))) + protocol.encode(request))
told, frames, poll = [], protocol.FrameBuffer(), select.poll()
poll.register(fd, select.POLLIN)
while len(told) < 2:
    assert poll.poll(20000)
    try:
        told += map(protocol.decode_reply, frames.feed(os.read(fd, 100000)))
    except BlockingIOError:
        pass
print(*(getattr(one, "code", type(one).__name__) for one in told))
"""


def asked(mount: Mount, path: str, scope: str, limit: int = 0, groups: tuple[int, ...] = ()) -> list[str]:
    """Return the answers to `hello` and `mark` of another user."""
    arguments = [mount.mountpoint, path, scope, limit, *groups]
    command = [sys.executable, "-c", _ASK, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout.split()


@pytest.fixture
def others(directory: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount that other users may enter, with directories of several rights."""
    directory.chmod(0o755)
    (directory / "source").mkdir()
    for name, mode in (("open", 0o755), ("closed", 0o700), ("search", 0o711), ("group", 0o750)):
        (directory / "source" / name / "below").mkdir(parents=True)
        (directory / "source" / name).chmod(mode)
    os.chown(directory / "source" / "group", 0, 5000)
    with mounted(directory, ["-o", ",".join(("allow_other", *getattr(request, "param", ())))]) as mount:
        yield mount


def test_another_user_may_watch_directories_that_are_readable(others: Mount) -> None:
    assert asked(others, ".", "dir") == ["Welcome", "Done"]
    assert asked(others, "open", "dir") == ["Welcome", "Done"]
    assert asked(others, "closed", "dir") == ["Welcome", "not-permitted"]
    assert asked(others, "closed/below", "dir") == ["Welcome", "not-permitted"]
    assert asked(others, "search", "dir") == ["Welcome", "not-permitted"]
    assert asked(others, "search/below", "dir") == ["Welcome", "Done"]
    assert asked(others, "group", "dir") == ["Welcome", "not-permitted"]
    assert asked(others, "group", "dir", groups=(5000,)) == ["Welcome", "Done"]
    assert asked(others, ".", "subtree") == ["Welcome", "not-permitted"]
    assert asked(others, "open", "subtree") == ["Welcome", "not-permitted"]


def test_another_user_may_not_have_a_queue_without_end(others: Mount) -> None:
    assert asked(others, ".", "dir", limit=1 << 40) == ["limit-reached", "protocol"]


@pytest.mark.parametrize("others", [("watch_other",)], indirect=True)
def test_with_watch_other_subtrees_too(others: Mount) -> None:
    assert asked(others, ".", "subtree") == ["Welcome", "Done"]
    assert asked(others, "open", "subtree") == ["Welcome", "Done"]
    assert asked(others, "closed", "subtree") == ["Welcome", "not-permitted"]


# When the rights have been checked, somebody who may rename in `shared` swaps what is at the path for something else.
_SWAPPED = """
import os
from fusenotify import _linux, locator
find_readable = locator.find_readable
swaps = int(os.environ["SWAPS"])

def overtaken(backing, path, *who):
    global swaps
    readable = find_readable(backing, path, *who)
    if path == b"shared/one" and swaps:
        swaps -= 1
        fd = backing.root_fd
        _linux.renameat2(fd, b"shared/one", fd, b"shared/two", _linux.RENAME_EXCHANGE)
    return readable

locator.find_readable = overtaken
"""


@pytest.mark.parametrize(
    ("mode", "swaps", "answer"),
    [
        (0o700, 1, "not-permitted"),  # though the other one, which comes to the path, could be read
        (0o700, 1_000_000, "not-permitted"),
        (0o755, 3, "Done"),
        (0o755, 1_000_000, "not-permitted"),  # which of the two is meant cannot be said
    ],
)
def test_rights_are_checked_on_the_very_directory_that_is_marked(
    directory: Path, monkeypatch: pytest.MonkeyPatch, mode: int, swaps: int, answer: str
) -> None:
    directory.chmod(0o755)
    for name, rights in (("one", mode), ("two", 0o755)):
        (directory / "source" / "shared" / name).mkdir(parents=True)
        (directory / "source" / "shared" / name).chmod(rights)
    monkeypatch.setenv("SWAPS", str(swaps))
    with patched(directory, _SWAPPED, ["-o", "allow_other"]) as mount:
        assert asked(mount, "shared/one", "dir") == ["Welcome", answer]
        assert mount.stop() == 0
    assert "Traceback" not in mount.log
