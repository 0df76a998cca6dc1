"""Daemon and client on two hosts, and what happens when one cannot reach the other any more."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import Authority, listening, options
from tests.harness import FUSENOTIFY, PATIENCE, Daemon, Mount, Watch, changed, mounted, run, served
from tests.network import ADDRESSES, Network, network

_DEAD_AFTER = 6  # seconds, for these tests
_IMPATIENT = changed(f"from fusenotify import sockets; sockets.DEAD_AFTER = {_DEAD_AFTER}")
_DAEMON = ADDRESSES["daemon"][0]


@pytest.fixture
def hosts() -> Iterator[Network]:
    with network() as made:
        yield made


@pytest.fixture
def mount(hosts: Network, directory: Path, authority: Authority) -> Iterator[Mount]:
    """A mount on the daemon's host, which soon takes clients for dead that do not answer."""
    with mounted(directory, listening(authority.daemon, _DAEMON), [*hosts.on("daemon"), *_IMPATIENT]) as mount:
        yield mount


@contextlib.contextmanager
def watching_from(hosts: Network, daemon: Daemon, authority: Authority) -> Iterator[Watch]:
    """Watch from the client's host."""
    watch = Watch(daemon.tls, *options(authority.client), command=[*hosts.on("client"), *_IMPATIENT])
    with contextlib.closing(watch):
        yield watch


def groups_of(mount: Mount) -> int:
    groups: int = json.loads(run("status", "--json", mount.mountpoint).stdout)["groups"]
    return groups


def await_no_group(mount: Mount, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while groups_of(mount):
        assert time.monotonic() < deadline, f"the daemon still has a group after {seconds} s"


@pytest.mark.parametrize("host", [_DAEMON, f"[{ADDRESSES['daemon'][1]}]"])
def test_two_hosts(hosts: Network, directory: Path, authority: Authority, host: str) -> None:
    source = directory / "source"
    source.mkdir()
    arguments = ("--state-dir", str(directory / "state"), *listening(authority.daemon, host))
    on_client = [*hosts.on("client"), *FUSENOTIFY]
    with served(source, *arguments, command=[*hosts.on("daemon"), *FUSENOTIFY]) as daemon:
        with contextlib.closing(Watch(daemon.tls, *options(authority.client), command=on_client)) as watch:
            (source / "a").mkdir()
            (source / "a").rename(source / "b")
            told = watch.until("b")
            assert [(line["kind"], line["old_path"], line["path"]) for line in told] == [
                ("create", None, "a"),
                ("rename", "a", "b"),
            ]
        assert run("status", daemon.tls, *options(authority.client)).returncode == 5  # this host is no part of it


def test_a_dead_way_is_noticed_by_both_ends_while_nothing_happens(
    hosts: Network, mount: Mount, authority: Authority
) -> None:
    with watching_from(hosts, mount, authority) as watch:
        assert groups_of(mount) == 1
        start = time.monotonic()
        hosts.cut()
        assert watch.next() is None
        assert _DEAD_AFTER / 2 <= time.monotonic() - start <= 2 * _DEAD_AFTER
        assert "has gone" in watch.errors()
        assert watch.process.returncode == 5
        await_no_group(mount, _DEAD_AFTER)


def test_a_client_that_was_cut_off_is_dropped_while_events_wait_for_it(
    hosts: Network, mount: Mount, authority: Authority
) -> None:
    with watching_from(hosts, mount, authority):
        hosts.cut()
        (mount.source / "x").mkdir()
        await_no_group(mount, 3 * _DEAD_AFTER)


_ASKS = """
import sys, anyio
from fusenotify import DaemonGone, Tls, open_group, sockets
sockets.DEAD_AFTER = {dead_after}
async def main():
    async with open_group(tls=Tls(*sys.argv[2:])) as group:
        await group.mark(sys.argv[1])
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            await group.sync()
        except DaemonGone:
            print("gone", flush=True)
anyio.run(main)
"""


def test_a_request_that_does_not_arrive_ends(hosts: Network, mount: Mount, authority: Authority) -> None:
    tls = authority.client
    script = _ASKS.format(dead_after=_DEAD_AFTER)
    command = [*hosts.on("client"), sys.executable, "-c", script, mount.tls, str(tls.cert), str(tls.key), str(tls.ca)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        hosts.cut()
        start = time.monotonic()
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "gone\n"
        assert time.monotonic() - start <= 2 * _DEAD_AFTER


def test_a_cable_that_is_mended_in_time_loses_nothing(hosts: Network, mount: Mount, authority: Authority) -> None:
    with watching_from(hosts, mount, authority) as watch:
        hosts.cut()
        for n in range(100):
            (mount.source / f"{n}").mkdir()
        hosts.mend()
        assert [line["path"] for line in watch.until("99")] == [f"{n}" for n in range(100)]


def test_a_client_that_does_not_read_for_long_is_not_dead(hosts: Network, mount: Mount, authority: Authority) -> None:
    with watching_from(hosts, mount, authority) as watch:
        watch.process.send_signal(signal.SIGSTOP)
        for n in range(4000):  # more than the two kernels hold
            (mount.source / f"{n:0250}").mkdir()
        time.sleep(2 * _DEAD_AFTER)  # that nothing happens meanwhile is what is tested
        assert groups_of(mount) == 1
        watch.process.send_signal(signal.SIGCONT)
        assert len(watch.until(f"{3999:0250}")) == 4000


def test_an_idle_connection_wakes_nobody_up(hosts: Network, directory: Path, authority: Authority) -> None:
    source = directory / "source"
    source.mkdir()
    arguments = ("--state-dir", str(directory / "state"), *listening(authority.daemon, _DAEMON))
    # What others mount on this machine would wake it up too, and a few of their unmounts reach it even so.
    command = [*hosts.on("daemon"), "unshare", "--mount", "--propagation", "private", *_IMPATIENT]
    with served(source, *arguments, command=command) as daemon, watching_from(hosts, daemon, authority) as watch:
        (source / "x").mkdir()
        watch.until("x")
        time.sleep(_DEAD_AFTER)  # until what was sent is known to have arrived
        before = [_wakeups(pid) for pid in (daemon.pid, watch.process.pid)]
        time.sleep(_DEAD_AFTER)
        after = [_wakeups(pid) for pid in (daemon.pid, watch.process.pid)]
        assert all(now - then < _DEAD_AFTER / 2 for then, now in zip(before, after, strict=True)), (before, after)


def _wakeups(pid: int) -> int:
    """Return how often the main thread of a process has gone to sleep of its own accord."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


def test_a_connection_attempt_that_nobody_answers_ends(hosts: Network, mount: Mount, authority: Authority) -> None:
    hosts.cut()
    impatient = changed("from fusenotify import transports; transports._CONNECT = 0.5")
    command = [*hosts.on("client"), *impatient, "status", mount.tls, *options(authority.client)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert "nobody answers" in done.stderr
