"""The event path's engine: from the watcher's bytes to the groups, one batch after the other.

One task waits for the watcher's descriptor and empties the kernel's queue; another works through the buffer. Handlers
of file operations never wait for either. It runs under trio, in the daemon, and under asyncio as well: a client's marks
on other filesystems are heard in the client's own process.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

import anyio
import anyio.lowlevel

from fusenotify.claims import Claims
from fusenotify.crawler import Crawler
from fusenotify.echoes import LocalOperation
from fusenotify.events import EventRecord
from fusenotify.group import Debt, Group
from fusenotify.groups import Groups
from fusenotify.joiner import Item, Joiner
from fusenotify.recovery import Recovery
from fusenotify.renames import LostTrackError
from fusenotify.status import Histogram
from fusenotify.stream import Stream
from fusenotify.translation import OverflowedError, Translator
from fusenotify.watchers.watcher import Watcher

log = logging.getLogger(__name__)

_SLICE: Final = 0.002  # seconds of work between two looks at the rest of the daemon, which may serve a caller meanwhile
_MOST_TRIES: Final = 1000  # looks at a directory whose path is about to change, before it is given up
# How long the second half of a rename may be late. The kernel queues it microseconds after the first.
_PARTNER_TIMEOUT: Final = 0.005
# The same where the old name is there again and nothing has told of that: all that can follow is the other half of an
# exchange, whose author may have lost the processor, unless the backing filesystem does not tell of everything.
_HALF_TIMEOUT: Final = 1.0
# How often the directories are compared in which nothing is heard: seconds, or so many times what that takes.
_DEAF_INTERVAL: Final = 2.0
_DEAF_SHARE: Final = 20


class Hearing:
    """Drives watcher, joiner and translator, and hands what they tell to the groups.

    Attributes:
        before_crawl: awaited before the whole tree is looked at.
        settle_watches: has what marks ask for heard of (see `attention`), step by step.
        latency: how long events took from being read from the kernel until queued.
        pay_arrears: tells groups what they missed while their queues were full (see `Arrears.pay`).
        followers: told everything in order, whatever groups there are; they wait for nothing, and raise nothing.
    """

    def __init__(
        self,
        watcher: Watcher,
        stream: Stream,
        translator: Translator,
        recovery: Recovery,
        crawler: Crawler,
        claims: Claims,
        groups: Groups,
        on_loop: Callable[[Callable[[], None]], Callable[[], None]],
    ) -> None:
        """Wire it up; `on_loop` makes a function callable for changes, which run on another thread."""
        self._watcher = watcher
        self._stream = stream
        self._translator = translator
        self._recovery = recovery
        self._claims = claims
        self._crawler = crawler
        self._exchanges = translator.exchanges
        self.before_crawl: Callable[[], Awaitable[None]] = anyio.lowlevel.checkpoint
        self.settle_watches: Callable[[], Iterable[None]] = tuple
        self._groups = groups
        self.latency = Histogram()
        self._read_at = time.monotonic()  # when what is being told was read from the kernel
        self.pay_arrears: Callable[[Callable[[], bool]], Iterator[bool]] = lambda _: iter(())
        self.followers: list[Callable[[Sequence[EventRecord]], None]] = []
        self._ended = False
        self._joiner = Joiner()
        self._held: list[Item] = []  # a rename that may be half an exchange, or a pair that may be a whole one
        self._held_until = 0.0
        self._work = anyio.Event()
        self._processed = 0
        self._passed_on = 0  # the position up to which the joiner has been fed
        self._last_call: int | None = None  # the position up to which a partner is looked for after its time
        self._patience: tuple[float, int] | None = None  # until when, and for what up to which position, we wait
        self._slice_end = 0.0
        self._waiters: list[tuple[int, anyio.Event]] = []
        self._has_to_start_over = False
        self._next_look = 0.0  # at the directories that are deaf
        self.wake = on_loop(self._wake)  # to be called when there may be something to tell
        watcher.on_data = self.wake
        groups.on_debts = self._wake
        groups.fanout.on_room = self.wake

    async def crawl(self) -> None:
        """Set every watch; from then on no change is missed."""
        await self.before_crawl()
        await self._tell(self._translator.crawl())

    async def run(self) -> None:
        """Publish changes for as long as the daemon runs."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._listen)
            while True:
                self._work = anyio.Event()
                try:
                    if self._has_to_start_over:
                        self._has_to_start_over = False
                        await self._recover(relist=True)
                    await self._work_off()
                except OverflowedError:
                    await self._recover(relist=False)
                except LostTrackError:
                    await self._recover(relist=True)
                except Exception:
                    log.exception("the event path stumbled; what may have been lost is told as an overflow")
                    await self._recover(relist=True)
                await self._wait()

    def end(self) -> None:
        """Tell every group that the tree is heard no more, and nothing after that."""
        for records in self._translator.end():
            self._publish(records)
        self._ended = True

    async def lose_root(self) -> None:
        """Tell what has happened until now, and then that the tree has gone."""
        await self.caught_up()
        for records in self._translator.end():
            self._publish(records)

    def start_over(self) -> None:
        """Look at the whole tree again: what it consists of has changed in a way that nothing tells of."""
        self._has_to_start_over = True
        self._work.set()

    def note(self, operation: LocalOperation) -> None:
        """Take note of an operation through the mount that begins now; `wake` is to be called when it has been made.

        Its event is published at its place in the stream.
        """
        self._claims.note(operation)

    async def caught_up(self) -> None:
        """Return when everything that has happened on the backing tree before this call has been published."""
        position = self._watcher.drain()
        if self._processed >= position and not self._unsettled:
            return
        done = anyio.Event()
        self._waiters.append((position, done))
        self._work.set()
        await done.wait()

    async def attend(self) -> None:
        """Return when the watches hear of everything that the marks ask for."""
        for _ in self.settle_watches():
            await self._take_turns()

    def _wake(self) -> None:
        self._work.set()

    def _publish(self, records: list[EventRecord]) -> None:
        if records and not self._ended:
            self._groups.publish(records)
            for follow in self.followers:
                follow(records)
            self.latency.note(time.monotonic() - self._read_at, len(records))

    async def _wait(self) -> None:
        """Wait for work, and look at what is deaf meanwhile, as often as a small part of the time allows."""
        if not self._recovery.has_deaf or self._translator.root_gone:
            await self._work.wait()
            return
        with anyio.CancelScope(deadline=self._next_look):
            await self._work.wait()
        began = anyio.current_time()
        if began >= self._next_look and not self._has_untold:
            await self.before_crawl()
            await self._tell(self._recovery.look_at_deaf())
            now = anyio.current_time()
            self._next_look = now + max(_DEAF_INTERVAL, _DEAF_SHARE * (now - began))

    async def _recover(self, *, relist: bool) -> None:
        """Tell what was missed; an error in that is the end."""
        await self.before_crawl()
        self._held.clear()
        self._joiner = Joiner()
        for records in self._recovery.run(self._processed, relist=relist):
            self._publish(records)
            if self._recovery.told_to > self._processed:
                self._finish(self._recovery.told_to)
            await self._take_turns()
        self._groups.look_again()
        if self._recovery.root_gone:
            for records in self._translator.end():
                self._publish(records)
        self._patience = None
        self._passed_on = self._recovery.told_to
        self._finish(self._passed_on)
        self._work.set()

    async def _tell(self, batches: Iterable[list[EventRecord]]) -> None:
        """Publish batches as they are made, and let others work in between."""
        for records in batches:
            self._publish(records)
            await self._take_turns()

    async def _take_turns(self) -> None:
        """Let others work when this has gone on for a while; what has a position by then is published."""
        if time.perf_counter() >= self._slice_end:
            self._publish(self._translator.gathered())
            await anyio.lowlevel.checkpoint()
            self._watcher.drain()
            self._slice_end = time.perf_counter() + _SLICE

    @property
    def _unsettled(self) -> bool:
        return bool(self._claims or self._joiner.waiting or self._held or self._translator.doubtful)

    async def _listen(self) -> None:
        while True:
            await anyio.wait_readable(self._watcher.fileno())
            self._watcher.drain()

    async def _work_off(self) -> None:
        self._slice_end = time.perf_counter() + _SLICE
        while True:
            position = self._watcher.drain()
            while (chunk := self._stream.next()) is not None:
                end, events = chunk
                self._read_at = self._watcher.read_at(end)
                await self._pass_on(self._joiner.feed(events))
                self._passed_on = end
                await self.attend()
                await self._pay_debts()
                await self._pay_arrears()
                self._finish(end)
            self._passed_on = max(self._passed_on, position)  # what does not concern the tree has a position too
            if self._joiner.waiting or self._held:
                await self._await_partner()
                continue
            self._patience = None
            await self.attend()
            await self._pay_debts()
            if not self._stream.has_unread:  # though positions may have grown, by what does not concern the tree
                await self._tell(self._translator.look_again(time.time_ns()))
                self._finish(position)
                has_told = await self._pay_arrears()
                if not has_told and not self._groups.debts and not await self._see():
                    if self._is_quiet():
                        self._crawler.tidy_up()
                    return

    async def _await_partner(self) -> None:
        """Wait for more, but for no partner longer than it may take, however much else comes."""
        if self._patience is None:
            self._patience = anyio.current_time() + _PARTNER_TIMEOUT, self._watcher.drain()
            self._last_call = None
        deadline, awaited_up_to = self._patience
        self._work = anyio.Event()
        position = self._watcher.drain()
        if anyio.current_time() < deadline:
            with anyio.CancelScope(deadline=deadline):
                await self._work.wait()
            return
        if self._last_call is None:
            self._last_call = position  # time has passed in work: what was queued meanwhile may hold the partner
        if self._passed_on < self._last_call:
            return
        self._patience = None
        flushed = self._joiner.flush(awaited_up_to)
        if flushed:
            await self._pass_on(flushed)
        elif not self._joiner.waiting and not self._stream.has_unread and self._has_waited_enough():
            end = self._claims.until_known(self._held)
            await self._translate(self._held[:end])
            self._held = self._held[end:]

    def _has_waited_enough(self) -> bool:
        return anyio.current_time() >= self._held_until or not self._exchanges.lacks_half(self._held)

    async def _pass_on(self, items: list[Item]) -> None:
        """Translate items but for the renames at their end that what follows may show in another light."""
        self._held += items
        end = self._claims.until_known(self._held)
        undecided = await self._translate(self._held[:end], more_follows=self._joiner.waiting)
        self._held = undecided + self._held[end:]
        if self._held:
            self._held_until = anyio.current_time() + _HALF_TIMEOUT
            if not self._joiner.waiting:
                self._patience = None  # what was waited for before has come

    async def _translate(self, items: list[Item], *, more_follows: bool | None = None) -> list[Item]:
        """Tell of items, as `Translator.translate` does; return those that it has left."""
        await self._tell(self._translator.translate(items, time.time_ns(), more_follows=more_follows))
        return self._translator.undecided

    async def _pay_debts(self) -> None:
        """Tell groups what is in directories that they are owed, directory by directory, as far as they have room."""
        debts = self._groups.debts
        unpaid: list[Debt] = []
        waiting: set[Group] = set()  # a directory comes before what is in it, so nobody's later debts are paid first
        while debts:
            debt = debts.popleft()
            if debt.group in waiting:
                unpaid.append(debt)
                continue
            entries = None if debt.directory.gone else self._crawler.entries_of(debt.directory)
            # What was just seen is the present, and what is still to be told is told as of the past.
            is_early = self._has_untold or entries is None
            if is_early and not debt.directory.gone and debt.tries < _MOST_TRIES:
                debt.tries += 1
                unpaid.append(debt)
                waiting.add(debt.group)
            elif entries is None:
                debt.group.write_off(debt)
            elif not debt.group.defer(debt, len(entries)):
                debt.group.pay(debt, entries)
                await self._take_turns()
        debts.extend(unpaid)

    async def _see(self) -> bool:
        """Look at what has been told, in case it has to be recovered later; return whether there is more to tell."""
        for _ in self._recovery.see(lambda: self._has_untold):
            await self._take_turns()
        return self._has_untold

    async def _pay_arrears(self) -> bool:
        """Tell groups what they missed while their queues were full; return whether there may be more to tell now."""
        has_told = False
        for is_closer in self.pay_arrears(self._is_quiet):
            has_told |= is_closer
            await self._take_turns()
        return has_told

    def _is_quiet(self) -> bool:
        return not (self._has_untold or self._unsettled or self._groups.debts)

    @property
    def _has_untold(self) -> bool:
        """Whether something has happened on the backing tree that is still to be told."""
        self._watcher.drain()
        return bool(self._joiner.waiting or self._held or self._stream.has_more)

    def _finish(self, position: int) -> None:
        """Take note that the stream has been worked off up to `position`, or to what of it is held back."""
        held = [item[0] for item in self._held[:1]]
        position = min([position, *held, *self._joiner.held_from()])
        for records in self._translator.settle(position, time.time_ns()):
            self._publish(records)
        self._processed = position
        self._watcher.told(position)
        self._stream.told(position)
        is_open = bool(self._groups.debts or self._translator.doubtful)
        for entry in [entry for entry in self._waiters if entry[0] <= position and not is_open]:
            self._waiters.remove(entry)
            entry[1].set()
