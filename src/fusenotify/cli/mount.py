"""`fusenotify mount`."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fusenotify.config import MountOptions, default_state_dir, parse_mount_options
from fusenotify.errors import EnvironmentProblem, FusenotifyError
from fusenotify.mounting import Target, check_socket, preflight

Serve = Callable[[Target, MountOptions, Sequence[str], Callable[[], None]], None]


def run(options: argparse.Namespace) -> int:
    """Mount and serve, in the foreground or in a process of its own."""
    mount_options = parse_mount_options(options.options)
    state_dir = Path(options.state_dir) if options.state_dir else default_state_dir(options.source)
    target = preflight(options.source, options.mountpoint, state_dir, mount_options)
    _make_state_dir(target.state_dir)
    serve = _load_daemon()
    listen = [_absolute(url) for url in options.listen]
    for url in listen:
        check_socket(url.partition(":")[2], target)
    if options.daemon:
        return _in_background(serve, target, mount_options, listen)
    serve(target, mount_options, listen, lambda: _say_ready(target))
    return 0


def _load_daemon() -> Serve:
    try:
        from fusenotify.daemon import run as serve  # noqa: PLC0415 - the client-only installation has no pyfuse3
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"mounting needs the package {error.name}: install it with `pip install 'fusenotify[daemon]'`"
        ) from error
    return serve


def _make_state_dir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot make the state directory {path}: {error.strerror}; choose another one with --state-dir"
        ) from error


def _absolute(url: str) -> str:
    """Make a relative socket path absolute, as the daemon may leave this directory."""
    scheme, colon, path = url.partition(":")
    return f"{scheme}{colon}{os.path.abspath(path)}" if scheme == "unix" and path else url


def _say_ready(target: Target) -> None:
    print(f"fusenotify: {target.source} is mounted at {target.mountpoint}", file=sys.stderr)


def _in_background(serve: Serve, target: Target, options: MountOptions, listen: Sequence[str]) -> int:
    """Fork, and return when the child says that everything is in force, or with what went wrong instead."""
    outcome, report = os.pipe()
    if os.fork() == 0:
        os.close(outcome)
        _be_daemon(serve, target, options, listen, report)
    os.close(report)
    with open(outcome, "rb") as pipe:
        message = pipe.read()
    if message == b"ready":
        return 0
    code, _, text = message.decode(errors="replace").partition(" ")
    print(f"fusenotify: {text or 'the daemon died before it was ready'}", file=sys.stderr)
    return int(code) if code.isdigit() else 1


def _be_daemon(serve: Serve, target: Target, options: MountOptions, listen: Sequence[str], report: int) -> NoReturn:
    """Be the process that serves the mount: its own session, no terminal, a log in the state directory."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    log = os.open(target.state_dir / "daemon.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    for fd, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, fd)
    code = 0
    try:
        serve(target, options, listen, lambda: _report(report, b"ready"))
    except FusenotifyError as error:
        code = error.exit_code
        _report(report, f"{code} {error}".encode())
    except BaseException as error:
        code = 1
        logging.exception("the daemon of %s died", target.mountpoint)
        _report(report, f"{code} {error!r} (see {target.state_dir}/daemon.log)".encode())
    os._exit(code)


def _report(pipe: int, message: bytes) -> None:
    """Tell the waiting parent, the first time."""
    try:
        os.write(pipe, message)
        os.close(pipe)
    except OSError:
        pass  # it has been told, or it has gone
