"""Prints what was measured: Markdown tables of medians, a column for each program."""

import json
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence

Figures = dict[str, float]
OURS = "fusenotify"


def interleaved(columns: Mapping[str, Callable[[], Figures]], rounds: int) -> dict[str, list[Figures]]:
    """Measure every column once in each round, one after the other, so that a busy minute is nobody's alone."""
    results: dict[str, list[Figures]] = {name: [] for name in columns}
    for number in range(1, rounds + 1):
        for name, measure in columns.items():
            print(f"round {number} of {rounds}: {name}", file=sys.stderr, flush=True)
            results[name].append(measure())
    return results


def machine() -> str:
    """Return on what is measured, and what else it has to do."""
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    return f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; load {load}"


def print_table(title: str, results: Mapping[str, Sequence[Figures]], against: Sequence[str] = ()) -> None:
    """Print a table; `against` are the columns that ours is divided by, as far as they are there."""
    names = list(results)
    against = [name for name in against if name in results]
    heads = [*names, *(f"÷ {name}" for name in against)]
    print(f"\n### {title}\n\n| | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}")
    for figure in dict.fromkeys(figure for rounds in results.values() for one in rounds for figure in one):
        medians = {name: _median(results[name], figure) for name in names}
        cells = ["-" if value is None else f"{value:.3g}" for value in medians.values()]
        cells += [_ratio(medians.get(OURS), medians[name]) for name in against]
        print(f"| {figure} | {' | '.join(cells)} |")
    print(f"\n{max(map(len, results.values()))} rounds; {machine()}", flush=True)
    print(json.dumps({title: dict(results)}), file=sys.stderr)


def _median(rounds: Sequence[Figures], figure: str) -> float | None:
    values = [one[figure] for one in rounds if figure in one]
    return statistics.median(values) if values else None


def _ratio(ours: float | None, other: float | None) -> str:
    return f"{ours / other:.2f}" if ours is not None and other else "-"
