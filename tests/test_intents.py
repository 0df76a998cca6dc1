"""Directories are written down before something changes in them, and no longer than that is needed."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from fusenotify import intents
from fusenotify.database import FILE_NAME, Database
from fusenotify.identity import FileHandle
from fusenotify.intents import Intents
from tests.journalling import journalled

START = 1 << 40
A, B, C = 11, 12, 13


@pytest.fixture
def database(directory: Path) -> Iterator[Database]:
    with contextlib.closing(Database(directory, FileHandle(7, 1, b"tree"))) as database:
        yield database


def missing(intents: Intents, *numbers: int) -> set[int]:
    with intents.under_way(numbers) as missing:
        return missing


def written(state_dir: Path) -> set[int]:
    with contextlib.closing(sqlite3.connect(state_dir / FILE_NAME)) as connection:
        return {number for (number,) in connection.execute("SELECT inode FROM touched")}


def test_a_directory_is_written_down_once(database: Database, directory: Path) -> None:
    intents = Intents(database, START)
    assert missing(intents, A, B) == {A, B}
    intents.record({A})
    assert written(directory) == {A}
    assert missing(intents, A, B) == {B}
    intents.cover(C, above=A)
    assert not missing(intents, A, C)
    intents.cover(B, above=99)
    assert missing(intents, B) == {B}
    assert Intents(database, START + 1).earlier == {A}


@pytest.mark.parametrize("number", [1 << 63, (1 << 64) - 1])
def test_inode_numbers_have_64_bits(database: Database, number: int) -> None:
    intents = Intents(database, START)
    with intents.under_way([number]) as needed:
        intents.record(needed)
    assert not missing(intents, number)
    intents.cover(number - 1, above=number)
    assert not missing(intents, number - 1)
    assert missing(Intents(database, START + 1), number) == Intents(database, START + 1).earlier


def test_another_turn(database: Database, directory: Path) -> None:
    intents = Intents(database, START)
    with intents.under_way([B]) as needed:
        assert needed == {B}
        intents.record({A, B})
        intents.cover(C, above=A)
        kept = intents.turn()
        assert missing(intents, A, C) == {A, C}  # who changes something now makes it last longer
        assert not missing(intents, B)
        assert written(directory) == {A, B}  # until all that has changed is safe
        with database.reading() as connection:
            assert intents.in_doubt(connection) == {A, B, C}
    intents.end_earlier_turns(kept)
    assert written(directory) == {B}
    with database.reading() as connection:
        assert intents.in_doubt(connection) == {B}
    intents.end_earlier_turns(intents.turn())
    assert not written(directory)


def test_what_is_written_down_while_a_turn_begins_outlives_it(database: Database, directory: Path) -> None:
    intents = Intents(database, START)
    with intents.under_way([A]) as needed:
        with database.transaction() as connection:
            late = intents.touch(connection, needed)
            kept = intents.turn()
        intents.confirm(late)
        assert missing(intents, A) == {A}  # it is of the turn before
        intents.end_earlier_turns(kept)
        assert written(directory) == {A}


async def test_a_journal_takes_its_turns(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intents, "MOST", 4)
    source, state = directory / "source", directory / "state"
    async with journalled(source, state) as journal:
        cursor = await journal.cursor()
        for number in range(40):
            (source / f"{number}").mkdir()
            (source / f"{number}/file").touch()
            await journal.cursor()
        assert len(written(state)) < 40
        changes, fresh = await journal.since(cursor)
        assert not fresh
        assert len(changes) == 80
