"""mount(8), fstab and systemd: `mount.fusenotify` and the unit in `examples/`.

mount(8) looks for its helpers in /sbin. Each test here has a /sbin of its own, with the helper on top of the machine's:
a mount namespace that goes with the test.
"""

import configparser
import os
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fusenotify.cli import helper
from tests.harness import FUSENOTIFY, PATIENCE

ROOT = Path(__file__).parent.parent
_HELPER = f"""#!/bin/sh
PYTHONPATH={shlex.quote(os.pathsep.join(sys.path))} exec {shlex.quote(sys.executable)} -c '
import sys
from fusenotify.cli.helper import main
sys.exit(main())' "$@"
"""
# Runs a script where /sbin has the helper, and sees that no daemon outlives it.
_NAMESPACE = """
mount -t overlay overlay -o "lowerdir=$HELPERS:$(realpath /sbin)" "$(realpath /sbin)"
trap 'umount --lazy "$M" 2>/dev/null || true' EXIT
"""


@pytest.fixture
def place(directory: Path) -> Path:
    for name in ("source", "mount", "helpers", "state"):
        (directory / name).mkdir()
    (directory / "source" / "file").write_text("content")
    for name in ("mount.fusenotify", "mount.fuse.fusenotify"):
        program = directory / "helpers" / name
        program.write_text(_HELPER)
        program.chmod(0o755)
    return directory


def script(place: Path, text: str) -> "subprocess.CompletedProcess[str]":
    environment = {
        **os.environ, "HELPERS": str(place / "helpers"), "S": str(place / "source"), "M": str(place / "mount"),
        "STATE": str(place / "state"), "P": str(place),
    }  # fmt: skip
    unshare = shutil.which("unshare")
    assert unshare is not None, "unshare (util-linux) is missing"
    return subprocess.run(
        [unshare, "--mount", "--propagation", "private", "sh", "-ec", _NAMESPACE + text],
        env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip


def test_mount_runs_the_helper_which_returns_when_the_mount_answers(place: Path) -> None:
    done = script(
        place,
        """
        mount -t fusenotify "$S" "$M" -o state_dir="$STATE",allow_other,noatime
        cat "$M/file"
        echo; grep " $M " /proc/self/mountinfo
        umount "$M"
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    content, line = done.stdout.splitlines()
    assert content == "content"
    for word in ("nosuid", "nodev", "noatime", "fuse.fusenotify", "allow_other"):
        assert word in line


def test_a_line_of_fstab_with_what_it_says_to_others(place: Path) -> None:
    options = "suid,dev,_netdev,nofail,x-systemd.automount,x-systemd.requires-mounts-for=/,comment=a"
    (place / "fstab").write_text(
        f"{place}/source {place}/mount fusenotify {options},listen=unix:{place}/socket,state_dir={place}/state 0 0\n"
    )
    done = script(
        place,
        """
        mount --fstab "$P/fstab" "$M"
        test -S "$P/socket"
        mount --fstab "$P/fstab" --all --types fusenotify || echo "mount -a failed"
        grep -c " $M " /proc/self/mountinfo
        grep " $M " /proc/self/mountinfo
        umount "$M"
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")
    count, line = done.stdout.splitlines()
    assert count == "1"
    assert "nosuid,nodev" in line  # mount(8) does not tell its helpers of the opposite


def test_what_cannot_be_mounted_fails_as_mount_fails(place: Path) -> None:
    done = script(
        place,
        """
        try() { code=0; "$@" || code=$?; echo $code; }
        try mount -t fusenotify "$S" "$M" -o state_dir="$STATE",frobnicate
        try mount -t fusenotify "$S" "$P/nothing" -o state_dir="$STATE"
        try mount -t fusenotify "$S" "$S" -o state_dir="$STATE"
        try mount -t fusenotify "$S" "$M" -o state_dir="$STATE",watcher=guess
        try mount -t fusenotify "$S" "$M" -s -o state_dir="$STATE",frobnicate
        try mount -o remount,ro "$M"
        try mount -f -t fusenotify "$S" "$P/nothing"
        """,
    )
    assert done.returncode == 0
    assert done.stdout.split() == ["1", "32", "32", "1", "0", "1", "0"], done.stderr
    assert "unknown mount option 'frobnicate'" in done.stderr
    assert "is SOURCE itself" in done.stderr
    assert "mount option 'remount' is not supported: the options of a mount are fixed" in done.stderr


@pytest.mark.parametrize(
    "arguments", [[], ["a"], ["a", "b", "c"], ["a", "b", "-x"], ["a", "b", "-N", "/proc/1/ns/mnt"]]
)
def test_arguments_that_make_no_sense(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert helper.main(arguments) == 1
    assert capsys.readouterr().err.startswith("mount.fusenotify: ")


def test_the_unit_starts_a_daemon_that_tells_when_it_is_ready(place: Path) -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(ROOT / "examples" / "fusenotify@.service")
    service = unit["Service"]
    assert service["Type"] == "notify"
    words = [
        word.replace("%f", str(place / "mount")).replace("${SOURCE}", str(place / "source")).replace("${OPTIONS}", "ro")
        for word in shlex.split(service["ExecStart"])
    ]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.settimeout(PATIENCE)
        manager.bind(str(place / "notify"))
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        command = [*FUSENOTIFY, *words[1:], "--state-dir", str(place / "state")]
        with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as daemon:
            try:
                assert manager.recv(100) == b"READY=1"
                assert (place / "mount" / "file").read_text() == "content"
            finally:
                daemon.terminate()
            assert daemon.wait(PATIENCE) == 0
    assert not os.path.ismount(place / "mount")
