"""A copy of a tree that follows it: `mirror.py MOUNT DESTINATION`.

It begins with what has changed since it ran last, goes on with what happens, and may be stopped, killed and started
again at any time; so may the daemon. As in `incremental_backup`, whose backups it can take over, the cursor to go on
from is kept in DESTINATION.cursor: that of the last event whose path has been copied.

An event tells that something happened at a path. What is copied is what is there now: if that is not yet, or no longer,
what the event was about, then there is another event, which will be read too.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import anyio

import fusenotify
from examples.incremental_backup import begin, copy, copy_everything, cursor_file, keep, opened
from fusenotify import DaemonGone, Event, HistoryGone, Kind, NotAMount

NAMES = Kind.CREATE | Kind.RENAME
PAUSE = 1.0  # seconds between two attempts to reach the daemon


def main() -> None:
    """Mirror until this is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mount", type=Path, metavar="MOUNT")
    parser.add_argument("destination", type=Path, metavar="DESTINATION")
    options = parser.parse_args()
    try:
        anyio.run(mirror, options.mount, options.destination)
    except KeyboardInterrupt:
        sys.exit(130)


async def mirror(mount: Path, destination: Path) -> None:
    """Follow a tree for ever."""
    state = cursor_file(destination)
    while True:
        try:
            if not state.exists():
                await begin(mount, destination)
            async with fusenotify.watch(mount, since=state.read_text()) as group:
                while True:
                    events = await group.batch()
                    with opened(mount) as tree:
                        follow(events, tree, destination)
                    if events:
                        keep(events[-1].cursor, state)
        except HistoryGone:
            state.unlink()
        except (DaemonGone, NotAMount, OSError, subprocess.CalledProcessError) as error:
            print(f"trying again: {error}", file=sys.stderr)
            await anyio.sleep(PAUSE)


def follow(events: Sequence[Event], tree: Path, destination: Path) -> None:
    """Copy what is there at the paths of some events."""
    if any(event.kind is Kind.OVERFLOW for event in events):
        copy_everything(tree, destination)
        return
    paths = {path for event in events for path in (event.path, event.old_path) if path is not None}
    new = {event.path for event in events if event.kind & NAMES and event.is_dir and event.path is not None}
    copy(tree, destination, paths - new)
    copy(tree, destination, new, deep=True)


if __name__ == "__main__":
    main()
