"""Native delivery while both sides are busy: nothing is lost, nothing is made up, and nothing goes wrong."""

import contextlib
import json
import os
import random
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import storm
from tests.compare import assert_same, survey
from tests.harness import PATIENCE, Mount, Watch, mounted, patched, run
from tests.native import LOOKING, MARKERS, Barrier, Program, merged, settle
from tests.soak import SEED, SOAK, examples

_SECONDS = {"names": 300 if SOAK else 15, "all": 300 if SOAK else 45}
# What anybody may meet who works on names that others change; ESTALE is what FUSE says of a node that has gone.
_NATURAL = {"ENOENT", "EEXIST", "ENOTDIR", "EISDIR", "ENOTEMPTY", "ELOOP", "EPERM", "ESTALE"}


def replays(mount: Mount) -> dict[str, int]:
    done = run("status", "--json", f"unix:{mount.socket}")
    assert done.returncode == 0, done.stderr
    told: dict[str, int] = json.loads(done.stdout)["replays"]
    return told


class Worker:
    """A storm on one side, in a process of its own."""

    def __init__(self, place: Path, seed: int, seconds: float, what: str) -> None:
        command = [sys.executable, storm.__file__, str(place), str(seed), str(seconds), what]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self._patience = seconds + PATIENCE

    def done(self) -> dict[str, Any]:
        told, _ = self._process.communicate(timeout=self._patience)
        assert self._process.returncode == 0
        result: dict[str, Any] = json.loads(told)
        return result


@pytest.mark.timeout(2 * max(_SECONDS.values()) + 120)
@pytest.mark.parametrize("what", _SECONDS)
def test_both_sides_are_busy_on_the_same_names(directory: Path, what: str, watching: Callable[..., Watch]) -> None:
    seconds = _SECONDS[what]
    with mounted(directory, ["--native", "always"]) as mount, contextlib.closing(Program(mount.mountpoint)) as program:
        for name in ("one", "two"):
            (mount.source / name).mkdir()
        settle(mount)
        for name in (".", "one", "two"):
            program.watch(name)
        watch = watching("--origin", "remote", mount.mountpoint)
        before = replays(mount)
        behind = Worker(mount.source, SEED, seconds, what)
        on_mount = Worker(mount.mountpoint, SEED + 1, seconds, what)
        program.drain(seconds)
        changes, errors = behind.done()["changes"], set(on_mount.done()["errors"])
        settle(mount, seconds + PATIENCE)  # tens of thousands of changes may wait by now
        assert errors <= _NATURAL
        assert_same(survey(mount.mountpoint, times=True), survey(mount.source, times=True))
        (mount.source / "end").touch()
        told = len(watch.until("end")) - 1
        after = replays(mount)
        replayed, fell_back, stuck = (after[name] - before[name] for name in ("delivered", "fell_back", "stuck"))
        # How many is a matter of speed: a change on the mount overtakes whatever still waits for its name.
        assert replayed > 0
        assert stuck == 0
        if what == "names":  # else equal events that are unread are told to the watch as one
            assert replayed + fell_back in range(told, told + 3)  # the last file's own may be among them
            assert told > changes


class RandomChanges:
    """Changes behind the mount, of entries of directories that move about as well."""

    def __init__(self, source: Path, seed: int) -> None:
        self._source = source
        self._random = random.Random(seed)
        self._moves = 0
        self.directories = [f"d{number}" for number in range(4)]
        for name in self.directories:
            (source / name).mkdir()

    def make(self, count: int) -> None:
        changes = [self._create, self._write, self._change_mode, self._rename, self._delete, self._move]
        while count:
            with contextlib.suppress(FileNotFoundError):
                self._random.choices(changes, [4, 4, 2, 4, 3, 0.2])[0]()
                count -= 1

    def _path(self) -> Path:
        return self._source / self._random.choice(self.directories) / self._random.choice("abcdef")

    def _create(self) -> None:
        os.close(os.open(self._path(), os.O_WRONLY | os.O_CREAT))

    def _write(self) -> None:
        fd = os.open(self._path(), os.O_WRONLY | os.O_TRUNC)
        os.write(fd, b"content")
        os.close(fd)

    def _change_mode(self) -> None:
        path = self._path()
        path.chmod(0o600 | stat.S_IMODE(path.stat().st_mode) ^ 0o070)

    def _rename(self) -> None:
        self._path().rename(self._path())

    def _delete(self) -> None:
        self._path().unlink()

    def _move(self) -> None:
        """Give a directory a name that none has had."""
        index = self._random.randrange(len(self.directories))
        self._moves += 1
        old, new = self.directories[index], f"d{index}-{self._moves}"
        (self._source / old).rename(self._source / new)
        self.directories[index] = new


@pytest.fixture(params=["always", "auto"])
def mount(directory: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount with native delivery, to all and to those who are seen to watch."""
    mounting: Callable[[], contextlib.AbstractContextManager[Mount]] = {
        "always": lambda: mounted(directory, ["--native", "always"]),
        "auto": lambda: patched(directory, LOOKING),
    }[request.param]
    with mounting() as mount:
        yield mount


@pytest.mark.parametrize("seed", range(SEED, SEED + examples(1, 20)))
def test_random_changes_arrive_in_order(mount: Mount, seed: int) -> None:
    changes = RandomChanges(mount.source, seed)
    settle(mount)
    with contextlib.ExitStack() as stack:
        behind, before = (
            stack.enter_context(contextlib.closing(Program(root))) for root in (mount.source, mount.mountpoint)
        )
        barrier = Barrier(mount.source, before)
        for program in (behind, before):
            for name in (".", *changes.directories):
                program.watch(name)
        behind.watch(MARKERS)
        for _ in range(20):
            changes.make(100)
            heard, expected = barrier.heard(), behind.until(MARKERS, barrier.last)
            assert merged(heard) == merged(expected)
    assert replays(mount)["fell_back"] == 0


def test_nothing_old_is_read_once_changes_have_been_replayed(mount: Mount) -> None:
    """A replay makes the kernel take attributes, and its pages of the file have to go with the old ones."""
    behind = mount.source / "file"
    behind.write_bytes(b"00000000")
    settle(mount)
    with contextlib.ExitStack() as stack:
        program = stack.enter_context(contextlib.closing(Program(mount.mountpoint)))
        barrier = Barrier(mount.source, program)
        program.watch("file")
        reader = os.open(mount.mountpoint / "file", os.O_RDONLY)
        stack.callback(os.close, reader)
        writer = os.open(behind, os.O_WRONLY)
        stack.callback(os.close, writer)
        for number in range(900):
            os.pwrite(writer, b"%08d" % number, 0)
            os.pread(reader, 8, 0)
            if number % 3 == 2:
                barrier.heard()
                assert os.pread(reader, 8, 0) == b"%08d" % number


def times_of(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return every path below a directory with its number, size and all its times."""
    found = {}
    for place, directories, files in os.walk(root):
        for name in (".", *directories, *files):
            path = Path(place, name)
            status = path.lstat()
            times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
            found[str(path)] = (status.st_ino, status.st_mode, status.st_nlink, status.st_size, *times)
    return found


def test_replays_change_nothing_on_the_backing_tree(mount: Mount) -> None:
    tree = mount.source / "tree"
    tree.mkdir()
    changes = RandomChanges(tree, SEED)
    settle(mount)
    with contextlib.closing(Program(mount.mountpoint)) as program:
        barrier = Barrier(mount.source, program)
        for name in ("tree", *(f"tree/{name}" for name in changes.directories)):
            program.watch(name)
        with mount.stopped():
            changes.make(2000)
            times, contents = times_of(tree), survey(tree, numbers=True)
            times = times_of(tree)  # again, as reading may have set a time of its own
        assert len(barrier.heard()) > 1000
        assert times_of(tree) == times
        assert survey(tree, numbers=True) == contents
        assert replays(mount)["delivered"] > 1000
