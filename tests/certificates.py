"""An authority of the tests' own, and certificates of it, as PEM files."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import trustme

from fusenotify.tls import Tls

NAMES = ("localhost", "127.0.0.1", "::1", "10.99.7.1", "fd99::1")  # of the daemons of the tests


class Authority:
    """Makes certificates, each with its key in files of its own."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self._made = 0
        self.ca = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(self.ca)
        self.daemon = self.issue(*NAMES)
        self.client = self.issue("somebody")

    def issue(self, *names: str, expired: bool = False) -> Tls:
        """Return new credentials for some names."""
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        end = now - day if expired else now + day
        made = self._ca.issue_cert(*names, not_before=now - 2 * day, not_after=end)
        self._made += 1
        cert, key = (self._directory / f"{self._made}.{kind}.pem" for kind in ("cert", "key"))
        for blob in made.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        made.private_key_pem.write_to_path(key)
        return Tls(cert, key, self.ca)


def options(tls: Tls) -> Sequence[str]:
    """Return credentials as options of a command."""
    return "--cert", str(tls.cert), "--key", str(tls.key), "--ca", str(tls.ca)


def listening(tls: Tls, host: str = "localhost") -> Sequence[str]:
    """Return the options with which a daemon listens for TLS, at a port that is free."""
    return "--listen", f"tls://{host}:0", *options(tls)
