"""What listeners know of the tree, and how little memory that takes."""

from hypothesis import given
from hypothesis import strategies as st

from fusenotify.events import CREATE, DELETE, EXCHANGE, OTHER_IS_DIR
from fusenotify.identity import InodeKey
from fusenotify.snapshot import UNKNOWN, Snapshot, numbered
from fusenotify.telling import Teller
from fusenotify.tree import Directory, Tree

MANY = 2000  # directories, of which few stay unpacked


def directories(count: int) -> list[Directory]:
    tree = Tree(InodeKey(1, 1))
    return [tree.attach(tree.root, b"%d" % number, number, InodeKey(1, number))[0] for number in range(2, count + 2)]


names = st.binary(min_size=1, max_size=8).filter(lambda name: b"\0" not in name and b"/" not in name)
steps = st.lists(st.tuples(st.integers(0, 400), names, st.none() | st.integers(2, 2**63)), max_size=200)


@given(steps)
def test_it_knows_what_it_was_told(steps: list[tuple[int, bytes, int | None]]) -> None:
    places = directories(401)
    snapshot, expected = Snapshot(), {place: dict[bytes, int]() for place in places}
    for index, name, number in steps:
        if number is None:
            assert snapshot.take(places[index], name) == expected[places[index]].pop(name, None)
        else:
            snapshot.put(places[index], name, number)
            expected[places[index]][name] = number
    for place in places:
        assert snapshot.known(place) == expected[place]


def test_directories_that_nothing_happens_in_are_packed_and_known_all_the_same() -> None:
    snapshot, places = Snapshot(), directories(MANY)
    for place in places:
        snapshot.put(place, b"file", numbered(place.key.number, is_dir=False))
    assert all(snapshot.known(place) == {b"file": place.key.number << 1} for place in places)


def test_what_is_told_is_known() -> None:
    snapshot, (one, other) = Snapshot(), directories(2)
    teller = Teller(snapshot)
    teller.entry(CREATE, one, b"file", False, None, inode=10)
    teller.entry(CREATE, one, b"directory", True, None, inode=11)
    teller.rename((one, b"file"), (other, b"moved"), False, None)
    assert snapshot.known(other) == {b"moved": numbered(10, is_dir=False)}
    teller.rename((other, b"moved"), (one, b"directory"), False, None, EXCHANGE | OTHER_IS_DIR)
    assert snapshot.known(one) == {b"directory": numbered(10, is_dir=False)}
    assert snapshot.known(other) == {b"moved": numbered(11, is_dir=True)}
    teller.rename(None, (one, b"came"), False, None)
    teller.rename((other, b"moved"), None, True, None)
    teller.entry(DELETE, one, b"directory", False, None)
    assert snapshot.known(one) == {b"came": numbered(UNKNOWN, is_dir=False)}
    assert snapshot.known(other) == {}
    assert (one, b"came") in snapshot.unseen
