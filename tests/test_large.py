"""Large directories and many open files. In full with FUSENOTIFY_SOAK=1; large and sparse files: `conformance`."""

import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.filesystems import filesystem
from tests.harness import Mount, mounted
from tests.soak import examples

ENTRIES = examples(20_000, 200_000)


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def full(request: pytest.FixtureRequest, tmpfs: Path) -> Iterator[Mount]:
    """A mount of a tree with one large directory, `large`."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=tmpfs, ignore_cleanup_errors=True)))
        if request.param == "ext4":
            directory = stack.enter_context(filesystem("ext4", directory, f"{ENTRIES // 50}M"))
        large = directory / "source" / "large"
        large.mkdir(parents=True)
        for number in range(ENTRIES):
            os.close(os.open(large / f"stays{number}", os.O_CREAT))
        yield stack.enter_context(mounted(directory))


def test_a_large_directory_is_listed_while_it_changes(full: Mount) -> None:
    """By others, on both sides; and what is listed of it is taken up again at places told before."""
    chance = random.Random(1)
    behind, front = full.source / "large", full.mountpoint / "large"
    extra = iter(range(10 * ENTRIES))
    made: list[Path] = []
    seen: Counter[str] = Counter()
    with os.scandir(front) as listing:
        for entry in listing:
            seen[entry.name] += 1
            if chance.random() < 0.05:
                made.append(chance.choice((behind, front)) / f"comes and goes {next(extra)}")
                made[-1].touch()
            if made and chance.random() < 0.03:
                (chance.choice((behind, front)) / made.pop(chance.randrange(len(made))).name).unlink()
    doubled = [name for name, count in seen.items() if count > 1]
    assert doubled == []
    assert sum(name.startswith("stays") for name in seen) == ENTRIES
    for path in made:
        path.unlink()


def test_listing_a_large_directory(full: Mount) -> None:
    """The figures are for docs/performance.md."""
    for place in (full.source, full.mountpoint):
        began = time.monotonic()
        names = os.listdir(place / "large")
        print(f"{len(names)} names of {place} in {time.monotonic() - began:.2f} s")
        assert len(names) == len(set(names)) == ENTRIES


def resident(mount: Mount) -> int:
    """Return how much memory the daemon has, in bytes."""
    status = Path(f"/proc/{mount.pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmRSS:"))


def test_a_listing_keeps_no_copy_of_the_directory(full: Mount) -> None:
    with ExitStack() as stack:
        stack.callback(Path("/proc/sys/vm/drop_caches").write_text, "2")
        next(stack.enter_context(os.scandir(full.mountpoint / "large")))
        before = resident(full)
        for _ in range(40):
            next(stack.enter_context(os.scandir(full.mountpoint / "large")))
        grown = resident(full) - before
    print(f"40 listings of {ENTRIES} names: {grown >> 10} KiB")
    assert grown < 40 << 19  # twice what it is; the names of 20 000 entries alone would be more


def test_five_thousand_files_are_open_at_once(mount: Mount) -> None:
    old = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(old[0], 6000), max(old[1], 6000)))
    fds: list[int] = []
    try:
        for number in range(5000):
            fds.append(os.open(mount.mountpoint / f"f{number}", os.O_CREAT | os.O_RDWR))
            os.write(fds[-1], b"%d" % number)
        for number, fd in enumerate(fds):
            assert os.pread(fd, 9, 0) == b"%d" % number
            assert os.fstat(fd).st_size == len(str(number))
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, old)
