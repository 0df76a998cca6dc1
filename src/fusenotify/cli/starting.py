"""What the commands that start a daemon have in common."""

import argparse
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fusenotify.addresses import Address, TlsAddress, absolute, parse_address
from fusenotify.cli.credentials import credentials_of
from fusenotify.config import Listening
from fusenotify.errors import EnvironmentProblem, UsageError

log = logging.getLogger(__name__)


def listening_of(options: argparse.Namespace) -> Listening:
    """Return where a daemon is to listen, by its options; credentials are read now, before anything is done.

    Raises:
        UsageError: an address makes no sense, or there are no credentials for it, or there are and nobody needs them.
        EnvironmentProblem: the credentials cannot be used.
    """
    addresses = [absolute(parse_address(text)) for text in options.listen]
    tls = credentials_of(options)
    if any(isinstance(address, TlsAddress) for address in addresses):
        if tls is None:
            raise UsageError("--listen tls://HOST:PORT needs --cert, --key and --ca: clients prove who they are")
        return Listening(addresses, tls.server_context())
    if tls is not None:
        raise UsageError("--cert, --key and --ca are for --listen tls://HOST:PORT, and there is none")
    return Listening(addresses)


@contextlib.contextmanager
def needing_packages() -> Iterator[None]:
    """Say what to do where the block imports what a client-only installation lacks.

    Raises:
        EnvironmentProblem: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise EnvironmentProblem(
            f"a daemon needs the package {error.name}: install it with `pip install 'fusenotify[daemon]'`"
        ) from error


def make_state_dir(path: Path) -> None:
    """Make the state directory where it is missing (EnvironmentProblem)."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentProblem(
            f"cannot make the state directory {path}: {error.strerror}; choose another one with --state-dir"
        ) from error


def say_where_it_listens(addresses: Sequence[Address]) -> None:
    """Name every address; of port 0 it is the port that was free."""
    for address in addresses:
        print(f"fusenotify: listening on {address}", file=sys.stderr)


def tell_service_manager() -> None:
    """Tell systemd that the service is ready (sd_notify(3), `Type=notify`), where that is who started us."""
    address = os.environ.pop("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        try:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.send(b"READY=1")
        except OSError as error:
            log.warning("the service manager at %s cannot be told that the daemon is ready: %s", address, error)


def warn_of_silence(deaf: int) -> None:
    """Say how many directories are not heard, if any."""
    if deaf:
        print(
            f"fusenotify: changes behind the mount are not heard in {deaf} directories: beyond the limit of inotify "
            "watches (`fusenotify doctor`), or on a network or FUSE filesystem, which tells of this machine's own only",
            file=sys.stderr,
        )
