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
  4 environment (no /dev/fuse, limits, busy, not a mount)   5 daemon unreachable or gone   6 history gone
"""


def _command(module: str) -> Callable[[argparse.Namespace], int]:
    """Return a function that loads a command when it is run: `watch` has no use for what `mount` needs."""

    def run(options: argparse.Namespace) -> int:
        code: int = importlib.import_module(f"fusenotify.cli.{module}").run(options)
        return code

    return run


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; `options.run(options)` carries out what was asked for."""
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

    def add(name: str, help_: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_, description=f"{help_[0].upper()}{help_[1:]}.", parents=[common])
        command.set_defaults(run=_command(name))
        return command

    _add_mount(add("mount", "mount SOURCE at MOUNTPOINT and hear what changes behind it"))
    _add_serve(add("serve", "hear what changes in SOURCE and tell it on sockets, without a mount"))
    _add_umount(add("umount", "unmount, and wait until the daemon has gone"))
    _add_watch(add("watch", "print changes as they happen"))
    _add_since(add("since", "print what may have changed since a cursor, and then the new cursor"))
    _add_cursor(add("cursor", "print the current position in the history of changes, for `since`"))
    _add_snapshot(add("snapshot", "keep cursors under names"))
    _add_status(add("status", "tell how the daemons of this machine, or the one behind TARGET, are"))
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
        help="mount options: ro, allow_other, watch_other, allow_non_empty, nosuid, nodev, noexec, fsname=NAME, …",
    )  # fmt: skip
    command.add_argument("--daemon", action="store_true", help="go to the background once every watch is in force")
    _add_hearing(command)


def _add_serve(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", metavar="SOURCE", help="the directory to hear")
    _add_hearing(command, must_listen=True)


def _add_hearing(command: argparse.ArgumentParser, *, must_listen: bool = False) -> None:
    command.add_argument("--state-dir", metavar="DIR", help="where the daemon keeps what must outlive it")
    command.add_argument(
        "--watcher", choices=("auto", "inotify", "fanotify"), default="auto",
        help="what hears the backing tree (default: auto, which takes fanotify for large trees where it can be had)",
    )  # fmt: skip
    command.add_argument(
        "--listen", action="append", default=[], required=must_listen, metavar="URL",
        help="serve clients on unix:PATH or tls://HOST:PORT; repeatable",
    )  # fmt: skip
    _add_credentials(command)


def _add_credentials(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cert", metavar="F", help="for tls://: our certificate, in PEM files as the next two")
    command.add_argument("--key", metavar="F", help="its private key")
    command.add_argument("--ca", metavar="F", help="the authority whose certificates the other side may show")


def _add_umount(command: argparse.ArgumentParser) -> None:
    command.add_argument("mountpoint", metavar="MOUNTPOINT")
    command.add_argument("--lazy", action="store_true", help="detach at once, even if it is busy or its daemon is dead")


def _add_watch(command: argparse.ArgumentParser) -> None:
    command.add_argument("targets", nargs="+", metavar="TARGET", help="a path, or where a daemon listens")
    command.add_argument("--json", action="store_true", help="one JSON object per line (docs/json.md)")
    command.add_argument(
        "--kinds", metavar="KIND,…", help="only these, such as create,rename,delete (default: default)"
    )
    command.add_argument("--origin", choices=("any", "local", "remote"), default="any", help="only changes made there")
    command.add_argument("--no-recursive", action="store_true", help="only the entries of TARGET itself")
    command.add_argument("--since", metavar="CURSOR", help=f"begin with what has changed since: {_CURSOR}")
    command.add_argument("--handles", action="store_true", help="tell the handles of objects")
    command.add_argument("--limit", type=limit, metavar="N", help="events that may wait unread (default: 131072)")
    command.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="PATTERN",
        help="as if such names did not exist (gitignore); repeatable",
    )
    command.add_argument(
        "--not-me", action="store_true", help="leave out what this very process does through the mount"
    )
    command.add_argument("--uid", type=uid, action="append", metavar="N", help="only what this user does, where known")
    command.add_argument("--reconnect", action="store_true", help="when a daemon goes, wait until it is back")
    command.add_argument("--events", type=count, metavar="N", help="end with 0 after N events")
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
