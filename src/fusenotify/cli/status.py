"""`fusenotify status`."""

import argparse
import json
import sys

import anyio
import msgspec

from fusenotify import client
from fusenotify.errors import FusenotifyError
from fusenotify.mountinfo import find_mounts
from fusenotify.status import Status


def run(options: argparse.Namespace) -> int:
    """Print the state of one daemon, or of all whose mounts are seen here."""
    if options.target is not None:
        state = anyio.run(client.status, options.target)
        print(json.dumps(msgspec.to_builtins(state)) if options.json else _describe(state))
        return 0
    code = 0
    for mount in find_mounts():
        try:
            state = anyio.run(client.status, mount.mountpoint)
        except FusenotifyError as error:
            print(f"fusenotify: {error}", file=sys.stderr)
            code = error.exit_code
        else:
            print(json.dumps(msgspec.to_builtins(state)) if options.json else _describe(state))
    return code


def _describe(state: Status) -> str:
    lines = [f"{state.source} on {state.mountpoint}"]
    for name, value in msgspec.to_builtins(state).items():
        if name not in ("source", "mountpoint"):
            text = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
            lines.append(f"  {name:<11}{text}")
    return "\n".join(lines)
