"""The look ahead: which directories are about to leave their names."""

from collections import deque

from fusenotify.joiner import IN_CREATE, IN_DELETE, IN_ISDIR, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, RawEvent
from fusenotify.stream import Stream

DIRECTORY_LEAVES = IN_MOVED_FROM | IN_ISDIR


class Kernel:
    """A watcher whose events come from the test."""

    def __init__(self) -> None:
        self.position = 0
        self.root_wd: int | None = None
        self.waiting: deque[tuple[int, list[RawEvent]]] = deque()

    def raise_event(self, wd: int, mask: int, name: bytes) -> None:
        event = (self.position, wd, mask, 0, name, None)
        self.position += 32
        self.waiting.append((self.position, [event]))

    def drain(self) -> int:
        return self.position

    def take(self) -> tuple[int, list[RawEvent]] | None:
        return self.waiting.popleft() if self.waiting else None


def will_leave(stream: Stream, wd: int, name: bytes) -> bool:
    stream.look_ahead()
    return stream.is_leaving(wd, name)


def test_what_is_looked_ahead_at_is_returned_in_order_and_once() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    for name in (b"a", b"b", b"c"):
        kernel.raise_event(1, IN_CREATE, name)
    assert not will_leave(stream, 1, b"a")
    told = []
    while (chunk := stream.next()) is not None:
        end, events = chunk
        told += [(end, event[0], event[4]) for event in events]
    assert told == [(32, 0, b"a"), (64, 32, b"b"), (96, 64, b"c")]


def test_a_directory_is_about_to_leave_until_that_has_been_told() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    kernel.raise_event(1, DIRECTORY_LEAVES, b"a")
    kernel.raise_event(1, IN_DELETE | IN_ISDIR, b"a")
    assert will_leave(stream, 1, b"a")
    assert not will_leave(stream, 2, b"a")
    stream.left(1, b"a")
    assert will_leave(stream, 1, b"a")
    stream.left(1, b"a")
    assert not will_leave(stream, 1, b"a")


def test_files_and_what_is_made_do_not_count() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    kernel.raise_event(1, IN_MOVED_FROM, b"a")
    kernel.raise_event(1, IN_CREATE | IN_ISDIR, b"a")
    assert not will_leave(stream, 1, b"a")


def test_a_directory_that_comes_to_a_name_may_overwrite_an_empty_one() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    kernel.raise_event(1, IN_MOVED_TO | IN_ISDIR, b"a")
    assert will_leave(stream, 1, b"a")
    stream.left(1, b"a")
    assert not will_leave(stream, 1, b"a")


def test_a_directory_that_moves_says_so_where_it_happens_and_nothing_goes_further() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    kernel.raise_event(1, DIRECTORY_LEAVES, b"a")
    kernel.raise_event(2, IN_MOVE_SELF, b"")
    behind = kernel.position
    kernel.raise_event(1, IN_CREATE, b"b")
    assert stream.has_moved(2, 0)
    assert not stream.has_moved(2, behind)
    assert not stream.has_moved(3, 0)
    told = []
    while (chunk := stream.next()) is not None:
        told += [(event[1], event[4]) for event in chunk[1]]
    assert told == [(1, b"a"), (1, b"b")]


def test_what_moves_after_a_name_was_left_has_not_moved_there() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    kernel.raise_event(1, DIRECTORY_LEAVES, b"a")
    kernel.raise_event(2, IN_MOVE_SELF, b"")
    assert not stream.has_moved(2, 0, (1, b"a"))
    assert stream.has_moved(2, 0, (1, b"b"))


def test_the_root_says_that_it_has_moved() -> None:
    kernel = Kernel()
    kernel.root_wd = 1
    stream = Stream(kernel)
    kernel.raise_event(1, IN_MOVE_SELF, b"")
    chunk = stream.next()
    assert chunk is not None
    assert [event[2] for event in chunk[1]] == [IN_MOVE_SELF]


def test_moves_that_have_been_told_are_forgotten() -> None:
    kernel = Kernel()
    stream = Stream(kernel)
    kernel.raise_event(2, IN_MOVE_SELF, b"")
    assert stream.has_moved(2, 0)
    stream.told(kernel.position)
    assert not stream.has_moved(2, 0)
