"""`fusenotify since`."""

import argparse
import functools
import json
import sys
from collections.abc import Sequence

import anyio

from fusenotify.cli import output
from fusenotify.cli.credentials import credentials_of
from fusenotify.client.history import Answer, Change, each_change
from fusenotify.errors import HistoryGone

_COMPACT = (",", ":")


def run(options: argparse.Namespace) -> int:
    """Print what has changed since a cursor, and the new cursor."""
    output.check_open()
    line = _json_line if options.json else _text_line

    def put(changes: Sequence[Change]) -> None:
        output.write("".join(map(line, changes)).encode())

    ask = functools.partial(each_change, options.target, options.cursor, put, tls=credentials_of(options))
    answer: Answer = anyio.run(ask)
    last = {"type": "cursor", "cursor": answer.cursor, "fresh": answer.fresh}
    output.put_line(json.dumps(last, separators=_COMPACT) if options.json else answer.cursor)
    if not answer.fresh:
        return 0
    print(
        f"fusenotify: what has changed since {options.cursor} is not known any more; what was printed is everything "
        "that there is, and what was there earlier and is not among it is gone",
        file=sys.stderr,
    )
    return HistoryGone.exit_code


def _json_line(change: Change) -> str:
    return json.dumps({"type": "change", **change._asdict()}, separators=_COMPACT) + "\n"


def _text_line(change: Change) -> str:
    return f"{'' if change.exists else 'gone':<5}{output.shown(change.path)}{'/' if change.is_dir else ''}\n"
