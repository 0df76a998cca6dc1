"""Programs that know nothing of us, on a mount, while somebody edits behind it: `python examples/native.py`.

`inotifywait` prints what it hears; `tail -F` follows a log; and a little server restarts itself whenever its program is
changed, as the development servers of web frameworks do. Then a process behind the mount, which might as well be in
another container or on the host of a virtual machine, saves a file as an editor does, rotates the log, and renames a
directory.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

FUSENOTIFY = [sys.executable, "-m", "fusenotify"]
PATIENCE = 30.0  # seconds
KINDS = "create,modify,close_write,move,delete"

# It serves what it says itself, and starts again when inotify tells that its own file was replaced or written to.
SERVER = """
import os, sys
from inotify_simple import INotify, flags
print("server: version 1", flush=True)
with INotify() as inotify:
    inotify.add_watch(".", flags.CLOSE_WRITE | flags.MOVED_TO)
    while not any(event.name == "server.py" for event in inotify.read()):
        pass
os.execv(sys.executable, [sys.executable, "server.py"])
"""
# The editor: a process that sees the backing tree only. It saves as editors do, to another name first.
EDITOR = """
import os
text = open("server.py").read().replace("version 1", "version 2")
with open("server.py~", "w") as stream:
    stream.write(text)
os.rename("server.py~", "server.py")
os.rename("log", "log.1")
with open("log", "w") as stream:
    stream.write("the second log\\n")
os.mkdir("pages")
os.rename("pages", "site")
os.mkdir("end")
"""


def main() -> int:
    """Show it; 0 if all three programs heard of it."""
    if missing := [name for name in ("inotifywait", "tail") if shutil.which(name) is None]:
        print(f"this needs {' and '.join(missing)} (Debian: inotify-tools)", file=sys.stderr)
        return 4
    with tempfile.TemporaryDirectory(prefix="fusenotify-native-") as name:
        source, mountpoint, state = (Path(name) / part for part in ("data", "mount", "state"))
        for path in (source, mountpoint):
            path.mkdir()
        (source / "server.py").write_text(SERVER)
        (source / "log").write_text("the first log\n")
        with mounted(source, mountpoint, state):
            heard = show(source, mountpoint)
    wanted = ("server: version 2", "the second log", "MOVED_TO,ISDIR site")
    missed = [words for words in wanted if not any(words in line for line in heard)]
    print(f"Not heard: {missed}" if missed else "All three have heard what was done behind the mount.")
    return 1 if missed else 0


@contextlib.contextmanager
def mounted(source: Path, mountpoint: Path, state: Path) -> Iterator[None]:
    """Mount in the background, as a user would."""
    subprocess.run(
        [*FUSENOTIFY, "mount", str(source), str(mountpoint), "--daemon", "--state-dir", str(state)], check=True
    )
    try:
        yield
    finally:
        subprocess.run([*FUSENOTIFY, "umount", str(mountpoint)], check=True)


def show(source: Path, mountpoint: Path) -> list[str]:
    """Run the programs on the mount and the editor behind it; return what the programs said."""
    heard: list[str] = []
    with contextlib.ExitStack() as programs:
        for name, command in (
            ("inotifywait", ["inotifywait", "-m", "-e", KINDS, "--format", "%e %f", "."]),
            ("tail -F", ["tail", "-s", "0.1", "-F", "log"]),
            ("server", [sys.executable, "server.py"]),
        ):
            programs.enter_context(running(name, command, mountpoint, heard))
        until(heard, "Watches established", "the first log", "server: version 1")
        subprocess.run([sys.executable, "-c", EDITOR], cwd=source, check=True)
        until(heard, "CREATE,ISDIR end", "the second log", "server: version 2")
    return heard


@contextlib.contextmanager
def running(name: str, command: list[str], where: Path, heard: list[str]) -> Iterator[None]:
    """Run a program until the end of the block, and print what it says."""
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            print(f"{name:<12}{line}", end="", flush=True)
            heard.append(line.strip())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def until(heard: list[str], *wanted: str) -> None:
    """Return when each of these has been said, or when that has taken too long."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if all(any(words in line for line in list(heard)) for words in wanted):
            return
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
