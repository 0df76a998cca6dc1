"""What goes away at the wrong moment leaves nothing in the daemon: clients, and directories."""

import os
import threading
from contextlib import closing, suppress
from pathlib import Path

import pytest

from fusenotify import protocol
from fusenotify.events import DEFAULT
from fusenotify.protocol import AddMark, AskStatus, Hello, Recount, Report
from tests.harness import Mount, mounted
from tests.test_queue_file import Opener, QueueFile, opened

__all__ = ["opened"]  # a fixture

TRIES = 1000
REQUESTS = (
    Hello(1),
    AddMark(1, 1, b"file", "inode", DEFAULT, 3),
    AddMark(2, 2, b".", "dir", DEFAULT, 3),
    Recount(3, 2),
)


def kept(mount: Mount, name: str) -> int:
    """Return how many descriptors of a file of this name the daemon has."""
    links = []
    for fd in os.listdir(f"/proc/{mount.pid}/fd"):
        with suppress(OSError):
            links.append(os.readlink(f"/proc/{mount.pid}/fd/{fd}"))
    return sum(link.split(" ")[0].endswith(f"/{name}") for link in links)


def test_a_mark_that_comes_when_its_client_has_gone_is_not_kept(mount: Mount, opened: Opener) -> None:
    (mount.source / "file").touch()
    ended = threading.Event()

    def change() -> None:
        while not ended.is_set():
            (mount.source / "other").touch()
            (mount.source / "other").unlink()

    changing = threading.Thread(target=change)
    changing.start()
    for _ in range(TRIES):
        fd = os.open(mount.mountpoint / ".fusenotify" / "queue", os.O_RDWR)
        os.write(fd, b"".join(protocol.encode(request) for request in REQUESTS))
        os.close(fd)
    ended.set()
    changing.join()
    bystander = opened(mount.mountpoint)
    while (answer := bystander.ask(AskStatus(1))).status.groups > 0:  # type: ignore[union-attr]
        assert isinstance(answer, Report)
    assert kept(mount, "file") == 0
    (mount.source / "file").unlink()


@pytest.mark.parametrize("watcher", ["inotify", "fanotify"])
def test_directories_that_are_seen_just_before_they_go_are_not_watched_for_ever(directory: Path, watcher: str) -> None:
    with mounted(directory, ["--watcher", watcher]) as mount:
        outside = directory / "outside"
        outside.mkdir()
        for number in range(300):
            (mount.source / f"d{number}").mkdir()
            os.listdir(mount.mountpoint)  # the daemon watches it before it has heard of it
            if number % 2:
                (mount.source / f"d{number}").rmdir()
            else:
                (mount.source / f"d{number}").rename(outside / f"d{number}")
        watches = 2
        while watches > 1:
            (mount.source / "file").touch()  # whatever happens has it look
            with closing(QueueFile(mount.mountpoint)) as bystander:
                answer = bystander.ask(AskStatus(1))
                assert isinstance(answer, Report)
                watches = answer.status.watches
