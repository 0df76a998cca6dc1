"""What /proc tells of whoever waits for an answer: nothing of somebody outside our pid namespace, or gone meanwhile."""

import os
from typing import Final

_RIGHTS: Final = (b"Groups:", b"CapEff:")


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
    return rights_of(thread_id)[0]


def rights_of(thread_id: int) -> tuple[tuple[int, ...], int]:
    """Return the supplementary groups and the effective capabilities (bits) of a thread; none if it is not known.

    In a user namespace of its own a thread may have capabilities over the users of that namespace only. Whether they
    reach the file in question the kernel has checked before it asked us.
    """
    if thread_id <= 0:
        return (), 0
    try:
        with open(f"/proc/{thread_id}/status", "rb") as file:
            fields = dict(line.split(b":", 1) for line in file.read().splitlines() if line.startswith(_RIGHTS))
    except OSError:
        return (), 0
    return tuple(map(int, fields[b"Groups"].split())), int(fields[b"CapEff"], 16)
