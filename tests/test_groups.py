"""Who hears what: filters, borders and fan-out, without a daemon."""

import pytest

from fusenotify import events, groups
from fusenotify import group as group_module
from fusenotify.errors import LimitReached, NotPermitted, UsageError
from fusenotify.events import CREATE, DEFAULT, EXCHANGE, IS_DIR, LOCAL, OTHER_IS_DIR, RECOVERED, RENAME, EventRecord
from fusenotify.group import Group
from fusenotify.groups import Groups
from fusenotify.identity import InodeKey
from fusenotify.protocol import AddMark
from fusenotify.tree import Directory, Tree

ANY = 3
Told = list[tuple[int, bytes | None, bytes | None]]


class FakePin:
    """A file with some links; it counts who keeps it."""

    def __init__(self, number: int) -> None:
        self.key = InodeKey(1, number)
        self.links = 1
        self.kept = 0

    def copy(self) -> "FakePin":
        self.kept += 1
        return self

    def close(self) -> None:
        self.kept -= 1


class World:
    """A tree of directories, the groups that listen, and what is in a directory where it has moved to."""

    def __init__(self, *paths: bytes, owner: int = 1000, watch_other: bool = False, most_pinned: int = 100) -> None:
        self.tree = Tree(InodeKey(1, 1))
        self.seq = 0
        self.below: dict[bytes, list[tuple[bytes, bool]]] = {}
        self.asked: list[bytes] = []
        self.files: dict[bytes, FakePin] = {}
        self.groups = Groups(self.tree, owner, watch_other, self._look, most_pinned=most_pinned)
        for number, path in enumerate(paths, 2):
            parent, _, name = path.rpartition(b"/")
            self.tree.attach(self[parent], name, number, InodeKey(1, number))

    def __getitem__(self, path: bytes) -> Directory:
        found = self.tree.find(path)
        assert found is not None, path
        return found

    def _look(self, path: bytes) -> InodeKey | None:
        found = self.tree.find(path)
        return found.key if found is not None else self.files[path].key if path in self.files else None

    def _pin(self, path: bytes) -> FakePin:
        found = self.tree.find(path)
        return self.files[path] if found is None and path in self.files else FakePin(found.key.number if found else 0)

    def file(self, path: bytes) -> FakePin:
        """Make a file; it is there already, and nothing tells of it."""
        self.files[path] = FakePin(1000 + len(self.files))
        return self.files[path]

    def _parent(self, path: bytes) -> tuple[Directory, bytes]:
        parent, _, name = path.rpartition(b"/")
        return self[parent], name

    def _move(self, record: EventRecord) -> None:
        """Do to the tree what the translator does behind a rename of a directory."""
        if record.kind != RENAME or record.path is None or record.old_path is None:
            return
        moved = self.tree.find(record.old_path)
        if record.flags & EXCHANGE:
            self.tree.exchange(*self._parent(record.old_path), *self._parent(record.path))
        elif moved is not None:
            self.tree.move(moved, *self._parent(record.path))

    def _pay(self) -> None:
        """Do what the event path does with what it owes."""
        debts = self.groups.debts
        while debts:
            debt = debts.popleft()
            self.asked.append(debt.directory.path)
            debt.group.pay(debt, self.below.get(debt.directory.path, []))

    def open(self, base: bytes = b".", limit: int = 0) -> Group:
        return self.groups.open(0, self[base], limit)

    def mark(
        self,
        group: Group,
        path: bytes = b".",
        number: int = 1,
        *,
        scope: str = "subtree",
        kinds: int = DEFAULT,
        origins: int = ANY,
        exclude_pid: int | None = None,
        uids: tuple[int, ...] | None = None,
        oneshot: bool = False,
    ) -> None:
        request = AddMark(0, number, path, scope, kinds, origins, exclude_pid, uids, oneshot)
        found = self._pin(groups.path_of(group.base, path))
        assert self.groups.mark(group, request, found)

    def record(
        self,
        path: bytes | None,
        kind: int = CREATE,
        *,
        flags: int = 0,
        old: bytes | None = None,
        pid: int | None = None,
        uid: int | None = None,
    ) -> EventRecord:
        self.seq += 1
        return EventRecord(self.seq, 0, kind, flags, path, old, pid, uid)

    def publish(self, *records: EventRecord) -> None:
        self.groups.publish(list(records))
        for record in records:
            self._move(record)
        self._pay()


def drained(group: Group) -> list[tuple[int, EventRecord]]:
    told = []
    while (waiting := group.queue.peek(100)) is not None:
        group.queue.pop()
        told += [(waiting[0], one) for one in waiting[1].records]
    return told


def heard(group: Group) -> Told:
    """Return (mark, path, old path) of what waits."""
    return [(mark, one.path, one.old_path) for mark, one in drained(group)]


def paths(group: Group) -> list[bytes | None]:
    return [one.path for _, one in drained(group)]


# --- what is told anew ---------------------------------------------------------------------------------------------


def recounted(world: World, group: Group, path: bytes | None = None, number: int = 1) -> list[bytes | None]:
    group.recount(number, path, world.seq, 0)
    world._pay()
    told = [one for _, one in drained(group)]
    assert all(one.kind == CREATE and one.flags & RECOVERED and one.seq == world.seq for one in told)
    return [one.path for one in told]


def test_a_recount_tells_what_a_mark_reaches() -> None:
    world = World(b"a", b"a/b", b"c")
    world.below = {b".": [(b"a", True), (b"c", True), (b"f", False)], b"a": [(b"b", True)], b"a/b": [(b"x", False)]}
    group = world.open()
    world.mark(group)
    assert recounted(world, group) == [b"a", b"c", b"f", b"a/b", b"a/b/x"]
    assert recounted(world, group, b"a") == [b"a/b", b"a/b/x"]
    assert recounted(world, group, b"not there any more") == [b"a", b"c", b"f", b"a/b", b"a/b/x"]
    world.mark(group, scope="dir")
    assert recounted(world, group) == [b"a", b"c", b"f"]
    world.mark(group, b"a")
    assert recounted(world, group, b"c") == recounted(world, group) == [b"a/b", b"a/b/x"]
    inner = world.open(b"a")
    world.mark(inner)
    assert recounted(world, inner) == [b"b", b"b/x"]
    with pytest.raises(UsageError, match="no mark 9"):
        group.recount(9, None, 0, 0)


def test_what_is_asked_for_many_times_is_owed_once() -> None:
    world = World(b"a", b"a/b")
    group = world.open()
    world.mark(group)
    for _ in range(100):
        group.recount(1, None, 0, 0)
    assert len(world.groups.debts) == 3
    world._pay()
    group.recount(1, None, 0, 0)
    assert len(world.groups.debts) == 3


def test_debts_wait_until_half_of_the_queue_has_been_read() -> None:
    world = World(b"a", b"b")
    world.below = {b"a": [(b"%d" % n, False) for n in range(8)], b"b": [(b"%d" % n, False) for n in range(8)]}
    group = world.open(limit=10)
    world.mark(group)
    wakes: list[int] = []
    group.on_debts = lambda: wakes.append(1)
    group.recount(1, None, 0, 0)
    debts = world.groups.debts
    while debts:
        debt = debts.popleft()
        entries = world.below.get(debt.directory.path, [])
        if not group.defer(debt, len(entries)):
            group.pay(debt, entries)
    assert len(group.queue) == 8
    group.note_room()
    assert not debts
    assert len(drained(group)) == 8
    group.note_room()
    assert [debt.directory.path for debt in debts] != []
    assert len(wakes) == 2


@pytest.mark.parametrize("is_put_off", [False, True])
@pytest.mark.parametrize("path", [b".", b"in"])
def test_both_sides_of_an_exchange_are_told_to_who_may_not_know_them_yet(path: bytes, is_put_off: bool) -> None:
    """Whether it follows what everybody is told or selects, and whether what it is owed waits for room."""
    world = World(b"in", b"in/a")
    group = world.open(limit=6)
    world.mark(group, path)
    if is_put_off:
        world.publish(*(world.record(b"in/%d" % number) for number in range(2)))
    group.recount(1, None, world.seq, 0)
    if is_put_off:
        debts = world.groups.debts
        assert all(group.defer(debts.popleft(), 6) for _ in range(len(debts)))
    world.publish(world.record(b"in/b", RENAME, flags=EXCHANGE | IS_DIR, old=b"in/a"))
    told = [
        (one.kind, one.path, one.old_path, one.flags) for _, one in drained(group) if one.path in (b"in/a", b"in/b")
    ]
    assert told == [
        (RENAME, b"in/b", b"in/a", EXCHANGE | IS_DIR),
        (CREATE, b"in/b", None, RECOVERED | IS_DIR),
        (CREATE, b"in/a", None, RECOVERED),
    ]
    group.note_room()
    world.publish(world.record(b"in/b", RENAME, flags=EXCHANGE | IS_DIR, old=b"in/a"))
    world.publish(world.record(b"in/b", RENAME, flags=EXCHANGE, old=b"in/a"))
    assert [one.kind for _, one in drained(group)][-1] == RENAME  # nothing is owed any more


# --- filters -------------------------------------------------------------------------------------------------------


def test_a_group_without_marks_hears_nothing() -> None:
    world = World()
    group = world.open()
    world.publish(world.record(b"a"), world.record(None, events.UNMOUNT))
    assert drained(group) == []


def test_kinds() -> None:
    world = World()
    group = world.open()
    world.mark(group, kinds=CREATE | RENAME)
    for kind in (events.CREATE, events.DELETE, events.MODIFY, events.ATTRIB, events.CLOSE_WRITE, events.RENAME):
        world.publish(world.record(b"%d" % kind, kind))
    assert paths(group) == [b"1", b"32"]


def test_overflow_and_unmount_come_whatever_was_asked_for_and_belong_to_no_mark() -> None:
    world = World(b"a")
    group = world.open()
    world.mark(group, b"a", 7, kinds=CREATE, origins=1, uids=())
    world.publish(EventRecord(1, 2, events.OVERFLOW, 0, None, reason="kernel"))
    world.publish(EventRecord(2, 3, events.UNMOUNT, IS_DIR, None))
    assert drained(group) == [
        (0, EventRecord(1, 2, events.OVERFLOW, 0, None, reason="kernel")),
        (0, EventRecord(2, 3, events.UNMOUNT, IS_DIR, None)),
    ]


@pytest.mark.parametrize(
    ("origins", "expected"), [(ANY, [b"local", b"remote"]), (1, [b"local"]), (2, [b"remote"])]
)  # fmt: skip
def test_origins(origins: int, expected: list[bytes]) -> None:
    world = World()
    group = world.open()
    world.mark(group, origins=origins)
    world.publish(world.record(b"local", flags=LOCAL), world.record(b"remote"))
    assert paths(group) == expected


def test_exclude_pid() -> None:
    world = World()
    group = world.open()
    world.mark(group, exclude_pid=5)
    world.publish(world.record(b"mine", pid=5), world.record(b"theirs", pid=6), world.record(b"unknown"))
    assert paths(group) == [b"theirs", b"unknown"]


def test_uids_leave_out_what_nobody_is_known_for() -> None:
    world = World()
    group = world.open()
    world.mark(group, uids=(5, 6))
    world.publish(world.record(b"5", uid=5), world.record(b"7", uid=7), world.record(b"unknown"))
    assert paths(group) == [b"5"]


# --- scopes --------------------------------------------------------------------------------------------------------


def test_a_subtree_mark_reaches_everything_below() -> None:
    world = World(b"a", b"a/b", b"ab")
    group = world.open()
    world.mark(group, b"a")
    world.publish(*[world.record(path) for path in (b"a/x", b"a/b/x", b"ab/x", b"x", b"a", b"ab")])
    assert paths(group) == [b"a/x", b"a/b/x"]


def test_a_dir_mark_reaches_the_entries() -> None:
    world = World(b"a", b"a/b")
    group = world.open()
    world.mark(group, b"a", scope="dir")
    world.publish(*[world.record(path) for path in (b"a/x", b"a/b", b"a/b/x", b"x", b"a")])
    assert paths(group) == [b"a/x", b"a/b"]


@pytest.mark.parametrize("scope", ["dir", "subtree"])
def test_changes_of_the_root_itself_are_told_to_marks_of_the_root(scope: str) -> None:
    world = World(b"a")
    group = world.open()
    world.mark(group, b".", 1, scope=scope, kinds=events.ATTRIB)
    other = world.open()
    world.mark(other, b"a")
    world.publish(world.record(b".", events.ATTRIB, flags=IS_DIR))
    assert (heard(group), heard(other)) == ([(1, b".", None)], [])


def test_an_event_of_several_marks_is_told_once_by_the_first_that_wants_it() -> None:
    world = World(b"a")
    group = world.open()
    world.mark(group, b"a", 1, kinds=events.DELETE)
    world.mark(group, b"a", 2)
    world.mark(group, b".", 3)
    world.publish(world.record(b"a/x"), world.record(b"a/x", events.DELETE), world.record(b"y"))
    assert heard(group) == [(2, b"a/x", None), (1, b"a/x", None), (3, b"y", None)]


def test_a_mark_can_be_changed_and_removed() -> None:
    world = World(b"a")
    group = world.open()
    world.mark(group, b".", 1)
    world.mark(group, b"a", 1)
    assert group.marks == 1
    world.publish(world.record(b"x"), world.record(b"a/x"))
    assert paths(group) == [b"a/x"]
    group.remove(1)
    world.publish(world.record(b"a/x"))
    assert paths(group) == []
    with pytest.raises(UsageError, match="no mark 1"):
        group.remove(1)


def test_a_mark_follows_its_directory() -> None:
    world = World(b"a", b"a/b", b"c")
    group = world.open()
    world.mark(group, b"a/b")
    world.publish(world.record(b"c/z", RENAME, flags=IS_DIR, old=b"a/b"))
    world.publish(world.record(b"a/b/x"), world.record(b"c/z/x"))
    assert paths(group) == [b"c/z/x"]


def test_the_mark_of_a_deleted_directory_hears_nothing_of_its_successor() -> None:
    world = World(b"a", b"a/b")
    group = world.open()
    world.mark(group, b"a/b")
    world.tree.detach(world[b"a"])
    world.tree.attach(world.tree.root, b"a", 20, InodeKey(1, 20))
    world.tree.attach(world[b"a"], b"b", 21, InodeKey(1, 21))
    world.publish(world.record(b"a/b/x"), world.record(b"x"))
    assert [(one.kind, one.path, one.flags) for _, one in drained(group)] == [(events.IGNORED, b"a/b", IS_DIR)]
    with pytest.raises(UsageError, match="no mark 1"):
        group.remove(1)


# --- borders -------------------------------------------------------------------------------------------------------


def test_a_rename_across_the_border_of_the_marks_is_told_by_its_visible_side() -> None:
    world = World(b"in", b"out")
    group = world.open()
    world.mark(group, b"in")
    world.publish(
        world.record(b"out/a", RENAME, old=b"in/a"),
        world.record(b"in/b", RENAME, old=b"out/b"),
        world.record(b"in/d", RENAME, old=b"in/c"),
        world.record(b"out/f", RENAME, old=b"out/e"),
        world.record(b"in/g", RENAME, old=None),
        world.record(None, RENAME, old=b"in/g"),
    )
    assert heard(group) == [
        (1, None, b"in/a"), (1, b"in/b", None), (1, b"in/d", b"in/c"), (1, b"in/g", None), (1, None, b"in/g")
    ]  # fmt: skip
    assert world.asked == []


def test_a_rename_between_two_marks_shows_both_sides() -> None:
    world = World(b"a", b"b")
    group = world.open()
    world.mark(group, b"a", 1, kinds=CREATE)
    world.mark(group, b"b", 2)
    world.publish(world.record(b"b/x", RENAME, old=b"a/x"))
    assert heard(group) == [(2, b"b/x", b"a/x")]


def test_a_directory_that_comes_into_reach_is_expanded_for_those_who_had_not_seen_it() -> None:
    world = World(b"in", b"out", b"out/d", b"out/d/e")
    inside, everywhere = world.open(), world.open()
    world.mark(inside, b"in")
    world.mark(everywhere)
    world.below[b"in/d"] = [(b"e", True)]
    world.below[b"in/d/e"] = [(b"f", False)]
    world.publish(world.record(b"in/d", RENAME, flags=IS_DIR | LOCAL, old=b"out/d", pid=4, uid=5))
    # Until all of it has been told, what goes on from the position before the rename misses nothing.
    assert drained(inside) == [
        (1, EventRecord(0, 0, RENAME, IS_DIR | LOCAL, b"in/d", None, 4, 5)),
        (1, EventRecord(0, 0, CREATE, IS_DIR | LOCAL | RECOVERED, b"in/d/e", None, 4, 5)),
        (1, EventRecord(0, 0, CREATE, LOCAL | RECOVERED, b"in/d/e/f", None, 4, 5)),
    ]
    assert heard(everywhere) == [(1, b"in/d", b"out/d")]
    assert world.asked == [b"in/d", b"in/d/e"]


def test_the_expansion_is_filtered_like_everything_else() -> None:
    world = World(b"in", b"out", b"out/d")
    group = world.open()
    world.mark(group, b"in", kinds=RENAME)
    world.below[b"in/d"] = [(b"e", False)]
    world.publish(world.record(b"in/d", RENAME, flags=IS_DIR, old=b"out/d"))
    assert paths(group) == [b"in/d"]


def test_a_dir_mark_expands_nothing_and_lists_nothing() -> None:
    world = World(b"in", b"out", b"out/d")
    group = world.open()
    world.mark(group, b"in", scope="dir")
    world.below[b"in/d"] = [(b"e", False)]
    world.publish(world.record(b"in/d", RENAME, flags=IS_DIR, old=b"out/d"))
    assert paths(group) == [b"in/d"]
    assert world.asked == []


def test_an_exchange_within_reach_is_one_event() -> None:
    world = World(b"in")
    group = world.open()
    world.mark(group, b"in")
    world.publish(world.record(b"in/b", RENAME, flags=EXCHANGE | IS_DIR, old=b"in/a"))
    assert [(one.path, one.old_path, one.flags) for _, one in drained(group)] == [
        (b"in/b", b"in/a", EXCHANGE | IS_DIR)
    ]  # fmt: skip


@pytest.mark.parametrize("new", [b"in/d", b"out/d"])
@pytest.mark.parametrize("directories", [(b"in/d", b"out/d"), (b"in/d",), (b"out/d",), ()])
def test_an_exchange_across_the_border_is_one_thing_out_and_another_in(new: bytes, directories: tuple[bytes]) -> None:
    """Whichever of the two names the event tells first, and whatever they stand for."""
    world = World(b"in", b"out", *directories)
    group = world.open()
    world.mark(group, b"in")
    world.below[b"in/d"] = [(b"e", False)]
    old = b"out/d" if new == b"in/d" else b"in/d"
    flags = (IS_DIR if old in directories else 0) | (OTHER_IS_DIR if new in directories else 0)
    world.publish(world.record(new, RENAME, flags=EXCHANGE | LOCAL | flags, old=old))
    told = [(one.kind, one.path, one.old_path, one.flags) for _, one in drained(group)]
    out_is_dir, in_is_dir = (IS_DIR if path in directories else 0 for path in (b"in/d", b"out/d"))
    assert told[:2] == [
        (RENAME, None, b"in/d", LOCAL | out_is_dir),
        (RENAME, b"in/d", None, LOCAL | in_is_dir),
    ]
    assert told[2:] == ([(CREATE, b"in/d/e", None, LOCAL | RECOVERED)] if in_is_dir else [])


# --- queue files of a directory ------------------------------------------------------------------------------------


def test_a_group_of_a_directory_sees_what_is_below_it_by_relative_paths() -> None:
    world = World(b"base", b"base/sub")
    group = world.open(b"base")
    world.mark(group, b".", 1)
    world.publish(*[world.record(path) for path in (b"base/x", b"base/sub/x", b"x", b"base", b".")])
    assert paths(group) == [b"x", b"sub/x"]


def test_a_group_of_a_directory_names_nothing_outside() -> None:
    world = World(b"base", b"base/sub", b"out")
    group = world.open(b"base")
    world.mark(group, b"sub")
    world.publish(
        world.record(b"base/sub/a", RENAME, old=b"out/a"),
        world.record(b"out/b", RENAME, old=b"base/sub/b"),
        world.record(b"base/sub/d", RENAME, old=b"base/sub/c"),
    )
    assert heard(group) == [(1, b"sub/a", None), (1, None, b"sub/b"), (1, b"sub/d", b"sub/c")]


def test_a_marked_directory_that_is_moved_out_of_the_base_is_heard_no_more() -> None:
    world = World(b"base", b"base/sub", b"out")
    group = world.open(b"base")
    world.mark(group, b"sub")
    world.tree.move(world[b"base/sub"], world[b"out"], b"sub")
    world.publish(world.record(b"out/sub/secret"))
    assert paths(group) == []


def test_a_base_that_is_deleted_shows_nothing_at_all() -> None:
    world = World(b"top", b"top/base", b"top/base/sub", b"out")
    group = world.open(b"top/base")
    world.mark(group, b"sub")
    base = world[b"top/base"]
    world.tree.move(world[b"top/base/sub"], world[b"out"], b"sub")
    world.tree.move(world[b"top"], world.tree.root, b"moved")  # so that the paths have to be worked out anew
    world.tree.detach(base)
    world.publish(world.record(b"out/sub/secret"))
    assert paths(group) == []
    with pytest.raises(UsageError, match="no directory"):
        world.mark(group, b".", 2)


def test_a_base_that_moves_keeps_its_relative_paths() -> None:
    world = World(b"base", b"out")
    group = world.open(b"base")
    world.mark(group)
    world.tree.move(world[b"base"], world[b"out"], b"z")
    world.publish(world.record(b"out/z/x"))
    assert paths(group) == [b"x"]


def test_no_mark_on_a_directory_that_is_none() -> None:
    world = World(b"base")
    world.file(b"base/file")
    with pytest.raises(UsageError, match="files have the scope inode"):
        world.mark(world.open(b"base"), b"file")


# --- requests ------------------------------------------------------------------------------------------------------


def test_unknown_scopes_origins_and_kinds_are_named() -> None:
    world = World()
    group = world.open()
    with pytest.raises(UsageError, match="'tree' is no scope; the scopes are inode, dir, subtree, filesystem"):
        world.mark(group, scope="tree")
    with pytest.raises(UsageError, match="at least one origin"):
        world.mark(group, origins=0)
    with pytest.raises(UsageError, match="no kind: 0x4000000000000000"):
        world.mark(group, kinds=1 << 62)
    with pytest.raises(UsageError, match="no kind"):
        world.mark(group, kinds=-1 << 20)
    with pytest.raises(LimitReached, match="1024 users"):
        world.mark(group, uids=tuple(range(1025)))


def test_subtrees_are_for_root_and_the_owner() -> None:
    world = World(owner=1000)
    for uid in (0, 1000):
        world.groups.check_reach(uid, "subtree")
    world.groups.check_reach(1001, "dir")
    with pytest.raises(NotPermitted, match="watch_other"):
        world.groups.check_reach(1001, "subtree")
    World(watch_other=True).groups.check_reach(1001, "subtree")


# --- marked files --------------------------------------------------------------------------------------------------


def ends(group: Group) -> list[tuple[int, int, bytes | None]]:
    return [(mark, one.kind, one.path) for mark, one in drained(group)]


def test_a_marked_file_is_kept_once_for_all_its_marks_and_let_go_with_the_last() -> None:
    world = World()
    file = world.file(b"f")
    first, second = world.open(), world.open()
    world.mark(first, b"f", 1, scope="inode")
    world.mark(first, b"f", 2, scope="inode")
    world.mark(second, b"f", 1, scope="inode")
    kept = [file.kept]
    first.remove(1)
    world.mark(first, b".", 2)  # the number is another mark's now
    kept.append(file.kept)
    world.groups.close(second)
    kept.append(file.kept)
    assert kept == [1, 1, 0]
    world.mark(first, b"f", 3, scope="inode")
    assert file.kept == 1


def test_marked_files_are_limited() -> None:
    world = World(most_pinned=2)
    group = world.open()
    for name in (b"1", b"2", b"3"):
        world.file(name)
    world.mark(group, b"1", 1, scope="inode")
    world.mark(group, b"2", 2, scope="inode")
    world.mark(group, b"2", 3, scope="inode")
    with pytest.raises(LimitReached, match="2 files are marked"):
        world.mark(group, b"3", 4, scope="inode")
    group.remove(1)
    world.mark(group, b"3", 4, scope="inode")


def test_a_mark_that_finds_no_room_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "MOST_MARKS", 1)
    world = World()
    file = world.file(b"f")
    group = world.open()
    world.mark(group)
    with pytest.raises(LimitReached, match="can have 1 marks"):
        world.mark(group, b"f", 2, scope="inode")
    assert file.kept == 0


def test_no_mark_where_another_object_is_by_now() -> None:
    world = World(b"a")
    world.file(b"f")
    group = world.open()
    for path, scope in ((b"f", "inode"), (b"a", "inode"), (b"a", "dir")):
        request = AddMark(0, 1, path, scope, DEFAULT, ANY)
        assert not world.groups.mark(group, request, FakePin(77))
    assert group.marks == 0


def test_a_file_without_a_known_name_ends_when_its_last_link_is_found_gone() -> None:
    world = World()
    file = world.file(b"f")
    file.links = 2
    group = world.open()
    world.mark(group, b"f", scope="inode", kinds=events.DELETE)
    del world.files[b"f"]
    file.links = 1
    world.publish(world.record(b"f", events.DELETE), world.record(b"x", events.DELETE))
    file.links = 0
    world.publish(world.record(b"y", events.DELETE))
    assert ends(group) == [(1, events.DELETE, b"f"), (1, events.DELETE_SELF, None), (1, events.IGNORED, None)]
    assert (group.marks, file.kept) == (0, 0)


def test_a_link_that_was_lost_sight_of_is_found_by_its_next_name() -> None:
    world = World()
    file = world.file(b"f")
    file.links = 2
    group = world.open()
    world.mark(group, b"f", scope="inode", kinds=events.ATTRIB)
    del world.files[b"f"]
    world.publish(world.record(b"f", events.DELETE))
    world.files[b"h"] = file
    world.publish(world.record(b"h", RENAME, old=b"g"), world.record(b"h", events.ATTRIB))
    assert paths(group) == [b"h"]


def test_after_an_overflow_marked_files_are_looked_for() -> None:
    world = World(b"a")
    stays, goes = world.file(b"a/stays"), world.file(b"a/goes")
    group = world.open()
    world.mark(group, b"a/stays", 1, scope="inode")
    world.mark(group, b"a/goes", 2, scope="inode")
    world.mark(group, b"a", 3, scope="dir")
    del world.files[b"a/goes"]
    goes.links = 0
    world.groups.look_again()
    assert ends(group) == [(2, events.DELETE_SELF, b"a/goes"), (2, events.IGNORED, b"a/goes")]
    world.tree.detach(world[b"a"])
    assert ends(group) == [
        (3, events.IGNORED, b"a"), (1, events.DELETE_SELF, b"a/stays"), (1, events.IGNORED, b"a/stays")
    ]  # fmt: skip
    assert (stays.kept, goes.kept) == (0, 0)


def test_the_end_of_a_mark_finds_room_in_a_full_queue() -> None:
    world = World(b"a")
    group = world.open(limit=1)
    world.mark(group, b"a", kinds=CREATE)
    world.publish(world.record(b"a/1"), world.record(b"a/2"))
    world.tree.detach(world[b"a"])
    assert ends(group) == [(1, CREATE, b"a/1"), (0, events.OVERFLOW, None), (1, events.IGNORED, b"a")]
    world.mark(group, b".", kinds=CREATE)
    world.publish(world.record(b"1"), world.record(b"2"))
    assert ends(group) == [(1, CREATE, b"1"), (0, events.OVERFLOW, None)]


def test_ends_that_nobody_reads_are_bounded_like_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusenotify.group.MOST_MARKS", 3)
    monkeypatch.setattr("fusenotify.groups.MOST_MARKS", 3)
    world = World(b"a", b"b", b"c", b"d")
    group = world.groups.open(7, world.tree.root, 0)
    for number, path in enumerate((b"a", b"b", b"c"), 1):
        world.mark(group, path, number)
        world.tree.detach(world[path])
    with pytest.raises(LimitReached):
        group.check_room(9)
    with pytest.raises(LimitReached):
        world.groups.check_room(7)
    assert [mark for mark, _, _ in ends(group)] == [1, 2, 3]
    group.note_room()
    group.check_room(9)
    world.groups.check_room(7)
    world.mark(group, b"d", 9)
    world.tree.detach(world[b"d"])
    other = world.groups.open(7, world.tree.root, 0)
    world.groups.close(group)
    assert world.groups.fanout.ledger.of(7).marks == 0
    world.groups.close(other)


def test_users_that_are_named_count_like_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fusenotify.group.MOST_MARKS", 20)
    world = World(b"a")
    group = world.groups.open(7, world.tree.root, 0)
    world.mark(group, b"a", 1, uids=tuple(range(1000)))
    group.check_room(2)
    world.mark(group, b"a", 2, uids=tuple(range(1000)))
    with pytest.raises(LimitReached):
        group.check_room(3)
    assert world.groups.fanout.ledger.of(7).marks == 2 + 2000 // 64
    world.mark(group, b"a", 2)
    group.check_room(3)
    world.groups.close(group)


def test_nothing_comes_after_unmount() -> None:
    world = World(b"a")
    group = world.open()
    world.mark(group, b"a")
    world.publish(world.record(None, events.UNMOUNT))
    world.tree.detach(world[b"a"])
    assert ends(group) == [(0, events.UNMOUNT, None)]


def test_nothing_that_is_queued_for_a_mark_outlives_it() -> None:
    world = World(b"a", b"b")
    group = world.open(limit=3)
    world.mark(group, b"a", 1)
    world.mark(group, b"b", 2)
    world.publish(world.record(b"a/1"), world.record(b"b/1"), world.record(b"a/2"))
    group.remove(1)
    world.publish(world.record(b"b/2"), world.record(b"b/3"), world.record(b"b/4"))
    assert ends(group) == [(2, CREATE, b"b/1"), (2, CREATE, b"b/2"), (2, CREATE, b"b/3"), (0, events.OVERFLOW, None)]


def test_a_mark_for_one_event() -> None:
    world = World()
    group = world.open()
    world.mark(group, number=1, kinds=CREATE, oneshot=True)
    world.mark(group, number=2)
    world.publish(world.record(b"1", events.DELETE), world.record(b"2"), world.record(b"3"))
    world.publish(world.record(b"4"))
    assert heard(group) == [(2, b"1", None), (1, b"2", None), (2, b"3", None), (2, b"4", None)]
    with pytest.raises(UsageError, match="no mark 1"):
        group.remove(1)


# --- uses of files -------------------------------------------------------------------------------------------------


def test_uses_are_asked_for_where_marks_reach() -> None:
    world = World(b"a", b"a/b", b"c")
    world.file(b"c/f")
    group = world.open()

    def asked() -> list[int]:
        return [world.groups.uses.asked_in(world[path]) for path in (b".", b"a", b"a/b", b"c")]

    told = [asked()]
    world.mark(group, b"a", 1, kinds=events.OPEN)
    world.mark(group, b"a", 2, scope="dir", kinds=events.ACCESS)
    world.mark(group, b"c/f", 3, scope="inode", kinds=events.CLOSE_NOWRITE)
    told.append(asked())
    world.mark(group, b".", 4, scope="filesystem", kinds=events.ACCESS)
    told.append(asked())
    world.groups.close(group)
    told.append(asked())
    assert told == [
        [0, 0, 0, 0],
        [0, events.OPEN | events.ACCESS, events.OPEN, events.CLOSE_NOWRITE],
        [events.ACCESS, events.OPEN | events.ACCESS, events.OPEN | events.ACCESS, events.ACCESS | events.CLOSE_NOWRITE],
        [0, 0, 0, 0],
    ]
    assert not world.groups.uses


def test_only_directories_of_which_something_else_may_be_asked_are_looked_at_again() -> None:
    world = World(b"a", b"a/b", b"c")
    world.file(b"c/f")
    group = world.open()

    def unsettled() -> list[bytes]:
        return sorted(directory.path for directory in world.groups.uses.take_unsettled())

    world.mark(group, b"c", 1)
    told = [unsettled()]
    world.mark(group, b"a", 2, kinds=events.OPEN)
    world.mark(group, b"c/f", 3, scope="inode", kinds=events.OPEN)
    told.append(unsettled())
    world.publish(world.record(b"f", RENAME, old=b"c/f"))
    told.append(unsettled())
    world.tree.move(world[b"a/b"], world[b"c"], b"b")
    told.append(unsettled())
    assert told == [[], [b"a", b"a/b", b"c"], [b"."], [b"c/b"]]


# --- fan-out -------------------------------------------------------------------------------------------------------


def test_groups_that_take_everything_share_one_encoding() -> None:
    world = World(b"a")
    whole, other, part = world.open(), world.open(), world.open()
    world.mark(whole)
    world.mark(other, number=9)
    world.mark(part, b"a")
    world.publish(world.record(b"a/x"), world.record(b"y"))
    first, second, third = whole.queue.peek(9), other.queue.peek(9), part.queue.peek(9)
    assert first is not None
    assert second is not None
    assert third is not None
    assert first[1] is second[1]
    assert first[1].encoded() is second[1].encoded()
    assert (first[0], second[0]) == (1, 9)
    assert third[1].records[0] == first[1].records[0]


def test_only_who_gets_something_is_woken() -> None:
    world = World(b"a", b"b")
    woken: list[str] = []
    for name in (b"a", b"b"):
        group = world.open()
        world.mark(group, name)
        group.queue.on_queued = lambda name=name: woken.append(name.decode())  # type: ignore[misc]
    world.publish(world.record(b"a/x"))
    assert woken == ["a"]


def test_a_full_queue_is_its_own_groups_business() -> None:
    world = World()
    small, large = world.open(limit=2), world.open()
    world.mark(small)
    world.mark(large, b".", 1, kinds=CREATE)
    world.publish(*[world.record(b"%d" % n) for n in range(5)])
    assert [(mark, one.kind, one.path) for mark, one in drained(small)] == [
        (1, CREATE, b"0"), (1, CREATE, b"1"), (0, events.OVERFLOW, None)
    ]  # fmt: skip
    assert len(drained(large)) == 5


def test_all_read() -> None:
    world = World()
    group = world.open()
    world.mark(group)
    told = [world.groups.all_read]
    world.publish(world.record(b"x"))
    told.append(world.groups.all_read)
    world.groups.close(group)
    told.append(world.groups.all_read)
    assert told == [True, False, True]
    assert len(world.groups) == 0
    world.groups.close(group)


# --- limits --------------------------------------------------------------------------------------------------------


def test_groups_are_limited_per_user_but_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(groups, "MOST_GROUPS_PER_UID", 3)
    world = World()
    opened = [world.groups.open(1001, world.tree.root, 0) for _ in range(3)]
    with pytest.raises(LimitReached, match="user 1001 has 3 groups"):
        world.groups.open(1001, world.tree.root, 0)
    world.groups.open(1002, world.tree.root, 0)
    for _ in range(4):
        world.groups.open(0, world.tree.root, 0)
    world.groups.close(opened[0])
    world.groups.open(1001, world.tree.root, 0)


def test_marks_are_limited_per_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "MOST_MARKS", 2)
    world = World()
    group = world.open()
    world.mark(group, number=1)
    world.mark(group, number=2)
    world.mark(group, number=2)
    with pytest.raises(LimitReached, match="can have 2 marks"):
        world.mark(group, number=3)


def test_the_length_of_a_queue_is_limited_but_for_root_and_the_owner() -> None:
    world = World(owner=1000)
    too_long = groups.MOST_EVENTS + 1
    for uid in (0, 1000):
        assert world.groups.open(uid, world.tree.root, too_long).queue.limit == too_long
    with pytest.raises(LimitReached, match="1048576 events"):
        world.groups.open(1001, world.tree.root, too_long)
    assert world.groups.open(1001, world.tree.root, 0).queue.limit == 131072
