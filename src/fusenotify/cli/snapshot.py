"""`fusenotify snapshot`."""

import argparse

import anyio

from fusenotify.cli import output
from fusenotify.cli.credentials import credentials_of
from fusenotify.client.history import create_snapshot, delete_snapshot, list_snapshots
from fusenotify.errors import UsageError


def run(options: argparse.Namespace) -> int:
    """Make, list or delete snapshots."""
    if (options.name is None) != (options.action == "list"):
        needs = "takes no NAME" if options.name is not None else "needs the NAME of a snapshot"
        raise UsageError(f"snapshot {options.action} {needs}")
    anyio.run(_run, options)
    return 0


async def _run(options: argparse.Namespace) -> None:
    tls = credentials_of(options)
    match options.action:
        case "create":
            output.put_line(await create_snapshot(options.target, options.name, tls=tls))
        case "list":
            for snapshot in await list_snapshots(options.target, tls=tls):
                output.put_line(f"{snapshot.name}\t{snapshot.cursor}")
        case "delete":
            await delete_snapshot(options.target, options.name, tls=tls)
