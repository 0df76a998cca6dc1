"""Who waits for an answer, and what /proc tells of it: nothing if it is outside our pid namespace, or gone."""

import os
from typing import NamedTuple

import pyfuse3


class Credentials(NamedTuple):
    """The rights of a client: user, group and supplementary groups."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def process_of(thread_id: int) -> int | None:
    """Return the process that a thread belongs to, None where nothing is known of it."""
    if thread_id <= 0:
        return None
    try:
        os.close(os.pidfd_open(thread_id))  # works for the main thread only, and is ten times faster than /proc
        return thread_id
    except OSError:
        pass
    try:
        with open(f"/proc/{thread_id}/status", "rb") as file:
            return next((int(line[5:]) for line in file if line.startswith(b"Tgid:")), None)
    except OSError:
        return None


def groups_of(thread_id: int) -> tuple[int, ...]:
    """Return the supplementary groups of a thread; none where nothing is known of it, which gives it fewer rights."""
    if thread_id <= 0:
        return ()
    try:
        return tuple(sorted(pyfuse3.get_sup_groups(thread_id)))
    except OSError:
        return ()
