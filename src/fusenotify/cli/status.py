"""`fusenotify status`."""

import argparse
import json
import os
import sys
import threading
from typing import Any

import anyio
import msgspec

from fusenotify import client
from fusenotify.errors import DaemonGone, FusenotifyError
from fusenotify.mountinfo import find_mounts
from fusenotify.status import Status

_PATIENCE = 5.0  # seconds for each of several daemons


def run(options: argparse.Namespace) -> int:
    """Print the state of one daemon, or of all whose mounts are seen here."""
    tell = _json_of if options.json else _describe
    if options.target is not None:
        print(tell(anyio.run(client.status, options.target)))
        return 0
    code = 0
    for mount in find_mounts():
        try:
            state = _ask(mount.mountpoint)
        except FusenotifyError as error:
            if mount not in find_mounts():
                continue  # it has gone since
            print(f"fusenotify: {mount.mountpoint}: {error}", file=sys.stderr)
            code = error.exit_code
        else:
            print(tell(state))
    return code


def _ask(mountpoint: str) -> Status:
    """Ask one daemon of several, on a thread of its own: one that hangs must not keep the others from being told."""
    answers: list[Status | FusenotifyError] = []

    def ask() -> None:
        try:
            answers.append(anyio.run(client.status, mountpoint))
        except FusenotifyError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE)
    if not answers:
        raise DaemonGone(f"the daemon of {mountpoint} does not answer within {_PATIENCE:.0f} s")
    if isinstance(answers[0], FusenotifyError):
        raise answers[0]
    return answers[0]


def _fields(state: Status) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,))
    return {name: os.fsdecode(value) if isinstance(value, bytes) else value for name, value in fields.items()}


def _json_of(state: Status) -> str:
    return json.dumps(_fields(state))


def _describe(state: Status) -> str:
    fields = _fields(state)
    lines = [f"{fields['source']} on {fields['mountpoint']}"]
    for name, value in fields.items():
        if name not in ("source", "mountpoint"):
            text = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
            lines.append(f"  {name:<11}{text}")
    # A path that is no UTF-8 cannot be printed as it is.
    return "\n".join(lines).encode(errors="backslashreplace").decode()
