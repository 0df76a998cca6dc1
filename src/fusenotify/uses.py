"""Where somebody asks for uses of files (open, access, close_nowrite): the aggregated mask of all marks of all groups.

Uses are many, and nobody hears of them but in the directories that such a mark reaches.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from fusenotify.events import USES
from fusenotify.marks import Mark, Place
from fusenotify.pinned import PinnedFile
from fusenotify.tree import Directory, Tree

_BITS: Final = tuple(1 << number for number in range(USES.bit_length()) if USES & 1 << number)


class AskedUses:
    """Counts the marks that ask for uses, and knows for which directories that may have changed something.

    Attributes:
        on_change: called when there are such directories.
        kinds: what is asked for of some files, bits of `Kind`.
    """

    def __init__(self, tree: Tree, files_in: Callable[[Directory], Iterable[PinnedFile]]) -> None:
        """Start with nobody asking; `files_in` tells which marked files have a name in a directory."""
        self.on_change: Callable[[], None] = lambda: None
        self.kinds = 0
        self._tree = tree
        self._files_in = files_in
        self._below: Counter[tuple[Place | None, int]] = Counter()
        self._at: Counter[tuple[Place | None, int]] = Counter()
        self._marks: Counter[int] = Counter()  # by bit
        self._unsettled: dict[Directory, None] = {}

    def __bool__(self) -> bool:
        """Whether anybody asks for anything."""
        return bool(self.kinds)

    def add(self, mark: Mark) -> None:
        """Take note of a mark."""
        self._count(mark, 1)

    def remove(self, mark: Mark) -> None:
        """Take note that a mark is gone."""
        self._count(mark, -1)

    def asked_in(self, directory: Directory) -> int:
        """Return the uses, bits of `Kind`, that somebody asks for of files in a directory."""
        if not self or directory.gone:
            return 0
        way: list[Directory | None] = [None, directory]
        while (above := way[-1].parent if way[-1] is not None else None) is not None:
            way.append(above)
        places: list[Place] = [directory, *self._files_in(directory)]
        asked = 0
        for bit in _BITS:
            if any((one, bit) in self._below for one in way) or any((one, bit) in self._at for one in places):
                asked |= bit
        return asked

    def unsettle(self, directories: Iterable[Directory]) -> None:
        """Take note of directories that have come to where they are, or of which something else is asked."""
        if self:
            self._unsettled.update(dict.fromkeys(directories))
            self.on_change()

    def take_unsettled(self) -> list[Directory]:
        """Return the directories to look at again, each once."""
        unsettled = [directory for directory in self._unsettled if not directory.gone]
        self._unsettled.clear()
        return unsettled

    def put_back(self, directory: Directory) -> None:
        """Have a directory looked at again later."""
        self._unsettled[directory] = None

    @property
    def is_unsettled(self) -> bool:
        """Whether there are directories to look at again."""
        return bool(self._unsettled)

    def _count(self, mark: Mark, by: int) -> None:
        bits = [bit for bit in _BITS if mark.kinds & bit]
        if not bits:
            return
        place = mark.place
        counter = self._below if mark.reaches_below else self._at
        for bit in bits:
            counter[place, bit] += by
            if not counter[place, bit]:
                del counter[place, bit]
            self._marks[bit] += by
        self.kinds = sum(bit for bit in _BITS if self._marks[bit])
        if place is None:
            reached: Iterable[Directory] = self._tree.root.below()
        elif isinstance(place, PinnedFile):
            reached = [directory for directory, _ in place.names]
        else:
            reached = place.below() if mark.reaches_below else [place]
        self._unsettled.update(dict.fromkeys(reached))
        self.on_change()
