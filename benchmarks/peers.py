"""The programs that are measured side by side: ours and the others, each as listeners or as mounts of one directory."""

import contextlib
import gzip
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

FUSENOTIFY = [sys.executable, "-m", "fusenotify"]
PASSTHROUGH_LL = Path("/usr/share/doc/libfuse3-dev/examples/passthrough_ll.c")
PATIENCE = 60.0


@dataclass
class Listener:
    """A running program that prints a line per event.

    Attributes:
        process: the program.
        lines: (when it came, the line) of everything it printed.
        ready_after: seconds from its start until its watch was in force.
    """

    process: "subprocess.Popen[str]"
    ready_after: float
    lines: list[tuple[float, str]] = field(default_factory=list)
    _grown: threading.Condition = field(default_factory=threading.Condition)

    def read(self) -> None:
        """Collect lines until the end; runs in a thread of its own."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            stamp = time.perf_counter()
            with self._grown:
                self.lines.append((stamp, line))
                self._grown.notify_all()

    def wait_for(self, predicate: Callable[[str], bool]) -> None:
        """Wait until the newest line is of some kind."""
        with self._grown:
            if not self._grown.wait_for(lambda: bool(self.lines) and predicate(self.lines[-1][1]), PATIENCE):
                raise TimeoutError(f"nothing came any more after {self.lines[-1:]}")


@contextlib.contextmanager
def listener(command: list[str], ready: Callable[[str], bool], ready_stream: str) -> Iterator[Listener]:
    """Start a program and wait for the line, on `ready_stream`, that says that it listens."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stream = process.stdout if ready_stream == "stdout" else process.stderr
    assert stream is not None
    try:
        while not ready(stream.readline()):
            if process.poll() is not None:
                raise RuntimeError(f"{command} ended before it listened")
        running = Listener(process, time.perf_counter() - start)
        reader = threading.Thread(target=running.read)
        reader.start()
        yield running
    finally:
        process.terminate()
        process.wait(PATIENCE)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(NameError):
                    reader.join(PATIENCE)
                pipe.close()


@contextlib.contextmanager
def ours(source: Path, mountpoint: Path, state: Path, watcher: str = "auto") -> Iterator[Path]:
    """Mount with fusenotify."""
    options: list[str | Path] = ["--daemon", "--state-dir", state, "--watcher", watcher]
    subprocess.run([*FUSENOTIFY, "mount", source, mountpoint, *options], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run([*FUSENOTIFY, "umount", mountpoint], check=True)


@contextlib.contextmanager
def bindfs(source: Path, mountpoint: Path, _: Path) -> Iterator[Path]:
    """Mount with bindfs (C, libfuse's high-level interface, with its caches)."""
    subprocess.run(["bindfs", source, mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)


@contextlib.contextmanager
def passthrough_ll(source: Path, mountpoint: Path, scratch: Path) -> Iterator[Path]:
    """Mount with libfuse's example in C, without its caches: it is as coherent as we are."""
    program = scratch / "passthrough_ll"
    if not program.exists():
        code = scratch / "passthrough_ll.c"
        packed = PASSTHROUGH_LL.with_suffix(".c.gz")
        code.write_bytes(gzip.decompress(packed.read_bytes()) if packed.exists() else PASSTHROUGH_LL.read_bytes())
        shutil.copy(PASSTHROUGH_LL.with_name("passthrough_helpers.h"), scratch)
        flags = subprocess.run(
            ["pkg-config", "--cflags", "--libs", "fuse3"], capture_output=True, text=True, check=True
        )
        subprocess.run(["gcc", "-O2", "-w", "-o", program, code, *flags.stdout.split()], check=True)
    subprocess.run([program, "-o", f"source={source},cache=never", mountpoint], check=True)
    try:
        yield mountpoint
    finally:
        subprocess.run(["fusermount3", "-u", mountpoint], check=True)


@contextlib.contextmanager
def native(source: Path, _: Path, __: Path) -> Iterator[Path]:
    """Mount nothing: the backing directory itself."""
    yield source
