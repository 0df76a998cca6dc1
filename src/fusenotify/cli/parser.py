"""The grammar of the command line."""

import argparse
import importlib
import math
from collections.abc import Callable
from importlib.metadata import version

_TARGET = "a path on a mount, or where a daemon listens"
_CURSOR = "a cursor printed earlier, 0 for everything that there is, or @NAME for a snapshot"
_MOST_WAITING = (1 << 63) - 1
_EXIT_CODES = """\
exit codes:
  0 ok   1 internal error   2 usage   3 `watch --timeout` passed with too few events
  4 environment (no /dev/fuse, limits, busy, not a mount)   5 daemon unreachable or gone
  6 history gone (the cursor is too old)   130 interrupted (Ctrl-C) before it was done
"""
_MOUNT_NOTES = """\
In the foreground Ctrl-C unmounts and ends with 0. What stands in the way is
said before anything is mounted.

  fusenotify mount /srv/data /mnt/data --daemon
  fusenotify mount /srv/data /mnt/data -o allow_other,watch_other
"""
_SINCE_NOTES = """\
Paths that are gone are marked; what was below them is gone too. What is named
may not have changed, but nothing that has changed is left out.

exit codes:
  2   the cursor is none, or of another tree, or there is no such snapshot
  6   what has changed since is not known any more: everything is printed

  cursor=$(fusenotify cursor /mnt/data)
  fusenotify since /mnt/data "$cursor"
"""
_WATCH_NOTES = """\
TARGET is a path on a fusenotify mount or anywhere else, unix:PATH, or
tls://HOST:PORT[/PATH]. Of a directory everything below it is told, of a file
what happens to itself. "watching" on stderr (with --json the line "ready" on
stdout) says that from then on no change is missed.

kinds of events:
  default   create delete modify attrib close_write rename
            overflow unmount (these two come in any case)
  all       these, and open access close_nowrite delete_self move_self ignored

exit codes:
  0   --events have come; or --timeout has passed, and there was an event;
      or nobody reads the output any more
  3   --timeout has passed with fewer than --events, or with none
  5   the daemon has gone (with --reconnect it is waited for)
  6   what has changed since the cursor is not known any more

  fusenotify watch /mnt/data --json
  fusenotify watch /mnt/data --since "$cursor"
  fusenotify watch /mnt/data /etc --ignore '*.tmp' --ignore .git
  fusenotify watch /mnt/data/flag --kinds close_write --events 1 --timeout 60
"""


def _command(module: str) -> Callable[[argparse.Namespace], int]:
    """Return a function that loads a command when it is run: `watch` has no use for what `mount` needs."""

    def run(options: argparse.Namespace) -> int:
        code: int = importlib.import_module(f"fusenotify.cli.{module}").run(options)
        return code

    return run


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; `options.run(options)` carries out what was asked for, `options.refuse(text)` ends it."""
    parser = argparse.ArgumentParser(
        prog="fusenotify",
        description="Mount a directory; every change behind the mount is heard in front of it.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fusenotify {version('fusenotify')}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def add(name: str, help_: str, notes: str | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", epilog=notes, parents=[common],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.set_defaults(run=_command(name), refuse=command.error)
        return command

    _add_mount(add("mount", "mount SOURCE at MOUNTPOINT and hear what changes behind it", _MOUNT_NOTES))
    _add_serve(add("serve", "hear what changes in SOURCE and tell it on sockets, without a mount"))
    _add_umount(add("umount", "unmount, and wait until the daemon has gone"))
    _add_watch(add("watch", "print changes as they happen", _WATCH_NOTES))
    _add_since(add("since", "print what may have changed since a cursor, and then the new cursor", _SINCE_NOTES))
    _add_cursor(add("cursor", "print the current position in the history of changes, for `since`"))
    _add_snapshot(add("snapshot", "keep cursors under names, and with them the history since then"))
    _add_status(add("status", "tell how the daemon behind TARGET is, or those of all mounts that are seen here"))
    add("doctor", "check this machine and say what to do")
    return parser


def count(text: str) -> int:
    """Read how many; argparse shows the name of this function when it is no number."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def limit(text: str) -> int:
    """Read how many events may wait."""
    number = count(text)
    if number > _MOST_WAITING:
        raise argparse.ArgumentTypeError(f"{number} is more than the {_MOST_WAITING} that any queue can hold")
    return number


def uid(text: str) -> int:
    """Read the number of a user."""
    number = int(text)
    if not 0 <= number < 1 << 32:
        raise argparse.ArgumentTypeError(f"{number} is no user id")
    return number


def seconds(text: str) -> float:
    """Read a length of time."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds")
    return number


def _add_mount(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="the directory to export (the backing tree)")
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="an empty directory outside of it")
    command.add_argument(
        "-o", dest="options", action="append", default=[], metavar="opt,opt",
        help="mount options: allow_other (others may use the mount), watch_other (and watch all of it), ro, noexec, "
        "allow_non_empty, fsname=NAME, … (an unknown one is answered with all of them)",
    )  # fmt: skip
    command.add_argument("--daemon", action="store_true", help="go to the background once every watch is in force")
    command.add_argument(
        "--native", choices=("auto", "always", "off"), default="auto",
        help="raise what changes behind the mount for programs that watch it with inotify or fanotify: for those that "
        "are seen to watch, for whatever the kernel holds, or not at all (default: auto)",
    )  # fmt: skip
    _add_hearing(command)


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="the directory to hear")
    _add_hearing(command, must_listen=True)


def _add_hearing(command: argparse.ArgumentParser, *, must_listen: bool = False) -> None:
    command.add_argument(
        "--state-dir",
        metavar="DIR",
        help="where the daemon keeps what must outlive it (default: one for each SOURCE, below /var/lib/fusenotify for "
        "root, else $XDG_STATE_HOME/fusenotify or ~/.local/state/fusenotify)",
    )
    command.add_argument(
        "--watcher", choices=("auto", "inotify", "fanotify"), default="auto",
        help="what hears the backing tree (default: auto, which takes fanotify for large trees where it can be had)",
    )  # fmt: skip
    command.add_argument(
        "--listen", action="append", default=[], required=must_listen, metavar="URL",
        help="serve clients on unix:PATH or tls://HOST:PORT as well; repeatable" if not must_listen
        else "where to serve clients, unix:PATH or tls://HOST:PORT; repeatable",
    )  # fmt: skip
    _add_credentials(command)


def _add_credentials(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cert", metavar="F", help="for tls://: our certificate, in PEM files as the next two")
    command.add_argument("--key", metavar="F", help="its private key")
    command.add_argument("--ca", metavar="F", help="the authorities whose certificates the other side may show")


def _add_umount(command: argparse.ArgumentParser) -> None:
    command.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")
    command.add_argument("--lazy", action="store_true", help="detach at once, even if it is busy or its daemon is dead")


def _add_watch(command: argparse.ArgumentParser) -> None:
    command.add_argument("targets", nargs="+", metavar="TARGET", help="what to watch, see below")
    command.add_argument("--json", action="store_true", help="one JSON object per line (docs/json.md)")
    command.add_argument(
        "--kinds", metavar="KIND,…", help="only these kinds of events, separated by commas (default: default)"
    )
    command.add_argument(
        "--origin", choices=("any", "local", "remote"), default="any",
        help="only changes made through the mount (local), or behind it (remote)",
    )  # fmt: skip
    command.add_argument("--no-recursive", action="store_true", help="only the entries of TARGET itself")
    command.add_argument("--since", metavar="CURSOR", help=f"begin with what has changed since: {_CURSOR}")
    command.add_argument(
        "--handles", action="store_true", help="tell the handles of objects too; they are seen with --json"
    )
    command.add_argument(
        "--limit", type=limit, metavar="N", help="events that may wait unread; beyond it one overflow (default: 131072)"
    )
    command.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="as if such names did not exist, as in .gitignore; repeatable",
    )
    command.add_argument(
        "--not-me", action="store_true", help="leave out what this very process does through the mount"
    )
    command.add_argument(
        "--uid",
        type=uid,
        action="append",
        metavar="N",
        help="only what the user with this number does, where that is known; repeatable",
    )
    command.add_argument(
        "--reconnect",
        action="store_true",
        help="when a daemon goes, wait until it is back, and go on with everything there is",
    )
    command.add_argument("--events", type=count, metavar="N", help="end after N events")
    command.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end that long after the watch is in force")
    _add_credentials(command)


def _add_since(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="TARGET", help=_TARGET)
    command.add_argument("cursor", metavar="CURSOR", help=_CURSOR)
    command.add_argument("--json", action="store_true", help="one JSON object per line (docs/json.md)")
    _add_credentials(command)


def _add_cursor(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", metavar="TARGET", help=_TARGET)
    _add_credentials(command)


def _add_snapshot(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("create", "list", "delete"))
    command.add_argument("target", metavar="TARGET", help=_TARGET)
    command.add_argument("name", nargs="?", metavar="NAME", help="of the snapshot; @NAME stands for its cursor")
    _add_credentials(command)


def _add_status(command: argparse.ArgumentParser) -> None:
    command.add_argument("target", nargs="?", metavar="TARGET", help=_TARGET)
    form = command.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--prometheus", action="store_true", help="print metrics for Prometheus")
    _add_credentials(command)
