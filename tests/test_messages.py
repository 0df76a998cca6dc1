"""What commands say to who uses them for the first time, or wrongly: what, why, and what to do."""

import os
import re
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from fusenotify.cli import status
from fusenotify.events import Kind
from tests.certificates import Authority, listening, options
from tests.harness import FUSENOTIFY, PATIENCE, Mount, mounted, run


def refusal(code: int, *arguments: str | Path) -> str:
    """Run a command that is to be refused, and return the reason."""
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def as_nobody(nobody: list[str], *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [*nobody, "-m", "fusenotify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_an_option_that_a_command_has_not_is_answered_with_those_it_has() -> None:
    said = refusal(2, "watch", "/", "--frobnicate", "--recursive")
    assert said.startswith("usage: fusenotify watch ")
    assert said.endswith("fusenotify watch: error: unrecognized arguments: --frobnicate --recursive\n")


def test_every_kind_of_event_is_named_in_the_help_of_watch() -> None:
    kinds = run("watch", "--help").stdout.partition("kinds of events:")[2].partition("exit codes:")[0]
    default, _, others = kinds.partition("  all ")
    assert {str(kind) for kind in Kind.DEFAULT} <= set(default.split())
    assert {str(kind) for kind in Kind.ALL & ~Kind.DEFAULT} <= set(others.replace(",", " ").split())


@pytest.mark.parametrize("command", ["", "mount", "serve", "umount", "watch", "status", "doctor"])
def test_help_fits_into_a_terminal(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    help_ = run(*filter(None, [command]), "--help").stdout
    assert [line for line in help_.splitlines() if len(line) > 88] == []


def test_names_are_told_as_names(directory: Path, authority: Authority) -> None:
    """Of what a daemon was asked over the network, where the command itself cannot look."""
    credentials = options(authority.client)
    with mounted(directory, listening(authority.daemon)) as mount:
        said = refusal(2, "watch", f"{mount.tls}/nothing/\udcff", *credentials)
        assert said == "fusenotify: there is no 'nothing/\\udcff' in the tree: No such file or directory\n"
        assert refusal(2, "watch", f"{mount.tls}/../x", *credentials).startswith("fusenotify: '../x' is no path ")
        (mount.source / "link").symlink_to("nowhere")
        assert "there is no" in refusal(2, "watch", f"{mount.tls}/link/x", *credentials)


@pytest.mark.parametrize("command", ["watch", "status"])
def test_who_forgets_the_credentials_is_told_which(command: str) -> None:
    assert "give --cert, --key and --ca" in refusal(2, command, "tls://localhost:1")


def test_sockets_that_cannot_be_listened_on(directory: Path) -> None:
    source, file, state = directory / "tree", directory / "file", directory / "state"
    source.mkdir()
    file.write_text("somebody's")
    long = directory / ("x" * 100)

    def said(path: Path) -> str:
        return refusal(4, "serve", source, "--state-dir", state, "--listen", f"unix:{path}")

    assert "a file of that name is in the way" in said(file)
    assert file.read_text() == "somebody's"
    assert "Its directory has to exist" in said(directory / "nothing" / "socket")
    assert f"it has {len(str(long))} bytes, and 107 are possible" in said(long)
    as_long_as_possible = directory / ("x" * (107 - len(f"{directory}/")))
    with subprocess.Popen(
        [*FUSENOTIFY, "serve", source, "--state-dir", state, "--listen", f"unix:{as_long_as_possible}"],
        stderr=subprocess.PIPE, text=True,
    ) as daemon:  # fmt: skip
        assert daemon.stderr is not None
        assert daemon.stderr.readline() == f"fusenotify: listening on unix:{as_long_as_possible}\n"
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait(PATIENCE) == 0


def test_a_port_that_is_taken(directory: Path, authority: Authority) -> None:
    with mounted(directory, listening(authority.daemon)) as mount:
        credentials = options(authority.daemon)
        said = refusal(
            4, "serve", directory, "--state-dir", directory.parent / "x", "--listen", mount.tls, *credentials
        )
        assert said.endswith("Address already in use. Take another port\n")


def test_who_may_not_enter_a_mount_or_a_socket_is_told_who_may(mount: Mount, nobody: list[str]) -> None:
    mount.mountpoint.parent.chmod(0o755)
    mount.socket.parent.chmod(0o755)
    for target, reason in (mount.mountpoint, "-o allow_other"), (f"unix:{mount.socket}", "for its user and root"):
        done = as_nobody(nobody, "watch", target)
        assert (done.returncode, done.stdout) == (4, "")
        assert reason in done.stderr


def test_who_may_not_reach_a_file_is_told_so(directory: Path, nobody: list[str]) -> None:
    """And not that trees are for others, which nobody asked for."""
    with mounted(directory, ["-o", "allow_other"]) as mount:
        mount.source.chmod(0o755)
        (mount.source / "private").mkdir(mode=0o700)
        (mount.source / "private" / "file").touch()
        for place in (directory, mount.mountpoint):
            place.chmod(0o755)
        done = as_nobody(nobody, "watch", mount.mountpoint / "private" / "file")
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.endswith(" cannot reach 'private/file': Permission denied\n"), done.stderr


def test_doctor_does_not_promise_fanotify_to_users(nobody: list[str]) -> None:
    (line,) = [line for line in as_nobody(nobody, "doctor").stdout.splitlines() if " fanotify " in line]
    assert "only root" in line
    (line,) = [line for line in run("doctor").stdout.splitlines() if " fanotify " in line]
    assert "can be used" in line


def test_status_of_nothing_says_so(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(status, "find_mounts", list)  # others on this machine may have mounts
    assert status.run(Namespace(target=None, json=True, prometheus=False)) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("fusenotify: there is no fusenotify mount here")


def test_an_overflow_is_on_neither_side(mount: Mount) -> None:
    with subprocess.Popen(
        [*FUSENOTIFY, "watch", mount.mountpoint, "--limit", "1", "--kinds", "create", "--events", "2"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        for name in "abc":
            (mount.source / name).mkdir()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.read().splitlines() == [
            "remote create      a/",
            "       overflow    events were lost (queue): look again at everything",
        ]
        assert process.wait(PATIENCE) == 0


def test_the_readme_s_stream_is_what_is_printed(mount: Mount) -> None:
    """Word by word, but for the cursor."""
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    first, *shown = re.findall(r"```\n(watching .*?)```", readme, re.DOTALL)[0].splitlines()
    assert re.fullmatch(r"watching \(cursor c:[0-9a-f]+:0\)", first)
    with subprocess.Popen(
        [sys.executable, "-m", "fusenotify", "watch", mount.mountpoint],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stderr.readline()
        here = {"/tmp/data": mount.source, "/tmp/mnt": mount.mountpoint}
        (commands,) = re.findall(r"```sh\n(touch .*?)fusenotify umount", readme, re.DOTALL)
        for name, path in here.items():
            commands = commands.replace(name, str(path))
        subprocess.run(["sh", "-ec", commands], check=True, timeout=PATIENCE)
        assert run("umount", mount.mountpoint).returncode == 0
        assert process.stdout.read().splitlines() == shown
        assert process.wait(PATIENCE) == 5
