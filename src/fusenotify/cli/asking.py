"""Asking a daemon that may not answer."""

import functools
import threading

import anyio

from fusenotify import client
from fusenotify.errors import DaemonGone, FusenotifyError
from fusenotify.status import Status
from fusenotify.tls import Tls


def ask_status(target: str, patience: float, tls: Tls | None = None) -> Status:
    """Return what a daemon says of itself.

    It is asked on a thread that nobody waits for at the end: a system call on a mount whose daemon hangs stays there.

    Args:
        target: a path on a mount, or where a daemon listens.
        patience: seconds.
        tls: what an address that begins with `tls:` needs.

    Raises:
        DaemonGone: it does not answer in time; else the errors of `client.status`.
    """
    answers: list[Status | FusenotifyError] = []

    def ask() -> None:
        try:
            answers.append(anyio.run(functools.partial(client.status, target, tls=tls)))
        except FusenotifyError as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    if not answers:
        raise DaemonGone(f"the daemon of {target} does not answer within {patience:.0f} s")
    if isinstance(answers[0], FusenotifyError):
        raise answers[0]
    return answers[0]
