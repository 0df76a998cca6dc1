"""The event path, wired: from what the watcher of a tree hears to what is told to groups.

A daemon has one, and so has a client for each tree that it watches by itself.
"""

import os
from collections.abc import Callable

from fusenotify.arrears import Arrears
from fusenotify.arrivals import Arrivals
from fusenotify.attention import Attention
from fusenotify.beneath import Beneath
from fusenotify.claims import Claims
from fusenotify.comparison import Comparison
from fusenotify.crawler import Crawler
from fusenotify.echoes import Echoes
from fusenotify.exchanges import Exchanges
from fusenotify.filesystems import Filesystems
from fusenotify.groups import MOST_PINNED, Groups
from fusenotify.hearing import Hearing
from fusenotify.recovery import Recovery
from fusenotify.repair import Repair
from fusenotify.snapshot import Snapshot
from fusenotify.stream import Stream
from fusenotify.telling import Teller
from fusenotify.translation import Translator
from fusenotify.tree import Tree
from fusenotify.watchers.watcher import Watcher


class EventPath:
    """The parts of an event path that somebody outside of it has to do with.

    Attributes:
        tree: the directories that are watched, as of the stream.
        groups: who listens.
        stream: what was heard, and is still to be told.
        teller: what has been told.
        translator: makes events of what the watcher hears.
        recovery: finds what was missed.
        hearing: drives it all.
    """

    def __init__(
        self,
        backing: Beneath,
        watcher: Watcher,
        filesystems: Filesystems,
        *,
        recursive: bool = True,
        watch_other: bool = False,
        most_pinned: int = MOST_PINNED,
        on_loop: Callable[[Callable[[], None]], Callable[[], None]] = lambda function: function,
    ) -> None:
        """Wire it up.

        Args:
            backing: the tree.
            watcher: what hears it.
            filesystems: what the tree consists of.
            recursive: hear what is below the directories of the root, too.
            watch_other: other users may have marks on subtrees.
            most_pinned: how many files can have marks; each takes a descriptor.
            on_loop: makes a function of the event loop's callable by the thread that makes changes, if there is one.
        """
        self.tree = Tree(backing.root_key)
        self.groups = Groups(
            self.tree, owner=os.geteuid(), watch_other=watch_other, look=backing.key_beneath, most_pinned=most_pinned
        )
        self.stream = stream = Stream(watcher)
        echoes, snapshot = Echoes(), Snapshot()
        crawler = Crawler(backing, watcher, stream, self.tree, filesystems, snapshot, recursive=recursive)
        exchanges = Exchanges(backing, stream, crawler, self.tree, echoes, snapshot)
        claims = Claims(backing, self.tree, echoes)
        self.teller = Teller(snapshot)
        arrivals = Arrivals(crawler, self.teller, snapshot)
        self.translator = Translator(watcher, stream, crawler, exchanges, self.tree, claims, self.teller, arrivals)
        comparison = Comparison(backing, watcher, crawler, self.tree, snapshot)
        repair = Repair(backing, watcher, crawler, self.tree, snapshot, self.teller, arrivals)
        self.recovery = Recovery(watcher, stream, crawler, claims, self.translator, comparison, repair)
        self.hearing = Hearing(watcher, stream, self.translator, self.recovery, crawler, claims, self.groups, on_loop)
        arrears = Arrears(backing, crawler, filesystems, self.groups, lambda: self.teller.seq)
        self.hearing.pay_arrears = arrears.pay
        attention = Attention(backing, watcher, filesystems, self.groups.uses)
        self.hearing.settle_watches = attention.settle
        self.groups.uses.on_change = self.hearing.wake
