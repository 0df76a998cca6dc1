"""`fusenotify mount`."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fusenotify.addresses import Address
from fusenotify.cli.starting import (
    listening_of,
    make_state_dir,
    needing_packages,
    say_where_it_listens,
    tell_service_manager,
    warn_of_silence,
)
from fusenotify.config import QUEUE_DIRECTORY, default_state_dir, parse_mount_options
from fusenotify.errors import FusenotifyError
from fusenotify.mounting import Target
from fusenotify.preflight import check_sockets, hold_state_dir, is_queue_directory_hidden, preflight

log = logging.getLogger(__name__)

_OnReady = Callable[[int, Sequence[Address]], None]


def run(options: argparse.Namespace) -> int:
    """Mount and serve, in the foreground or in a process of its own."""
    mount_options = parse_mount_options(options.options)
    listening = listening_of(options)
    state_dir = Path(options.state_dir) if options.state_dir else default_state_dir(options.source)
    target = preflight(options.source, options.mountpoint, state_dir, mount_options)
    check_sockets(listening.addresses, {"SOURCE": target.source, "MOUNTPOINT": target.mountpoint})
    make_state_dir(target.state_dir)
    with needing_packages():
        from fusenotify.daemon import run as serve_mount  # noqa: PLC0415
    hold_state_dir(target.state_dir)  # until this process and the one that serves the mount have ended

    def serve(on_ready: _OnReady) -> None:
        serve_mount(target, mount_options, listening, on_ready, watcher=options.watcher, native=options.native)

    if options.daemon:
        return _in_background(serve, target)
    serve(lambda deaf, addresses: _say_ready(target, deaf, addresses))
    return 0


def _say_ready(target: Target, deaf: int, addresses: Sequence[Address]) -> None:
    say_where_it_listens(addresses)
    print(f"fusenotify: {target.source} is mounted at {target.mountpoint}", file=sys.stderr)
    tell_service_manager()
    _warn_of_what_is_hidden(target)
    warn_of_silence(deaf)


def _warn_of_what_is_hidden(target: Target) -> None:
    if is_queue_directory_hidden(target.source):
        log.warning(
            "SOURCE %s has an entry %s, which the mount hides; rename it to reach it", target.source, QUEUE_DIRECTORY
        )


def _in_background(serve: Callable[[_OnReady], None], target: Target) -> int:
    """Fork, and return when the child says that everything is in force, or with what went wrong instead."""
    outcome, report = os.pipe()
    if os.fork() == 0:
        os.close(outcome)
        _be_daemon(serve, target, report)
    os.close(report)
    with open(outcome, "rb") as pipe:
        message = pipe.read()
    if message.startswith(b"ready "):
        warn_of_silence(int(message.split()[1]))
        return 0
    code, _, text = message.decode(errors="replace").partition(" ")
    print(f"fusenotify: {text or 'the daemon died before it was ready'}", file=sys.stderr)
    return int(code) if code.isdigit() else 1


def _be_daemon(serve: Callable[[_OnReady], None], target: Target, report: int) -> NoReturn:
    """Be the process that serves the mount: its own session, no terminal, a log in the state directory."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(target.state_dir / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for fd, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, fd)
    code = 0
    try:
        serve(lambda deaf, addresses: _report_ready(report, target, deaf, addresses))
    except FusenotifyError as error:
        code = error.exit_code
        _report(report, f"{code} {error}".encode())
    except BaseException as error:
        code = 1
        logging.exception("the daemon of %s died", target.mountpoint)
        _report(report, f"{code} {error!r} (see {target.state_dir}/daemon.log)".encode())
    os._exit(code)


def _report_ready(pipe: int, target: Target, deaf: int, addresses: Sequence[Address]) -> None:
    say_where_it_listens(addresses)
    _warn_of_what_is_hidden(target)
    _report(pipe, b"ready %d" % deaf)


def _report(pipe: int, message: bytes) -> None:
    """Tell the waiting parent, the first time."""
    try:
        os.write(pipe, message)
        os.close(pipe)
    except OSError:
        pass  # it has been told, or it has gone
