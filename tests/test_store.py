"""The database in the state directory: what it keeps, what it forgets, and when it is not trusted."""

import contextlib
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fusenotify
from fusenotify import store as module
from fusenotify.database import FILE_NAME, Database
from fusenotify.errors import EnvironmentProblem, StaleHandle
from fusenotify.identity import FileHandle, Identity, InodeNumber, unpack_identity
from fusenotify.store import NodeRow, Store
from tests.harness import mounted

TREE = FileHandle(7, 1, b"root")


@contextlib.contextmanager
def opened(state_dir: Path, tree: Identity = TREE) -> Iterator[Store]:
    database = Database(state_dir, tree)
    store = Store(database)
    try:
        yield store
    finally:
        store.close()
        database.close()


def row(nodeid: int, name: bytes = b"name", handle: bytes = b"handle") -> NodeRow:
    return NodeRow(nodeid, nodeid & 0xFFFF, FileHandle(7, 1, handle).packed(), 1, name)


@pytest.mark.parametrize(
    "identity", [FileHandle(0, -1, b""), FileHandle((1 << 128) - 1, 0x81, bytes(128)), InodeNumber(40, 1 << 62, 5)]
)
def test_identities_are_packed(identity: Identity) -> None:
    assert unpack_identity(identity.packed()) == identity
    with pytest.raises(ValueError, match="no identity"):
        unpack_identity(identity.packed()[:10])
    with pytest.raises(ValueError, match="no identity"):
        unpack_identity(b"x" + identity.packed()[1:])


def test_rows_are_there_at_once_and_later(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        tree_id, secret = store._database.tree_id, store._database.secret
        store.put(row(42))
        store.put(row(43))
        store.put(row(1 << 61, b"\xff\x00"))
        assert store.row(42) == row(42)
        store.forget(row(43))
        assert store.row(43) is None
        store.forget(row(42, handle=b"of an object that was 42 earlier"))
        store.put(row(42, b"renamed"))
        assert store.row(42) == row(42, b"renamed")
    with opened(tmp_path) as store:
        assert (store._database.tree_id, store._database.secret) == (tree_id, secret)
        assert [store.row(nodeid) for nodeid in (42, 43, 1 << 61)] == [
            row(42, b"renamed"),
            None,
            row(1 << 61, b"\xff\x00"),
        ]
        assert list(store.from_number(1 << 61)) == [FileHandle(7, 1, b"handle")]
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600


def test_rows_of_what_has_gone_are_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many objects come and go, there are about as many rows as living ones."""
    monkeypatch.setattr(module, "_FEW", 100)
    looked = threading.Semaphore(0)

    def is_gone(row: NodeRow) -> bool:
        looked.release()
        return row.nodeid > 50

    with opened(tmp_path) as store:
        store.is_gone = is_gone
        for nodeid in range(1, 102):
            store.put(row(nodeid))
        for _ in range(101):
            assert looked.acquire(timeout=30)
        store.put(row(1000))
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database:
        rows = [nodeid for (nodeid,) in database.execute("SELECT nodeid FROM node ORDER BY nodeid")]
    assert rows == [*range(1, 51), 1000]


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096)


def scribble(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)


def make_newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA user_version = 99")


def make_foreign(path: Path) -> None:
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE theirs (x)")


def give_to_another_tree(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE about SET value = ? WHERE key = 'tree'", (FileHandle(8, 1, b"root").packed(),))


def lose_the_secret(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM about WHERE key = 'secret'")


def lose_a_table(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("DROP TABLE node")


@pytest.mark.parametrize(
    "harm", [damage, scribble, make_newer, make_foreign, give_to_another_tree, lose_the_secret, lose_a_table]
)
def test_what_cannot_be_trusted_is_set_aside(tmp_path: Path, harm: object, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as store:
        store.put(row(42))
        secret = store._database.secret
    assert callable(harm)
    harm(tmp_path / FILE_NAME)
    before = (tmp_path / FILE_NAME).read_bytes()
    with caplog.at_level(logging.WARNING), opened(tmp_path) as store:
        assert store.row(42) is None
        assert store._database.secret != secret
        store.put(row(42))
    assert "cannot be used" in caplog.text
    assert "set-aside" in caplog.text
    assert (tmp_path / "store.set-aside").read_bytes() == before
    with opened(tmp_path) as store:
        assert store.row(42) == row(42)


def test_no_place_for_a_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).mkdir()
    with pytest.raises(EnvironmentProblem, match="--state-dir"):
        Database(tmp_path, TREE)


def test_what_cannot_be_read_just_now_is_not_set_aside(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.put(row(42))
    (tmp_path / f"{FILE_NAME}-wal").mkdir()
    with pytest.raises(EnvironmentProblem, match="cannot keep a database"):
        Database(tmp_path, TREE)
    (tmp_path / f"{FILE_NAME}-wal").rmdir()
    with opened(tmp_path) as store:
        assert store.row(42) == row(42)


def test_a_full_disk_costs_rows_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with opened(tmp_path) as store:
        store._database._connection.execute("PRAGMA max_page_count = 4")
        for nodeid in range(5000):
            store.put(row(nodeid))
    assert "cannot be written" in caplog.text
    with opened(tmp_path) as store:
        assert store.row(42) is None
        store.put(row(42))
    with opened(tmp_path) as store:
        assert store.row(42) == row(42)


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY", 0.01)
    with opened(tmp_path) as store:
        pages = store._database._connection.execute("PRAGMA max_page_count").fetchone()[0]
        failed = threading.Event()
        attempt = store._attempt

        def attempt_and_tell(work: Callable[[sqlite3.Connection], object]) -> bool:
            is_done = attempt(work)
            if not is_done:
                failed.set()
            return is_done

        store._attempt = attempt_and_tell  # type: ignore[method-assign]
        store._database._connection.execute("PRAGMA max_page_count = 4")
        for nodeid in range(5000):
            store.put(row(nodeid))
        assert failed.wait(30)
        store._database._connection.execute(f"PRAGMA max_page_count = {pages}")
    with opened(tmp_path) as store:
        assert [store.row(nodeid) for nodeid in (0, 4999)] == [row(0), row(4999)]


async def test_a_daemon_begins_anew_over_a_damaged_database(directory: Path) -> None:
    with mounted(directory) as mount:
        (mount.source / "file").touch()
        handle = await fusenotify.lookup(mount.mountpoint / "file")
        assert mount.stop() == 0
    scribble(directory / "state" / FILE_NAME)
    with mounted(directory) as mount:
        assert "cannot be used" in mount.log
        with pytest.raises(StaleHandle, match="another tree"):
            await fusenotify.locate(mount.mountpoint, handle)
        assert await fusenotify.lookup(mount.mountpoint / "file") != handle
