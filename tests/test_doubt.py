"""What is in doubt, bounded: each path that changed is in the set, or below one that stands for it."""

from hypothesis import given
from hypothesis import strategies as st

from fusenotify.doubt import Doubt
from fusenotify.events import CREATE, DELETE, IS_DIR, LOCAL, MODIFY, RENAME, EventRecord

paths = st.lists(st.sampled_from([b"a", b"b", b"c", b"long name"]), min_size=1, max_size=5).map(b"/".join)
records = st.builds(
    EventRecord,
    st.just(1),
    st.just(1),
    st.sampled_from([CREATE, DELETE, MODIFY, RENAME]),
    st.sampled_from([0, IS_DIR, LOCAL, LOCAL | IS_DIR]),
    paths,
).flatmap(
    lambda one: (
        st.just(one)
        if one.kind != RENAME
        else paths.map(lambda old: EventRecord(1, 1, RENAME, one.flags, one.path, old))
    )
)


@given(st.lists(records, max_size=60), st.integers(1, 12), st.integers(300, 3000))
def test_nothing_is_forgotten_and_the_set_stays_small(made: list[EventRecord], most: int, most_bytes: int) -> None:
    doubt = Doubt(most, most_bytes)
    for record in made:
        doubt.note(1, record)
        assert len(doubt._paths) <= most
        assert doubt._size <= most_bytes
    total = doubt.is_total
    taken = dict(doubt.take())
    assert not doubt
    for record in made:
        for path in (record.path, record.old_path):
            if path is None or total:
                continue
            above = [path[:cut] for cut in range(len(path)) if path[cut : cut + 1] == b"/"]
            what = taken.get(path)
            assert what is not None or any(one in taken and taken[one].below for one in above)
            if what is not None and record.kind != MODIFY:
                assert what.name or what.below


def test_a_new_directory_that_was_filled_was_never_another() -> None:
    doubt = Doubt()
    doubt.note(1, EventRecord(1, 1, CREATE, IS_DIR, b"new"))
    doubt.note(1, EventRecord(2, 2, CREATE, 0, b"new/file"))
    ((path, what),) = doubt.take()
    assert (path, what.below, what.replaced) == (b"new", True, False)
    doubt.note(1, EventRecord(1, 1, CREATE, IS_DIR, b"new"))
    doubt.note(1, EventRecord(3, 3, DELETE, 0, b"new/file"))
    assert doubt.take()[0][1].replaced
