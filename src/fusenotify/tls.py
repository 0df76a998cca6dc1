"""The credentials of one end of a TLS connection. Both ends show a certificate, and check the other's."""

import os
import ssl
import time
from dataclasses import dataclass
from typing import Final

from fusenotify.errors import EnvironmentProblem

# In the reason of an SSLError: the other end said why it does not want us.
REFUSED: Final = "_ALERT_"

_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Tls:
    """PEM files to prove with who we are, and to check who the other end is.

    Attributes:
        cert: our certificate, followed by those of the authorities between it and one that the other end knows.
        key: its private key, not encrypted.
        ca: certificates of the authorities whose certificates the other end may show.
    """

    cert: _Path
    key: _Path
    ca: _Path

    def client_context(self) -> ssl.SSLContext:
        """Return what a client shakes hands with; the daemon's certificate has to name the host. Reads the files.

        Raises:
            EnvironmentProblem: a file is missing or makes no sense: which, and why.
        """
        return self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))

    def server_context(self) -> ssl.SSLContext:
        """Return what a daemon shakes hands with. Reads the files.

        Raises:
            EnvironmentProblem: a file is missing or makes no sense, or no client would accept the certificate.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.num_tickets = 0  # a client shows its certificate each time that it comes
        self._load(context)
        self._check_presentable(context)
        return context

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are ours
        context.verify_mode = ssl.CERT_REQUIRED
        for path in (self.cert, self.key, self.ca):
            _check_readable(path)
        self._load_authorities(context)
        try:
            context.load_cert_chain(self.cert, self.key, password=self._refuse_password)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise EnvironmentProblem(f"the key {self.key} is not that of the certificate {self.cert}") from error
            raise EnvironmentProblem(
                f"cannot use the certificate {self.cert} with the key {self.key}: both have to be PEM files ({error})"
            ) from error
        return context

    def _load_authorities(self, context: ssl.SSLContext) -> None:
        try:
            context.load_verify_locations(cafile=self.ca)
        except ssl.SSLError as error:
            raise EnvironmentProblem(
                f"cannot use the authority {self.ca}: it has to be a PEM file ({error})"
            ) from error
        authorities = context.get_ca_certs()
        if not authorities:
            raise EnvironmentProblem(f"{self.ca} holds no certificate of an authority, so nobody could be believed")
        ends = [ssl.cert_time_to_seconds(str(authority["notAfter"])) for authority in authorities]
        if max(ends) < time.time():
            raise EnvironmentProblem(f"every authority in {self.ca} has expired, so nobody could be believed")

    def _refuse_password(self) -> str:
        # OpenSSL would ask for it at the terminal.
        raise EnvironmentProblem(f"the key {self.key} is encrypted; decrypt it and protect it by its mode")

    def _check_presentable(self, context: ssl.SSLContext) -> None:
        """Shake hands with a client in this process that trusts our certificate, and nothing else.

        Raises:
            EnvironmentProblem: it has expired, is not valid yet, or is not for a server.
        """
        skeptic = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        skeptic.check_hostname = False  # the daemon cannot know by which of its names it is called
        skeptic.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        skeptic.load_verify_locations(cafile=self.cert)
        to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = skeptic.wrap_bio(to_client, to_server)
        server = context.wrap_bio(to_server, to_client, server_side=True)
        for end in (client, server, client):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass  # it is the other's turn
            except ssl.SSLCertVerificationError as error:
                raise EnvironmentProblem(
                    f"no client would accept the certificate {self.cert}: {error.verify_message}"
                ) from error


def _check_readable(path: _Path) -> None:
    """Raise EnvironmentProblem with the file's name, which the errors of `ssl` leave out."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise EnvironmentProblem(f"cannot read {os.fspath(path)}: {error.strerror}") from error
