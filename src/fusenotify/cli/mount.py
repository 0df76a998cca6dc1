"""`fusenotify mount`."""

import argparse
import functools
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from fusenotify.config import QUEUE_DIRECTORY, MountOptions, default_state_dir, parse_mount_options
from fusenotify.errors import EnvironmentProblem, FusenotifyError
from fusenotify.mounting import Target
from fusenotify.preflight import check_socket, hold_state_dir, is_queue_directory_hidden, preflight

log = logging.getLogger(__name__)

Serve = Callable[[Target, MountOptions, Sequence[str], Callable[[int], None]], None]


def run(options: argparse.Namespace) -> int:
    """Mount and serve, in the foreground or in a process of its own."""
    mount_options = parse_mount_options(options.options)
    state_dir = Path(options.state_dir) if options.state_dir else default_state_dir(options.source)
    target = preflight(options.source, options.mountpoint, state_dir, mount_options)
    _make_state_dir(target.state_dir)
    serve = _load_daemon(options.watcher)
    listen = [_absolute(url) for url in options.listen]
    for url in listen:
        check_socket(url.partition(":")[2], target)
    hold_state_dir(target.state_dir)  # until this process and the one that serves the mount have ended
    if options.daemon:
        return _in_background(serve, target, mount_options, listen)
    serve(target, mount_options, listen, lambda deaf: _say_ready(target, deaf))
    return 0


def _load_daemon(watcher: str) -> Serve:
    try:
        from fusenotify.daemon import run as serve  # noqa: PLC0415 - the client-only installation has no pyfuse3
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"mounting needs the package {error.name}: install it with `pip install 'fusenotify[daemon]'`"
        ) from error
    return functools.partial(serve, watcher=watcher)


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


def _say_ready(target: Target, deaf: int) -> None:
    print(f"fusenotify: {target.source} is mounted at {target.mountpoint}", file=sys.stderr)
    _tell_service_manager()
    _warn_of_what_is_hidden(target)
    _warn_of_silence(deaf)


def _tell_service_manager() -> None:
    """Tell systemd that the service is ready (sd_notify(3), `Type=notify`), where that is who started us."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(b"READY=1")
        except OSError as error:
            log.warning("the service manager at %s cannot be told that the mount is ready: %s", address, error)


def _warn_of_what_is_hidden(target: Target) -> None:
    if is_queue_directory_hidden(target.source):
        log.warning(
            "SOURCE %s has an entry %s, which the mount hides; rename it to reach it", target.source, QUEUE_DIRECTORY
        )


def _warn_of_silence(deaf: int) -> None:
    if deaf:
        print(
            f"fusenotify: changes behind the mount are not heard in {deaf} directories: beyond the limit of inotify "
            "watches (`fusenotify doctor`), or on a network or FUSE filesystem, which tells of this machine's own only",
            file=sys.stderr,
        )


def _in_background(serve: Serve, target: Target, options: MountOptions, listen: Sequence[str]) -> int:
    """Fork, and return when the child says that everything is in force, or with what went wrong instead."""
    outcome, report = os.pipe()
    if os.fork() == 0:
        os.close(outcome)
        _be_daemon(serve, target, options, listen, report)
    os.close(report)
    with open(outcome, "rb") as pipe:
        message = pipe.read()
    if message.startswith(b"ready "):
        _warn_of_silence(int(message.split()[1]))
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
        serve(target, options, listen, lambda deaf: _report_ready(report, target, deaf))
    except FusenotifyError as error:
        code = error.exit_code
        _report(report, f"{code} {error}".encode())
    except BaseException as error:
        code = 1
        logging.exception("the daemon of %s died", target.mountpoint)
        _report(report, f"{code} {error!r} (see {target.state_dir}/daemon.log)".encode())
    os._exit(code)


def _report_ready(pipe: int, target: Target, deaf: int) -> None:
    _warn_of_what_is_hidden(target)
    _report(pipe, b"ready %d" % deaf)


def _report(pipe: int, message: bytes) -> None:
    """Tell the waiting parent, the first time."""
    try:
        os.write(pipe, message)
        os.close(pipe)
    except OSError:
        pass  # it has been told, or it has gone
