"""Who waits for an answer, and what /proc tells of it: nothing if it is outside our pid namespace, or gone."""

import os
from typing import NamedTuple


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


def user_of(process_id: int) -> int | None:
    """Return the user with whose rights a process uses filesystems, None where nothing is known of it."""
    try:
        with open(f"/proc/{process_id}/status", "rb") as file:
            return next((int(line.split()[4]) for line in file if line.startswith(b"Uid:")), None)
    except OSError:
        return None


def is_child(process_id: int) -> bool:
    """Whether a process was started by this one, False where nothing is known of it."""
    try:
        with open(f"/proc/{process_id}/status", "rb") as file:
            return any(line.startswith(b"PPid:") and int(line[5:]) == os.getpid() for line in file)
    except OSError:
        return False


def groups_of(thread_id: int) -> tuple[int, ...]:
    """Return the supplementary groups of a thread; none where nothing is known of it, which gives it fewer rights."""
    return rights_of(thread_id)[0]


def rights_of(thread_id: int) -> tuple[tuple[int, ...], int]:
    """Return the supplementary groups and the effective capabilities (bits) of a thread; none if it is not known.

    Capabilities in another user namespace, which anybody can make, mean nothing outside it: there they are none.
    """
    if thread_id <= 0:
        return (), 0
    try:
        fd = os.open(f"/proc/{thread_id}/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = piece = os.read(fd, 1 << 12)
            while piece and b"\nCapBnd:" not in status:  # which comes behind both; with many groups it is long
                piece = os.read(fd, 1 << 16)
                status += piece
        finally:
            os.close(fd)
    except OSError:
        return (), 0
    capabilities = int(_field(status, b"\nCapEff:"), 16)
    if capabilities and not _in_our_user_namespace(thread_id):
        capabilities = 0
    return tuple(map(int, _field(status, b"\nGroups:").split())), capabilities


def _in_our_user_namespace(thread_id: int) -> bool:
    try:
        return os.readlink(f"/proc/{thread_id}/ns/user") == os.readlink("/proc/self/ns/user")
    except OSError:
        return False


def _field(status: bytes, name: bytes) -> bytes:
    start = status.index(name) + len(name)
    return status[start : status.index(b"\n", start)]
