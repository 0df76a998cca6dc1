"""The command line: exit codes, and what goes to stdout and stderr."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from fusenotify import _linux
from fusenotify.cli.umount import _is_daemon_of
from fusenotify.mountinfo import find_mounts
from tests.harness import FUSENOTIFY, PATIENCE, Mount, Watch, mounted, run

Start = Callable[..., Watch]

_MS_BIND = 4096

FIELDS = [
    "type", "target", "kind", "path", "old_path", "exchange", "is_dir", "origin", "handle", "parent", "old_parent",
    "cursor", "time", "pid", "uid", "recovered",
]  # fmt: skip


def outcome(*arguments: str | Path) -> tuple[int, str, str]:
    done = run(*arguments)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout, done.stderr


def refused(code: int, text: str, *arguments: str | Path) -> None:
    """Check that a command ends with this code, one line about why, and nothing on stdout."""
    found, out, err = outcome(*arguments)
    assert (found, out) == (code, ""), err
    assert text in err
    if code != 2 or err.startswith("fusenotify: "):
        assert err.startswith("fusenotify: ")
        assert err.count("\n") == 1


@contextmanager
def in_background(directory: Path, *arguments: str) -> Iterator[tuple[Path, Path]]:
    """Mount with --daemon and yield source and mountpoint."""
    source, mountpoint = directory / "bg-source", directory / "bg-mount"
    for path in (source, mountpoint):
        path.mkdir(exist_ok=True)
    assert outcome(
        "mount", source, mountpoint, "--daemon", "--state-dir", directory / "bg-state", *arguments
    ) == (0, "", "")  # fmt: skip
    try:
        yield source, mountpoint
    finally:
        run("umount", "--lazy", mountpoint)


# --- the whole -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["", "mount", "serve", "umount", "watch", "status", "doctor"])
def test_help(command: str) -> None:
    code, out, err = outcome(*filter(None, [command]), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: fusenotify {command}".rstrip())
    promised = {
        "": ["exit codes", "mount", "serve", "umount", "watch", "status", "doctor", "--version"],
        "mount": ["SOURCE", "MOUNTPOINT", "-o", "--daemon", "--state-dir", "--watcher", "--listen"],
        "serve": ["SOURCE", "--listen", "--state-dir", "--watcher", "--cert", "--key", "--ca"],
        "umount": ["MOUNTPOINT", "--lazy"],
        "watch": ["TARGET", "--json", "--kinds", "--origin", "--no-recursive", "--limit", "--uid", "--events",
                  "--timeout"],
        "status": ["TARGET", "--json"],
        "doctor": [],
    }  # fmt: skip
    assert all(word in out for word in promised[command])


def test_version() -> None:
    code, out, _ = outcome("--version")
    assert code == 0
    assert re.fullmatch(r"fusenotify \d+\.\d+\.\d+\n", out)


@pytest.mark.parametrize(
    "arguments",
    [[], ["frobnicate"], ["mount"], ["mount", "a"], ["umount"], ["watch"], ["watch", "/", "--origin", "mars"],
     ["watch", "/", "--events", "0"], ["watch", "/", "--events", "x"], ["watch", "/", "--timeout", "-1"],
     ["watch", "/", "--timeout", "nan"], ["watch", "/", "--limit", "0"], ["watch", "/", "--frobnicate"],
     ["mount", "a", "b", "--watcher", "guess"]],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors(arguments: list[str]) -> None:
    code, out, err = outcome(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("usage: fusenotify")


def test_an_internal_error_is_1_and_says_what_to_do(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "0")
    broken = "import sys, fusenotify.cli.doctor as d; d.run_checks = None; from fusenotify.cli import main; "
    done = subprocess.run(
        [sys.executable, "-c", broken + "sys.exit(main(['doctor']))"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "internal error" in done.stderr
    assert "--debug" in done.stderr
    assert "Traceback" not in done.stderr


# --- watch ---------------------------------------------------------------------------------------------------------


def test_the_fields_of_an_event(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint)
    (mount.source / "a").mkdir()
    (mount.mountpoint / "a").rename(mount.mountpoint / "b")
    created, renamed = watch.until("b")
    assert list(watch.ready or {}) == ["type", "cursor"]
    assert list(created) == list(renamed) == FIELDS
    assert created == {
        "type": "event", "target": str(mount.mountpoint), "kind": "create", "path": "a", "old_path": None,
        "exchange": False, "is_dir": True, "origin": "remote", "handle": None, "parent": None, "old_parent": None,
        "cursor": created["cursor"], "time": created["time"], "pid": None, "uid": None, "recovered": False,
    }  # fmt: skip
    assert (renamed["kind"], renamed["path"], renamed["old_path"]) == ("rename", "b", "a")
    assert (renamed["origin"], renamed["pid"], renamed["uid"]) == ("local", os.getpid(), 0)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", created["time"])
    assert re.fullmatch(r"c:[0-9a-f]+:\d+", created["cursor"])


def test_exchange_and_recovered(mount: Mount, watching: Start) -> None:
    for name in "ab":
        (mount.source / name).touch()
    (mount.source.parent / "outside" / "x").mkdir(parents=True)
    watch = watching(mount.mountpoint)
    fd = os.open(mount.mountpoint, os.O_PATH)
    _linux.renameat2(fd, b"a", fd, b"b", _linux.RENAME_EXCHANGE)
    os.close(fd)
    (mount.source.parent / "outside").rename(mount.source / "in")
    told = watch.until("in/x")
    assert [(line["kind"], line["old_path"], line["path"], line["exchange"], line["recovered"]) for line in told] == [
        ("rename", "a", "b", True, False), ("rename", None, "in", False, False), ("create", None, "in/x", False, True)
    ]  # fmt: skip


def test_names_that_are_no_utf8(directory: Path, watching: Start) -> None:
    odd = directory / os.fsdecode(b"od\xffd")
    odd.mkdir()
    with mounted(odd) as mount:
        (mount.source / os.fsdecode(b"\xe9")).mkdir()
        target = mount.mountpoint / os.fsdecode(b"\xe9")
        watch = watching(target)
        (mount.source / os.fsdecode(b"\xe9") / os.fsdecode(b'\xfe\n"')).mkdir()
        path = os.fsdecode(b'\xe9/\xfe\n"')
        (line,) = watch.until(path)
        assert line["target"] == str(target)
        state = json.loads(outcome("status", "--json", target)[1])
        assert (state["source"], state["mountpoint"]) == (str(mount.source), str(mount.mountpoint))
        code, out, err = outcome("status", target)
        assert (code, err) == (0, "")
        assert "od\\udcffd" in out
        assert outcome("umount", mount.mountpoint) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "code", "count"),
    [
        (["--events", "3"], 0, 3),
        (["--events", "30", "--timeout", "2"], 3, 5),
        (["--timeout", "2"], 0, 5),
        (["--timeout", "2", "--origin", "local"], 3, 0),
    ],
    ids=["enough", "too few", "some", "none"],
)
def test_events_and_timeout(mount: Mount, watching: Start, arguments: list[str], code: int, count: int) -> None:
    watch = watching(mount.mountpoint, *arguments)
    for n in range(5):
        (mount.source / f"{n}").mkdir()
    assert len(watch.rest()) == count
    assert watch.errors() == ""
    assert watch.process.returncode == code


def test_timeout_of_nothing(mount: Mount) -> None:
    code, out, err = outcome("watch", "--json", "--timeout", "0", mount.mountpoint)
    assert (code, err) == (3, "")
    assert json.loads(out)["type"] == "ready"


def test_kinds_origin_no_recursive_and_uid(mount: Mount, watching: Start) -> None:
    (mount.source / "sub").mkdir()
    watches = {
        "kinds": watching(mount.mountpoint, "--kinds", "create,rename"),
        "all": watching(mount.mountpoint, "--kinds", "default"),
        "local": watching(mount.mountpoint, "--origin", "local"),
        "remote": watching(mount.mountpoint, "--origin", "remote"),
        "here": watching(mount.mountpoint, "--no-recursive"),
        "uid": watching(mount.mountpoint, "--uid", 0, "--uid", 5),
        "sub": watching(mount.mountpoint / "sub"),
    }
    (mount.source / "sub" / "a").mkdir()
    (mount.mountpoint / "sub" / "a").rmdir()
    (mount.source / "end").mkdir()
    (mount.mountpoint / "sub" / "end").mkdir()
    (mount.mountpoint / "last").mkdir()
    assert run("umount", mount.mountpoint).returncode == 0
    told = {name: [(line["kind"], line["path"]) for line in watch.rest()] for name, watch in watches.items()}
    everything = [
        ("create", "sub/a"), ("delete", "sub/a"), ("create", "end"), ("create", "sub/end"), ("create", "last"),
    ]  # fmt: skip
    local = [everything[1], everything[3], everything[4]]
    expected = {
        "kinds": [one for one in everything if one[0] == "create"],
        "all": everything,
        "local": local,
        "remote": [everything[0], everything[2]],
        "here": [everything[2], everything[4]],
        "uid": local,
        "sub": [one for one in everything if one[1].startswith("sub/")],
    }
    assert told == {name: [*events, ("unmount", None)] for name, events in expected.items()}


def test_limit(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint, "--limit", 5)
    watch.process.send_signal(signal.SIGSTOP)
    for n in range(50):
        (mount.source / f"{n}").mkdir()
    watch.process.send_signal(signal.SIGCONT)
    told = [watch.next() or {} for _ in range(6)]
    assert [line["kind"] for line in told] == ["create"] * 5 + ["overflow"]
    assert (told[5]["reason"], told[5]["path"], told[5]["target"]) == ("queue", None, str(mount.mountpoint))
    assert list(told[5]) == [*FIELDS, "reason"]


def test_several_targets(mount: Mount, watching: Start) -> None:
    for name in "abc":
        (mount.source / name).mkdir()
    watch = watching(mount.mountpoint / "a", f"{mount.mountpoint}/b/", "--events", 2)
    for name in "cab":
        (mount.source / name / "x").mkdir()
    assert [(line["target"], line["path"]) for line in watch.rest()] == [
        (f"{mount.mountpoint}/a", "a/x"), (f"{mount.mountpoint}/b/", "b/x")
    ]  # fmt: skip


def test_a_relative_target_is_told_as_given(mount: Mount) -> None:
    with subprocess.Popen(
        [*FUSENOTIFY, "watch", "--json", "--events", "1", "."], cwd=mount.mountpoint, stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert '"ready"' in process.stdout.readline()
        (mount.source / "x").mkdir()
        assert json.loads(process.stdout.readline())["target"] == "."


def test_text_output(mount: Mount) -> None:
    command = [*FUSENOTIFY, "watch", "--events", "5", str(mount.mountpoint)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert re.fullmatch(r"watching \(cursor c:[0-9a-f]+:\d+\)\n", process.stderr.readline())
        (mount.source / "a").mkdir()
        os.mkdir(os.fsencode(mount.mountpoint) + b"/\xff\n")
        (mount.source / "a").rename(mount.source.parent / "out")
        (mount.source.parent / "out").rename(mount.source / "ü")
        (mount.mountpoint / "ü").chmod(0o700)
        assert process.stdout.read().splitlines() == [
            "remote create      a/",
            "local  create      \\udcff\\n/",
            "remote rename      a -> (outside)",
            "remote rename      (outside) -> ü",
            "local  attrib      ü/",
        ]
        assert process.wait(PATIENCE) == 0


def test_a_reader_that_has_had_enough_ends_it_without_a_word(mount: Mount) -> None:
    with subprocess.Popen(
        [*FUSENOTIFY, "watch", "--json", mount.mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert b'"ready"' in process.stdout.readline()
        process.stdout.close()
        (mount.source / "x").mkdir()
        assert process.wait(PATIENCE) == 0
        assert process.stderr.read() == b""


def test_a_reader_that_has_had_enough_ends_it_on_an_idle_tree(mount: Mount) -> None:
    """As in `watch | head -1`: nothing more is written, so nothing tells of the closed pipe but the pipe."""
    with subprocess.Popen(
        [*FUSENOTIFY, "watch", "--json", mount.mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert b'"ready"' in process.stdout.readline()
        process.stdout.close()
        try:
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
        assert process.stderr.read() == b""


def test_output_goes_to_a_file_too(mount: Mount, directory: Path) -> None:
    with (directory / "out").open("wb") as out:
        done = subprocess.Popen(
            [*FUSENOTIFY, "watch", "--events", "1", mount.mountpoint], stdout=out, stderr=subprocess.PIPE
        )
        with done:
            assert done.stderr is not None
            assert b"watching" in done.stderr.readline()
            (mount.source / "x").mkdir()
            assert done.wait(PATIENCE) == 0
    assert (directory / "out").read_text() == "remote create      x/\n"


@pytest.mark.parametrize(("as_json", "code"), [(True, 4), (False, 4)], ids=["json", "text"])
def test_a_full_disk_behind_standard_output_is_4_and_says_so(mount: Mount, as_json: bool, code: int) -> None:
    command = [*FUSENOTIFY, "watch", *["--json"] * as_json, str(mount.mountpoint)]
    with open("/dev/full", "wb") as full, subprocess.Popen(command, stdout=full, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        if not as_json:
            assert b"watching" in process.stderr.readline()
            (mount.source / "x").mkdir()
        assert process.wait(PATIENCE) == code
        said = process.stderr.read()
    assert said == b"fusenotify: cannot write to standard output: No space left on device\n"


def test_other_commands_say_so_too(mount: Mount) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*FUSENOTIFY, "status", "--json", mount.mountpoint],
            stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr == b"fusenotify: cannot write to standard output: No space left on device\n"


def test_without_standard_output_there_is_nothing_to_watch_for(mount: Mount) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *FUSENOTIFY, "watch", mount.mountpoint],
        stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr == b"fusenotify: standard output is closed, so there is nowhere to print to\n"


def test_several_targets_are_named(mount: Mount, directory: Path) -> None:
    command = [*FUSENOTIFY, "watch", "--events", "2", "--kinds", "create", str(mount.mountpoint), f"{mount.source}/sub"]
    (mount.source / "sub").mkdir()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "watching" in process.stderr.readline()
        (mount.source / "sub" / "x").mkdir()
        assert sorted(process.stdout) == sorted(
            [
                f"{mount.mountpoint}: remote create      sub/x/\n",
                f"{mount.source}/sub: local  create      {mount.source}/sub/x/\n",
            ]
        )


def test_a_reader_that_pauses_loses_nothing(mount: Mount) -> None:
    with subprocess.Popen(
        [*FUSENOTIFY, "watch", "--json", "--events", "5000", mount.mountpoint], stdout=subprocess.PIPE, text=True
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert '"ready"' in process.stdout.readline()
        for n in range(5000):
            os.mkdir(f"{mount.source}/{n}")
        told = [json.loads(line)["path"] for line in process.stdout]
        assert told == [f"{n}" for n in range(5000)]
        assert process.wait(PATIENCE) == 0


def test_interrupt(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint)
    watch.process.send_signal(signal.SIGINT)
    assert watch.rest() == []
    assert watch.errors() == ""
    assert watch.process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["--kinds", "create,frobnicate", "MOUNT"], 2, "'frobnicate' is no kind"),
        (["--kinds", "", "MOUNT"], 2, "is no kind"),
        (["MOUNT/nothing"], 2, "does not exist"),
        ([""], 2, "an empty text"),
        (["--origin", "remote", "MOUNT", "TMP"], 4, "not on a fusenotify mount"),
        (["unix:TMP/nothing"], 5, "nobody listens"),
        (["http://localhost:1"], 2, "is no target"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_watching_what_cannot_be_watched(
    mount: Mount, tmp_path: Path, arguments: list[str], code: int, text: str
) -> None:
    places = [argument.replace("MOUNT", str(mount.mountpoint)).replace("TMP", str(tmp_path)) for argument in arguments]
    refused(code, text, "watch", "--json", *places)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_a_daemon_that_goes_is_5(mount: Mount, watching: Start, how: signal.Signals, way: str) -> None:
    watch = watching(f"unix:{mount.socket}" if way == "socket" else mount.mountpoint)
    (mount.source / "x").mkdir()
    told = watch.until("x")
    mount.stop(how)
    told += watch.rest()
    assert [line["kind"] for line in told] == ["create"] + ["unmount"] * (how == signal.SIGTERM)
    assert re.fullmatch(r"fusenotify: the daemon behind .* has gone.*\n", watch.errors())
    assert watch.process.returncode == 5


def test_a_dead_mount_is_5_and_says_what_to_do(mount: Mount) -> None:
    mount.stop(signal.SIGKILL)
    refused(5, f"fusenotify umount --lazy {mount.mountpoint}", "watch", mount.mountpoint)
    refused(5, f"fusenotify umount --lazy {mount.mountpoint}", "status", mount.mountpoint)
    assert outcome("umount", "--lazy", mount.mountpoint) == (0, "", "")
    refused(4, "not on a fusenotify mount", "status", mount.mountpoint)


# --- status and doctor ---------------------------------------------------------------------------------------------


def test_status(mount: Mount, watching: Start) -> None:
    (mount.source / "a" / "b").mkdir(parents=True)
    watching(mount.mountpoint)
    wanted = {
        "pid": mount.pid, "source": str(mount.source), "mountpoint": str(mount.mountpoint), "watcher": "inotify",
        "native": "auto", "watches": 3, "overflows": 0, "recoveries": 0, "deaf": 0, "groups": 1,
    }  # fmt: skip
    for target in (mount.mountpoint, mount.mountpoint / "a" / "b", f"unix:{mount.socket}"):
        code, out, err = outcome("status", "--json", target)
        assert (code, err) == (0, "")
        state = json.loads(out)
        assert {name: state[name] for name in wanted} == wanted
        assert {"delivered", "fell_back", "stuck"} == set(state["replays"])
        assert state["native_reason"].startswith("to ")
        assert re.fullmatch(r"c:[0-9a-f]+:\d+", state["cursor"])
    code, out, err = outcome("status", mount.mountpoint)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{mount.source} on {mount.mountpoint}"
    assert re.fullmatch(rf"  pid +{mount.pid}", lines[1])
    assert any(re.fullmatch(r"  replays +delivered \d+, fell_back 0, stuck 0", line) for line in lines)
    assert len({re.match(r"  (deaf below|\S+) +", line).end() for line in lines[1:]}) == 1, "one column"  # type: ignore[union-attr]


def test_status_in_figures(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint)
    for number in range(10):
        (mount.source / f"{number}").touch()
    watch.until("9")
    state = json.loads(outcome("status", "--json", mount.mountpoint)[1])
    limit = int(Path("/proc/sys/fs/inotify/max_user_watches").read_text())
    assert (state["watch_limit"], state["deaf_paths"], state["dropped"]) == (limit, [], 0)
    assert state["told"] >= 10
    (queue,) = state["queues"]
    assert (queue["uid"], queue["marks"], queue["limit"], queue["overflows"]) == (os.geteuid(), 1, 131072, 0)
    for histogram in state["latency"].values():
        assert len(histogram["counts"]) == len(histogram["bounds"]) + 1
        assert sum(histogram["counts"]) >= 10
        assert histogram["total"] > 0


def test_status_for_prometheus(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint)
    (mount.source / "file").touch()
    watch.until("file")
    code, out, err = outcome("status", "--prometheus", mount.mountpoint)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    label = f'{{mountpoint="{mount.mountpoint}"'
    assert f"fusenotify_watches{label}}} 1" in lines
    assert "# TYPE fusenotify_queued_seconds histogram" in lines
    assert f'fusenotify_replays_total{label},how="fell_back"}} 0' in lines
    buckets = [line for line in lines if line.startswith(f"fusenotify_queued_seconds_bucket{label}")]
    counts = [int(line.rpartition(" ")[2]) for line in buckets]
    assert counts == sorted(counts)
    assert f"fusenotify_queued_seconds_count{label}}} {counts[-1]}" in lines
    assert [line for line in lines if line.startswith(f'fusenotify_queue_limit{label},group="0",uid="0"')]
    sample = re.compile(r'fusenotify_[a-z_]+\{([a-z]+="[^"]*",?)+\} [0-9.e+-]+|# (HELP|TYPE) fusenotify_[a-z_]+ .+')
    assert all(sample.fullmatch(line) for line in lines)


def test_status_of_all_does_not_fail_because_of_what_is_somebody_elses(mount: Mount, nobody: list[str]) -> None:
    command = [*nobody, "-m", "fusenotify", "status"]
    outcome_of_nobody = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert f"{mount.mountpoint}: " in outcome_of_nobody.stderr
    assert outcome_of_nobody.returncode == 0, outcome_of_nobody.stderr


def test_status_of_all(directory: Path, mount: Mount) -> None:
    with in_background(directory) as (_, other):
        # Others on this machine may have mounts too, in whatever state.
        _, out, _ = outcome("status", "--json")
        told = [json.loads(line)["mountpoint"] for line in out.splitlines()]
        assert {str(mount.mountpoint), str(other)} <= set(told)
        mount.stop(signal.SIGKILL)
        code, out, err = outcome("status")
        assert code != 0
        assert f" on {other}\n" in out
        assert str(mount.mountpoint) in err


def test_status_of_all_when_one_hangs(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGSTOP)
    code, _, err = outcome("status")
    assert code != 0  # 5, unless another mount of this machine has trouble of its own
    assert f"{mount.mountpoint} does not answer" in err


def test_status_of_what_is_no_mount(tmp_path: Path) -> None:
    refused(4, "not on a fusenotify mount", "status", tmp_path)
    refused(2, "does not exist", "status", tmp_path / "nothing")


def test_doctor(mount: Mount) -> None:
    code, out, err = outcome("doctor")
    assert err == ""
    for name in ("kernel", "/dev/fuse", "rights", "max_user_watches", "pyfuse3", "trio", "mounts"):
        assert name in out
    assert code in (0, 4)  # this machine may have low limits
    mount.stop(signal.SIGKILL)
    code, out, err = outcome("doctor")
    assert (code, err) == (4, "")
    assert f"fusenotify umount --lazy {mount.mountpoint}" in out


# --- mount and umount ----------------------------------------------------------------------------------------------


def test_umount_of_what_is_no_mount(mount: Mount, tmp_path: Path) -> None:
    (mount.source / "a").mkdir()
    refused(4, "is not a mountpoint", "umount", tmp_path)
    refused(4, "is not a mountpoint", "umount", tmp_path / "nothing")
    refused(4, "not of fusenotify", "umount", "/proc")
    refused(4, f"Say: fusenotify umount {mount.mountpoint}", "umount", mount.mountpoint / "a")
    assert mount.process.poll() is None


def test_umount_of_a_busy_mount(mount: Mount) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, cwd=mount.mountpoint) as holder:
        refused(4, f"cat ({holder.pid})", "umount", mount.mountpoint)
        assert run("status", mount.mountpoint).returncode == 0
        assert outcome("umount", "--lazy", mount.mountpoint) == (0, "", "")
        holder.communicate()
    assert mount.process.wait(PATIENCE) == 0


def test_umount_returns_when_the_daemon_has_gone(directory: Path) -> None:
    with in_background(directory) as (_, mountpoint):
        pid = json.loads(run("status", "--json", mountpoint).stdout)["pid"]
        assert outcome("umount", f"{mountpoint}/") == (0, "", "")
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"  # for init to reap
        refused(4, "is not a mountpoint", "umount", mountpoint)


def test_umount_does_not_believe_everything_that_a_daemon_says(mount: Mount) -> None:
    """A mount says who its daemon is; that must not end another process."""
    assert _is_daemon_of(mount.pid, str(mount.mountpoint))
    assert not _is_daemon_of(mount.pid, "/")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as innocent:
        assert not _is_daemon_of(innocent.pid, str(mount.mountpoint))
        innocent.communicate()


def test_mount_errors(mount: Mount, directory: Path, tmp_path: Path) -> None:
    source, empty, full, file = (tmp_path / name for name in ("source", "empty", "full", "file"))
    for path in (source, empty, full / "x"):
        path.mkdir(parents=True)
    file.touch()
    state = ("--state-dir", tmp_path / "state")
    refused(4, "No such file", "mount", tmp_path / "nothing", empty, *state)
    refused(4, "No such file", "mount", source, tmp_path / "nothing", *state)
    refused(4, "not a directory", "mount", source, file, *state)
    refused(4, "not a directory", "mount", file, empty, *state)
    refused(4, "not empty", "mount", source, full, *state)
    refused(4, "SOURCE itself", "mount", source, source, *state)
    refused(4, "lies inside", "mount", tmp_path, empty, *state)
    refused(4, "state directory", "mount", source, empty, "--state-dir", source / "state")
    refused(4, "state directory", "mount", source, empty, "--state-dir", file)
    refused(4, "already is a fusenotify mount", "mount", source, mount.mountpoint, *state)
    refused(2, "Did you mean allow_other", "mount", source, empty, "-o", "alow_other", *state)
    refused(2, "takes unix:PATH", "mount", source, empty, "--listen", "tcp://localhost", *state)
    refused(4, "cannot listen", "mount", source, empty, "--listen", f"unix:{tmp_path}/nothing/socket", *state)
    refused(4, "Address already in use", "mount", source, empty, "--listen", f"unix:{file}", *state)
    refused(4, "Address already in use", "mount", source, empty, "--listen", f"unix:{mount.socket}", *state)
    assert not source.joinpath("state").exists()
    assert str(empty) not in [entry.mountpoint for entry in find_mounts()]


def test_daemon_returns_when_everything_is_in_force(directory: Path, watching: Start) -> None:
    deep = directory / "bg-source" / "a" / "b" / "c"
    deep.mkdir(parents=True)
    with in_background(directory) as (source, mountpoint):
        state = json.loads(run("status", "--json", mountpoint).stdout)
        assert state["watches"] == 4
        (deep / "before").mkdir()
        watch = watching(mountpoint)
        (deep / "x").mkdir()
        assert [line["path"] for line in watch.until("a/b/c/x")] == ["a/b/c/x"]
        assert (mountpoint / "a" / "b" / "c" / "before").is_dir()
        # It has let go of everything of ours.
        assert os.getsid(state["pid"]) == state["pid"]
        assert os.readlink(f"/proc/{state['pid']}/cwd") == "/"
        assert os.readlink(f"/proc/{state['pid']}/fd/0") == "/dev/null"
        assert (directory / "bg-state" / "daemon.log").is_file()
        assert source.is_dir()


def test_daemon_that_cannot_start_says_why(directory: Path, mount: Mount) -> None:
    source, empty = directory / "one", directory / "two"
    source.mkdir()
    empty.mkdir()
    refused(
        4, "Address already in use", "mount", source, empty, "--daemon", "--state-dir", directory / "three",
        "--listen", f"unix:{mount.socket}",
    )  # fmt: skip
    refused(4, "already is", "mount", source, mount.mountpoint, "--daemon", "--state-dir", directory / "three")
    assert str(empty) not in [entry.mountpoint for entry in find_mounts()]


def test_a_daemon_that_cannot_listen_everywhere_leaves_no_socket(directory: Path, mount: Mount) -> None:
    source, empty = directory / "one", directory / "two"
    source.mkdir()
    empty.mkdir()
    refused(
        4, "Address already in use", "mount", source, empty, "--state-dir", directory / "three",
        "--listen", f"unix:{directory}/first", "--listen", f"unix:{mount.socket}",
    )  # fmt: skip
    assert not (directory / "first").exists()
    assert mount.socket.is_socket()


def test_a_daemon_leaves_the_socket_of_its_successor_alone(mount: Mount) -> None:
    mount.socket.unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(mount.socket))
        mount.stop()
        assert mount.socket.is_socket()


def test_a_state_directory_in_use(directory: Path, mount: Mount) -> None:
    other = directory / "other"
    other.mkdir()
    for more in ((), ("--daemon",)):
        refused(
            4, "is in use by another daemon", "mount", mount.source, other, "--state-dir", directory / "state", *more
        )
    assert not os.path.ismount(other)


def test_a_mount_that_was_just_taken_away_can_be_made_again_at_once(directory: Path) -> None:
    """Whoever takes it away by umount(8) does not wait for the daemon, which may still be ending."""
    with in_background(directory) as (source, mountpoint):
        subprocess.run(["umount", mountpoint], check=True)
        again = ("mount", source, mountpoint, "--daemon", "--state-dir", directory / "bg-state")
        assert outcome(*again) == (0, "", "")
        assert (mountpoint / ".fusenotify" / "queue").exists()


def test_a_hidden_entry_is_warned_of(directory: Path) -> None:
    (directory / "source" / ".fusenotify").mkdir(parents=True)
    (directory / "bg-source" / ".fusenotify").mkdir(parents=True)
    with mounted(directory) as mount:
        mount.stop()
    assert f"SOURCE {mount.source} has an entry .fusenotify, which the mount hides" in mount.log
    with in_background(directory):
        assert "has an entry .fusenotify" in (directory / "bg-state" / "daemon.log").read_text()


def test_daemon_takes_relative_paths(directory: Path) -> None:
    for name in ("s", "m"):
        (directory / name).mkdir()
    done = subprocess.run(
        [*FUSENOTIFY, "mount", "s", "m", "--daemon", "--state-dir", "st", "--listen", "unix:sock"],
        cwd=directory, check=False, capture_output=True, text=True, timeout=PATIENCE,
    )  # fmt: skip
    try:
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(directory / "sock"))
        assert outcome("status", f"unix:{directory}/sock")[0] == 0
    finally:
        assert run("umount", directory / "m").returncode == 0
    assert not (directory / "sock").exists()


def test_two_daemons_at_once(directory: Path, mount: Mount, watching: Start) -> None:
    with in_background(directory) as (source, mountpoint):
        one, other = watching(mount.mountpoint), watching(mountpoint)
        both = watching(mount.mountpoint, mountpoint, "--events", 2)
        (mount.source / "here").mkdir()
        (source / "there").mkdir()
        assert [line["path"] for line in one.until("here")] == ["here"]
        assert [line["path"] for line in other.until("there")] == ["there"]
        told: set[tuple[Any, Any]] = {(line["target"], line["path"]) for line in both.rest()}
        assert told == {(str(mount.mountpoint), "here"), (str(mountpoint), "there")}


def test_two_mounts_of_one_tree(directory: Path, mount: Mount, watching: Start) -> None:
    """What is made through one of them is local there and remote at the other."""
    other = directory / "other"
    other.mkdir()
    assert outcome("mount", mount.source, other, "--daemon", "--state-dir", directory / "state2") == (0, "", "")
    try:
        watches = [watching(mount.mountpoint), watching(other)]
        (other / "x").mkdir()
        assert [watch.until("x")[-1]["origin"] for watch in watches] == ["remote", "local"]
    finally:
        assert run("umount", other).returncode == 0


# --- unmounting ------------------------------------------------------------------------------------------------------


def test_unmounting_one_of_two_places_leaves_the_other(mount: Mount, directory: Path) -> None:
    (mount.source / "sub").mkdir()
    place = directory / "place"
    place.mkdir()
    _linux.mount(os.fsencode(mount.mountpoint / "sub"), os.fsencode(place), b"", _MS_BIND, b"")
    try:
        code, _, errors = outcome("umount", place)
    finally:
        with suppress(OSError):
            _linux.umount2(os.fsencode(place), _linux.MNT_DETACH)
    assert code == 0
    assert f"also mounted at {mount.mountpoint}" in errors
    assert (mount.mountpoint / "sub").is_dir()
    assert outcome("umount", mount.mountpoint)[0] == 0
    assert mount.process.wait(PATIENCE) == 0


def test_a_daemon_that_hangs_is_told_of_and_can_be_taken_away(mount: Mount) -> None:
    mount.process.send_signal(signal.SIGSTOP)
    code, _, errors = outcome("status", mount.mountpoint)
    assert (code, "does not answer" in errors) == (5, True)
    assert outcome("umount", "--lazy", mount.mountpoint)[0] == 0
    assert not any(one.mountpoint == str(mount.mountpoint) for one in find_mounts())


def test_a_mount_goes_with_its_terminal(mount: Mount) -> None:
    assert mount.stop(signal.SIGHUP) == 0
    assert not any(one.mountpoint == str(mount.mountpoint) for one in find_mounts())


def test_a_queue_file_and_a_socket_in_one_watch(mount: Mount, watching: Start) -> None:
    watch = watching(mount.mountpoint, f"unix:{mount.socket}")
    for number in range(200):
        (mount.source / f"{number}").touch()
    told: list[tuple[str, str, str]] = []
    while len(told) < 800:
        line = watch.next()
        assert line is not None
        told.append((line["target"], line["path"], line["kind"]))
    targets = (str(mount.mountpoint), f"unix:{mount.socket}")
    assert len(set(told)) == 800
    assert {target for target, _, _ in told} == set(targets)
    watch.process.send_signal(signal.SIGINT)
    assert watch.errors() == ""
