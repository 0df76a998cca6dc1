"""`fusenotify status`."""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import msgspec

from fusenotify.cli.asking import ask_status
from fusenotify.cli.credentials import credentials_of
from fusenotify.cli.output import put_line
from fusenotify.cli.prometheus import metrics_of
from fusenotify.errors import FusenotifyError, NotPermitted
from fusenotify.mountinfo import find_mounts
from fusenotify.status import LATENCY_BOUNDS, Histogram, QueueStatus, Status

_PATIENCE = 5.0  # seconds for each daemon
_ELSEWHERE = frozenset({"source", "mountpoint", "deaf_paths", "queues", "latency"})  # not told in a line of their own


def run(options: argparse.Namespace) -> int:
    """Print the state of one daemon, or of all whose mounts are seen here."""
    code = 0
    states: list[Status] = []
    if options.target is not None:
        states.append(ask_status(options.target, _PATIENCE, credentials_of(options)))
    else:
        if not find_mounts():
            print(
                "fusenotify: there is no fusenotify mount here; of `fusenotify serve` ask by its address",
                file=sys.stderr,
            )
        for answer in _ask_all():
            if isinstance(answer, Status):
                states.append(answer)
            else:
                code = answer
    if options.prometheus:
        put_line(metrics_of(states))
    else:
        for state in states:
            put_line(_json_of(state) if options.json else _describe(state))
    return code


def _ask_all() -> Iterator[Status | int]:
    """Yield the state of every daemon, or an exit code where it has none to tell."""
    for mount in find_mounts():
        try:
            yield ask_status(mount.mountpoint, _PATIENCE)
        except FusenotifyError as error:
            if mount not in find_mounts():
                continue  # it has gone since
            print(f"fusenotify: {mount.mountpoint}: {error}", file=sys.stderr)
            if not isinstance(error, NotPermitted):  # somebody else's mount: nothing is wrong with it
                yield error.exit_code


def _fields(state: Status) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,))
    return {name: _text(value) for name, value in fields.items()}


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [_text(one) for one in value]
    return os.fsdecode(value) if isinstance(value, bytes) else value


def _json_of(state: Status) -> str:
    fields = _fields(state)
    for histogram in fields["latency"].values():
        histogram["bounds"] = LATENCY_BOUNDS
    return json.dumps(fields)


def _describe(state: Status) -> str:
    fields = _fields(state)
    head = f"{fields['source']} on {fields['mountpoint'] or 'no mount'}"
    told: list[tuple[str, object]] = []
    for name, value in fields.items():
        if name not in _ELSEWHERE:
            text = ", ".join(f"{key} {number}" for key, number in value.items()) if isinstance(value, dict) else value
            told.append((name, text))
    told += [("deaf below", path) for path in fields["deaf_paths"]]
    told += [("queue", text) for text in map(_of_queue, state.queues)]
    for name, histogram in ("queued", state.latency.queued), ("sent", state.latency.sent):
        told += [(name, text) for text in _of_histogram(histogram)]
    width = max(len(name) for name, _ in told)
    return "\n".join([head, *(f"  {name:<{width}}  {text}" for name, text in told)])


def _of_queue(queue: QueueStatus) -> str:
    return (
        f"uid {queue.uid}, marks {queue.marks}, waiting {queue.waiting} of {queue.limit}, "
        f"dropped {queue.dropped}, overflows {queue.overflows}"
    )


def _of_histogram(histogram: Histogram) -> Iterator[str]:
    names = [f"within {bound * 1000:g} ms" for bound in LATENCY_BOUNDS] + ["later"]
    told = [f"{count} {name}" for name, count in zip(names, histogram.counts, strict=True) if count]
    if told:
        yield ", ".join(told)
