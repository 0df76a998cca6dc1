"""`fusenotify cursor`."""

import argparse
import functools

import anyio

from fusenotify.cli import output
from fusenotify.cli.credentials import credentials_of
from fusenotify.client.history import cursor


def run(options: argparse.Namespace) -> int:
    """Print the current position."""
    output.put_line(anyio.run(functools.partial(cursor, options.target, tls=credentials_of(options))))
    return 0
