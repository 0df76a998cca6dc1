"""The tree of watched directories: paths, maps and marks' objects through every kind of change."""

import sys

import pytest

from fusenotify.identity import InodeKey
from fusenotify.tree import Directory, Tree

DEEP = 5000


def key(number: int) -> InodeKey:
    return InodeKey(1, number)


class Builder:
    """A tree, built by paths: the watch descriptor of a directory is its inode number."""

    def __init__(self, *paths: bytes) -> None:
        self.tree = Tree(key(1))
        self.tree.set_wd(self.tree.root, 1)
        self.number = 1
        for path in paths:
            self.add(path)

    def add(self, path: bytes) -> Directory:
        parent, _, name = path.rpartition(b"/")
        self.number += 1
        return self.tree.attach(self[parent], name, self.number, key(self.number))[0]

    def __getitem__(self, path: bytes) -> Directory:
        found = self.tree.find(path)
        assert found is not None, path
        return found

    def check(self) -> None:
        """Check that the maps, the parents and the paths agree with the children."""
        seen = list(self.tree.root.below())
        assert {one.key: one for one in seen} == self.tree.by_key
        assert {one.wd: one for one in seen if one.wd is not None} == self.tree.by_wd
        assert len(seen) == len(self.tree)
        for one in seen:
            assert not one.gone
            for name, child in one.children.items():
                assert (child.parent, child.name) == (one, name)
                assert child.path == (name if one.is_root else one.path + b"/" + name)
                assert child.prefix == child.path + b"/"

    def paths(self) -> list[bytes]:
        return sorted(one.path for one in self.tree.root.below())


def test_the_root() -> None:
    tree = Tree(key(1))
    assert (tree.root.path, tree.root.prefix, tree.root.is_root) == (b".", b"", True)
    assert len(tree) == 1
    assert tree.contains(tree.root)


def test_attach_and_find() -> None:
    built = Builder(b"a", b"a/b", b"c")
    built.check()
    assert built[b"a/b"].path == b"a/b"
    assert built[b"./a/./b/"] is built[b"a/b"]
    assert built[b"."] is built[b""] is built.tree.root
    assert built.tree.find(b"a/x") is None
    assert built.tree.find(b"a/x/y") is None
    assert built.tree.find(b"b", built[b"a"]) is built[b"a/b"]
    assert built.tree.find(b".", built[b"a"]) is built[b"a"]


def test_attach_over_a_name_takes_out_what_was_there() -> None:
    built = Builder(b"a", b"a/b")
    old = built[b"a"]
    new, gone = built.tree.attach(built.tree.root, b"a", 9, key(9))
    assert [one.key.number for one in gone] == [2, 3]
    assert old.gone
    assert built[b"a"] is new
    built.check()


def test_detach_takes_out_everything_below() -> None:
    built = Builder(b"a", b"a/b", b"a/b/c", b"d")
    below = [built[b"a/b"], built[b"a/b/c"]]
    assert built.tree.detach(built[b"a/b"]) == below
    assert all(one.gone and not built.tree.contains(one) for one in below)
    assert not below[0].is_root
    assert built.paths() == [b".", b"a", b"d"]
    built.check()


def test_detach_leaves_the_successor_of_a_reused_watch_or_inode_alone() -> None:
    built = Builder(b"a")
    old = built[b"a"]
    new, _ = built.tree.attach(built.tree.root, b"b", old.wd, old.key)
    built.tree.detach(old)
    assert built.tree.by_wd[2] is new
    assert built.tree.by_key[key(2)] is new
    built.check()


def test_set_wd() -> None:
    built = Builder(b"a")
    built.tree.set_wd(built[b"a"], 77)
    built.check()
    built.tree.set_wd(built[b"a"], None)
    assert built[b"a"].wd is None
    built.check()


def test_move_takes_everything_below_along() -> None:
    built = Builder(b"a", b"a/b", b"a/b/c", b"d")
    deepest = built[b"a/b/c"]
    assert deepest.path == b"a/b/c"
    assert built.tree.move(built[b"a/b"], built[b"d"], b"e") == []
    assert deepest.path == b"d/e/c"
    assert built.paths() == [b".", b"a", b"d", b"d/e", b"d/e/c"]
    built.check()


def test_move_over_a_directory_returns_it() -> None:
    built = Builder(b"a", b"b")
    overwritten = built[b"b"]
    assert built.tree.move(built[b"a"], built.tree.root, b"b") == [overwritten]
    assert overwritten.gone
    built.check()


def test_move_onto_itself_changes_nothing() -> None:
    built = Builder(b"a", b"a/b")
    assert built.tree.move(built[b"a"], built.tree.root, b"a") == []
    built.check()


@pytest.mark.parametrize(("one", "other"), [(b"a", b"b"), (b"a/x", b"b"), (b"a/x", b"b/y"), (b"b", b"a/x")])
def test_exchange_of_directories(one: bytes, other: bytes) -> None:
    built = Builder(b"a", b"b", b"a/x", b"b/y")
    first, second = built[one], built[other]
    places = (first.parent, first.name, second.parent, second.name)
    assert all(place is not None for place in places)
    assert first.parent is not None
    assert second.parent is not None
    built.tree.exchange(first.parent, first.name, second.parent, second.name)
    assert (second.parent, second.name, first.parent, first.name) == places
    built.check()


def test_exchange_with_what_is_no_directory() -> None:
    built = Builder(b"a", b"b")
    moved = built[b"a"]
    built.tree.exchange(built.tree.root, b"a", built[b"b"], b"file")
    assert moved.path == b"b/file"
    built.check()
    built.tree.exchange(built.tree.root, b"nothing", built[b"b"], b"nor this")
    built.check()


def test_a_directory_that_was_found_gets_its_place() -> None:
    built = Builder(b"a")
    new = Directory(built[b"a"], b"new", 20, key(20))
    built.tree.add(new, built[b"a"], b"new")
    assert built[b"a/new"] is new
    built.check()


def test_paths_are_worked_out_once_and_anew_after_a_move() -> None:
    built = Builder(b"a", b"a/b")
    assert built[b"a/b"].prefix is built[b"a/b"].prefix
    before = built[b"a/b"].prefix
    built.tree.move(built[b"a"], built.tree.root, b"z")
    assert built[b"z/b"].prefix == b"z/b/" != before


def test_a_tree_deeper_than_the_stack() -> None:
    assert sys.getrecursionlimit() < DEEP
    built = Builder()
    deepest = built.tree.root
    for number in range(2, DEEP + 2):
        deepest, _ = built.tree.attach(deepest, b"d", number, key(number))
    assert len(deepest.path) == 2 * DEEP - 1
    top = built[b"d"]
    built.tree.move(top, built.tree.root, b"e")
    assert deepest.path.startswith(b"e/d/d/")
    assert built.tree.find(deepest.path) is deepest
    assert len(built.tree.detach(top)) == DEEP
    assert len(built.tree) == 1


def test_a_directory_does_not_fit_below_itself() -> None:
    tree = Tree(InodeKey(1, 1))
    outer, _ = tree.attach(tree.root, b"a", 2, InodeKey(1, 2))
    inner, _ = tree.attach(outer, b"b", 3, InodeKey(1, 3))
    assert tree.would_loop(outer, inner)
    assert tree.would_loop(outer, outer)
    assert not tree.would_loop(inner, tree.root)
    assert not tree.would_loop(None, inner)
    assert not tree.would_loop(inner, None)
