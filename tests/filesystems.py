"""Filesystems of a test's own, made in a file and mounted through a loop device. Needs root, e2fsprogs, xfsprogs."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fusenotify import _linux

# How each kind is made, and the fewest MiB that it can be made in.
_MAKE: Final = {
    "ext4": (["mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-E", "lazy_itable_init=0,nodiscard"], 8),
    "xfs": (["mkfs.xfs", "-q", "-f", "-K"], 300),
}
_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))


@contextlib.contextmanager
def filesystem(kind: str, place: Path, size: str = "64M", options: str = "") -> Iterator[Path]:
    """Make a filesystem and mount it in a new directory in `place`, which is yielded; afterwards nothing is left.

    Args:
        kind: "ext4" or "xfs".
        place: an existing directory for the (sparse) image and the mountpoint.
        size: how large, in MiB, as in "64M"; more where the kind needs more.
        options: further mount options, as in "usrquota".
    """
    command, least = _MAKE[kind]
    directory = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=place))
    image, mountpoint = directory / "image", directory / "mounted"
    try:
        directory.chmod(0o755)
        mountpoint.mkdir()
        with image.open("wb") as file:
            file.truncate(max(int(size.removesuffix("M")), least) << 20)
        _run(*command, str(image))
        _run("mount", "-t", kind, "-o", ",".join(filter(None, ("loop", options))), str(image), str(mountpoint))
        try:
            yield mountpoint
        finally:
            # Lazily: whatever a failed test has left open keeps the loop device for as long only as it is open itself.
            _linux.umount2(os.fsencode(mountpoint), _linux.MNT_DETACH)
    finally:
        shutil.rmtree(directory)


def _run(program: str, *arguments: str) -> None:
    found = shutil.which(program, path=_PATH)
    assert found is not None, f"{program} is missing: run scripts/setup.sh"
    done = subprocess.run([found, *arguments], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{program} {arguments}: {done.stderr}"
