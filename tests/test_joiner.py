"""The joiner as a pure state machine: what it makes of a stream of inotify events, whichever way it is cut."""

import itertools
import struct
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusenotify import joiner
from fusenotify.joiner import (
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_Q_OVERFLOW,
    Item,
    Joiner,
    Move,
    RawEvent,
    parse,
)

PATIENCE = 512


def raw(wd: int, mask: int, cookie: int = 0, name: bytes = b"") -> bytes:
    """Return an event as the kernel writes it: names end with a NUL and are padded to a multiple of 16."""
    length = (len(name) // 16 + 1) * 16 if name else 0
    return struct.pack("iIII", wd, mask, cookie, length) + name.ljust(length, b"\0")


def stream(*pieces: bytes, position: int = 0) -> list[RawEvent]:
    return parse(b"".join(pieces), position)


def moved_from(cookie: int, name: bytes, wd: int = 1) -> bytes:
    return raw(wd, IN_MOVED_FROM, cookie, name)


def moved_to(cookie: int, name: bytes, wd: int = 1) -> bytes:
    return raw(wd, IN_MOVED_TO, cookie, name)


def move(old: bytes | None, new: bytes | None, position: int, end: int) -> Move:
    """Return a move of a file in directory 1 whose last half ends at `end`."""
    behind = end - len(raw(1, 0, 0, old or b"" if new is None else new)) + 1
    return Move(
        position, behind, False, None if old is None else 1, old or b"", None if new is None else 1, new or b""
    )  # fmt: skip


# --- parse ---------------------------------------------------------------------------------------------------------


def test_parse_reads_names_positions_and_empty_names() -> None:
    data = raw(1, IN_CREATE, 0, b"a") + raw(2, IN_MODIFY) + raw(3, IN_DELETE | IN_ISDIR, 9, b"x" * 16)
    assert parse(data, 1000) == [
        (1000, 1, IN_CREATE, 0, b"a", None),
        (1032, 2, IN_MODIFY, 0, b"", None),
        (1048, 3, IN_DELETE | IN_ISDIR, 9, b"x" * 16, None),
    ]


@pytest.mark.parametrize("name", [b"\xff\xfe", "ü\N{SNOWMAN}".encode(), b"n" * 15, b"n" * 16, b"n" * 255, b" \n\\"])
def test_parse_leaves_names_as_they_are(name: bytes) -> None:
    assert stream(raw(1, IN_CREATE, 0, name))[0][4] == name


def test_parse_reads_the_event_of_no_watch() -> None:
    assert stream(raw(-1, IN_Q_OVERFLOW)) == [(0, -1, IN_Q_OVERFLOW, 0, b"", None)]


def test_parse_of_nothing_is_nothing() -> None:
    assert parse(b"", 5) == []


# --- joining -------------------------------------------------------------------------------------------------------


def test_adjacent_halves_are_one_move() -> None:
    told = Joiner().feed(stream(moved_from(5, b"a"), moved_to(5, b"b"), position=100))
    assert told == [move(b"a", b"b", 100, 164)]


@pytest.mark.parametrize("length", [1, 15, 16, 31, 32, 255])
def test_a_move_ends_behind_its_second_half(length: int) -> None:
    events = stream(moved_from(5, b"a"), moved_to(5, b"n" * length), raw(1, IN_MODIFY), position=100)
    told = Joiner().feed(events)
    assert isinstance(told[0], Move)
    assert events[1][0] < told[0].end <= events[2][0]


@pytest.mark.parametrize("length", [1, 16, 255])
def test_a_move_out_and_a_move_in_end_behind_their_only_half(length: int) -> None:
    events = stream(moved_from(5, b"n" * length)), stream(moved_to(5, b"n" * length))
    out = Joiner()
    out.feed(events[0])
    for told in (out.flush(), Joiner().feed(events[1])):
        assert isinstance(told[0], Move)
        assert 0 < told[0].end <= len(moved_to(5, b"n" * length))


def test_half_a_rename_that_is_known_to_have_no_other_holds_nothing_back() -> None:
    author = joiner.Author(7, 1000)
    events: list[RawEvent] = [
        (0, 1, IN_MOVED_FROM, joiner.ALONE, b"a", author),
        (8, 1, IN_CREATE, 0, b"b", author),
    ]
    tool = Joiner()
    assert tool.feed(events) == [Move(0, 1, False, 1, b"a", None, b"", author), events[1]]
    assert not tool.waiting


def test_what_comes_between_the_halves_is_told_behind_the_move_in_order() -> None:
    between = [raw(2, IN_CREATE, 0, b"x"), raw(3, IN_MODIFY, 0, b"y"), raw(2, IN_DELETE, 0, b"x")]
    events = stream(raw(2, IN_MODIFY, 0, b"w"), moved_from(5, b"a"), *between, moved_to(5, b"b"))
    told = Joiner().feed(events)
    assert told == [events[0], move(b"a", b"b", events[1][0], events[5][0] + 32), *events[2:5]]


def test_halves_split_across_reads_are_joined() -> None:
    one = Joiner()
    assert one.feed(stream(moved_from(5, b"a"))) == []
    assert one.waiting
    assert one.feed(stream(raw(2, IN_CREATE, 0, b"x"), position=32)) == []
    told = one.feed(stream(moved_to(5, b"b"), raw(2, IN_DELETE, 0, b"x"), position=64))
    assert told == [move(b"a", b"b", 0, 96), (32, 2, IN_CREATE, 0, b"x", None), (96, 2, IN_DELETE, 0, b"x", None)]
    assert not one.waiting


def test_several_renames_in_flight_are_told_in_the_order_of_their_first_halves() -> None:
    told = Joiner().feed(
        stream(
            moved_from(1, b"a"), moved_from(2, b"b"), moved_to(2, b"B"), moved_from(3, b"c"), moved_to(1, b"A"),
            moved_to(3, b"C"),
        )
    )  # fmt: skip
    assert told == [move(b"a", b"A", 0, 160), move(b"b", b"B", 32, 96), move(b"c", b"C", 96, 192)]


def test_a_finished_rename_does_not_wait_for_a_later_one() -> None:
    one = Joiner()
    events = stream(moved_from(1, b"a"), moved_from(2, b"b"), raw(2, IN_CREATE, 0, b"x"), moved_to(1, b"A"))
    assert one.feed(events) == [move(b"a", b"A", 0, 128)]
    assert one.waiting
    assert one.feed(stream(moved_to(2, b"B"), position=128)) == [move(b"b", b"B", 32, 160), events[2]]


def test_a_lone_second_half_is_a_move_in() -> None:
    assert Joiner().feed(stream(moved_to(5, b"b"))) == [move(None, b"b", 0, 32)]


def test_a_move_in_between_the_halves_of_another_is_held_back() -> None:
    told = Joiner().feed(stream(moved_from(1, b"a"), moved_to(2, b"in"), moved_to(1, b"A")))
    assert told == [move(b"a", b"A", 0, 96), move(None, b"in", 32, 64)]


def test_flush_makes_lone_first_halves_moves_out_and_tells_what_they_held_back() -> None:
    one = Joiner()
    events = stream(
        moved_from(1, b"a"), raw(2, IN_MODIFY, 0, b"x"), moved_from(2, b"b"), moved_from(3, b"c"), moved_to(3, b"C")
    )
    assert one.feed(events) == []
    assert one.flush() == [
        move(b"a", None, 0, 32), events[1], move(b"b", None, 64, 96), move(b"c", b"C", 96, 160)
    ]  # fmt: skip
    assert not one.waiting
    assert one.flush() == []


def test_a_second_half_that_comes_too_late_is_a_move_in() -> None:
    one = Joiner()
    one.feed(stream(moved_from(1, b"a")))
    one.flush()
    assert one.feed(stream(moved_to(1, b"A"), position=32)) == [move(None, b"A", 32, 64)]


def test_a_rename_over_an_existing_name_is_one_move() -> None:
    # The kernel tells the delete of what was there on its inode only, which nobody watches but for directories.
    events = stream(moved_from(1, b"a"), moved_to(1, b"b"), raw(1, joiner.IN_ATTRIB, 0, b"b"))
    assert Joiner().feed(events) == [move(b"a", b"b", 0, 64), events[2]]


def test_a_directory_into_its_sibling() -> None:
    events = stream(
        raw(1, IN_MOVED_FROM | IN_ISDIR, 7, b"d"),
        raw(2, IN_MOVED_TO | IN_ISDIR, 7, b"d"),
        raw(3, joiner.IN_MOVE_SELF),
    )
    assert Joiner().feed(events) == [Move(0, 33, True, 1, b"d", 2, b"d"), events[2]]


def test_cookies_may_come_again() -> None:
    one = Joiner()
    pair = [moved_from(1, b"a"), moved_to(1, b"b")]
    assert one.feed(stream(*pair, *pair)) == [move(b"a", b"b", 0, 64), move(b"a", b"b", 64, 128)]


def test_the_overflow_of_the_kernel_is_held_back_like_everything_else() -> None:
    one = Joiner()
    overflow = stream(moved_from(1, b"a"), raw(-1, IN_Q_OVERFLOW))
    assert one.feed(overflow) == []
    assert one.flush() == [move(b"a", None, 0, 32), overflow[1]]


def test_patience_ends_with_too_many_held_back() -> None:
    one = Joiner()
    events = stream(moved_from(1, b"a"), *[raw(2, IN_MODIFY, 0, b"x")] * PATIENCE)
    assert one.feed(events[:-1]) == []
    told = one.feed(events[-1:])
    assert told == [move(b"a", None, 0, 32), *events[1:]]
    assert not one.waiting


def test_patience_ends_for_the_oldest_only() -> None:
    """A file that left the tree must not tear apart one of the renames that follow it."""
    one = Joiner()
    pairs = [piece for n in range(2, 2000) for piece in (moved_from(n, b"a"), moved_to(n, b"b"))]
    events = stream(moved_from(1, b"out"), *pairs)
    told = one.feed(events) + one.flush()
    assert told[0] == move(b"out", None, 0, 32)
    assert told[1:] == [move(b"a", b"b", 32 + 64 * n, 96 + 64 * n) for n in range(1998)]


def test_many_moves_out_hold_back_only_so_much() -> None:
    one = Joiner()
    events = stream(*[moved_from(n, b"x") for n in range(5000)])
    told = one.feed(events)
    assert len(told) >= 5000 - PATIENCE
    told += one.flush()
    assert told == [move(b"x", None, 32 * n, 32 * n + 32) for n in range(5000)]


def test_the_mirror_of_a_move() -> None:
    there = Move(0, 64, False, 1, b"a", 2, b"b")
    assert there.is_mirror_of(Move(64, 128, True, 2, b"b", 1, b"a"))
    assert not there.is_mirror_of(there)
    assert not there.is_mirror_of(Move(64, 128, False, 2, b"b", 1, b"c"))
    assert not Move(0, 64, False, 1, b"a", None, b"").is_mirror_of(Move(64, 128, False, 1, b"a", None, b""))


# --- a property ----------------------------------------------------------------------------------------------------


@st.composite
def interleavings(draw: st.DrawFn) -> tuple[list[bytes], list[int]]:
    """Events of several writers, each writer's own in order, and places to cut the stream."""
    writers: list[list[bytes]] = []
    for cookie in range(1, draw(st.integers(0, 8)) + 1):
        first, second = moved_from(cookie, b"from%d" % cookie), moved_to(cookie, b"to%d" % cookie)
        writers.append(draw(st.sampled_from([[first, second], [first], [second]])))
    for number in range(draw(st.integers(0, 3))):
        count = draw(st.integers(1, 6))
        writers.append([raw(50 + number, IN_CLOSE_WRITE, 0, b"f%d" % n) for n in range(count)])
    turns = draw(st.permutations([n for n, writer in enumerate(writers) for _ in writer]))
    pieces = [writers[turn].pop(0) for turn in turns]
    return pieces, draw(st.lists(st.integers(0, len(pieces)), max_size=4))


def played(events: list[RawEvent], cuts: Iterable[int]) -> list[Item]:
    one = Joiner()
    told: list[Item] = []
    places = [0, *sorted(cuts), len(events)]
    for start, end in itertools.pairwise(places):
        told += one.feed(events[start:end])
    told += one.flush()
    assert not one.waiting
    return told


@given(interleavings())
def test_any_interleaving_tells_everything_once_and_joins_what_can_be_joined(
    case: tuple[list[bytes], list[int]],
) -> None:
    pieces, cuts = case
    events = stream(*pieces)
    told = played(events, cuts)
    halves: Counter[tuple[int, bytes]] = Counter()
    others: list[RawEvent] = []
    for item in told:
        if not isinstance(item, Move):
            others.append(item)
            continue
        if item.old_wd is not None:
            halves[IN_MOVED_FROM, item.old_name] += 1
        if item.new_wd is not None:
            halves[IN_MOVED_TO, item.new_name] += 1
        if item.old_wd is not None and item.new_wd is not None:
            assert item.old_name.removeprefix(b"from") == item.new_name.removeprefix(b"to")
    wanted = Counter((event[2], event[4]) for event in events if event[3])
    assert halves == wanted
    assert others == [event for event in events if not event[3]]
    joined = sum(isinstance(item, Move) and None not in (item.old_wd, item.new_wd) for item in told)
    cookies = Counter(event[3] for event in events if event[3])
    assert joined == sum(count == 2 for count in cookies.values())
    # Everything stands at the place of its (first) half.
    positions = [item[0] for item in told]
    assert positions == sorted(positions)


@given(interleavings())
def test_where_the_stream_is_cut_changes_nothing(case: tuple[list[bytes], list[int]]) -> None:
    pieces, cuts = case
    events = stream(*pieces)
    assert played(events, cuts) == played(events, [])


# --- what the kernel merges ------------------------------------------------------------------------------------------


def exchanges_of_which_one_half_is_lost(*, back_to: bytes = b"x") -> list[bytes]:
    """x is exchanged with a place outside, then with y: the second time that something leaves x is merged away."""
    return [moved_to(1, b"x"), moved_from(2, b"x"), moved_to(3, b"y"), moved_from(4, b"y"), moved_to(4, back_to)]


@pytest.mark.parametrize("cut", range(6))
def test_the_lost_half_of_an_exchange_is_told_as_an_overflow(cut: int) -> None:
    pieces = exchanges_of_which_one_half_is_lost()
    told = Joiner()
    items = told.feed(stream(*pieces[:cut]))
    items += told.feed(stream(*pieces[cut:], position=sum(map(len, pieces[:cut]))))
    items += told.flush()
    assert [item[2] if not isinstance(item, Move) else None for item in items] == [None, None, None, IN_Q_OVERFLOW]


def test_what_comes_and_goes_in_another_way_is_no_loss() -> None:
    told = Joiner()
    pieces = [*exchanges_of_which_one_half_is_lost(back_to=b"z"), moved_to(5, b"x"), moved_from(6, b"x")]
    items = told.feed(stream(*pieces)) + told.flush()
    assert all(isinstance(item, Move) for item in items)
