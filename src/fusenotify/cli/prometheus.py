"""Status as text for Prometheus (exposition format 0.0.4)."""

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final, NamedTuple

from fusenotify.status import LATENCY_BOUNDS, Histogram, Status

_ESCAPES: Final = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class _Metric(NamedTuple):
    """A metric; `samples` yields (what is added to its name, labels, value) of one daemon."""

    name: str
    kind: str
    text: str
    samples: Callable[[Status], Iterator[tuple[str, dict[str, str], float]]]


def metrics_of(states: Sequence[Status]) -> str:
    """Return the figures of some daemons, told apart by the label `mountpoint`."""
    lines: list[str] = []
    for metric in _METRICS:
        name = f"fusenotify_{metric.name}"
        lines += [f"# HELP {name} {metric.text}", f"# TYPE {name} {metric.kind}"]
        for state in states:
            for suffix, labels, value in metric.samples(state):
                told = {"mountpoint": os.fsdecode(state.mountpoint), **labels}
                inside = ",".join(f'{key}="{label.translate(_ESCAPES)}"' for key, label in told.items())
                lines.append(f"{name}{suffix}{{{inside}}} {value}")
    return "\n".join(lines)


def _one(figure: Callable[[Status], float]) -> Callable[[Status], Iterator[tuple[str, dict[str, str], float]]]:
    def samples(state: Status) -> Iterator[tuple[str, dict[str, str], float]]:
        yield "", {}, figure(state)

    return samples


def _histogram(
    figure: Callable[[Status], Histogram],
) -> Callable[[Status], Iterator[tuple[str, dict[str, str], float]]]:
    def samples(state: Status) -> Iterator[tuple[str, dict[str, str], float]]:
        histogram = figure(state)
        bounds = [*map(str, LATENCY_BOUNDS), "+Inf"]
        for bound, count in zip(bounds, accumulate(histogram.counts), strict=True):
            yield "_bucket", {"le": bound}, count
        yield "_sum", {}, histogram.total
        yield "_count", {}, sum(histogram.counts)

    return samples


def _queues(figure: str) -> Callable[[Status], Iterator[tuple[str, dict[str, str], float]]]:
    def samples(state: Status) -> Iterator[tuple[str, dict[str, str], float]]:
        for number, queue in enumerate(state.queues):
            yield "", {"group": str(number), "uid": str(queue.uid)}, getattr(queue, figure)

    return samples


def _replays(state: Status) -> Iterator[tuple[str, dict[str, str], float]]:
    yield "", {"how": "delivered"}, state.replays.delivered
    yield "", {"how": "fell_back"}, state.replays.fell_back


_METRICS: Final = (
    _Metric("watches", "gauge", "Watches set on the backing tree.", _one(lambda state: state.watches)),
    _Metric("watch_limit", "gauge", "Watches that the user may have.", _one(lambda state: state.watch_limit)),
    _Metric("deaf_directories", "gauge", "Directories in which not all is heard.", _one(lambda state: state.deaf)),
    _Metric("nodes", "gauge", "Nodes that the kernel holds.", _one(lambda state: state.nodes)),
    _Metric("groups", "gauge", "Groups that listen.", _one(lambda state: state.groups)),
    _Metric("events_total", "counter", "Events told.", _one(lambda state: state.told)),
    _Metric("kernel_overflows_total", "counter", "Losses of the kernel's queue.", _one(lambda state: state.overflows)),
    _Metric("recoveries_total", "counter", "Losses that were repaired.", _one(lambda state: state.recoveries)),
    _Metric("replays_total", "counter", "Remote events that were raised on the mount, or not.", _replays),
    _Metric("replayers_stuck_total", "counter", "Replayers given up.", _one(lambda state: state.replays.stuck)),
    _Metric("queue_waiting", "gauge", "Events that a group has not read.", _queues("waiting")),
    _Metric("queue_limit", "gauge", "Events that a group may leave unread.", _queues("limit")),
    _Metric("queue_dropped", "gauge", "Events that a group had no room for.", _queues("dropped")),
    _Metric("queue_overflows", "gauge", "Overflow events queued for a group.", _queues("overflows")),
    _Metric(
        "queued_seconds",
        "histogram",
        "From the kernel into the queues.",
        _histogram(lambda state: state.latency.queued),
    ),
    _Metric("sent_seconds", "histogram", "From being told to a client.", _histogram(lambda state: state.latency.sent)),
)
