"""With whose rights the system calls of an operation are made."""

import contextlib
import os
from collections.abc import Iterator

import pyfuse3

from fusenotify import _linux
from fusenotify.backing import acting_as
from fusenotify.callers import rights_of


class Rights:
    """Takes on the identity of callers, where the daemon may: a user's daemon acts as that user."""

    def __init__(self) -> None:
        self._own_uid, self._own_gid = os.geteuid(), os.getegid()

    @contextlib.contextmanager
    def as_caller(self, ctx: pyfuse3.RequestContext) -> Iterator[None]:
        """Do what the block does with the rights of the caller, whom what is made belongs to, and its umask.

        The kernel has checked the rights, but of what was there a moment ago.
        """
        umask = os.umask(ctx.umask)
        try:
            with self.as_user(ctx.uid, ctx.gid, ctx.pid):
                yield
        finally:
            os.umask(umask)

    def as_user(self, uid: int, gid: int, thread_id: int | None) -> contextlib.AbstractContextManager[None]:
        """Act as a user, in the supplementary groups of a thread of that user's; a user's daemon acts as it is."""
        if self._own_uid != 0 or (uid, gid) == (0, self._own_gid):
            return contextlib.nullcontext()
        return acting_as(uid, gid, *rights_of(thread_id or 0))

    def writing_as(self, uid: int) -> contextlib.AbstractContextManager[None]:
        """Use up space as this user, whom quotas and the blocks reserved for root concern; cheaper than `as_user`."""
        return contextlib.nullcontext() if self._own_uid != 0 or uid == 0 else _spending_as(uid)


@contextlib.contextmanager
def _spending_as(uid: int) -> Iterator[None]:
    _linux.setfsuid(uid)
    try:
        yield
    finally:
        _linux.setfsuid(0)
