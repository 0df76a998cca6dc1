"""The sources of a group: daemons, and trees that this process watches itself; who is listened to, and in what order.

What is received waits with its source. Sources are handed on from in the order in which they have received something.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from fusenotify.client.connection import Connection
from fusenotify.client.marks import Source
from fusenotify.errors import DaemonGone, UsageError
from fusenotify.events import Event, Scope
from fusenotify.queue import DEFAULT_LIMIT
from fusenotify.targets import LocalTarget, Target
from fusenotify.transports import Credentials

if TYPE_CHECKING:
    from fusenotify.client.returning import Returning


class Sources:
    """Opens sources, waits for what they tell, and replaces those that were lost."""

    def __init__(self, limit: int | None, *, reconnect: bool, tls: Credentials | None) -> None:
        """Start without any. The arguments are those of `open_group`."""
        self._limit = limit
        self._reconnect = reconnect
        self._tls = tls
        self._by_key: dict[object, Source] = {}
        self._returning: dict[Source, Returning] = {}
        self._opening = anyio.Lock()
        self._arrivals: deque[Source] = deque()  # who has queued something, in the order in which it came
        self._waiting: set[anyio.CancelScope] = set()  # of those who wait for events, to be told of new sources
        self._tasks: TaskGroup | None = None  # for what this process watches itself, and for who is to come back

    def check_open(self) -> None:
        """Refuse what makes sense only inside the group's block.

        Raises:
            UsageError: the group is not open.
        """
        if self._tasks is None:
            raise UsageError("this group is not open: use it inside `async with open_group() as group:`")

    @property
    def tasks(self) -> TaskGroup:
        """Where tasks are started that live no longer than the group (UsageError: it is not open)."""
        self.check_open()
        assert self._tasks is not None
        return self._tasks

    async def start(self) -> None:
        """Make it possible to open sources."""
        self._tasks = await anyio.create_task_group().__aenter__()

    async def aclose(self) -> None:
        """Hang up on every daemon, and watch nothing any more."""
        tasks, self._tasks = self.tasks, None
        tasks.cancel_scope.cancel()
        for waiting in self._waiting:
            waiting.cancel()
        # The tasks have nothing to do with an error of the group's block, which leaves it as it is.
        await tasks.__aexit__(None, None, None)
        while self._by_key:
            await self._by_key.popitem()[1].aclose()

    def __iter__(self) -> Iterator[Source]:
        """Iterate over those that there are now."""
        return iter(tuple(self._by_key.values()))

    def get(self, key: object) -> Source | None:
        """Return the source that `find` has given a key, None if there is none any more."""
        return self._by_key.get(key)

    async def find(self, target: Target | LocalTarget, scope: Scope) -> tuple[object, Source]:
        """Return the source for marks on a target, and its key; it is opened unless there is one.

        Raises:
            FusenotifyError: it cannot be had, in the words of its kind.
        """
        key = (target.real, scope) if isinstance(target, LocalTarget) else target.key
        async with self._opening:
            source = self._by_key.get(key)
            if source is None:
                source = self._by_key[key] = await self._open(target, scope)
                for waiting in self._waiting:
                    waiting.cancel()
            return key, source

    async def let_go(self, key: object, source: Source) -> None:
        """Stop watching what nobody wants to hear of."""
        if source.is_idle and self._by_key.get(key) is source:
            del self._by_key[key]
            await source.aclose()

    async def _open(self, target: Target | LocalTarget, scope: Scope) -> Source:
        tasks = self.tasks
        limit = self._limit or DEFAULT_LIMIT
        if isinstance(target, LocalTarget):
            from fusenotify.client.local import LocalTree  # noqa: PLC0415 - most have no use for the event path

            tree = LocalTree(target, scope, limit, self._arrivals.append)
            try:
                await tree.start(tasks)
            except BaseException:
                await tree.aclose()
                raise
            return tree
        connection = Connection(target, await target.connect(self._tls), limit, self._arrivals.append)
        try:
            await connection.hello(self._limit or 0)
        except BaseException:
            await connection.aclose()
            raise
        return connection

    # --- what they tell ----------------------------------------------------------------------------------------------

    async def take_what_is_there(self) -> None:
        """Receive from others as well before what waits is handed on: who is always busy must not keep us from them."""
        silent = [source for source in self._by_key.values() if not source.has_news]
        if not silent or not self._arrivals:
            return

        failed: list[Exception] = []

        async def read(source: Source) -> None:
            try:
                await source.read()
            except (DaemonGone, anyio.ClosedResourceError):
                pass  # that is met again when all has been handed on
            except Exception as error:
                failed.append(error)

        async with anyio.create_task_group() as tasks:
            for source in silent:
                tasks.start_soon(read, source)
            for _ in range(2):  # by then each has had its turn, and has read what is there
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        if failed:
            raise failed[0]

    def pop(self) -> tuple[Source, list[Event]] | None:
        """Return some of the events that came first, and who told them; None when nothing waits."""
        if not self._arrivals:
            return None
        source = self._arrivals.popleft()
        events = source.pop()
        if source.has_news and source not in self._arrivals:
            self._arrivals.append(source)
        return source, events

    async def wait(self) -> None:
        """Wait until there is more to hand on, or somebody else to listen to.

        Raises:
            DaemonGone: nothing more will come from one of them.
            ClosedResourceError: the group has been closed.
        """
        with anyio.CancelScope() as waiting:  # what is read is not lost when it is cancelled
            self._waiting.add(waiting)
            try:
                if not self._by_key:
                    await anyio.sleep_forever()
                await self._read_first(tuple(self._by_key.values()))
            finally:
                self._waiting.remove(waiting)
        if self._tasks is None:
            raise anyio.ClosedResourceError

    async def _read_first(self, sources: Sequence[Source]) -> None:
        if len(sources) == 1:
            await self._read(sources[0])
            return
        failed: list[Exception] = []

        async def read(source: Source, scope: anyio.CancelScope) -> None:
            try:
                await self._read(source)
            except Exception as error:
                failed.append(error)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            for source in sources:
                tasks.start_soon(read, source, tasks.cancel_scope)
        if failed:
            raise failed[0]

    async def _read(self, source: Source) -> None:
        try:
            await source.read()
        except DaemonGone:
            if not self._reconnect:
                raise
            await self._wait_for_return(source)
        except anyio.ClosedResourceError:
            if self._tasks is None or source in self._by_key.values():
                raise  # else it was let go of, and there are others to listen to

    # --- those that come back ----------------------------------------------------------------------------------------

    async def _wait_for_return(self, lost: Source) -> None:
        """Return when another source has taken the place of one that was lost."""
        returning = self._returning.get(lost)
        if returning is None:
            from fusenotify.client.returning import Returning  # noqa: PLC0415 - few have a use for it

            returning = self._returning[lost] = Returning(lost, self._open, self._replace)
            self.tasks.start_soon(returning.run)
        await returning.wait()

    async def _replace(self, lost: Source, found: Source) -> None:
        for key in [key for key, source in self._by_key.items() if source is lost]:
            self._by_key[key] = found
        del self._returning[lost]
        await lost.aclose()
