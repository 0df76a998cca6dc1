"""Convergence: who mirrors a tree by nothing but events, and looks at the paths they name, ends up with the tree.

A machine goes through steps chosen at random: changes on both sides, by one thread or two; events that are read late,
or not at all; a daemon that is stopped, overrun, ended or killed; a connection that is lost. Whenever it checks, and in
the end, the mirror has to become the tree again.

It goes by seeds, not by hypothesis: a step takes from a millisecond to half a second, so they have to be weighted, and
what fails is most often a race, which no shrinking repeats. What failed is told step by step, with all that was heard.
"""

import itertools
import os
import random
import shutil
import signal
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from trio.to_thread import run_sync

from fusenotify import DaemonGone, Event, Kind, Reason, open_group
from tests.harness import FUSENOTIFY, PATIENCE, Restartable, changed
from tests.mirror import Differences, Mirror, differences
from tests.reading import hang_up
from tests.soak import SEED, examples
from tests.test_overflow import blackout
from tests.workload import NOISE, Workload, overflow_fanotify, overflow_inotify

RUNS = examples(70, 7000)  # with each kind of daemon
CHANGES = 12  # in one step, by all threads together
LINKS = threading.Lock()
# Of few paths only it is noted one by one that a group has missed them; directories stand for the others.
FORGETFUL = """
from fusenotify.doubt import Doubt
Doubt.__init__.__defaults__ = (6, 4096)
"""


@dataclass(frozen=True)
class Variety:
    """A kind of daemon.

    Attributes:
        name: what it is called here.
        overflow: makes the kernel lose what follows, given the tree and a directory beside it.
        falls_behind: whether listeners always have so short a queue that they do.
    """

    name: str
    watcher: str
    command: Sequence[str]
    overflow: Callable[[Path, Path], None]
    falls_behind: bool = False


VARIETIES = [
    Variety("inotify", "inotify", FUSENOTIFY, lambda tree, _: overflow_inotify(tree)),
    Variety("fanotify", "fanotify", FUSENOTIFY, lambda _, beside: overflow_fanotify(beside)),
    Variety("forgetful", "inotify", changed(FORGETFUL), lambda tree, _: overflow_inotify(tree), falls_behind=True),
]


class Tree(Restartable):
    """A tree that is served by some kind of daemon, and a directory on the same filesystem and outside of it."""

    def __init__(self, directory: Path, variety: Variety) -> None:
        self.variety = variety
        self.outside = directory / "outside"
        super().__init__(directory, ["--watcher", variety.watcher], variety.command)

    def empty(self) -> None:
        shutil.rmtree(self.outside, ignore_errors=True)
        self.outside.mkdir()
        for entry in os.scandir(self.source):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry)
            else:
                os.unlink(entry)


@pytest.fixture(scope="module", params=VARIETIES, ids=lambda one: one.name)
def shared(tmpfs: Path, request: pytest.FixtureRequest) -> Iterator[Tree]:
    with tempfile.TemporaryDirectory(dir=tmpfs) as name, closing(Tree(Path(name), request.param)) as tree:
        yield tree


@pytest.fixture
def tree(shared: Tree) -> Tree:
    """One tree for all runs with a kind of daemon: empty, and served."""
    if shared.mount.process.poll() is not None:
        shared.start()
    shared.empty()
    return shared


@dataclass(frozen=True)
class Plan:
    """What is the same throughout a run.

    Attributes:
        sides: where changes are made: on the backing tree, through the mount.
        threads: how many threads make them.
        marked: the marked directory; where it is not the root, `out` beside it is the outside.
        by_socket: whether events come by the unix socket, which knows the root only, or by the queue file.
        limit: how many events the queue holds; None for as many as there may be.
        looks_at_mount: whether the mirror looks at the mount, not at the backing tree.
    """

    sides: tuple[str, ...]
    threads: int
    marked: str
    by_socket: bool
    limit: int | None
    looks_at_mount: bool

    @classmethod
    def of(cls, dice: random.Random, *, falls_behind: bool) -> "Plan":
        sides = dice.choice([("source",), ("source", "mount"), ("source", "mount"), ("mount",)])
        marked = dice.choice([".", "in"])
        return cls(
            sides=sides,
            threads=dice.choice([1, 2]),
            marked=marked,
            by_socket=marked == "." and dice.random() < 0.7,
            limit=dice.choice([1, 2, 10, 30, 100]) if falls_behind or dice.random() < 0.4 else None,
            # A local change is told before the call that made it has returned: who reads through the mount at once may
            # be too early for it.
            looks_at_mount="mount" not in sides and dice.random() < 0.5,
        )


def make(files: Iterable[Path]) -> None:
    for file in files:
        file.touch()


class Machine:
    """Does things to a tree while a mirror follows it."""

    def __init__(self, tree: Tree, plan: Plan, seed: str) -> None:
        self.log: list[str] = []
        self._tree = tree
        self._plan = plan
        self._dice = random.Random(seed)
        self._inside = tree.source / plan.marked
        self._workloads = [self._workload(f"{seed} {number}") for number in range(plan.threads)]
        self._group = open_group(limit=plan.limit, reconnect=True)
        self._mirror = Mirror(self._group, tree.mountpoint if plan.looks_at_mount else tree.source)
        self._is_owed = False  # whether more may come of what has happened long ago
        self._probes = itertools.count()

    def _workload(self, seed: str) -> Workload:
        sides = {"source": self._tree.source, "mount": self._tree.mountpoint}
        if self._plan.marked == ".":
            inside, outside = sides, {"source": self._tree.outside}
        else:
            inside = {side: root / self._plan.marked for side, root in sides.items()}
            outside = {side: root / "out" for side, root in sides.items()}
        return Workload(random.Random(seed), inside, outside, self._plan.threads == 1, LINKS, self.log)

    async def run(self) -> None:
        if self._plan.marked != ".":
            for name in (self._plan.marked, "out"):
                (self._tree.source / name).mkdir()
        target = (
            f"unix:{self._tree.mount.socket}" if self._plan.by_socket else self._tree.mountpoint / self._plan.marked
        )
        async with self._group:
            await self._group.mark(target)
            for step in self._dice.choices(list(STEPS), list(STEPS.values()), k=self._dice.randrange(2, 7)):
                self.log.append(f"--- {step.__name__}")
                await step(self)
            await self.check()
            make(Path(where, "later") for where, _, _ in os.walk(self._inside))  # each is heard under its right name
            await self.check()

    # --- steps -------------------------------------------------------------------------------------------------------

    async def changes(self) -> None:
        async with self._reading():
            await run_sync(self._change, self._plan.sides)

    async def changes_that_nobody_reads(self) -> None:
        await run_sync(self._change, self._plan.sides)

    async def changes_while_the_daemon_is_stopped(self) -> None:
        async with self._reading():
            await run_sync(self._change_unheard, lambda: None)

    async def changes_that_the_kernel_loses(self) -> None:
        async with self._reading():
            await run_sync(self._change_unheard, self._overflow)

    async def a_lost_connection(self) -> None:
        if self._plan.by_socket:
            await run_sync(self._change, self._plan.sides)
            hang_up(self._group)
        await self.changes()

    async def an_end_of_the_daemon(self) -> None:
        await self._restart(signal.SIGTERM)

    async def a_kill_of_the_daemon(self) -> None:
        await self._restart(signal.SIGKILL)

    async def check(self) -> None:
        """Read until the mirror is the tree.

        It has to be as soon as the last change is told. But where a queue was full, or the daemon or the connection was
        lost, more is owed, which comes when nothing else happens.
        """
        self._is_owed |= not await self._sync()
        while True:
            wrong, is_live = await self._probe()
            if not wrong and (is_live or not self._is_owed):
                break
            assert self._is_owed, f"(told, there): {wrong}\n{self.story()}"
            while self.differences():
                for event in await self._group.batch():
                    self._take(event)
        self._is_owed = False

    async def _sync(self) -> bool:
        """Wait for what has happened to be queued; return whether there is a daemon to wait for."""
        try:
            await self._group.sync()
        except DaemonGone:  # reading waits for another one
            return False
        return True

    async def _probe(self) -> tuple[Differences, bool]:
        """Make something and read until it is told; return what is wrong then, and if it was told as it happened."""
        probe = self._inside / f"probe {next(self._probes)}"
        os.mkfifo(probe)  # this is one event
        told = await self._read_until_told(str(probe.relative_to(self._tree.source)))
        wrong = self.differences()
        os.unlink(probe)
        return wrong, not told.recovered

    def differences(self) -> Differences:
        """Compare the mirror with the tree."""
        found = differences(self._mirror, self._tree.source, self._inside)
        found.pop(self._plan.marked, None)  # nobody tells of the marked directory itself
        return found

    # --- changing ----------------------------------------------------------------------------------------------------

    def _change(self, sides: tuple[str, ...]) -> None:
        """Make changes, by as many threads as there are."""
        threads = [
            threading.Thread(target=one.run, args=(CHANGES // len(self._workloads), sides)) for one in self._workloads
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _change_unheard(self, lose: Callable[[], None]) -> None:
        with blackout(self._tree.mount):
            self._change(("source",))  # this is heard in the end, unless it has been lost before
            lose()
            self._change(("source",))

    def _overflow(self) -> None:
        self._tree.variety.overflow(self._tree.source, self._tree.outside)

    async def _restart(self, how: signal.Signals) -> None:
        def restart() -> None:
            self._change(self._plan.sides)
            self._tree.stop(how)
            self._change(("source",))
            self._tree.start()

        async with self._reading():
            await run_sync(restart)

    # --- reading -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        """Have the mirror follow what is told while the block lasts, or not."""
        async with trio.open_nursery() as reading:
            if self._dice.random() < 0.7:
                reading.start_soon(self._read_until_told, None)
            yield
            reading.cancel_scope.cancel()

    async def _read_until_told(self, path: str | None) -> Event:
        """Have the mirror follow what is told until it has been told of a path, for ever without; return the last."""
        async for event in self._group:
            self._take(event)
            if path is not None and self._mirror.replica.knows(path):
                return event
        raise AssertionError

    def _take(self, event: Event) -> None:
        self._mirror.take(event)
        self._is_owed |= event.kind is Kind.OVERFLOW and event.reason is not Reason.KERNEL

    def story(self) -> str:
        """Tell what the machine did, and what was heard of it."""
        told = [repr(event) for event in self._mirror.events if event.path not in NOISE and "probe" not in repr(event)]
        return "\n".join([repr(self._plan), "--- done", *self.log, "--- told", *told])


Step = Callable[[Machine], Awaitable[None]]
# By how often they are taken: some cost half a second, most some milliseconds.
STEPS: dict[Step, int] = {
    Machine.changes: 20,
    Machine.changes_that_nobody_reads: 10,
    Machine.changes_while_the_daemon_is_stopped: 10,
    Machine.a_lost_connection: 5,
    Machine.changes_that_the_kernel_loses: 1,
    Machine.an_end_of_the_daemon: 1,
    Machine.a_kill_of_the_daemon: 1,
    Machine.check: 8,
}


@pytest.mark.parametrize("number", range(RUNS))
async def test_a_mirror_converges_whatever_happens(tree: Tree, number: int) -> None:
    seed = f"{SEED} {tree.variety.name} {number}"
    machine = Machine(tree, Plan.of(random.Random(seed), falls_behind=tree.variety.falls_behind), seed)
    with trio.move_on_after(PATIENCE) as patience:
        await machine.run()
    assert not patience.cancelled_caught, f"(told, there): {machine.differences()}\n{machine.story()}"
