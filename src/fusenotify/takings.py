"""What the kernel takes from answers to a replayer, and who else has asked meanwhile.

It drops attributes when others came to it after they had been asked for, older as those may be.
"""

from dataclasses import dataclass, field
from typing import Final

import pyfuse3
import trio

from fusenotify import events
from fusenotify.orders import Progress
from fusenotify.plans import Plan

_LOOKED_AT: Final = events.MODIFY | events.ATTRIB | events.CLOSE_WRITE  # the plans whose file is looked at again


@dataclass(slots=True)
class _Taking:
    """A file whose attributes the kernel is taking.

    Attributes:
        nodeid: which.
        plan: what is being carried out; None for nothing that is known.
        stamp: of the last answer; None where that was `unchecked`.
        is_overtaken: whether somebody else has asked since, and the file has changed.
        is_sent_back: whether the replayer has been told to look at the file again.
        is_over: set when the kernel has taken them, and they are as new as those that others are told.
    """

    nodeid: int
    plan: Plan | None
    stamp: tuple[int, int] | None = None
    is_overtaken: bool = False
    is_sent_back: bool = False
    is_over: trio.Event = field(default_factory=trio.Event)


class Takings:
    """The file whose attributes the kernel is taking, if any: a replayer does one thing at a time."""

    def __init__(self) -> None:
        self._taking: _Taking | None = None

    def begin(self, nodeid: int, told: pyfuse3.EntryAttributes, plan: Plan | None, *, is_checked: bool) -> None:
        """Take note of an answer to a replayer; see `attributes.unchecked` for `is_checked`."""
        if self._taking is None or self._taking.nodeid != nodeid or self._taking.plan is not plan:
            self.end()
            self._taking = _Taking(nodeid, plan)
        self._taking.stamp = _stamp(told) if is_checked else None
        self._taking.is_overtaken &= not is_checked

    def end(self) -> None:
        """Let go on who waits: the kernel has taken everything, or takes nothing any more."""
        if self._taking is not None:
            self._taking.is_over.set()
            self._taking = None

    def overtaken(self, nodeid: int, told: pyfuse3.EntryAttributes) -> trio.Event | None:
        """Return when the kernel will keep attributes like these that somebody else has asked for; None for now.

        Whoever asked would know that a file has grown, and read no further than it had been before, if his answer were
        dropped for an older one. So who asks for what has changed since a replay was told of it waits until the replay
        has been told as well.
        """
        taking = self._taking
        if taking is None or taking.nodeid != nodeid or taking.stamp == _stamp(told):
            return None
        taking.is_overtaken = True
        return taking.is_over

    def are_taken(self) -> bool:
        """Whether the kernel has taken what is as new as what others are told, when the replayer asks for that.

        Everything that was asked before the kernel took the last answer has come here before this question.
        """
        if self._taking is not None and self._taking.is_overtaken:
            return False
        self.end()
        return True

    def are_taken_before(self, number: int, progress: Progress) -> bool:
        """The same, when a replayer asks for something else: if not, it is told to look at the file again first.

        Args:
            number: of the plan that it is carrying out.
            progress: where it is told so.
        """
        taking = self._taking
        if taking is None or taking.plan is None or taking.plan.number == number:
            return True
        if taking.is_overtaken and taking.plan.kind & _LOOKED_AT:
            if not taking.is_sent_back:
                taking.is_sent_back = True
                progress.look_again(taking.plan.number)
            if progress.is_to_look():
                return False  # at ESTALE the kernel asks once more before the replayer learns of anything
        self.end()
        return True


def _stamp(told: pyfuse3.EntryAttributes) -> tuple[int, int]:
    return told.st_ctime_ns, told.st_size
