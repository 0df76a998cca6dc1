"""Which renames wait for what may follow them: what the two processors of an exchange's author and of ours can show."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusenotify import events
from fusenotify.backing import Backing
from fusenotify.crawler import Crawler
from fusenotify.echoes import STILL_OPEN, Echoes, Expectation, LocalOperation, Name
from fusenotify.exchanges import Exchanges
from fusenotify.filesystems import Filesystems
from fusenotify.identity import InodeKey
from fusenotify.joiner import Move
from fusenotify.snapshot import Snapshot
from fusenotify.stream import Stream
from fusenotify.tree import Directory, Tree
from fusenotify.watchers.inotify import InotifyWatcher

OUTSIDE = 99  # a watch that no directory of the tree has


class Tool:
    """What looks for exchanges in a tree of real directories; nothing of the kernel's stream has been read."""

    def __init__(self, root: Path) -> None:
        for name in ("one", "other"):
            (root / name).mkdir()
        self.root = root
        self.backing = Backing(str(root))
        self.watcher = InotifyWatcher()
        self.tree = Tree(self.key(root))
        self.tree.set_wd(self.tree.root, 1)
        self.one = self.add(b"one", 2)
        self.other = self.add(b"other", 3)
        stream = Stream(self.watcher)
        self.echoes = Echoes()
        snapshot = Snapshot()
        self.crawler = Crawler(self.backing, self.watcher, stream, self.tree, Filesystems(str(root)), snapshot)
        self.exchanges = Exchanges(self.backing, stream, self.crawler, self.tree, self.echoes, snapshot)

    def close(self) -> None:
        self.watcher.close()
        self.backing.close()

    def key(self, path: Path) -> InodeKey:
        status = os.stat(path)
        return InodeKey(status.st_dev, status.st_ino)

    def add(self, name: bytes, wd: int) -> Directory:
        return self.tree.attach(self.tree.root, name, wd, self.key(self.root / os.fsdecode(name)))[0]

    def waits(self, move: Move) -> bool:
        return self.exchanges.is_undecided([move], 0, more_follows=False)


@pytest.fixture
def tool(directory: Path) -> Iterator[Tool]:
    tool = Tool(directory)
    yield tool
    tool.close()


def file_move(old_wd: int | None, new_wd: int) -> Move:
    return Move(0, 64, False, old_wd, b"file", new_wd, b"file")


def test_a_rename_waits_while_its_old_name_is_there_again(tool: Tool) -> None:
    (tool.root / "one" / "file").touch()
    assert tool.waits(file_move(2, 3))
    (tool.root / "one" / "file").unlink()
    assert not tool.waits(file_move(2, 3))


def test_our_own_rename_does_not_wait_but_somebody_elses_meanwhile_does(tool: Tool) -> None:
    (tool.root / "one" / "file").touch()
    ends = Name(tool.one.key, 2, b"file"), Name(tool.other.key, 3, b"file")
    tool.echoes.add(LocalOperation(0, STILL_OPEN, 1, 0, [Expectation(events.RENAME, *ends)]))
    assert not tool.waits(file_move(2, 3))
    assert tool.waits(file_move(3, 2)._replace(old_wd=2, new_name=b"elsewhere"))


def test_what_comes_from_outside_waits_for_the_directory_that_had_the_name(tool: Tool) -> None:
    came = Move(0, 32, True, None, b"", 2, b"new")
    assert not tool.waits(came)
    list(tool.crawler.arrive(tool.one, b"new"))  # not there, so it is missed
    assert tool.crawler.is_missed(tool.one, b"new")
    assert tool.waits(came)


def test_what_comes_from_an_unwatched_directory_waits_for_a_watched_one_too(tool: Tool) -> None:
    came = Move(0, 32, True, OUTSIDE, b"old", 1, b"other")
    assert tool.waits(came)
    assert not tool.waits(came._replace(new_name=b"another"))


def test_a_directory_that_leaves_behind_what_came_to_its_name_may_have_been_exchanged(tool: Tool) -> None:
    (tool.root / "other").rmdir()
    came = Move(0, 32, True, None, b"", 1, b"other")
    left = Move(32, 64, True, 1, b"other", None, b"")
    assert tool.exchanges.is_undecided([came, left], 0, more_follows=False)  # it has not said yet that it moved
    tool.tree.set_wd(tool.other, None)
    assert not tool.exchanges.is_undecided([came, left], 0, more_follows=False)  # it will not
