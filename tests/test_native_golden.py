"""Every golden script, heard by an ordinary inotify program on the mount as by one on the backing tree.

After each step both wait until everything was replayed, and watch what is new: every directory, file and link. A step
through the mount has to be heard on it as the kernel tells it, once, whatever the daemon does for it on the backing.
"""

import contextlib
from pathlib import Path

import pytest

from tests import golden
from tests.harness import mounted
from tests.native import Barrier, Program, merged, objects_below
from tests.soak import SOAK

SCRIPTS = sorted((Path(__file__).parent / "golden").glob("*.txt"))
_NOT_DONE = frozenset({"watch", "sync", "ls"})  # what groups of ours do, and what tells nothing


@pytest.mark.parametrize("watcher", ["inotify", "fanotify"] if SOAK else ["inotify"])
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_golden(path: Path, watcher: str, directory: Path) -> None:
    script = golden.parse(path.read_text(encoding="utf-8"))
    behind, before = play(script, directory, watcher)
    assert before == behind, f"{path.name}: what is heard on the mount is not what is heard behind it"


def play(script: golden.Script, directory: Path, watcher: str) -> tuple[list[str], list[str]]:
    """Play a script; return what was heard of each step on the backing tree and on the mount."""
    source = directory / "source"
    for place in (source, directory / "outside"):
        place.mkdir()
    player = golden.Player(source)
    for command in script.setup:
        player.play(command)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(player))
        mount = stack.enter_context(mounted(directory, ["--watcher", watcher, "--native", "always"]))
        player.mount = mount
        programs = [stack.enter_context(contextlib.closing(Program(root))) for root in (source, mount.mountpoint)]
        barrier = Barrier(mount, *programs)
        barrier.heard()
        told: tuple[list[str], list[str]] = [], []
        is_paused = False
        for command in script.commands:
            if command.words[0] in _NOT_DONE:
                continue
            if not is_paused:
                for program in programs:
                    program.watch_all(objects_below(source))
            player.play(command)
            is_paused = command.words[0] == "pause" or (is_paused and command.words[0] != "resume")
            if not is_paused:
                for lines, heard in zip(told, barrier.heard(), strict=True):
                    lines += [f"# {' '.join(command.words)}", *merged(heard)]
        return told
