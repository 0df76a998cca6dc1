"""Users of a filesystem: processes with an identity of their own that make the system calls they are asked to make."""

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_MODULES = ("tests.conformance", "tests.test_differential", "tests.test_rights")  # whose functions are sent
GROUP = 54321  # a group that Alice is in, and Bob is not


class User:
    """A process of a user. Calling it with a function and arguments runs that there; what it raises is raised here.

    Functions and arguments travel by pickle, so a function has to be one of a module's. Descriptors and the umask are
    the process's own.
    """

    def __init__(self, uid: int, gid: int, groups: Sequence[int]) -> None:
        self.uid = uid
        self.gid = gid
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from tests.users import serve; serve()", pickle.dumps((uid, gid, groups)).hex()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            cwd="/",
        )

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function in the user's process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((function, args, kwargs), self._process.stdin)
        self._process.stdin.flush()
        result, error = pickle.load(self._process.stdout)
        if error is not None:
            raise error
        value: T = result
        return value

    def __enter__(self) -> "User":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        self._process.stdout.close()


def serve() -> None:
    """Be such a process."""
    uid, gid, groups = pickle.loads(bytes.fromhex(sys.argv[1]))
    for module in _MODULES:  # while the interpreter's files can be read in any case
        importlib.import_module(module)
    os.umask(0o022)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    while True:
        try:
            function, args, kwargs = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        answer: tuple[object, Exception | None]
        try:
            answer = function(*args, **kwargs), None
        except Exception as error:
            answer = None, error
        pickle.dump(answer, sys.stdout.buffer)
        sys.stdout.buffer.flush()


class Users:
    """Root and two ordinary users; Alice is in a group that Bob is not in."""

    def __init__(self, root: User, alice: User, bob: User) -> None:
        self.root = root
        self.alice = alice
        self.bob = bob
        self.all = (root, alice, bob)

    def rest(self) -> None:
        """Give everybody the usual umask again, nothing open, and a working directory that is in nobody's way."""
        for user in self.all:
            user(_rest)


def _rest() -> None:
    os.umask(0o022)
    os.chdir("/")
    os.closerange(3, 256)


@contextmanager
def users() -> Iterator[Users]:
    """Start the processes, and end them."""
    with ExitStack() as stack:
        yield Users(
            stack.enter_context(User(0, 0, ())),
            stack.enter_context(User(12345, 12345, (GROUP,))),
            stack.enter_context(User(12346, 12346, ())),
        )


def write_file(path: Path, data: bytes = b"") -> None:
    """Make a file, or replace what is in one."""
    path.write_bytes(data)
