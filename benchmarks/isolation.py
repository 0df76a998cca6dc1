"""Measures what clients that do not read cost the others: `python benchmarks/isolation.py [--queues N] [--changes N]`.

One client listens and a program uses the mount, first alone, then beside thousands of opened queue files that nobody
reads, with a mark each, and after many changes. Prints a Markdown table.
"""

import argparse
import os
import resource
import select
import statistics
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fusenotify import protocol  # noqa: E402 - run as a script
from fusenotify.events import DEFAULT  # noqa: E402
from fusenotify.protocol import AddMark, Done, Events, FrameBuffer, Hello, Sync, Welcome  # noqa: E402
from tests.harness import Mount, mounted  # noqa: E402

PROBES = 300
PAUSE = 0.005  # seconds between two probes
BURST = 9_000  # changes between two barriers, so that the kernel's queue of 16384 is not what overflows


class Client:
    """A queue file with a mark on everything."""

    def __init__(self, mount: Mount, limit: int = 0) -> None:
        self.fd = os.open(mount.mountpoint / ".fusenotify" / "queue", os.O_RDWR)
        self._poll = select.poll()
        self._poll.register(self.fd, select.POLLIN)
        self._frames = FrameBuffer(1 << 24)
        self.events = 0
        self.ask(Hello(1, limit))
        self.ask(AddMark(1, 1, b".", "subtree", DEFAULT, 3))

    def ask(self, message: protocol.Request) -> None:
        """Send a request and wait for the answer."""
        os.write(self.fd, protocol.encode(message))
        while not any(isinstance(reply, Done | Welcome) for reply in self.read()):
            pass

    def read(self) -> list[protocol.Reply]:
        """Wait for something and return it."""
        self._poll.poll()
        try:
            data = os.read(self.fd, 1 << 17)
        except BlockingIOError:
            return []
        replies = [protocol.decode_reply(payload) for payload in self._frames.feed(data)]
        self.events += sum(len(reply.records) for reply in replies if isinstance(reply, Events))
        return replies

    def wait_for(self, path: bytes) -> None:
        """Read until an event on a path comes."""
        while not any(
            record.path == path for reply in self.read() if isinstance(reply, Events) for record in reply.records
        ):
            pass


def memory(mount: Mount, field: str = "VmRSS") -> float:
    """Return the memory of the daemon, MiB."""
    for line in Path(f"/proc/{mount.pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise LookupError(field)


def change(mount: Mount, client: Client, changes: int) -> float:
    """Change the tree behind the mount so many times, and return the seconds until all of it is queued."""
    started = time.perf_counter()
    path = mount.source / "changed"
    for number in range(0, changes, BURST):
        for _ in range(min(BURST, changes - number) // 3):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
            os.unlink(path)
        client.ask(Sync(1))
    return time.perf_counter() - started


def latencies(mount: Mount, client: Client) -> dict[str, float]:
    """Return how long an event takes to a reader, and an operation through the mount, in ms."""
    client.ask(Sync(1))
    events, operations = [], []
    for number in range(PROBES):
        name = f"probe{number}"
        started = time.perf_counter()
        (mount.source / name).mkdir()
        client.wait_for(name.encode())
        events.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        (mount.mountpoint / name).rmdir()
        operations.append(1000 * (time.perf_counter() - started))
        time.sleep(PAUSE)
    return {
        "event p50 ms": statistics.median(events),
        "event p99 ms": statistics.quantiles(events, n=100)[98],
        "rmdir on the mount p50 ms": statistics.median(operations),
        "rmdir on the mount p99 ms": statistics.quantiles(operations, n=100)[98],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queues", type=int, default=10_000, help="queue files that nobody reads")
    parser.add_argument("--changes", type=int, default=1_000_000)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, options.queues + 1000)), hard))
    rows: list[tuple[str, float | str, float | str]] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="fusenotify-bench-") as name, mounted(Path(name)) as mount:
        reader = Client(mount)
        alone = latencies(mount, reader)
        alone["1000 changes ms"] = 1000 * change(mount, reader, 90_000) / 90
        before = memory(mount)
        hoarder = Client(mount, limit=1 << 20)
        change(mount, reader, 300_000)
        rows.append(("memory per unread event, bytes", (memory(mount) - before) * (1 << 20) / 300_000, ""))
        os.close(hoarder.fd)
        reader.ask(Sync(1))
        before = memory(mount)
        silent = [Client(mount) for _ in range(options.queues)]
        opened = memory(mount)
        crowded_changes = change(mount, reader, options.changes)
        crowded = latencies(mount, reader)
        crowded["1000 changes ms"] = 1000 * crowded_changes / (options.changes / 1000)
        rows += [(row, alone[row], crowded[row]) for row in alone]
        rows.append(("memory of the daemon MiB", before, f"{opened:.0f} opened, {memory(mount):.0f} after"))
        rows.append(("memory of the daemon at most MiB", "", memory(mount, "VmHWM")))
        for client in silent:
            os.close(client.fd)
    print(f"| | alone | beside {options.queues} queue files that nobody reads, {options.changes} changes |")
    print("|---|---|---|")
    for row, *figures in rows:
        print("|", row, "|", " | ".join(f"{one:.3g}" if isinstance(one, float) else one for one in figures), "|")


if __name__ == "__main__":
    main()
