"""`fusenotify watch`."""

import argparse
import os
import select
import sys
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote
from typing import Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from fusenotify.cli import output
from fusenotify.cli.credentials import credentials_of
from fusenotify.client import Group, Mark, open_group, scope_of
from fusenotify.errors import UsageError
from fusenotify.events import (
    EXCHANGE,
    IS_DIR,
    LOCAL,
    RECOVERED,
    Event,
    Kind,
    Origin,
    kind_name,
    parse_kinds,
    utc_text,
)
from fusenotify.tls import Tls

_TIMED_OUT = 3
Batch = list[Event] | str  # events, or the cursor from which on changes are told as they happen
_NOT_BLOCKING = 4096  # bytes that a pipe takes at once when poll(2) says that it is writable (PIPE_BUF)


def run(options: argparse.Namespace) -> int:
    """Print events until enough have come, the time is over, or the daemon has gone."""
    return anyio.run(_watch, options)


async def _watch(options: argparse.Namespace) -> int:
    output.check_open()
    tls = credentials_of(options)
    async with open_group(limit=options.limit, tls=tls, reconnect=options.reconnect) as group:
        marks = [await _mark(group, target, options, tls) for target in options.targets]
        if options.json:
            output.put_line(_ready_line(marks))
        else:
            print(f"watching (cursor {marks[0].cursor})", file=sys.stderr, flush=True)
        batches, received = anyio.create_memory_object_stream[Batch](float("inf"))
        collector = _Collector(group, batches, options.events, marks if options.since is not None else [])
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_end_with_the_reader)
                async with anyio.create_task_group() as printing:
                    printing.start_soon(_print, received, options.json, len(marks) > 1)
                    with batches, anyio.move_on_after(options.timeout):
                        await collector.run()
                tasks.cancel_scope.cancel()
        except BaseExceptionGroup as errors:
            # Whichever task failed, there is one error in the end.
            raise _first(errors) from None
        return 0 if collector.collected >= (options.events or 1) else _TIMED_OUT


async def _mark(group: Group, target: str, options: argparse.Namespace, tls: Tls | None) -> Mark:
    return await group.mark(
        target,
        scope=await scope_of(target, recursive=not options.no_recursive, tls=tls),
        kinds=_kinds(options.kinds),
        origin=Origin(options.origin),
        handles=options.handles,
        ignore=options.ignore,
        exclude_self=options.not_me,
        uids=options.uid,
        since=options.since,
    )


class _Collector:
    """Reads events as fast as they come, however slowly they can be printed.

    A reader of our output that pauses is this process's business and its memory, not a reason to lose events.
    """

    def __init__(
        self, group: Group, batches: MemoryObjectSendStream[Batch], count: int | None, recalling: list[Mark]
    ) -> None:
        """Prepare to read `count` events, or without end; `recalling` are marks that are to become live once."""
        self.collected = 0
        self._group = group
        self._recalling = recalling
        self._batches = batches
        self._count = count

    async def run(self) -> None:
        """Return once there are as many events as were asked for."""
        while self._count is None or self.collected < self._count:
            events = await self._group.batch()
            if self._count is not None:
                events = events[: self._count - self.collected]
            self.collected += len(events)
            self._batches.send_nowait(events)
            if self._recalling and all(mark.live is not None for mark in self._recalling):
                self._batches.send_nowait(self._recalling[0].live or "")
                self._recalling = []


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _end_with_the_reader() -> None:
    """Raise BrokenPipeError when nobody reads our output any more: an idle tree would never let us notice."""
    with select.epoll() as epoll:
        try:
            epoll.register(sys.stdout.fileno(), 0)  # an error or a hang-up is told in any case
        except PermissionError:
            return  # a file or /dev/null, which has no reader to lose
        await anyio.wait_readable(epoll)
    raise BrokenPipeError


def _kinds(text: str | None) -> Kind:
    if text is None:
        return Kind.DEFAULT
    try:
        return parse_kinds(text.split(","))
    except ValueError as error:
        raise UsageError(f"--kinds: {error}") from error


async def _print(batches: MemoryObjectReceiveStream[Batch], as_json: bool, are_several: bool) -> None:
    line = _json_line if as_json else _text_line_with_target if are_several else _text_line
    poll = select.poll()
    poll.register(sys.stdout.fileno(), select.POLLOUT)
    with anyio.CancelScope(shield=True):
        async for batch in batches:
            if isinstance(batch, str):
                _put_live(batch, as_json=as_json)
                continue
            data = "".join([line(event) for event in batch]).encode()
            if len(data) <= _NOT_BLOCKING and poll.poll(0):
                output.write(data)
            else:
                await anyio.to_thread.run_sync(output.write, data, abandon_on_cancel=True)


def _ready_line(marks: list[Mark]) -> str:
    # One cursor stands for all: the targets of one command are of one daemon, but for those who ask for more.
    return f'{{"type":"ready","cursor":{quote(marks[0].cursor)}}}'


def _put_live(cursor: str, *, as_json: bool) -> None:
    if as_json:
        output.put_line(f'{{"type":"live","cursor":{quote(cursor)}}}')
    else:
        print(f"live (cursor {cursor})", file=sys.stderr, flush=True)


def _json_line(event: Event) -> str:
    """Return one line of JSON. Built by hand: it is what a busy `watch` spends its time on."""
    record = event.record
    flags = record.flags
    reason = f',"reason":"{record.reason}"' if record.reason else ""
    return (
        f'{{"type":"event","target":{_text(_target(event))}'
        f',"kind":"{kind_name(record.kind)}","path":{_path(record.path)},"old_path":{_path(record.old_path)}'
        f',"exchange":{_BOOL[flags & EXCHANGE]},"is_dir":{_BOOL[flags & IS_DIR]}'
        f',"origin":"{"local" if flags & LOCAL else "remote"}","handle":{_text(record.handle)}'
        f',"parent":{_text(record.parent)},"old_parent":{_text(record.old_parent)}'
        f',"cursor":"{event.cursor}","time":"{_time(record.time_ns)}","pid":{_number(record.pid)}'
        f',"uid":{_number(record.uid)},"recovered":{_BOOL[flags & RECOVERED]}{reason}}}\n'
    )


def _target(event: Event) -> str | None:
    return event.mark.target if isinstance(event.mark, Mark) else None


_BOOL: Final = {0: "false", EXCHANGE: "true", IS_DIR: "true", RECOVERED: "true"}
_time = lru_cache(maxsize=16)(utc_text)  # events that were read together have one time


def _text(text: str | None) -> str:
    return "null" if text is None else quote(text)


def _path(path: bytes | None) -> str:
    return "null" if path is None else quote(os.fsdecode(path))


def _number(value: int | None) -> str:
    return "null" if value is None else str(value)


def _text_line_with_target(event: Event) -> str:
    return f"{output.shown(_target(event)) or '(all)'}: {_text_line(event)}"


def _text_line(event: Event) -> str:
    match event.kind:
        case Kind.RENAME:
            arrow = "<->" if event.exchange else "->"
            what = f"{output.shown(event.old_path) or '(outside)'} {arrow} {output.shown(event.path) or '(outside)'}"
        case Kind.OVERFLOW:
            where = "everything" if event.path is None else output.shown(event.path)
            return f"{'':6} overflow    events were lost ({event.reason}): look again at {where}\n"  # on neither side
        case Kind.UNMOUNT:
            return f"{'':6} unmount\n"
        case _:
            what = output.shown(event.path) + ("/" if event.is_dir and event.path != "." else "")
    note = " recovered" if event.recovered else ""
    return f"{event.origin.value:<6} {kind_name(event.kind):<11} {what}{note}\n"
