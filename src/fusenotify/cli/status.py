"""`fusenotify status`."""

import argparse
import json
import os
import sys
from typing import Any

import msgspec

from fusenotify.cli.asking import ask_status
from fusenotify.cli.credentials import credentials_of
from fusenotify.errors import FusenotifyError
from fusenotify.mountinfo import find_mounts
from fusenotify.status import Status

_PATIENCE = 5.0  # seconds for each daemon


def run(options: argparse.Namespace) -> int:
    """Print the state of one daemon, or of all whose mounts are seen here."""
    tell = _json_of if options.json else _describe
    if options.target is not None:
        print(tell(ask_status(options.target, _PATIENCE, credentials_of(options))))
        return 0
    code = 0
    for mount in find_mounts():
        try:
            state = ask_status(mount.mountpoint, _PATIENCE)
        except FusenotifyError as error:
            if mount not in find_mounts():
                continue  # it has gone since
            print(f"fusenotify: {mount.mountpoint}: {error}", file=sys.stderr)
            code = error.exit_code
        else:
            print(tell(state))
    return code


def _fields(state: Status) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,))
    return {name: os.fsdecode(value) if isinstance(value, bytes) else value for name, value in fields.items()}


def _json_of(state: Status) -> str:
    return json.dumps(_fields(state))


def _describe(state: Status) -> str:
    fields = _fields(state)
    lines = [f"{fields['source']} on {fields['mountpoint'] or 'no mount'}"]
    for name, value in fields.items():
        if name not in ("source", "mountpoint"):
            text = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
            lines.append(f"  {name:<11}{text}")
    # A path that is no UTF-8 cannot be printed as it is.
    return "\n".join(lines).encode(errors="backslashreplace").decode()
