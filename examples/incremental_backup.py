"""A backup that copies only what has changed: `incremental_backup.py MOUNT DESTINATION [--check]`.

MOUNT is the root of a fusenotify mount, DESTINATION a directory of the backup's own. The first run copies everything.
Each later one asks what has changed since the one before, and has rsync copy that and nothing else: no tree is walked,
however large it is. The cursor to go on from is kept beside the backup, in DESTINATION.cursor, and is written when the
backup is complete: a run that fails is made good by the next one. `--check` compares everything afterwards, as a proof.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import anyio

import fusenotify
from fusenotify import DaemonGone

# Users by number, times to the nanosecond. A file may be another one within that too: what is named is copied.
RSYNC = ("rsync", "--archive", "--numeric-ids", "--force", "--modify-window=-1")
NAMED = ("--ignore-times", "--ignore-missing-args", "--from0", "--files-from=-")
VANISHED = 24  # rsync's exit code for files that vanished meanwhile, which are named next time


def main() -> int:
    """Back up; 1 if that is checked and wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mount", type=Path, metavar="MOUNT")
    parser.add_argument("destination", type=Path, metavar="DESTINATION")
    parser.add_argument("--check", action="store_true", help="compare the whole tree with the backup afterwards")
    options = parser.parse_args()
    copied = anyio.run(back_up, options.mount, options.destination)
    print("everything was copied" if copied is None else f"{copied} paths were looked at", file=sys.stderr)
    return 1 if options.check and differs(options.mount, options.destination) else 0


async def back_up(mount: Path, destination: Path) -> int | None:
    """Bring a backup up to date; return how many paths that took, None if all of them."""
    state = cursor_file(destination)
    if not state.exists():
        await begin(mount, destination)
        return None
    answer = await fusenotify.since(mount, state.read_text())
    with opened(mount) as tree:
        if answer.fresh:
            copy_everything(tree, destination)
        else:
            for change in answer.changes:
                if not change.exists:  # nor what was below it: if there is something again, all of it is named
                    remove(destination / change.path)
            copy(tree, destination, [change.path for change in answer.changes])
    keep(answer.cursor, state)
    return None if answer.fresh else len(answer.changes)


async def begin(mount: Path, destination: Path) -> None:
    """Copy everything; what changes meanwhile is copied again the next time."""
    cursor = await fusenotify.cursor(mount)
    with opened(mount) as tree:
        copy_everything(tree, destination)
    keep(cursor, cursor_file(destination))


@contextmanager
def opened(mount: Path) -> Iterator[Path]:
    """Yield a path that leads to what is mounted, or nowhere: without the mount there is an empty directory.

    Raises:
        DaemonGone: nothing is mounted.
    """
    fd = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if os.fstat(fd).st_dev == os.stat(mount.parent).st_dev:
            raise DaemonGone(f"{mount} is not mounted")
        yield Path(f"/proc/{os.getpid()}/fd/{fd}")
    finally:
        os.close(fd)


def cursor_file(destination: Path) -> Path:
    """Return where the cursor of a backup is kept."""
    return destination.with_name(destination.name + ".cursor")


def keep(cursor: str, state: Path) -> None:
    """Write down where to go on from, as a whole or not at all."""
    new = state.with_name(state.name + ".new")
    with open(new, "w") as file:
        file.write(cursor)
        file.flush()
        os.fsync(file.fileno())
    new.replace(state)


def copy_everything(tree: Path, destination: Path) -> None:
    """Copy the tree, and remove what it does not have."""
    _rsync("--delete", f"{tree}/", f"{destination}/")


def copy(tree: Path, destination: Path, paths: Iterable[str], *, deep: bool = False) -> None:
    """Make some paths in the backup what they are in the tree; with `deep`, what is below them too."""
    present: set[str] = set()
    for path in paths:
        if _exists(tree / path):
            present.add(path)
        else:
            remove(destination / path)
        present.add(os.path.dirname(path) or ".")  # whose time of change may be another one now
    listed = b"".join(os.fsencode(path) + b"\0" for path in sorted(present))
    how = ("--recursive", "--delete") if deep else ("--no-recursive", "--dirs")
    if listed:
        _rsync(*how, *NAMED, f"{tree}/", f"{destination}/", names=listed)


def _exists(path: Path) -> bool:
    """Tell whether there is something; that a daemon has gone says nothing about that, and is an error."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def remove(path: Path) -> None:
    """Remove what is in the backup at a path, if there is anything."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _rsync(*arguments: str, names: bytes = b"") -> None:
    done = subprocess.run([*RSYNC, *arguments], input=names, check=False)
    if done.returncode != VANISHED:
        done.check_returncode()  # the next run begins where this one did


def differs(mount: Path, destination: Path) -> bool:
    """Compare everything, contents too, and print what is not the same."""
    command = [*RSYNC, "--delete", "--checksum", "--dry-run", "--itemize-changes", f"{mount}/", f"{destination}/"]
    found = subprocess.run(command, check=True, capture_output=True).stdout
    sys.stderr.buffer.write(found)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
