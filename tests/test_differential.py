"""The same system calls on the mount and in a plain directory beside the backing tree have the same results.

Sequences are random, and made by root and two ordinary users. What is compared: every result and errno, and in the end
the two trees. A failure is shrunk by hypothesis and printed step by step.
"""

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from fusenotify import _linux
from tests.conformance.tools import ACCESS_ACL, DEFAULT_ACL, acl
from tests.filesystems import filesystem
from tests.harness import mounted
from tests.ordinary import NOBODY, commands_of_nobody
from tests.soak import SEED, examples
from tests.users import GROUP, User, Users, users

# Times that are not explicit are all the same: later than anything that is set here, and before the year 2100.
_RECENT: Final = range(1_700_000_000 * 10**9, 4_100_000_000 * 10**9)
_EXPLICIT: Final = (0, -1, -1_000_000_007, 123_456_789_987_654_321, 7_000_000_000 * 10**9 + 9)

_NAMES: Final = (b"a", b"b", b"new", b"other", b"\xff\xfe", b"n" * 255)
_UIDS: Final = (-1, 0, 12345, 12346)
_GIDS: Final = (-1, 0, 12345, 12346, GROUP)
_MODES: Final = (0o777, 0o755, 0o700, 0o644, 0o600, 0o666, 0o444, 0o000, 0o1777, 0o2775, 0o2767, 0o4755, 0o6777, 0o070)
_LISTS: Final = (
    acl((1, 7, -1), (2, 6, 12345), (4, 5, -1), (16, 7, -1), (32, 0, -1)),
    acl((1, 6, -1), (4, 4, -1), (8, 7, GROUP), (16, 5, -1), (32, 4, -1)),
    acl((1, 6, -1), (4, 4, -1), (32, 4, -1)),
    acl((1, 7, -1), (2, 0, 12346), (4, 7, -1), (16, 7, -1), (32, 7, -1)),
    b"nonsense",
)
_DATA: Final = (b"", b"x", b"data" * 10, b"block" * 1000)
_OFFSETS: Final = (0, 1, 40, 4095, 4096, 10_000, 100_000)
_ACCESS_MODES: Final = (os.O_RDONLY, os.O_WRONLY, os.O_RDWR)
_FLAGS: Final = (os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND, os.O_NOFOLLOW, os.O_DIRECTORY, os.O_NONBLOCK)


# --- what runs in the users' processes -------------------------------------------------------------------------------

_open: dict[int, int] = {}  # number -> descriptor


def enter(directory: Path) -> None:
    """Begin anew in a directory."""
    leave()
    os.umask(0o022)
    os.chdir(directory)


def prepare(directory: Path) -> None:
    """Make what every sequence begins with."""
    directory.chmod(0o777)
    for name, mode, uid, data in (("a", 0o666, 0, b"by root"), ("b", 0o644, 12345, b"by alice" * 1000)):
        path = directory / name
        path.write_bytes(data)
        os.chown(path, uid, -1)
        path.chmod(mode)
    for name, mode, gid in (("d", 0o2777, GROUP), ("d/d", 0o777, 0), ("s", 0o1777, 0)):
        path = directory / name
        path.mkdir()
        os.chown(path, -1, gid)
        path.chmod(mode)
    os.symlink("d/d", directory / "l")


def leave() -> None:
    """Close everything and go away."""
    for fd in _open.values():
        os.close(fd)
    _open.clear()
    os.chdir("/")


def call(name: str, *args: Any) -> object:
    """Make a call; return what it returns, made comparable, or the name of the errno."""
    try:
        return comparable(globals()[f"do_{name}"](*args))
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def comparable(value: object) -> object:
    """Replace what must differ between two runs, and keep the rest."""
    if isinstance(value, os.stat_result):
        return status_of(value)
    return value


def status_of(status: os.stat_result) -> tuple[object, ...]:
    """Return every attribute but inode number, device and time of access (we look as well); times where explicit."""
    mtime = "now" if status.st_mtime_ns in _RECENT else status.st_mtime_ns
    return (
        oct(status.st_mode), status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, status.st_size,
        status.st_blocks, mtime,
    )  # fmt: skip


def do_open(slot: int, path: bytes, flags: int, mode: int) -> None:
    _open[slot] = os.open(path, flags | os.O_NONBLOCK, mode)


def do_close(slot: int) -> None:
    os.close(_open.pop(slot))


def do_stat(path: bytes) -> object:
    return os.stat(path)


def do_lstat(path: bytes) -> object:
    return os.lstat(path)


def do_list(path: bytes) -> object:
    if not os.access(path, os.X_OK):
        return None  # not on the mount of an ordinary user (docs/guarantees.md)
    with os.scandir(path) as listing:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in listing)


def do_rename(old: bytes, new: bytes, flags: int) -> None:
    if flags:
        _linux.renameat2(_linux.AT_FDCWD, old, _linux.AT_FDCWD, new, flags)
    else:
        os.rename(old, new)


def do_times(path: bytes, atime: int | None, mtime: int | None) -> None:
    _linux.utimensat(path, atime, mtime)


def do_touch(path: bytes) -> None:
    os.utime(path)


def do_umask(umask: int) -> object:
    return os.umask(umask)


def do_xattrs(path: bytes) -> object:
    return sorted((name, os.getxattr(path, name)) for name in os.listxattr(path))


def do_setxattr(path: bytes, name: str, value: bytes, flags: int) -> None:
    os.setxattr(path, name, value, flags)


def do_read(slot: int, size: int) -> object:
    return os.read(_open[slot], size)


def do_pread(slot: int, size: int, offset: int) -> object:
    return os.pread(_open[slot], size, offset)


def do_write(slot: int, data: bytes) -> object:
    return os.write(_open[slot], data)


def do_pwrite(slot: int, data: bytes, offset: int) -> object:
    return os.pwrite(_open[slot], data, offset)


def do_seek(slot: int, offset: int, whence: int) -> object:
    if stat.S_ISDIR(os.fstat(_open[slot]).st_mode):
        return None  # where one may go in a directory each filesystem says for itself
    return os.lseek(_open[slot], offset, whence)


def do_fstat(slot: int) -> object:
    return os.fstat(_open[slot])


def do_ftruncate(slot: int, size: int) -> None:
    os.ftruncate(_open[slot], size)


def do_fchmod(slot: int, mode: int) -> None:
    os.fchmod(_open[slot], mode)


def do_fchown(slot: int, uid: int, gid: int) -> None:
    os.fchown(_open[slot], uid, gid)


def do_fsetxattr(slot: int, name: str, value: bytes) -> None:
    os.setxattr(_open[slot], name, value)


def do_fsync(slot: int) -> None:
    os.fsync(_open[slot])


def do_flags(slot: int, flags: int) -> None:
    fcntl.fcntl(_open[slot], fcntl.F_SETFL, flags | os.O_NONBLOCK)


def do_mkdir(path: bytes, mode: int) -> None:
    os.mkdir(path, mode)


def do_mknod(path: bytes, mode: int, device: int) -> None:
    os.mknod(path, mode, device)


def do_symlink(target: bytes, path: bytes) -> None:
    os.symlink(target, path)


def do_link(old: bytes, new: bytes) -> None:
    os.link(old, new, follow_symlinks=False)


def do_unlink(path: bytes) -> None:
    os.unlink(path)


def do_rmdir(path: bytes) -> None:
    os.rmdir(path)


def do_readlink(path: bytes) -> object:
    return os.readlink(path)


def do_chmod(path: bytes, mode: int) -> None:
    os.chmod(path, mode)


def do_chown(path: bytes, uid: int, gid: int, follow: bool) -> None:
    os.chown(path, uid, gid, follow_symlinks=follow)


def do_truncate(path: bytes, size: int) -> None:
    os.truncate(path, size)


def do_access(path: bytes, mode: int) -> object:
    return os.access(path, mode)


def do_removexattr(path: bytes, name: str) -> None:
    os.removexattr(path, name)


# --- sequences -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A path that exists when its turn comes: one of those, by number."""

    number: int


@dataclass(frozen=True)
class Fresh:
    """A name in a directory that exists when its turn comes; the name may be taken."""

    number: int
    name: bytes


@dataclass(frozen=True)
class Slot:
    """An open descriptor of the user's, by number."""

    number: int


Step = tuple[str, tuple[Any, ...]]


def _weighted(*choices: tuple[st.SearchStrategy[Any], int]) -> st.SearchStrategy[Any]:
    """Choose among strategies, so many times the one for so many times the other; `one_of` would take each once."""
    table = [strategy for strategy, weight in choices for _ in range(weight)]
    return st.integers(0, len(table) - 1).flatmap(table.__getitem__)


_number = st.integers(0, 9999)  # of which small ones are preferred
_known = st.builds(Known, _number)
_fresh = st.builds(Fresh, _number, st.sampled_from(_NAMES))
_wrong = st.sampled_from((b"none/x", b"b/x", b"l/../a", b"n" * 256, b"d/"))
_path = _weighted((_known, 12), (_fresh, 3), (_wrong, 1))
_any_path = _weighted((_fresh, 12), (_known, 3), (_wrong, 1))
_target = st.sampled_from((b"a", b"d", b"d/d", b".", b"..", b"../a", b"none", b"t" * 300))
_slot = st.builds(Slot, _number)
_mode = st.sampled_from(_MODES)
_size = st.sampled_from((*_OFFSETS, -1))
_flags = st.builds(
    lambda access, flags: access | sum(set(flags)), st.sampled_from(_ACCESS_MODES), st.lists(st.sampled_from(_FLAGS))
)
_plain_flags = st.sampled_from((os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY))
_attribute = st.sampled_from(
    ("user.a", "user.b", "trusted.t", ACCESS_ACL, DEFAULT_ACL, "system.other", "security.other", "nonsense")
)
_value = st.one_of(st.sampled_from(_LISTS), st.sampled_from((b"", b"v", b"v" * 1000)))
_time = st.sampled_from((*_EXPLICIT, None))
_kind = st.sampled_from((stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR))
_rename_flags = st.sampled_from((0, 0, 0, 1, 2, 3))


def _call(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


_calls = _weighted(
    (_call("open", _path, _flags, _mode), 2),
    (_call("open", _known, _plain_flags, _mode), 4),
    (_call("open", _fresh, _plain_flags.map(os.O_CREAT.__or__), _mode), 4),
    (_call("write", _slot, st.sampled_from(_DATA)), 3),
    (_call("pwrite", _slot, st.sampled_from(_DATA), st.sampled_from(_OFFSETS)), 3),
    (_call("read", _slot, st.sampled_from(_OFFSETS)), 1),
    (_call("pread", _slot, st.just(10_000), st.sampled_from(_OFFSETS)), 1),
    (_call("seek", _slot, st.sampled_from(_OFFSETS), st.integers(0, 2)), 1),
    (_call("ftruncate", _slot, _size), 1),
    (_call("fstat", _slot), 1),
    (_call("fchmod", _slot, _mode), 1),
    (_call("fchown", _slot, st.sampled_from(_UIDS), st.sampled_from(_GIDS)), 1),
    (_call("fsetxattr", _slot, _attribute, _value), 1),
    (_call("fsync", _slot), 1),
    (_call("flags", _slot, st.sampled_from((0, os.O_APPEND))), 1),
    (_call("close", _slot), 1),
    (_call("mkdir", _any_path, _mode), 1),
    (_call("mknod", _any_path, st.builds(int.__or__, _kind, _mode), st.just(os.makedev(1, 3))), 1),
    (_call("symlink", _target, _any_path), 1),
    (_call("link", _path, _any_path), 1),
    (_call("unlink", _path), 1),
    (_call("rmdir", _path), 1),
    (_call("rename", _path, _path, _rename_flags), 1),
    (_call("rename", _path, _any_path, _rename_flags), 1),
    (_call("stat", _path), 1),
    (_call("lstat", _path), 1),
    (_call("list", _path), 1),
    (_call("readlink", _path), 1),
    (_call("chmod", _path, _mode), 1),
    (_call("chown", _path, st.sampled_from(_UIDS), st.sampled_from(_GIDS), st.booleans()), 1),
    (_call("truncate", _path, _size), 1),
    (_call("times", _path, _time, _time), 1),
    (_call("touch", _path), 1),
    (_call("access", _path, st.integers(0, 7)), 1),
    (_call("setxattr", _path, _attribute, _value, st.integers(0, 2)), 1),
    (_call("removexattr", _path, _attribute), 1),
    (_call("xattrs", _path), 1),
    (_call("umask", st.sampled_from((0, 0o022, 0o077, 0o007))), 1),
)
_sequences = st.lists(st.tuples(st.sampled_from(("root", "alice", "alice", "bob")), _calls), min_size=30, max_size=70)


class Side:
    """One of the two places, and its own processes.

    Attributes:
        root: the directory of the sequence, where we may look at it.
    """

    def __init__(self, place: Path, who: Users, seen: Path | None = None) -> None:
        self.who = who
        self._place = place
        self._seen = seen or place  # the same place, where root may not enter that one
        self.root = self._seen

    def begin(self, name: str) -> None:
        """Make a new directory and let everybody enter it."""
        self.root = self._seen / name
        self.root.mkdir()
        prepare(self.root)
        for user in self.who.all:
            user(enter, self._place / name)

    def end(self) -> None:
        """Let everybody leave and remove it."""
        for user in self.who.all:
            user(leave)
        shutil.rmtree(self.root)

    def do(self, user: str, name: str, arguments: Sequence[object]) -> object:
        """Let a user make a call."""
        return getattr(self.who, user)(call, name, *arguments)


class Sides:
    """The mount, and a plain directory of the same filesystem, where the same is done step by step."""

    def __init__(self, mounted: Side, plain: Side, without: Sequence[object] = ()) -> None:
        """Compare two sides, leaving calls with these arguments out."""
        self._without = without
        self.mounted = mounted
        self.plain = plain
        self._names = itertools.count()
        self._open: dict[str, list[int]] = {}
        self._slots = itertools.count()

    def compare(self, sequence: Sequence[Step]) -> None:
        """Do a sequence on both sides. What fails names the steps up to there, as they were made."""
        name = str(next(self._names))
        self._open = {"root": [], "alice": [], "bob": []}
        done: list[object] = []
        with contextlib.ExitStack() as stack:
            for side in (self.mounted, self.plain):
                stack.callback(side.end)
                side.begin(name)
            for user, (what, *wanted) in sequence:
                arguments = self._resolve(user, what, wanted)
                if arguments is None:
                    continue
                ours, theirs = (side.do(user, what, arguments) for side in (self.mounted, self.plain))
                done.append((user, what, *arguments, theirs))
                _check_same(done, ours, theirs)
                if what == "open" and theirs is None:
                    self._open[user].append(int(str(arguments[0])))
                elif what == "close":
                    self._open[user].remove(int(str(arguments[0])))
            ours, theirs = survey(self.mounted.root), survey(self.plain.root)
            for path in sorted(ours.keys() | theirs.keys()):
                _check_same([*done, path], ours.get(path), theirs.get(path))

    def _resolve(self, user: str, what: str, wanted: Sequence[object]) -> list[object] | None:
        """Say which paths and descriptors are meant; None if there is no such thing."""
        base = os.fsencode(self.plain.root)
        found = list(walk(self.plain.root))
        paths = [os.path.relpath(path, base) for path in found]
        directories = [name for name, path in zip(paths, found, strict=True) if stat.S_ISDIR(os.lstat(path).st_mode)]
        arguments: list[object] = [next(self._slots)] if what == "open" else []
        for one in wanted:
            if one in self._without:
                return None
            if isinstance(one, Known):
                arguments.append(paths[one.number % len(paths)])
            elif isinstance(one, Fresh):
                arguments.append(os.path.join(directories[one.number % len(directories)], one.name))
            elif isinstance(one, Slot):
                if not self._open[user]:
                    return None
                arguments.append(self._open[user][one.number % len(self._open[user])])
            else:
                arguments.append(one)
        return arguments


def _check_same(done: Sequence[object], ours: object, theirs: object) -> None:
    if ours != theirs:
        steps = "\n  ".join(repr(step)[:300] for step in done)
        said = f"the mount says\n  {repr(ours)[:1000]}\nthe plain directory\n  {repr(theirs)[:1000]}"
        pytest.fail(f"after\n  {steps}\n{said}", pytrace=False)


def walk(directory: Path) -> Iterator[bytes]:
    """Yield every path of a tree, the directory itself first."""
    base = os.fsencode(directory)
    yield base
    for at, directories, files in os.walk(base):
        directories.sort()
        for name in sorted((*directories, *files)):
            yield os.path.join(at, name)


def survey(directory: Path) -> dict[bytes, object]:
    """Return everything about a tree; files that are links of each other have the same number, of ours."""
    found: dict[bytes, object] = {}
    numbers: dict[int, int] = {}
    for path in walk(directory):
        status = os.lstat(path)
        body: object = None
        if stat.S_ISREG(status.st_mode):
            body = Path(os.fsdecode(path)).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            body = os.readlink(path)
        names = os.listxattr(path, follow_symlinks=False)
        xattrs = sorted((one, os.getxattr(path, one, follow_symlinks=False)) for one in names)
        number = numbers.setdefault(status.st_ino, len(numbers))
        found[os.path.relpath(path, os.fsencode(directory))] = (number, status_of(status), body, xattrs)
    return found


@pytest.fixture(scope="module", params=["tmpfs", "ext4", "xfs"])
def sides(request: pytest.FixtureRequest, tmpfs: Path) -> Iterator[Sides]:
    """Both sides, over each kind of filesystem."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=tmpfs, ignore_cleanup_errors=True)))
        directory.chmod(0o755)
        if request.param != "tmpfs":
            # Else xfs allocates ahead, by how a file has been written so far.
            options = "allocsize=4k" if request.param == "xfs" else ""
            directory = stack.enter_context(filesystem(request.param, directory, options=options))
        mount = stack.enter_context(mounted(directory, ["-o", "allow_other,dev"]))
        plain = directory / "plain"
        plain.mkdir()
        yield Sides(Side(mount.mountpoint, stack.enter_context(users())), Side(plain, stack.enter_context(users())))


@pytest.fixture(scope="module")
def sides_of_a_user(tmpfs: Path) -> Iterator[Sides]:
    """Both sides, where an ordinary user has mounted and is the only one to act."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=tmpfs, ignore_cleanup_errors=True)))
        directory.chmod(0o755)
        for name in ("source", "mount", "state", "plain"):
            (directory / name).mkdir()
            os.chown(directory / name, NOBODY, NOBODY)
        command = [*stack.enter_context(commands_of_nobody()), "-m", "fusenotify"]
        mount = stack.enter_context(mounted(directory, command=command))
        who = [Users(*(stack.enter_context(User(NOBODY, NOBODY, ())) for _ in range(3))) for _ in range(2)]
        # The umask is taken off already where a default ACL should replace it (docs/guarantees.md).
        yield Sides(Side(mount.mountpoint, who[0], mount.source), Side(directory / "plain", who[1]), [DEFAULT_ACL])


@pytest.mark.timeout(examples(900, 7200))  # shrinking takes long
@settings(
    max_examples=examples(50, 3000),
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@seed(SEED)
@given(sequence=_sequences)
def test_the_mount_answers_as_a_plain_directory(sides: Sides, sequence: list[Step]) -> None:
    sides.compare(sequence)


@pytest.mark.timeout(examples(900, 7200))
@settings(
    max_examples=examples(50, 3000),
    deadline=None,
    print_blob=True,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@seed(SEED)
@given(sequence=_sequences)
def test_the_mount_of_an_ordinary_user_answers_as_a_plain_directory(
    sides_of_a_user: Sides, sequence: list[Step]
) -> None:
    sides_of_a_user.compare(sequence)
