"""The main job, shown and proven: `make demo`.

Mounts an empty backing tree and then, behind the mount, copies Python's own library into it, renames directories, edits
and deletes. One listener prints the stream, as `fusenotify watch` shows it; another one builds a replica of the tree
from nothing but its events and a look at the paths they name. In the end the replica has to be the tree.
"""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import fusenotify
from examples.replica import Replica, Seen, look

FUSENOTIFY = [sys.executable, "-m", "fusenotify"]
END = ".the-end"
CHANGES = {fusenotify.Kind.MODIFY, fusenotify.Kind.ATTRIB, fusenotify.Kind.CLOSE_WRITE}  # of a file
RENAMES = 3  # of directories, the first ones that the demo makes
SHOWN = 12  # lines of the stream at its beginning and at its end


def main() -> int:
    """Run the demo; 0 if the replica equals the tree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="print every line of the stream")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fusenotify-demo-") as name:
        source, mountpoint, state = (Path(name) / part for part in ("data", "mount", "state"))
        for path in (source, mountpoint):
            path.mkdir()
        with mounted(source, mountpoint, state), printed_stream(mountpoint, show_all=options.all):
            equal, report = asyncio.run(mirror(source, mountpoint))
    print(report)
    print("The replica equals the tree." if equal else "THE REPLICA DIFFERS FROM THE TREE.")
    return 0 if equal else 1


@contextmanager
def mounted(source: Path, mountpoint: Path, state: Path) -> Iterator[None]:
    """Mount in the background, as a user would."""
    run("mount", source, mountpoint, "--daemon", "--state-dir", state)
    try:
        yield
    finally:
        run("umount", mountpoint)


def run(*arguments: str | Path) -> None:
    """Run a fusenotify command and show it."""
    print("$ fusenotify", *arguments, flush=True)
    subprocess.run([*FUSENOTIFY, *arguments], check=True)


@contextmanager
def printed_stream(mountpoint: Path, *, show_all: bool) -> Iterator[None]:
    """Show what `fusenotify watch` prints meanwhile: its beginning and its end, or all of it."""
    print(f"$ fusenotify watch {mountpoint}", flush=True)
    process = subprocess.Popen(
        [*FUSENOTIFY, "watch", mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    print(process.stderr.readline(), end="", flush=True)
    lines: list[str] = []
    reader = threading.Thread(target=show, args=(process.stdout, lines, show_all))
    reader.start()
    try:
        yield
    finally:
        reader.join(30)
        process.terminate()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    if not show_all and len(lines) > 2 * SHOWN:
        between = lines[SHOWN:-SHOWN]
        print(f"… {len(between)} more (all of them with --all), directories that were renamed among them:")
        print(*[line for line in between if " rename " in line][:RENAMES], sep="", end="…\n")
        print(*lines[-SHOWN:], sep="", end="")


def show(stream: Iterator[str], lines: list[str], show_all: bool) -> None:
    """Collect lines up to the last one of the demo, and print those that are to be seen at once."""
    for line in stream:
        lines.append(line)
        if show_all or len(lines) <= SHOWN:
            print(line, end="", flush=True)
        if END in line:
            return


async def mirror(source: Path, mountpoint: Path) -> tuple[bool, str]:
    """Change the tree in a thread, follow it by events alone, and compare in the end."""
    replica = Replica(mountpoint)
    kinds: Counter[str] = Counter()
    start = time.perf_counter()
    async with fusenotify.watch(mountpoint) as events:
        work = asyncio.create_task(asyncio.to_thread(change_behind, source))
        while not replica.knows(END):
            batch = await events.batch()
            kinds.update(str(event.kind) for event in batch)
            for event in worth_a_look(batch):
                replica.apply(event)
        changed_for = await work
        mirrored_after = time.perf_counter() - start - changed_for
    truth = dict(look_at(source))
    report = (
        f"\n{sum(kinds.values())} events: {', '.join(f'{count} {kind}' for kind, count in kinds.most_common())}\n"
        f"The changes took {changed_for:.1f} s; {mirrored_after:.1f} s later all was mirrored.\n"
        f"Tree: {len(truth)} paths. Replica: {len(replica.snapshot())} paths, from {replica.looks} looks."
    )
    return replica.snapshot() == truth, report


def worth_a_look(batch: list[fusenotify.Event]) -> Iterator[fusenotify.Event]:
    """Leave out changes of a file that the next event tells of too: one look is enough for all of them."""
    for event, following in zip(batch, [*batch[1:], None], strict=True):
        if following is None or event.path != following.path or not {event.kind, following.kind} <= CHANGES:
            yield event


def change_behind(source: Path) -> float:
    """Do what people do to source trees, all of it behind the mount; return the seconds it took."""
    start = time.perf_counter()
    library = source / "project" / "lib"
    library.parent.mkdir()
    shutil.copytree(
        sysconfig.get_paths()["stdlib"], library, symlinks=True,
        ignore=shutil.ignore_patterns("__pycache__", "site-packages", "*.a"),
    )  # fmt: skip
    (library / "json").rename(library / "json-renamed")  # a directory, in place
    (library / "asyncio").rename(source / "moved-asyncio")  # and to another one
    library.rename(source / "project" / "python")  # and one with everything in it
    python = source / "project" / "python"
    for path in sorted(python.glob("*.py"))[:200]:
        with path.open("a") as file:
            file.write("# edited\n")
    for path in sorted(python.glob("[a-c]*.py"))[:30]:  # as editors save: write aside, rename over
        aside = path.with_suffix(".tmp")
        aside.write_text("# saved\n")
        aside.rename(path)
    for name in ("email", "unittest"):
        shutil.rmtree(python / name)
    os.link(python / "os.py", source / "hard-link.py")
    os.symlink("project/python/os.py", source / "soft-link.py")
    (source / END).touch()
    return time.perf_counter() - start


def look_at(root: Path) -> Iterator[tuple[str, Seen]]:
    """Yield every path of a tree and what is there, by walking it."""
    for directory, names, files in os.walk(root):
        for name in names + files:
            path = Path(directory) / name
            yield str(path.relative_to(root)), look(path)


if __name__ == "__main__":
    sys.exit(main())
