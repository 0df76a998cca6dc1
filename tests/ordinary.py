"""Running our programs as an ordinary user, whose mounts fusermount3 makes."""

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyfuse3

import fusenotify
from fusenotify import _linux

NOBODY = 65534
_MS_BIND = 4096


@contextlib.contextmanager
def commands_of_nobody() -> Iterator[list[str]]:
    """The beginning of a command that runs this interpreter with our packages as another user, from readable places."""
    places = [Path(sys.base_prefix), Path(pyfuse3.__file__).parents[1], Path(fusenotify.__file__).parents[1]]
    mode = stat.S_IMODE(os.stat("/dev/fuse").st_mode)
    with contextlib.ExitStack() as stack:
        os.chmod("/dev/fuse", 0o666)
        stack.callback(os.chmod, "/dev/fuse", mode)
        bound = [stack.enter_context(_bound(place)) for place in places]
        python = bound[0] / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
        yield [
            "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
            "env", "-C", "/", f"PYTHONHOME={bound[0]}", f"LD_LIBRARY_PATH={bound[0]}/lib",
            f"PYTHONPATH={bound[1]}:{bound[2]}", "PYTHONDONTWRITEBYTECODE=1", str(python),
        ]  # fmt: skip


@contextlib.contextmanager
def _bound(place: Path) -> Iterator[Path]:
    """Show a directory under another name; what is not empty at the end is not removed."""
    target = Path(tempfile.mkdtemp(prefix="fusenotify-bound-"))
    _linux.mount(os.fsencode(place), os.fsencode(target), b"", _MS_BIND, b"")
    try:
        yield target
    finally:
        _linux.umount2(os.fsencode(target), _linux.MNT_DETACH)
        target.rmdir()
