"""Where daemons listen: `unix:PATH` and `tls://HOST:PORT`. Pure data."""

import os
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlsplit

from fusenotify.errors import UsageError

_UNIX: Final = "unix:"
_TLS: Final = "tls://"


@dataclass(frozen=True)
class UnixAddress:
    """A unix socket; the text of it is `unix:PATH`."""

    path: str

    def __str__(self) -> str:
        return f"{_UNIX}{self.path}"


@dataclass(frozen=True)
class TlsAddress:
    """TLS over TCP; the text of it is `tls://HOST:PORT`, with brackets around an IPv6 address.

    Attributes:
        host: a host name or an IP address.
        port: for listening 0 is any port that is free.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"{_TLS}[{self.host}]:{self.port}" if ":" in self.host else f"{_TLS}{self.host}:{self.port}"


Address = UnixAddress | TlsAddress


def is_address(text: str) -> bool:
    """Return whether a text has the form of an address, rather than that of a path."""
    return text.startswith((_UNIX, _TLS))


def parse_address(text: str) -> Address:
    """Read where a daemon is to listen.

    Raises:
        UsageError: it is neither `unix:PATH` nor `tls://HOST:PORT`.
    """
    if not is_address(text):
        raise UsageError(f"--listen takes unix:PATH or tls://HOST:PORT, not {text!r}")
    address, path = parse_place(text)
    if path != b".":
        raise UsageError(f"{text!r} has a path behind the port, where nothing can listen: leave it out")
    return address


def parse_place(text: str) -> tuple[Address, bytes]:
    """Read an address that may have a path below the root behind it, `tls://HOST:PORT/PATH`; `.` is the root itself.

    The path is taken as it is: there is no percent-encoding.

    Raises:
        UsageError: it has another form.
    """
    if text.startswith(_UNIX) and text != _UNIX:
        return UnixAddress(text.removeprefix(_UNIX)), b"."
    authority, _, path = text.removeprefix(_TLS).partition("/")
    names = [name for name in path.split("/") if name not in ("", ".")]
    try:
        parts = urlsplit(f"//{authority}")
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")  # what cannot be looked up
    except ValueError as error:
        raise UsageError(f"{text!r} is no address: {error}") from error
    if not text.startswith(_TLS) or not host or port is None or "@" in authority or parts.netloc != authority:
        raise UsageError(f"{text!r} is no address: it has to be unix:PATH or tls://HOST:PORT, such as tls://[::1]:7000")
    return TlsAddress(host, port), os.fsencode("/".join(names)) or b"."


def absolute(address: Address) -> Address:
    """Return an address that means the same in every working directory."""
    if isinstance(address, UnixAddress):
        return replace(address, path=os.path.abspath(address.path))
    return address
