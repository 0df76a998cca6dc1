"""What was missed while nothing was heard: a comparison of the tree with what listeners have been told of it.

It goes by rounds. A round skips what the stream holds, compares every directory that something may have been missed in,
and tells the differences. What happens meanwhile is in the stream, and the directories it happened in are what the next
round compares: a few, where the first one compared all of them. When none of those just compared has seen anything that
the windows of `tree.Directory.announced` cannot put right, everything is told as it happens again.

So nothing that is told depends on what was lost, nor on how often: each round makes what listeners know the tree that
it has found. Operations through the mount that the stream is skipped over tell of themselves.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator
from typing import Final

from fusenotify import joiner
from fusenotify.claims import Claims
from fusenotify.comparison import Comparison
from fusenotify.crawler import Crawler
from fusenotify.events import EventRecord
from fusenotify.renames import LostTrackError
from fusenotify.repair import Repair
from fusenotify.stream import Stream
from fusenotify.translation import ROOT_GONE, Translator
from fusenotify.tree import Directory
from fusenotify.watchers.watcher import Watcher

_FEW: Final = 64  # directories whose names are kept until the stream has told of them again
_ALONE: Final = 16  # directories that are looked at before something may be told of them
_MUCH: Final = 1 << 20  # bytes of the stream that are not parsed to see if they can be told
_OF_DIRECTORIES: Final = joiner.IN_CREATE | joiner.IN_DELETE | joiner.IN_MOVED_FROM | joiner.IN_MOVED_TO
_OF_ITSELF: Final = joiner.IN_DELETE_SELF | joiner.IN_IGNORED


class Recovery:
    """Finds out what was missed.

    Attributes:
        done: how often that has come to its end.
        told_to: the position in the stream before which everything has been told.
        root_gone: whether the root was found to have gone: then nothing more is to be told.
    """

    def __init__(
        self,
        watcher: Watcher,
        stream: Stream,
        crawler: Crawler,
        claims: Claims,
        translator: Translator,
        comparison: Comparison,
        repair: Repair,
    ) -> None:
        self.done = 0
        self.root_gone = False
        self._skipped_to = 0
        self._looked_at = time.time_ns()  # when the deaf directories were compared last
        self.told_to = 0
        self._watcher = watcher
        self._stream = stream
        self._crawler = crawler
        self._claims = claims
        self._translator = translator
        self._tree = translator.tree
        self._comparison = comparison
        self._repair = repair

    def run(self, position: int, *, relist: bool) -> Iterator[list[EventRecord]]:
        """Tell of everything that was missed since a position; yields as a translator does.

        `relist`: whether what is known may be wrong even where nothing has changed since.
        """
        self.told_to, self.root_gone = position, False
        yield from self._translator.lose(time.time_ns())
        since = self._watcher.heard_until(position)
        dirty: set[Directory] | None = None
        doubtful: set[Directory] = set()  # what is known of these may be wrong even if they have not changed
        while True:
            touched = yield from self._skip()
            if touched is None:
                yield from self._translator.lose(time.time_ns())  # again
            dirty = dirty | touched if dirty is not None and touched is not None else None
            yield from self._settle(self._skipped_to)
            if self.root_gone:
                return
            doubtful |= self._crawler.start_over()
            work = list(self._tree.root.below() if dirty is None else filter(self._tree.contains, dirty | doubtful))
            is_few = len(work) <= _FEW
            yield from self._comparison.look(
                work, since, relist=relist or dirty is not None, keep_names=is_few, doubtful=doubtful
            )
            yield from self._repair.tell(self._comparison.findings)
            self.told_to = self._skipped_to
            if self._is_settled(are_few=is_few):
                break
            dirty, doubtful, relist = set(), set(self._comparison.unreached), False
            if not doubtful:
                since = self._watcher.heard_until(self.told_to)
        self.done += 1

    @property
    def has_deaf(self) -> bool:
        """Whether there may be directories in which changes are not heard."""
        return bool(self._watcher.deaf) or self._crawler.has_distant

    @property
    def deaf(self) -> list[Directory]:
        """The directories in which changes are not heard, or not those of everybody; parents first."""
        if not self.has_deaf:
            return []
        return [one for one in self._tree.root.below() if one.wd is None or self._crawler.is_distant(one)]

    def look_at_deaf(self) -> Iterator[list[EventRecord]]:
        """Tell what has changed where nothing is heard; the stream has to have been told up to now.

        Where something is told of these directories meanwhile after all, each look has to be short enough to be alone.
        """
        self._skipped_to, began = self._watcher.drain(), time.time_ns()
        self._translator.at(began)
        deaf = self.deaf
        self._comparison.keep_stamps(deaf)
        if (yield from self._look_alone(deaf)):
            self._looked_at = began
            return
        for start in range(0, len(deaf), _ALONE):
            some = [one for one in deaf[start : start + _ALONE] if not one.gone]
            has_told = yield from self._look_alone(some)
            if not has_told and len(some) > 1:  # one of them is busy all the time, perhaps: not so the others
                for one in some:
                    if not one.gone:
                        yield from self._look_alone([one])

    def _look_alone(self, deaf: Collection[Directory]) -> Generator[list[EventRecord], None, bool]:
        """Compare some directories and tell the differences, unless they are about to be told; return whether."""
        yield from self._comparison.look(deaf, self._looked_at, relist=True, keep_names=False, stamp=True)
        if not self._is_settled(are_few=False) or self._claims.concern(self._comparison.compared):
            return False
        yield from self._repair.tell(self._comparison.findings)
        return True

    def see(self, has_untold: Callable[[], bool]) -> Iterator[None]:
        """Look at what has been told, for as long as there is nothing else to do."""
        yield from self._comparison.see(has_untold)

    def _settle(self, position: int) -> Iterator[list[EventRecord]]:
        """Tell of the local operations before a position, none of which the stream is told of."""
        self._claims.excuse(position)
        while True:
            try:
                yield from self._translator.settle(position, time.time_ns())
            except LostTrackError:
                continue  # whatever it was, the comparison finds what has become of it
            return

    def _skip(self) -> Generator[list[EventRecord], None, set[Directory] | None]:
        """Leave out what has happened by now; return the directories it happened in, None if that is not known."""
        touched: set[Directory] = set()
        has_lost = False
        self._skipped_to = self._watcher.drain()
        for end, events in self._stream.skip():
            for _, wd, mask, *_ in events:
                directory = self._tree.by_wd.get(wd)
                if directory is not None:
                    touched.add(directory)
                    self.root_gone |= directory is self._tree.root and bool(mask & ROOT_GONE)
                has_lost |= bool(mask & joiner.IN_Q_OVERFLOW)
            self._skipped_to = end
            self._watcher.told(end)
            yield []
        return None if has_lost else touched

    def _is_settled(self, *, are_few: bool) -> bool:
        """Whether all that has happened since in the directories just compared can be told as it is in the stream."""
        came = self._watcher.drain() - self._skipped_to
        if came > _MUCH:
            return False
        self._stream.look_ahead()
        for _, wd, mask, *_ in self._stream.pending():
            if mask & joiner.IN_Q_OVERFLOW:
                return False
            is_of_directory = mask & joiner.IN_ISDIR and mask & _OF_DIRECTORIES
            if is_of_directory and self._comparison.unreached:
                return False  # they may be where that has moved to
            is_exact = are_few and not is_of_directory and not mask & _OF_ITSELF
            if not is_exact and self._tree.by_wd.get(wd) in self._comparison.compared:
                return False
        return True
