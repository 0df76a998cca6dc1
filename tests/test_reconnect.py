"""Daemons that go and come back: iteration goes on, and a mirror that follows events converges."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest

from fusenotify import DaemonGone, Event, Kind, Reason, open_group, transports, watch
from tests.certificates import Authority, listening, options
from tests.harness import Mount, Restartable, Watch, run
from tests.names import Names, follow_until
from tests.reading import Run, connection_of, hang_up

WAYS = ["queue file", "socket", "TLS"]


class Service(Restartable):
    """A tree that is served by the queue file, a unix socket and TLS.

    Attributes:
        tls: the credentials of its clients.
    """

    def __init__(self, directory: Path, authority: Authority) -> None:
        self.tls = authority.client
        super().__init__(directory, listening(authority.daemon))

    def start(self) -> Mount:
        mount = super().start()
        # Started again, it has to be where its clients look for it.
        self._arguments = ["--listen", mount.tls, *self._arguments[2:]]
        return mount

    def stop(self, how: signal.Signals) -> None:
        super().stop(how)
        assert not os.path.ismount(self.mountpoint)

    def settle(self) -> None:
        """Return when the tree is known to the journal, and everything that was told is written down."""
        for arguments in (("since", self.mountpoint, "0"), ("cursor", self.mountpoint)):
            assert run(*arguments).returncode == 0

    def forget(self) -> None:
        """Lose the history of what has changed, as with a state directory that is deleted."""
        for path in self._state.glob("store.sqlite*"):
            path.unlink()

    def target(self, way: str) -> str:
        places = {"queue file": str(self.mountpoint), "socket": f"unix:{self.mount.socket}", "TLS": self.mount.tls}
        return places[way]


@pytest.fixture
def service(directory: Path, authority: Authority) -> Iterator[Service]:
    service = Service(directory, authority)
    try:
        yield service
    finally:
        service.close()


def change(source: Path) -> None:
    """Change a tree in every way that a listener could miss."""
    (source / "gone" / "file").unlink()
    (source / "gone").rmdir()
    (source / "old").rename(source / "new")
    os.makedirs(source / "made" / "deep")
    (source / "made" / "deep" / "file").touch()


def fill(source: Path) -> None:
    os.makedirs(source / "gone")
    os.makedirs(source / "old" / "below")
    (source / "gone" / "file").touch()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
@pytest.mark.parametrize("way", WAYS)
def test_a_mirror_converges_over_a_restart(service: Service, go: Run[None], way: str, how: signal.Signals) -> None:
    """What has changed meanwhile is told, and nothing is lost."""
    fill(service.source)
    check_convergence(service, go, way, how, [])


def test_a_mirror_converges_when_what_has_changed_is_not_known(service: Service, go: Run[None]) -> None:
    """Everything is told then."""
    fill(service.source)
    check_convergence(service, go, "socket", signal.SIGKILL, [Reason.RESTART])


def check_convergence(
    service: Service, go: Run[None], way: str, how: signal.Signals, overflows: list[Reason | None]
) -> None:
    mirror = Names(service.source)

    async def main() -> None:
        async with watch(service.target(way), reconnect=True, tls=service.tls) as group:
            (service.source / "before").touch()
            await follow_until(group, mirror, service.source)
            await anyio.to_thread.run_sync(service.settle)
            service.stop(how)
            if overflows:
                service.forget()
            change(service.source)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(follow_until, group, mirror, service.source)
                await anyio.wait_all_tasks_blocked()
                service.start()
            (service.source / "after").mkdir()
            await follow_until(group, mirror, service.source)
            assert mirror.overflows == overflows

    go(main)


def test_marks_stay_what_they_are(service: Service, go: Run[None]) -> None:
    for name in "ab":
        (service.source / name).mkdir()

    async def main() -> None:
        async with open_group(reconnect=True) as group:
            marks = [await group.mark(service.mountpoint / name) for name in "ab"]
            service.stop(signal.SIGKILL)
            service.forget()
            service.start()
            overflow = await anext(group)
            assert (overflow.kind, overflow.reason, overflow.path) == (Kind.OVERFLOW, Reason.RESTART, None)
            for name in "ab":
                (service.source / name / "x").mkdir()
            await group.sync()
            told: set[tuple[object, str | None]] = set()
            while len(told) < len(marks):  # what is made while everything is told anew may be told twice
                event = await anext(group)
                told.add((event.mark, event.path))
            assert told == {(marks[0], "a/x"), (marks[1], "b/x")}
            await group.unmark(marks[0])
            for name in "ab":
                (service.source / name / "y").mkdir()
            while (event := await anext(group)).path != "b/y":
                assert (event.mark, event.path) == (marks[1], "b/x")
            assert event.mark is marks[1]

    go(main)


def test_others_are_heard_while_one_is_away(service: Service, directory: Path, go: Run[None]) -> None:
    (directory / "local").mkdir()

    async def main() -> None:
        async with watch(service.mountpoint, directory / "local", reconnect=True) as group:
            await anyio.to_thread.run_sync(service.settle)
            service.stop(signal.SIGKILL)
            for number in range(3):
                (directory / "local" / f"{number}").mkdir()
                assert (await anext(group)).path == f"{directory}/local/{number}"
            service.start()
            (service.source / "x").mkdir()
            assert (await anext(group)).path == "x"

    go(main)


def test_a_connection_that_is_lost_while_nothing_happens_loses_nothing(service: Service, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(service.target("socket"), reconnect=True) as group:
            (service.source / "before").mkdir()
            assert (await anext(group)).path == "before"
            connection = hang_up(group)
            async with anyio.create_task_group() as tasks:
                told: list[Event] = []

                async def read() -> None:
                    told.append(await anext(group))

                tasks.start_soon(read)
                while connection in group._sources:
                    await anyio.lowlevel.checkpoint()
                (service.source / "after").mkdir()
            assert [(event.kind, event.path) for event in told] == [(Kind.CREATE, "after")]

    go(main)


def test_a_connection_that_is_lost_with_events_loses_nothing(service: Service, go: Run[None]) -> None:
    fill(service.source)
    mirror = Names(service.source)

    async def main() -> None:
        async with watch(service.target("socket"), reconnect=True) as group:
            hang_up(group)
            change(service.source)
            await follow_until(group, mirror, service.source)
            assert mirror.overflows == []

    go(main)


def test_a_queue_file_that_is_lost_while_it_is_about_to_be_read_is_closed(service: Service, go: Run[None]) -> None:
    async def main() -> None:
        lost = await transports.QueueFile.open(os.fspath(service.mountpoint))
        await lost.aclose()
        with (service.source / "file").open("x"), pytest.raises(anyio.ClosedResourceError):  # it may have the number
            await lost.receive()
        await lost.aclose()

    go(main)


@pytest.mark.parametrize("way", ["queue file", "socket"])
def test_a_request_to_a_connection_that_has_been_replaced_has_no_answer(
    service: Service, go: Run[None], way: str
) -> None:
    async def main() -> None:
        async with watch(service.target(way), reconnect=True) as group:
            await connection_of(group).aclose()
            with pytest.raises(DaemonGone):
                await group.sync()

    go(main)


def test_without_reconnect_it_is_the_end(service: Service, go: Run[None]) -> None:
    async def main() -> None:
        async with watch(service.mountpoint) as group:
            service.stop(signal.SIGKILL)
            with pytest.raises(DaemonGone):
                await anext(group)

    go(main)


def test_a_directory_on_no_mount_comes_back_too(directory: Path, go: Run[None]) -> None:
    place = directory / "place"
    place.mkdir()

    async def main() -> None:
        async with watch(place, reconnect=True) as group:
            place.rmdir()
            assert (await anext(group)).kind is Kind.UNMOUNT
            os.makedirs(directory / "new" / "below")
            (directory / "new").rename(place)
            told = [await anext(group), await anext(group)]
            assert (told[0].kind, told[0].reason, told[0].path) == (Kind.OVERFLOW, Reason.RESTART, str(place))
            assert (told[1].kind, told[1].path, told[1].recovered) == (Kind.CREATE, f"{place}/below", True)

    go(main)


def test_everything_is_told_through_a_short_queue(service: Service, go: Run[None]) -> None:
    """What is owed waits for room; it is no reason for another overflow."""
    for number in range(50):
        os.makedirs(service.source / f"{number}" / "b" / "c")
    mirror = Names(service.source)

    async def main() -> None:
        async with watch(service.target("socket"), limit=60, reconnect=True) as group:
            service.stop(signal.SIGKILL)
            service.forget()
            service.start()
            mirror.follow(await anext(group))
            await follow_until(group, mirror, service.source)
            assert mirror.overflows == [Reason.RESTART]

    go(main)


def test_what_is_told_anew_is_told_after_the_directory_that_it_is_in(service: Service, go: Run[None]) -> None:
    """What does not fit into the queue is put off; what is below it would fit, and has to wait."""
    for one in range(8):
        for other in range(8):
            os.makedirs(service.source / f"{one}" / f"{other}" / "below")

    async def main() -> None:
        async with watch(service.target("socket"), limit=10, reconnect=True) as group:
            service.stop(signal.SIGKILL)
            service.start()
            await anext(group)
            told = {""}
            while len(told) <= 8 + 8 * 8 * 2:
                path = (await anext(group)).path or ""
                assert os.path.dirname(path) in told
                told.add(path)

    go(main)


@pytest.mark.parametrize("way", WAYS)
def test_the_command_goes_on(service: Service, watching: Callable[..., Watch], way: str) -> None:
    target = service.target(way)
    watch = watching("--reconnect", target, *(options(service.tls) if way == "TLS" else ()))
    service.settle()
    service.stop(signal.SIGKILL)
    (service.source / "x").mkdir()
    service.start()
    # The directory that something was made in may be named as well.
    lines = [line for line in watch.until("x") if line["path"] != "."]
    assert [(line["kind"], line["path"], line["recovered"]) for line in lines] == [("create", "x", True)]
    (service.source / "y").mkdir()
    assert [line["target"] for line in watch.until("y")] == [target]


def test_the_command_says_when_it_does_not_know_what_has_changed(
    service: Service, watching: Callable[..., Watch]
) -> None:
    watch = watching("--reconnect", service.mountpoint)
    service.stop(signal.SIGKILL)
    service.forget()
    (service.source / "x").mkdir()
    service.start()
    lines = watch.until("x")
    assert [(line["kind"], line["path"], line["recovered"]) for line in lines] == [
        ("overflow", None, False), ("create", "x", True)
    ]  # fmt: skip
    assert (lines[0]["reason"], lines[0]["target"]) == ("restart", str(service.mountpoint))


def test_a_mark_whose_directory_is_gone_ends(service: Service, watching: Callable[..., Watch]) -> None:
    (service.source / "sub").mkdir()
    watch = watching("--reconnect", service.mountpoint / "sub", service.mountpoint)
    service.settle()
    service.stop(signal.SIGKILL)
    (service.source / "sub").rmdir()
    (service.source / "x").mkdir()
    service.start()
    told = {(line["kind"], line["path"]) for line in watch.until("x")}
    assert told - {("delete", "sub"), ("modify", ".")} == {("create", "x")}
    watch.close()
