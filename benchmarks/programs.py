"""The small C programs that make work at full speed, and what they are measured with."""

import subprocess
from collections.abc import Iterator
from pathlib import Path


def compiled(name: str, directory: Path) -> Path:
    """Compile one of the C files here into a directory, and return the program."""
    program = directory / f"{name}.program"
    source = Path(__file__).with_name(f"{name}.c")
    subprocess.run(["gcc", "-O2", "-Wall", "-o", program, source], check=True)
    return program


def memory_of(pid: int) -> int:
    """Return the memory of a process and of those that it has started, bytes; what they share is counted once."""
    return sum(_proportional(one) for one in _family(pid))


def resident(pid: int) -> int:
    """Return the resident memory of a process, bytes."""
    return _bytes_of(Path(f"/proc/{pid}/status"), "VmRSS:")


def _family(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _family(int(child))


def _proportional(pid: int) -> int:
    return _bytes_of(Path(f"/proc/{pid}/smaps_rollup"), "Pss:")


def _bytes_of(path: Path, field: str) -> int:
    return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith(field))
