"""`fusenotify serve`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fusenotify.addresses import Address
from fusenotify.cli.starting import (
    listening_of,
    make_state_dir,
    needing_packages,
    say_where_it_listens,
    tell_service_manager,
    warn_of_silence,
)
from fusenotify.config import default_state_dir
from fusenotify.preflight import check_sockets, hold_state_dir, preflight_without_mount


def run(options: argparse.Namespace) -> int:
    """Tell clients what changes in a tree, until a signal comes."""
    listening = listening_of(options)
    state_dir = Path(options.state_dir) if options.state_dir else default_state_dir(options.source)
    source, state_dir = preflight_without_mount(options.source, state_dir)
    check_sockets(listening.addresses, {"SOURCE": source})
    make_state_dir(state_dir)
    with needing_packages():
        from fusenotify.export import serve  # noqa: PLC0415
    hold_state_dir(state_dir)

    def say_ready(deaf: int, addresses: Sequence[Address]) -> None:
        say_where_it_listens(addresses)
        print(f"fusenotify: {source} is served", file=sys.stderr)
        tell_service_manager()
        warn_of_silence(deaf)

    serve(source, state_dir, listening, say_ready, watcher=options.watcher)
    return 0
