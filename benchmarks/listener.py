"""Listens to a directory with a library for Python: `listener.py LIBRARY DIRECTORY`.

Prints `listening` when its watches are in force, then a JSON line for each thing that it hears: whether there is
something now, and the path.
"""

import contextlib
import json
import os
import sys
import threading
from collections.abc import Callable

Tell = Callable[[bool, str], None]


def by_inotify_simple(root: str, tell: Tell, listening: Callable[[], None]) -> None:
    """Do what every introduction to inotify does: a watch for each directory, and for each new one as it is told."""
    from inotify_simple import INotify, flags  # noqa: PLC0415 - each library is loaded only where it is measured

    inotify = INotify()
    watched: dict[int, str] = {}
    mask = flags.CREATE | flags.DELETE | flags.MODIFY | flags.ATTRIB | flags.CLOSE_WRITE | flags.MOVED_FROM
    for directory, _, _ in os.walk(root):
        watched[inotify.add_watch(directory, mask | flags.MOVED_TO)] = directory
    listening()
    while True:
        for event in inotify.read():
            path = f"{watched.get(event.wd)}/{event.name}"
            is_there = not event.mask & (flags.DELETE | flags.MOVED_FROM)
            tell(is_there, path)
            if is_there and event.mask & flags.ISDIR:
                with contextlib.suppress(FileNotFoundError):
                    watched[inotify.add_watch(path, mask | flags.MOVED_TO)] = path


def by_watchfiles(root: str, tell: Tell, listening: Callable[[], None]) -> None:
    """Use watchfiles, as fast as it can be set."""
    from watchfiles import Change, watch  # noqa: PLC0415

    ticks = watch(root, watch_filter=None, step=1, debounce=1, rust_timeout=1, yield_on_timeout=True)
    next(ticks)  # so it has set its watches
    listening()
    for changes in watch(root, watch_filter=None, step=1, debounce=1):
        for change, path in changes:
            tell(change != Change.deleted, path)


def by_watchdog(root: str, tell: Tell, listening: Callable[[], None]) -> None:
    """Use watchdog's observer."""
    from watchdog.events import FileSystemEvent, FileSystemEventHandler  # noqa: PLC0415
    from watchdog.observers import Observer  # noqa: PLC0415

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in ("opened", "closed_no_write"):
                return
            tell(event.event_type not in ("deleted", "moved"), os.fsdecode(event.src_path))
            if event.dest_path:
                tell(True, os.fsdecode(event.dest_path))

    observer = Observer()
    observer.schedule(Handler(), root, recursive=True)
    observer.start()
    listening()
    threading.Event().wait()


LIBRARIES = {"inotify_simple": by_inotify_simple, "watchfiles": by_watchfiles, "watchdog": by_watchdog}


def main() -> None:
    """Listen until killed."""
    library, root = sys.argv[1:]

    def tell(is_there: bool, path: str) -> None:
        sys.stdout.write(json.dumps([is_there, path]) + "\n")
        sys.stdout.flush()

    LIBRARIES[library](root, tell, lambda: print("listening", flush=True))


if __name__ == "__main__":
    main()
