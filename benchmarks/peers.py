"""The filesystems that are measured side by side: ours and others, each as a mount of one directory."""

import contextlib
import gzip
import importlib.metadata
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from benchmarks.table import OURS

FUSENOTIFY = [sys.executable, "-m", "fusenotify"]
PASSTHROUGH_LL = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
_PATIENCE = 60.0

# Mounts a directory (first) at another one (second), and yields where it can be used.
Mounter = Callable[[Path, Path], AbstractContextManager[Path]]


def mounts(scratch: Path, passthrough_hp: Path | None) -> dict[str, Mounter]:
    """Return every filesystem that can be had here; programs that have to be built come into `scratch`.

    `passthrough_hp` is the program of libfuse's repository, which no package has.
    """
    found: dict[str, Mounter] = {"native": native, OURS: ours}
    if passthrough_hp is not None:
        command = [str(passthrough_hp), "--foreground"]
        found["passthrough_hp"] = partial(in_foreground, command)
        found["passthrough_hp uncached"] = partial(in_foreground, [*command, "--nocache", "--nopassthrough"])
    if PASSTHROUGH_LL.with_suffix(".c.gz").exists() or PASSTHROUGH_LL.exists():
        program = _built_passthrough_ll(scratch)
        found["passthrough_ll uncached"] = partial(in_foreground, [program, "-f", "-o", "cache=never"], option=True)
    if shutil.which("bindfs"):
        found["bindfs"] = partial(in_foreground, ["bindfs", "-f"])
    example = _fetched_example(scratch)
    if example is not None:
        found["pyfuse3's example"] = partial(in_foreground, [sys.executable, str(example)])
    return found


@contextlib.contextmanager
def native(source: Path, _: Path) -> Iterator[Path]:
    """Mount nothing: the backing directory itself."""
    yield source


@contextlib.contextmanager
def ours(source: Path, mountpoint: Path, *options: str, state: Path | None = None) -> Iterator[Path]:
    """Mount with fusenotify; unless it is said where it is, with a state that begins anew."""
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        command = [*FUSENOTIFY, "mount", source, mountpoint, "--daemon", "--state-dir", state or name, *options]
        subprocess.run(command, check=True)
        try:
            yield mountpoint
        finally:
            subprocess.run([*FUSENOTIFY, "umount", mountpoint], check=True)


@contextlib.contextmanager
def in_foreground(command: list[str], source: Path, mountpoint: Path, *, option: bool = False) -> Iterator[Path]:
    """Mount with a program that stays; `option` is whether it takes the source as a mount option."""
    arguments = ["-o", f"source={source}", mountpoint] if option else [source, mountpoint]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL)
    _await_mount(mountpoint, process)
    try:
        yield mountpoint
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)
        process.wait(_PATIENCE)


def _await_mount(mountpoint: Path, process: "subprocess.Popen[bytes]") -> None:
    changed = select.poll()
    with open("/proc/self/mounts", "rb") as table:  # which says by POLLPRI that it has changed, see proc(5)
        changed.register(table, select.POLLPRI)
        while not mountpoint.is_mount():
            if process.poll() is not None:
                raise RuntimeError(f"{process.args!r} ended before anything was mounted")
            changed.poll(100)


def _built_passthrough_ll(scratch: Path) -> str:
    """Compile libfuse's example in C. Without its caches it is as coherent as we are."""
    code = scratch / "passthrough_ll.c"
    packed = PASSTHROUGH_LL.with_suffix(".c.gz")
    code.write_bytes(gzip.decompress(packed.read_bytes()) if packed.exists() else PASSTHROUGH_LL.read_bytes())
    shutil.copy(PASSTHROUGH_LL.with_name("passthrough_helpers.h"), scratch)
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True)
    program = scratch / "passthrough_ll"
    subprocess.run(["gcc", "-O2", "-w", "-o", program, code, *flags.stdout.split()], check=True)
    return str(program)


def _fetched_example(scratch: Path) -> Path | None:
    """Return pyfuse3's example from the source package of the version that we use; None where that is not to be had."""
    package = f"pyfuse3=={importlib.metadata.version('pyfuse3')}"
    download = ["download", "--quiet", "--no-deps", "--no-binary", "pyfuse3", "--dest", str(scratch), package]
    done = subprocess.run([sys.executable, "-m", "pip", *download], capture_output=True, text=True, check=False)
    archives = list(scratch.glob("pyfuse3-*.tar.gz"))
    if done.returncode != 0 or not archives:
        print(f"pyfuse3's example is left out: {done.stderr.strip()[-200:]}", file=sys.stderr)
        return None
    with tarfile.open(archives[0]) as archive:
        member = next(one for one in archive.getmembers() if one.name.endswith("/examples/passthroughfs.py"))
        member.name = "passthroughfs.py"
        archive.extract(member, scratch, filter="data")
    return scratch / "passthroughfs.py"
