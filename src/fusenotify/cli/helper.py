"""`mount.fusenotify`: what mount(8) runs for `mount -t fusenotify SOURCE MOUNTPOINT` and for a line in fstab.

mount(8) looks for it in /sbin (docs/mounting.md says how it gets there). It takes the arguments that mount(8) gives its
helpers, and returns when the mount answers and every watch is in force.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fusenotify.cli import main as fusenotify
from fusenotify.config import parse_mount_options
from fusenotify.errors import UsageError

# Exit codes of mount(8).
_USAGE: Final = 1
_FAILED: Final = 32

_WITHOUT_VALUE: Final = "fnsvrw"
_WITH_VALUE: Final = "oNt"
# Options of `fusenotify mount` that have a place in fstab only among the mount options: name there -> name here.
_ARGUMENTS: Final = {
    **{name: f"--{name}" for name in ("listen", "cert", "key", "ca", "watcher")},
    "state_dir": "--state-dir",
}
# mount(8) keeps these two to itself when somebody asks for them, and mount.fuse(8) adds them when nobody does: here
# they mean nothing, and the mount is nosuid and nodev. `fusenotify mount -o suid,dev` takes them at their word.
_MEANINGLESS: Final = ("suid", "dev")


@dataclass
class _Request:
    """What mount(8) asks for: mount.TYPE SOURCE MOUNTPOINT [-sfnvrw] [-N namespace] [-o options] [-t type]."""

    places: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)
    sloppy: bool = False
    fake: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """Mount in the background and return an exit code of mount(8)."""
    try:
        request = _read(list(sys.argv[1:] if arguments is None else arguments))
        command = _command_of(request)
    except UsageError as error:
        print(f"mount.fusenotify: {error}", file=sys.stderr)
        return _USAGE
    return 0 if request.fake else {0: 0, UsageError.exit_code: _USAGE}.get(_run(command), _FAILED)


def _run(command: list[str]) -> int:
    try:
        return fusenotify(command)
    except SystemExit as end:  # argparse has said what is wrong
        return UsageError.exit_code if end.code else 0


def _read(words: list[str]) -> _Request:
    request = _Request()
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            request.places.append(word)
            continue
        for position, letter in enumerate(word[1:], 2):
            if letter in _WITH_VALUE:
                value = word[position:] or (words.pop(0) if words else "")
                _take_value(request, letter, value)
                break
            _take_switch(request, letter)
    if len(request.places) != 2:
        raise UsageError("usage: mount.fusenotify SOURCE MOUNTPOINT [-o opt,opt]")
    return request


def _take_value(request: _Request, letter: str, value: str) -> None:
    if letter == "N":
        raise UsageError("-N is not supported: enter the mount namespace with nsenter(1) and mount there")
    if letter == "o":
        request.options += re.findall(r"(?:\\.|[^,])+", value)


def _take_switch(request: _Request, letter: str) -> None:
    if letter not in _WITHOUT_VALUE:
        raise UsageError(f"unknown option -{letter}")
    request.sloppy |= letter == "s"
    request.fake |= letter == "f"
    if letter in "rw":
        request.options.append({"r": "ro", "w": "rw"}[letter])


def _command_of(request: _Request) -> list[str]:
    source, mountpoint = request.places
    command = ["mount", "--daemon"]
    for option in request.options:
        name, equals, value = option.partition("=")
        if name in _ARGUMENTS and equals:
            command += [_ARGUMENTS[name], re.sub(r"\\(.)", r"\1", value)]
        elif option not in _MEANINGLESS and (not request.sloppy or _is_known(option)):
            command += ["-o", option]
    return [*command, "--", source, mountpoint]


def _is_known(option: str) -> bool:
    try:
        parse_mount_options([option])
    except UsageError:
        return False
    return True
