"""Golden scripts: what is done to a tree, and exactly what is told of it (docs/golden-scripts.md).

A script is played on a real mount while three groups listen, by the queue file, the unix socket and TLS.
"""

import contextlib
import dataclasses
import errno
import itertools
import os
import re
import shlex
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import anyio

from fusenotify import Kind, Origin, Scope, _linux, open_group, targets
from fusenotify.client import Group
from fusenotify.events import Event, kind_name, parse_kinds
from fusenotify.tls import Tls
from tests.certificates import Authority, listening
from tests.harness import PATIENCE, Mount, mounted

_REPEATED = re.compile(r"<(.+?)\*(\d+)>")
_ESCAPED = re.compile(rb"\\x([0-9a-f]{2})")
_SECTIONS = ("Setup:", "Script:", "Output:", "Output of fanotify:")
_OUTSIDE = "(outside)"
_ARROWS = ("->", "<->")
_TWO_PATHS = frozenset({"rename", "move_self"})
_MERGING = frozenset({"modify", "attrib", "close_write"})  # adjacent identical ones may be told as one
_RENAME_NOREPLACE = 1  # of renameat2(2)
_END = ".end"  # the directory that the runner makes when the script is over
_LONGEST_PATH = 4000  # bytes that the kernel takes at once, roughly

# --- the language --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Command:
    """One line of the sections Setup and Script."""

    words: tuple[str, ...]
    front: bool
    error: int | None


@dataclass(frozen=True)
class Line:
    """One event, as expected or as told; `either` (recovered or not) and `note` (what is odd) are of one kind only."""

    kind: str
    path: str | None
    old_path: str | None
    is_dir: bool
    exchange: bool
    origin: str
    recovered: bool
    either: bool = False
    note: str = ""

    def __str__(self) -> str:
        path, old_path = _shown(self.path, self.is_dir and not self.exchange), _shown(self.old_path, self.is_dir)
        what = f"{old_path} {_ARROWS[self.exchange]} {path}" if self.kind in _TWO_PATHS else path
        recovered = " ?recovered" if self.either else " recovered" * self.recovered
        return f"{self.kind} {what} {self.origin}{recovered}{self.note}"

    @property
    def is_unordered(self) -> bool:
        """Whether it may be found by listing a directory, which is in no order."""
        return self.recovered or self.either

    def matches(self, told: "Line") -> bool:
        """Whether this expected line is what was told."""
        return dataclasses.replace(told, recovered=False, either=True) == self if self.either else told == self


@dataclass(frozen=True)
class Script:
    """A golden script, parsed."""

    setup: tuple[Command, ...]
    commands: tuple[Command, ...]
    output: tuple[Line, ...]
    output_of_fanotify: tuple[Line, ...]

    def output_of(self, watcher: str) -> tuple[Line, ...]:
        """What is to be told when that watcher hears the tree."""
        return self.output_of_fanotify if watcher == "fanotify" else self.output


def parse(text: str) -> Script:
    """Parse the text of a script."""
    sections: dict[str, list[list[str]]] = {}
    section: list[list[str]] | None = None
    for line in text.splitlines():
        if line in _SECTIONS:
            section = sections[line] = []
        elif words := _words(line):
            assert section is not None, f"{line!r} is in no section"
            section.append(words)
    setup, commands, output, of_fanotify = (sections.get(name) for name in _SECTIONS)
    assert commands is not None
    assert output is not None
    if not any(words[0] == "watch" for words in commands):
        commands.insert(0, ["watch", ".", "subtree"])
    return Script(
        setup=tuple(map(_command, setup or [])),
        commands=tuple(map(_command, commands)),
        output=tuple(map(_line, output)),
        output_of_fanotify=tuple(map(_line, output if of_fanotify is None else of_fanotify)),
    )


def _words(line: str) -> list[str]:
    line = _REPEATED.sub(lambda match: match[1] * int(match[2]), line)
    return [
        os.fsdecode(_ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), word.encode()))
        for word in shlex.split(line, comments=True)
    ]


def _command(words: list[str]) -> Command:
    front, error = False, None
    while words[0].endswith(":"):
        prefix = words[0].removesuffix(":")
        if prefix == "front":
            front = True
        else:
            error = getattr(errno, prefix)
        words = words[1:]
    return Command(tuple(words), front, error)


def _line(words: list[str]) -> Line:
    kind = words[0]
    assert parse_kinds([kind]).bit_count() == 1
    if kind in _TWO_PATHS:
        old, arrow, new, origin, *flags = words[1:]
        assert arrow in _ARROWS, words
    else:
        old, arrow, (new, origin, *flags) = _OUTSIDE, "->", words[1:]
    assert flags in ([], ["recovered"], ["?recovered"]), words
    return Line(
        kind,
        path=_path(new),
        old_path=_path(old),
        is_dir=old.endswith("/") or (arrow == "->" and new.endswith("/")),
        exchange=arrow == "<->",
        origin=str(Origin(origin)),
        recovered="recovered" in flags,
        either="?recovered" in flags,
    )


def _path(word: str) -> str | None:
    return None if word == _OUTSIDE else word.removesuffix("/")


def _shown(path: str | None, is_dir: bool) -> str:
    if path is None:
        return _OUTSIDE
    text = "".join(
        char if char.isprintable() and char != "\\" else "".join(f"\\x{byte:02x}" for byte in os.fsencode(char))
        for char in path
    )
    return shlex.quote(text + "/" * is_dir) if " " in text or '"' in text or "'" in text else text + "/" * is_dir


# --- commands ------------------------------------------------------------------------------------------------------


class Player:
    """Carries out commands on both sides of a mount."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.mount: Mount | None = None
        self._open: dict[str, int] = {}
        self._commands: dict[str, Callable[..., object]] = {
            "mkdir": _each(os.mkdir),
            "mkdir -p": _each(_make_path),
            "rmdir": _each(os.rmdir),
            "rm": _each(os.unlink),
            "rm -r": _each(_remove_tree),
            "mv": os.rename,
            "mv -n": lambda old, new: _rename(old, new, _RENAME_NOREPLACE),
            "exchange": lambda old, new: _rename(old, new, _linux.RENAME_EXCHANGE),
            "touch": _each(lambda path: self._write(path, os.O_CREAT, b"")),
            "touch -m": lambda path: _linux.utimensat(os.fsencode(path), None, 1),
            "touch -a": lambda path: _linux.utimensat(os.fsencode(path), 1, None),
            "utime": os.utime,
            "write": lambda path: self._write(path, os.O_CREAT, b"written"),
            "write -t": lambda path: self._write(path, os.O_CREAT | os.O_TRUNC, b"written"),
            "append": lambda path: self._write(path, os.O_CREAT | os.O_APPEND, b"appended"),
            "read": lambda path: Path(path).read_bytes(),
            "truncate": lambda path, size: os.truncate(path, int(size)),
            "open": lambda path: self._hold(path, os.O_CREAT),
            "open -t": lambda path: self._hold(path, os.O_TRUNC),
            "put": lambda path: os.write(self._open[path], b"put"),
            "close": lambda path: os.close(self._open.pop(path)),
            "chmod": lambda mode, path: os.chmod(path, int(mode, 8)),
            "chown": lambda uid, path: os.chown(path, int(uid), -1),
            "xattr": lambda path, name, value: os.setxattr(path, name, value.encode()),
            "xattr -d": os.removexattr,
            "ln": os.link,
            "ln -s": os.symlink,
            "mknod": _each(os.mknod),
            "mkfifo": _each(os.mkfifo),
            "mksock": _make_socket,
            "ls": _check_listing,
            "pause": self._pause,
            "resume": self._resume,
        }

    def play(self, command: Command) -> None:
        """Carry out one command; it has to succeed, or to fail as it is said."""
        place = self.source
        if command.front:
            assert self.mount is not None
            place = self.mount.mountpoint
        name, *arguments = command.words
        if arguments and f"{name} {arguments[0]}" in self._commands:
            name = f"{name} {arguments.pop(0)}"
        with contextlib.chdir(place):
            if len(arguments) == 1 and name != "mkdir -p":
                arguments = [_approach(arguments[0])]
            try:
                self._commands[name](*arguments)
            except OSError as error:
                if error.errno != command.error:
                    raise
            else:
                assert command.error is None, f"{shlex.join(command.words)} succeeded"

    def close(self) -> None:
        """Close what a script left open."""
        for fd in self._open.values():
            os.close(fd)

    def _hold(self, path: str, flags: int) -> None:
        self._open[path] = os.open(path, os.O_WRONLY | flags, 0o644)

    @staticmethod
    def _write(path: str, flags: int, data: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | flags, 0o644)
        try:
            if data:
                os.write(fd, data)
        finally:
            os.close(fd)

    def _pause(self) -> None:
        assert self.mount is not None
        self.mount.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.mount.pid, os.WSTOPPED)

    def _resume(self) -> None:
        assert self.mount is not None
        self.mount.process.send_signal(signal.SIGCONT)


def _each(function: Callable[[str], object]) -> Callable[..., None]:
    def call(*paths: str) -> None:
        for path in paths:
            function(path)

    return call


def _approach(path: str) -> str:
    """Go as near to a path as it takes for the kernel to accept the rest of it, which is returned."""
    while len(os.fsencode(path)) > _LONGEST_PATH:
        directory, _, path = path.partition("/")
        os.chdir(directory)
    return path


def _make_path(path: str) -> None:
    for name in path.removesuffix("/").split("/"):
        with contextlib.suppress(FileExistsError):
            os.mkdir(name)
        os.chdir(name)


def _remove_tree(path: str) -> None:
    for name in sorted(os.listdir(path)):
        entry = os.path.join(path, name)
        if os.path.isdir(entry) and not os.path.islink(entry):
            _remove_tree(entry)
        else:
            os.unlink(entry)
    os.rmdir(path)


def _rename(old: str, new: str, flags: int) -> None:
    _linux.renameat2(_linux.AT_FDCWD, os.fsencode(old), _linux.AT_FDCWD, os.fsencode(new), flags)


def _make_socket(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path)


def _check_listing(path: str, *names: str) -> None:
    assert sorted(os.listdir(path)) == sorted(names)


# --- playing -------------------------------------------------------------------------------------------------------


def play(script: Script, directory: Path, watcher: str, authority: Authority) -> dict[str, list[Line]]:
    """Play a script in an empty directory while a `watcher` listens; return what each transport's group was told."""
    source = directory / "source"
    for place in (source, directory / "outside"):
        place.mkdir()
    player = Player(source)
    for command in script.setup:
        player.play(command)
    arguments = ["--watcher", watcher, *listening(authority.daemon)]
    with contextlib.closing(player), mounted(directory, arguments) as mount:
        player.mount = mount
        return anyio.run(_play, script, player, mount, authority.client, watcher == "fanotify", backend="trio")


async def _play(script: Script, player: Player, mount: Mount, tls: Tls, merges: bool) -> dict[str, list[Line]]:
    """Play a script; where the watcher `merges` changes that are unread, each is read before the next is made."""
    places = {"queue file": f"{mount.mountpoint}/", "unix socket": f"unix:{mount.socket}//", "TLS": f"{mount.tls}/"}
    with mock.patch("fusenotify.client.group.resolve_any", _resolve), anyio.fail_after(PATIENCE):
        async with contextlib.AsyncExitStack() as stack:
            groups = {name: await stack.enter_async_context(open_group(tls=tls)) for name in places}
            is_watching = is_paused = False
            for command in script.commands:
                if command.words[0] == "watch":
                    is_watching = True
                    for name, group in groups.items():
                        await _watch(group, places[name], *command.words[1:])
                elif command.words[0] == "sync":
                    await _sync(groups.values())
                else:
                    player.play(command)
                    is_paused = command.words[0] == "pause" or (is_paused and command.words[0] != "resume")
                    if merges and is_watching and not is_paused:
                        await _sync(groups.values())
            await _sync(groups.values())
            (player.source / _END).mkdir()
            for name, group in groups.items():
                await group.mark(places[name] + _END, scope=Scope.DIR, kinds=Kind.CREATE)
            (player.source / _END / "now").touch()
            return {name: [_told(event) async for event in _until_end(group)] for name, group in groups.items()}


def _resolve(given: str | os.PathLike[str]) -> targets.Target:
    """Resolve a target as the library does; `unix:SOCKET//PATH` is a place below the root of a tree."""
    target, _, path = os.fspath(given).partition("//")
    if not target.startswith("unix:"):
        return targets.resolve(given)
    return dataclasses.replace(targets.resolve(target), path=os.fsencode(path))


async def _watch(group: Group, root: str, path: str, scope: str, *options: str) -> None:
    kinds, origin = Kind.DEFAULT, Origin.ANY
    for option in options:
        match option.partition("="):
            case ("kinds", _, names):
                kinds = parse_kinds(names.split(","))
            case ("origin", _, name):
                origin = Origin(name)
            case _:
                assert option in ("exclude-self", "oneshot"), f"{option!r} is no option of watch"
    await group.mark(
        root + path,
        scope=Scope(scope),
        kinds=kinds,
        origin=origin,
        oneshot="oneshot" in options,
        exclude_self="exclude-self" in options,
    )


async def _sync(groups: Iterable[Group]) -> None:
    for group in groups:
        await group.sync()


async def _until_end(group: Group) -> AsyncIterator[Event]:
    """Iterate over what was told before the end of the script, which is all queued before the runner's file is made."""
    async for event in group:
        if event.path == f"{_END}/now":
            return
        if event.path != _END:
            yield event


def _told(event: Event) -> Line:
    note = ""
    if event.origin is Origin.LOCAL and (event.pid, event.uid) != (os.getpid(), os.geteuid()):
        note = f" by process {event.pid} of user {event.uid}"
    return Line(
        kind_name(event.kind),
        event.path,
        event.old_path,
        event.is_dir,
        event.exchange,
        event.origin.value,
        event.recovered,
        note=note,
    )


# --- comparing -----------------------------------------------------------------------------------------------------


def compare(expected: Sequence[Line], told: Sequence[Line]) -> tuple[list[str], list[str]]:
    """Return both as text that is equal if everything that was told is as expected, but for what nobody promises."""
    wanted, found = _merged(expected), _merged(told)
    start = 0
    for is_unordered, lines in itertools.groupby(wanted, lambda line: line.is_unordered):
        block = list(lines)
        end = start + len(block)
        if is_unordered and _is_some_order_of(block, found[start:end]):
            found[start:end] = block
        start = end
    return list(map(str, wanted)), list(map(str, found))


def _merged(lines: Sequence[Line]) -> list[Line]:
    """Return the lines with adjacent identical ones told once, where the kernel may merge them."""
    return [
        line
        for previous, line in itertools.pairwise((None, *lines))
        if line is not None and (line != previous or line.kind not in _MERGING)
    ]


def _is_some_order_of(expected: list[Line], told: list[Line]) -> bool:
    """Whether the same was told in an order that has every directory before what is in it."""
    paths = [line.path or "" for line in told]
    if any(path.startswith(f"{later}/") for place, path in enumerate(paths) for later in paths[place + 1 :]):
        return False
    rest = list(told)
    for line in expected:
        match = next((other for other in rest if line.matches(other)), None)
        if match is None:
            return False
        rest.remove(match)
    return not rest
