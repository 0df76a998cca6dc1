"""`fusenotify serve`: events without a mount."""

import contextlib
import functools
import json
import os
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from fusenotify import Kind, Origin, errors, locate, lookup, open_group, watch
from fusenotify.mountinfo import find_mounts
from tests.certificates import Authority, listening, options
from tests.harness import PATIENCE, Daemon, Watch, changed, run, served

Start = Callable[..., Watch]


@pytest.fixture
def source(directory: Path) -> Path:
    """A tree to serve."""
    path = directory / "source"
    path.mkdir()
    return path


@pytest.fixture
def address(directory: Path) -> str:
    """A unix socket to serve it at."""
    return f"unix:{directory}/socket"


@pytest.fixture
def state(directory: Path) -> str:
    """A state directory."""
    return str(directory / "state")


@pytest.fixture
def daemon(source: Path, address: str, state: str) -> Iterator[Daemon]:
    """A daemon that serves it."""
    with served(source, "--listen", address, "--state-dir", state) as daemon:
        yield daemon


def test_everything_is_remote(daemon: Daemon, address: str) -> None:
    source = daemon.source

    async def main() -> None:
        with anyio.fail_after(PATIENCE):
            async with watch(address) as events:
                (source / "a").mkdir()
                await events.sync()  # until it is watched, what comes and goes in it need not be told
                (source / "a" / "b").mkdir()
                (source / "a").rename(source / "c")
                (source / "c" / "b").rmdir()
                told = []
                async for event in events:
                    told.append(event)
                    if event.kind == Kind.DELETE:
                        break
        assert [(event.kind, event.old_path, event.path) for event in told] == [
            (Kind.CREATE, None, "a"),
            (Kind.CREATE, None, "a/b"),
            (Kind.RENAME, "a", "c"),
            (Kind.DELETE, None, "c/b"),
        ]
        assert {(event.origin, event.pid, event.uid) for event in told} == {(Origin.REMOTE, None, None)}

    anyio.run(main, backend="trio")


def test_sync_is_a_barrier(daemon: Daemon, address: str) -> None:
    async def main() -> None:
        with anyio.fail_after(PATIENCE):
            async with open_group() as group:
                await group.mark(address)
                for n in range(100):
                    (daemon.source / f"{n}").touch()
                await group.sync()
                names: set[str | None] = set()
                while len(names) < 100:  # and nothing more is done that could bring them
                    names.update(event.path for event in await group.batch())

    anyio.run(main, backend="trio")


def test_handles_outlive_the_daemon(source: Path, address: str, state: str, authority: Authority) -> None:
    (source / "a").touch()
    arguments = ("--listen", address, "--state-dir", state)

    with served(source, *arguments, *listening(authority.daemon)) as daemon:
        handle = anyio.run(functools.partial(lookup, f"{daemon.tls}/a", tls=authority.client))
    (source / "a").rename(source / "b")
    with served(source, *arguments):
        assert anyio.run(locate, address, handle) == "b"


def test_status_and_end(daemon: Daemon, address: str, watching: Start) -> None:
    state = json.loads(run("status", "--json", address).stdout)
    assert (state["source"], state["mountpoint"], state["pid"]) == (str(daemon.source), "", daemon.pid)
    assert (state["watches"], state["deaf"], state["nodes"], state["state"]) == (1, 0, 0, "in place")
    assert f"{daemon.source} on no mount" in run("status", address).stdout
    assert str(daemon.source) not in [entry.source for entry in find_mounts()]
    watch_ = watching(address)
    assert daemon.stop() == 0
    assert [line["kind"] for line in watch_.rest()] == ["unmount"]
    assert "has gone" in watch_.errors()
    assert watch_.process.returncode == 5
    assert not os.path.exists(address.removeprefix("unix:"))


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_right_after_the_start_ends_it_in_order(source: Path, address: str, state: str, how: str) -> None:
    with served(source, "--listen", address, "--state-dir", state) as daemon:
        assert daemon.stop(signal.Signals[how]) == 0
    assert not os.path.exists(address.removeprefix("unix:"))


def test_what_becomes_of_source_is_told(daemon: Daemon, address: str, watching: Start) -> None:
    watch_ = watching(address)
    daemon.source.rmdir()
    line = watch_.next()
    assert line is not None
    assert line["kind"] == "unmount"
    assert json.loads(run("status", "--json", address).stdout)["state"] == "deleted"


def test_the_socket_of_a_killed_daemon_is_replaced(source: Path, address: str, state: str) -> None:
    arguments = ("--listen", address, "--state-dir", state)
    path = Path(address.removeprefix("unix:"))
    with served(source, *arguments) as daemon:
        daemon.stop(signal.SIGKILL)
    assert path.is_socket()
    with served(source, *arguments):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert run("status", address).returncode == 0
        refused = run("serve", source, "--listen", address, "--state-dir", f"{state}-2")
        assert (refused.returncode, "Address already in use" in refused.stderr) == (4, True)
    assert not path.exists()


def test_several_addresses(source: Path, address: str, state: str, authority: Authority, watching: Start) -> None:
    more = ("--listen", f"{address}-2", *listening(authority.daemon), "--listen", "tls://127.0.0.1:0")
    with served(source, "--listen", address, *more, "--state-dir", state) as daemon:
        listed = [line.split()[-1] for line in daemon.log.splitlines() if "listening on" in line]
        assert listed[:2] == [address, f"{address}-2"]
        assert [place.rpartition(":")[0] for place in listed[2:]] == ["tls://localhost", "tls://127.0.0.1"]
        watches = [watching(place, *options(authority.client)) for place in listed]
        (source / "x").mkdir()
        for watch_ in watches:
            assert [line["path"] for line in watch_.until("x")] == ["x"]


def test_a_watcher_that_knows_who_did_it(source: Path, address: str, state: str, watching: Start) -> None:
    with served(source, "--listen", address, "--state-dir", state, "--watcher", "fanotify"):
        state_ = json.loads(run("status", "--json", address).stdout)
        assert (state_["watcher"], state_["watcher_reason"]) == ("fanotify", "asked for")
        watch_ = watching(address)
        (source / "x").mkdir()
        (line,) = watch_.until("x")
        assert (line["origin"], line["pid"], line["uid"]) == ("remote", os.getpid(), os.getuid())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_who_reconnects_over_tls_hears_what_was_made_meanwhile(
    source: Path, state: str, authority: Authority, watching: Start, how: signal.Signals
) -> None:
    (source / "sub").mkdir()
    with served(source, "--state-dir", state, *listening(authority.daemon)) as daemon:
        place = daemon.tls
        watch_ = watching("--reconnect", f"{place}/sub", *options(authority.client))
        daemon.stop(how)
    (source / "sub" / "x").mkdir()
    with served(source, "--state-dir", state, "--listen", place, *options(authority.daemon)):
        *before, line = watch_.until("sub/x")
        assert (line["kind"], line["recovered"]) == ("create", True)
        assert [line["kind"] for line in before] == (["unmount"] if how is signal.SIGTERM else [])
        (source / "sub" / "y").mkdir()
        assert [line["kind"] for line in watch_.until("sub/y")] == ["create"]


def test_who_reconnects_says_that_somebody_else_is_there(
    source: Path, state: str, authority: Authority, tmp_path: Path, watching: Start
) -> None:
    with served(source, "--state-dir", state, *listening(authority.daemon)) as daemon:
        place = daemon.tls
        watch_ = watching("--reconnect", place, *options(authority.client))
    with served(source, "--state-dir", state, "--listen", place, *options(Authority(tmp_path).daemon)):
        assert watch_.process.stderr is not None
        assert "is not that of the daemon we look for" in watch_.process.stderr.readline()
    with served(source, "--state-dir", state, "--listen", place, *options(authority.daemon)):
        (source / "x").mkdir()
        watch_.until("x")


def test_an_ordinary_user_can_serve(directory: Path, nobody: list[str]) -> None:
    place = directory / "of-nobody"
    place.mkdir()
    os.chown(place, 65534, 65534)
    directory.chmod(0o755)
    source = place / "source"
    source.mkdir()
    (source / "readable").mkdir()
    (source / "closed").mkdir(mode=0o700)
    command = [*nobody, "-m", "fusenotify"]
    with served(source, "--listen", f"unix:{place}/s", "--state-dir", f"{place}/state", command=command) as daemon:
        with contextlib.closing(Watch(f"unix:{place}/s", command=command)) as watch_:
            (source / "readable" / "x").mkdir()
            assert [line["path"] for line in watch_.until("readable/x")] == ["readable/x"]
        assert daemon.stop() == 0


def test_it_needs_neither_fuse_nor_its_package(source: Path, address: str, state: str) -> None:
    command = changed("import sys; sys.modules['pyfuse3'] = None")
    with served(source, "--listen", address, "--state-dir", state, command=command):
        assert run("status", address).returncode == 0


def test_what_makes_no_sense_is_refused(source: Path, address: str, state: str, directory: Path) -> None:
    (directory / "file").touch()
    for arguments, code, text in (
        ((source, "--state-dir", state), 2, "--listen"),
        ((source, "--state-dir", state, "--listen", "tcp://localhost:1"), 2, "takes unix:PATH or tls://HOST:PORT"),
        ((source, "--state-dir", state, "--listen", "tls://localhost:0"), 2, "needs --cert, --key and --ca"),
        ((source, "--state-dir", state, "--listen", f"unix:{source}/socket"), 4, "lies inside SOURCE"),
        ((source, "--state-dir", source / "state", "--listen", address), 4, "lies inside SOURCE"),
        ((directory / "nothing", "--state-dir", state, "--listen", address), 4, "No such file"),
        ((directory / "file", "--state-dir", state, "--listen", address), 4, "not a directory"),
    ):
        done = run("serve", *arguments)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert text in done.stderr
    with served(source, "--listen", address, "--state-dir", state):
        done = run("serve", source, "--listen", f"{address}-2", "--state-dir", state)
        assert (done.returncode, "in use by another daemon" in done.stderr) == (4, True)


def test_a_queue_file_is_what_a_mount_has(daemon: Daemon) -> None:
    done = run("status", daemon.source)
    assert (done.returncode, done.stdout) == (errors.NotAMount.exit_code, "")
