"""The journal and operations through the mount: what is written down before, and when that is not possible."""

import contextlib
import errno
import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.filesystems import filesystem
from tests.harness import PATIENCE, Mount, patched

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
# Nothing else is written for as long as a test takes.
_ONLY_BEFORE_CHANGES = """
from fusenotify import scribe, store
scribe._GATHER = store._GATHER = 1000
"""


@contextlib.contextmanager
def syncs_of(mount: Mount, log: Path) -> Iterator[None]:
    """Write the synchronisations of a daemon down while the block runs."""
    command = ["strace", "-f", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(mount.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        assert strace.stderr is not None
        while "attached" not in (line := strace.stderr.readline()):
            assert line, "strace ended"
        try:
            yield
        finally:
            strace.terminate()
            strace.wait(PATIENCE)


def count(log: Path) -> int:
    return len(re.findall(r"sync\(", log.read_text()))


def test_a_directory_is_written_down_before_its_first_change(directory: Path, tmp_path: Path) -> None:
    with patched(directory, _ONLY_BEFORE_CHANGES) as mount:
        place = mount.mountpoint / "place"
        (mount.source / "place").mkdir()
        (mount.source / "place/file").touch()
        with syncs_of(mount, tmp_path / "first"):
            (place / "file").write_text("first")
        assert count(tmp_path / "first") >= 1
        with syncs_of(mount, tmp_path / "more"):
            for number in range(1000):
                (place / "file").write_text(f"{number}")
            (place / "new").mkdir()
            (place / "new/file").touch()
        assert count(tmp_path / "more") == 0


@pytest.mark.parametrize("is_strict", [False, True])
def test_a_disk_that_takes_nothing(directory: Path, tmp_path: Path, is_strict: bool) -> None:
    source, mountpoint = directory / "source", directory / "mount"
    for path in (source / "place", mountpoint):
        path.mkdir(parents=True)
    with (
        filesystem("ext4", tmp_path, size="8M") as disk,
        contextlib.closing(Mount(source, mountpoint, disk, ["-o", "strict_journal"] if is_strict else [])) as mount,
    ):
        fd = os.open(disk, os.O_RDONLY)
        fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", 2))
        os.close(fd)
        if is_strict:
            with pytest.raises(OSError, match=os.strerror(errno.EIO)):
                (mountpoint / "place/file").touch()
            assert not (source / "place/file").exists()
        else:
            (mountpoint / "place/file").touch()
            assert (source / "place/file").exists()
        mount.stop()
        assert "Traceback" not in mount.log
        assert "`since` names all there is" in mount.log
