"""Two hosts with a cable between them that can be cut: network namespaces of this machine."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

ADDRESSES = {"daemon": ("10.99.7.1", "fd99::1"), "client": ("10.99.7.2", "fd99::2")}
_CABLE = "cable"


class Network:
    """The hosts `daemon` and `client`, and what is between them."""

    def __init__(self) -> None:
        self._spaces = {name: f"fusenotify-test-{os.getpid()}-{name}" for name in (*ADDRESSES, _CABLE)}

    def on(self, host: str) -> list[str]:
        """Return the beginning of a command that is run on a host; it has the filesystems and processes of this one."""
        return ["nsenter", f"--net=/run/netns/{self._spaces[host]}", "--"]

    def cut(self) -> None:
        """Cut the cable: what is sent is lost, and neither host can tell."""
        self._ip(_CABLE, "link", "set", "bridge", "down")

    def mend(self) -> None:
        """Mend it."""
        self._ip(_CABLE, "link", "set", "bridge", "up")

    def make(self) -> None:
        """Make hosts and cable."""
        for space in self._spaces.values():
            _run("ip", "netns", "add", space)
        self._ip(_CABLE, "link", "add", "bridge", "type", "bridge")
        for host, addresses in ADDRESSES.items():
            end = f"to-{host}"
            self._ip(_CABLE, "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", self._spaces[host])
            self._ip(_CABLE, "link", "set", end, "master", "bridge")
            self._ip(_CABLE, "link", "set", end, "up")
            for address, length in zip(addresses, ("24", "64"), strict=True):
                self._ip(host, "addr", "add", f"{address}/{length}", "dev", "eth0", "nodad")
            for device in ("lo", "eth0"):
                self._ip(host, "link", "set", device, "up")
        self.mend()

    def remove(self) -> None:
        """Remove whatever there is of it."""
        for space in self._spaces.values():
            if os.path.exists(f"/run/netns/{space}"):
                _run("ip", "netns", "del", space)

    def _ip(self, host: str, *arguments: str) -> None:
        _run("ip", "-n", self._spaces[host], *arguments)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make hosts and cable, and remove them whatever happens."""
    made = Network()
    try:
        made.make()
        yield made
    finally:
        made.remove()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
