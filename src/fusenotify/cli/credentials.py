"""The options `--cert`, `--key` and `--ca`."""

import argparse
import os

from fusenotify.errors import UsageError
from fusenotify.tls import Tls


def credentials_of(options: argparse.Namespace) -> Tls | None:
    """Return the credentials that a command was given, None if there are none.

    Raises:
        UsageError: some of the three are missing.
    """
    paths = {"--cert": options.cert, "--key": options.key, "--ca": options.ca}
    missing = [name for name, path in paths.items() if path is None]
    if len(missing) == len(paths):
        return None
    if missing:
        raise UsageError(f"{', '.join(missing)} missing: --cert, --key and --ca go together")
    # A daemon may leave this directory.
    return Tls(*(os.path.abspath(path) for path in paths.values()))
