"""The rows of the journal: one for each entry of the tree, with the position at which it changed last.

A row belongs to a directory, by its row's number, and a name in it, so that renaming a directory changes one row and
moves all below it. Of what is gone a tombstone stays. What is below a directory that has gone is cut off at once, by
the number of that directory, and deleted bit by bit later on.

Whether there is something at a name follows what the events say; its attributes are those of the last look. All methods
are for use inside a transaction.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from fusenotify.digest import Note, Step
from fusenotify.events import DELETE, EXCHANGE, IS_DIR, OTHER_IS_DIR, EventRecord
from fusenotify.rows import DIRECTORY, FOUND_GONE, IS_DIRECTORY, IS_PRESENT, ROOT_ID, UNSEEN, Known, Look, Row, unseen

_MOST_CACHED: Final = 1 << 16
_PURGED_AT_ONCE: Final = 2000
_COLUMNS: Final = "id, parent, name, kind, inode, size, mtime, ctime, links, changed, born, gone"
_INSERT: Final = f"INSERT INTO entry ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_UPDATE: Final = """
UPDATE entry SET kind = ?, inode = ?, size = ?, mtime = ?, ctime = ?, links = ?, changed = ?, born = ?, gone = ?
WHERE id = ?
"""


class Entries:
    """The rows.

    Attributes:
        unlisted: directories, by number, of which it is not known what is in them.
        moved: those that have come to another place.
        moves: how often paths have changed their meaning.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.unlisted: list[int] = []
        self.moved: list[int] = []
        self.moves = 0
        self._ids: dict[bytes, int] = {}  # of directories that are there, by path; below, the other way round
        self._paths: dict[int, bytes] = {}
        self._next_id = ROOT_ID
        self.forget_cached()

    def forget_cached(self) -> None:
        """Read everything anew: a transaction has failed."""
        self._forget_paths()
        self.moves += 1
        ((rows, orphans),) = self._connection.execute(
            "SELECT (SELECT max(id) FROM entry), (SELECT max(id) FROM orphan)"
        )
        self._next_id = max(rows or ROOT_ID, orphans or ROOT_ID) + 1

    # --- what events say ---------------------------------------------------------------------------------------------

    def follow(self, steps: Sequence[Step], epoch: int, looks: Mapping[bytes, Look]) -> None:
        """Write down what happened; `looks` are at what is there now, as in `note`."""
        for step in steps:
            if isinstance(step, EventRecord):
                self.restructure(step, epoch, looks.get(step.path or b""), looks.get(step.old_path or b""))
            else:
                for path, note in step.items():
                    self.note(path, note, epoch, looks.get(path))

    def note(self, path: bytes, note: Note, epoch: int, look: Look | None) -> None:
        """Write down what happened to what is at a path.

        Args:
            path: where.
            note: what.
            epoch: the position at which this run began.
            look: what is there now, as far as that could be seen; it may be something else already.
        """
        changed = epoch + note.seq
        parent, name = self._place(path, changed)
        row = self.find(parent, name)
        if look is not None and look.links > 1:
            self.note_links(look)
        if note.exists is False:
            self._remove(parent, name, row, changed, is_dir=note.is_dir)
        elif note.exists or row is None:
            self.put(parent, name, row, _told(look, note.is_dir), changed, epoch + (note.born or note.seq))
        else:
            self._refresh(row, look, changed)

    def restructure(self, record: EventRecord, epoch: int, look: Look | None, old_look: Look | None) -> None:
        """Write down that a directory was renamed or removed, or swapped with something.

        `look` is what is at `path` now, and `old_look` what is at `old_path`.
        """
        changed = epoch + record.seq
        is_dir = bool(record.flags & IS_DIR)
        new, old = record.path, record.old_path
        if old is None and new is not None:  # a removal; or something came in, which is told with all below it
            parent, name = self._place(new, changed)
            row = self.find(parent, name)
            if record.kind == DELETE:
                self._remove(parent, name, row, changed, is_dir=is_dir)
            else:
                self.put(parent, name, row, _told(look, is_dir), changed, changed)
        elif old is not None and new is None:
            parent, name = self._place(old, changed)
            self._remove(parent, name, self.find(parent, name), changed, is_dir=is_dir)
        elif old is not None and new is not None:
            self._rename(old, new, record, changed, (look, old_look))

    def _rename(
        self, old: bytes, new: bytes, record: EventRecord, changed: int, looks: tuple[Look | None, Look | None]
    ) -> None:
        source = self._place(old, changed)
        target = self._place(new, changed)
        moved, replaced = self.find(*source), self.find(*target)
        is_dir = bool(record.flags & IS_DIR)
        if record.flags & EXCHANGE:
            other_is_dir = bool(record.flags & OTHER_IS_DIR)
            moved = self._sure(source, moved, is_dir, changed)
            replaced = self._sure(target, replaced, other_is_dir, changed)
            self._connection.execute("UPDATE entry SET parent = -1 WHERE id = ?", (moved.id,))
            self._settle(replaced, source, looks[1], changed, moved)
            self._settle(moved, target, looks[0], changed, replaced)
            return
        moved = self._sure(source, moved, is_dir, changed)
        if replaced is not None:
            self._drop(replaced)
        self._settle(moved, target, looks[0], changed, replaced)
        self._insert(
            *source, moved.kind & IS_DIRECTORY, UNSEEN._replace(inode=moved.inode), changed, moved.born, changed
        )

    def _sure(self, place: tuple[int, bytes], row: Row | None, is_dir: bool, changed: int) -> Row:
        """Return the row of what events say was at a place; where that was not known, what is in it is not either."""
        if row is not None and row.kind == IS_PRESENT | is_dir:
            return row
        parent, name = place
        row = self.put(parent, name, row, unseen(is_dir=is_dir), changed, changed)
        if is_dir:
            self.unlisted.append(row.id)
        return row

    def _settle(self, row: Row, place: tuple[int, bytes], look: Look | None, changed: int, before: Row | None) -> None:
        """Bring a row to another place, where `before` was."""
        is_seen = look is not None and look.is_dir == bool(row.kind & IS_DIRECTORY)
        look = look if look is not None and is_seen else UNSEEN._replace(inode=row.inode, links=row.links)
        gone = 0 if before is None else changed if before.kind == DIRECTORY else before.gone
        self._connection.execute("UPDATE entry SET parent = ?, name = ? WHERE id = ?", (*place, row.id))
        if row.kind == DIRECTORY:
            self._forget_path(row.id)
            self.moved.append(row.id)
            if is_seen and row.inode not in (0, look.inode):
                self.unlisted.append(row.id)
        self._update(row.id, row.kind, look, changed, changed, gone)

    # --- single rows -------------------------------------------------------------------------------------------------

    def find(self, parent: int, name: bytes) -> Row | None:
        """Return the row of an entry of a directory, None if there is none."""
        found = self._connection.execute(
            f"SELECT {_COLUMNS} FROM entry WHERE parent = ? AND name = ?", (parent, name)
        ).fetchone()
        return None if found is None else Row(*found)

    def known_in(self, number: int) -> dict[bytes, Known]:
        """Return what is known of everything in a directory, by name."""
        query = "SELECT name, id, kind, inode, size, mtime, ctime FROM entry WHERE parent = ?"
        return {row[0]: row for row in self._connection.execute(query, (number,))}

    def put(self, parent: int, name: bytes, row: Row | None, look: Look, changed: int, born: int) -> Row:
        """Write down what stands for a name since `born`, and return its row; `row` is the one there was."""
        kind = IS_PRESENT | look.is_dir
        if row is None:
            return self._insert(parent, name, kind, look, changed, born, 0)
        if row.kind == DIRECTORY and kind == DIRECTORY and look.inode == row.inode:
            self._update(row.id, kind, look, changed, row.born, row.gone)  # told of a second time
        elif row.kind == DIRECTORY and kind != DIRECTORY:
            self._drop(row)
            return self._insert(parent, name, kind, look, changed, born, changed)
        else:
            # Of one directory in another's place what was below the first stays known: so it is named.
            self._update(row.id, kind, look, changed, born, changed if row.kind == DIRECTORY else row.gone)
        return row._replace(kind=kind, inode=look.inode)

    def _refresh(self, row: Row, look: Look | None, changed: int) -> None:
        """Write down that something changed that was there before."""
        if look is not None and not row.kind & IS_PRESENT:
            self.put(row.parent, row.name, row, look, changed, changed)
        elif look is not None and look.is_dir == bool(row.kind & IS_DIRECTORY):
            self._update(row.id, row.kind, look, changed, row.born, row.gone)
        else:  # it is gone again, or something else: that is still to be told
            look = unseen(is_dir=False) if row.kind == IS_PRESENT else UNSEEN
            self._update(row.id, row.kind, look._replace(inode=row.inode), changed, row.born, row.gone)

    def note_links(self, look: Look) -> None:
        """Take note of the other names of a file: a change is told for one of them only."""
        others = "UPDATE entry SET links = ? WHERE inode = ? AND kind = ? AND links = 1"
        self._connection.execute(others, (look.links, look.inode, IS_PRESENT))

    def note_linked(self, inodes: Iterable[int], changed: int) -> None:
        """Write down that files have got names that may have gone again, and may have been changed by those."""
        query = "UPDATE entry SET links = max(links, 2), changed = max(changed, ?) WHERE inode = ? AND kind = ?"
        self._connection.executemany(query, [(changed, inode, IS_PRESENT) for inode in inodes])

    def has_links(self) -> bool:
        """Whether there are files that have or may have several names."""
        return self._connection.execute("SELECT 1 FROM entry WHERE links > 1 LIMIT 1").fetchone() is not None

    def linked(self) -> list[tuple[bytes, Row]]:
        """Return the paths and rows of files that have or may have several names."""
        found = []
        for row in map(Row._make, self._connection.execute(f"SELECT {_COLUMNS} FROM entry WHERE links > 1").fetchall()):
            above = self.path_of(row.parent)
            if above is not None:
                found.append((row.name if above == b"." else above + b"/" + row.name, row))
        return found

    def doubt_linked(self, changed: int) -> None:
        """Write down that every file with several names may have changed: by a name that nobody looks at."""
        self._connection.execute("UPDATE entry SET changed = ?, ctime = 0 WHERE links > 1", (changed,))

    def touch(self, row: Row, look: Look, changed: int) -> None:
        """Write down that something changed which a look has shown."""
        self._update(row.id, row.kind, look, changed, row.born, row.gone)

    def look_again(self, path: bytes, look: Look) -> None:
        """Take over the time of change of what had changed only just before it was looked at, if it is as it was."""
        row = self._at(path)
        if row is not None and row.ctime == 0 and row._replace(ctime=look.ctime).is_as(look):
            self.touch(row, look, row.changed)

    def renew(self, path: bytes, look: Look) -> int:
        """Take over what a directory is, not as a change; return the inode number of the one it is in, 0 if unknown.

        Where it is unknown nothing is taken over: nobody could say then that there is something in doubt in that one.
        """
        row = self._at(path)
        if row is None or row.kind != DIRECTORY or row.inode not in (look.inode, 0):
            return 0
        above = self.inode_of(path.rpartition(b"/")[0] or b".")
        if above and not row.is_as(look):
            self.touch(row, look, row.changed)
        return above

    def _at(self, path: bytes) -> Row | None:
        if path == b".":
            return self.find(0, b"")
        above, _, name = path.rpartition(b"/")
        return self.find(self._ids.get(above or b".", -1), name)

    def remove(self, row: Row, changed: int) -> None:
        """Write down that what was there has been found to be gone."""
        # What was gone already is no proof of anything.
        look = UNSEEN._replace(ctime=row.ctime if row.kind & IS_PRESENT else 0, links=FOUND_GONE)
        self._remove(row.parent, row.name, row, changed, is_dir=bool(row.kind & IS_DIRECTORY), look=look)

    def _remove(
        self, parent: int, name: bytes, row: Row | None, changed: int, *, is_dir: bool, look: Look = UNSEEN
    ) -> None:
        if row is None:
            self._insert(parent, name, int(is_dir), UNSEEN, changed, changed, changed if is_dir else 0)
            return
        was_dir = is_dir or bool(row.kind & IS_DIRECTORY)
        gone = changed if was_dir else row.gone
        look = look._replace(inode=row.inode)
        if row.kind == DIRECTORY:
            self._drop(row)
            self._insert(parent, name, IS_DIRECTORY, look, changed, row.born, gone)
        else:
            self._update(row.id, int(was_dir), look, changed, row.born, gone)

    def _drop(self, row: Row) -> None:
        """Delete a row; what is below it belongs to nothing any more."""
        self._connection.execute("DELETE FROM entry WHERE id = ?", (row.id,))
        if row.kind == DIRECTORY:
            self._connection.execute("INSERT OR IGNORE INTO orphan VALUES (?)", (row.id,))
            self._forget_path(row.id)

    def _insert(self, parent: int, name: bytes, kind: int, look: Look, changed: int, born: int, gone: int) -> Row:
        number, self._next_id = self._next_id, self._next_id + 1
        row = Row(number, parent, name, kind, *look[:5], changed, born, gone)
        self._connection.execute(_INSERT, row)
        return row

    def _update(self, number: int, kind: int, look: Look, changed: int, born: int, gone: int) -> None:
        self._connection.execute(_UPDATE, (kind, *look[:5], changed, born, gone, number))

    # --- paths -------------------------------------------------------------------------------------------------------

    def compare_root(self, look: Look, changed: int) -> None:
        """Write down that the root has changed, if it has."""
        row = self.find(0, b"")
        if row is None:
            self._connection.execute(_INSERT, Row(ROOT_ID, 0, b"", DIRECTORY, *look[:5], changed, 0, 0))
        elif not row.is_as(look):
            self.touch(row, look, changed)

    def _place(self, path: bytes, changed: int) -> tuple[int, bytes]:
        """Return the directory and the name that a path stands for."""
        if path == b".":
            return 0, b""
        above, _, name = path.rpartition(b"/")
        return self.directory(above or b".", changed), name

    def directory(self, path: bytes, changed: int) -> int:
        """Return the number of a directory; one that was not known is from now on."""
        number, known, missing = self._known(path)
        for name in missing:
            row = self.find(number, name)
            if row is None or row.kind != DIRECTORY:
                row = self.put(number, name, row, unseen(is_dir=True), changed, changed)
                self.unlisted.append(row.id)
            number = row.id
            known = name if known == b"." else known + b"/" + name
            self._remember(known, number)
        return number

    def directories(self, inodes: Iterable[int]) -> list[int]:
        """Return the numbers of the rows of directories that are there, by their inode numbers."""
        query = "SELECT id FROM entry WHERE inode = ? AND kind = ?"
        return [row for inode in inodes for (row,) in self._connection.execute(query, (inode, DIRECTORY))]

    def inode_of(self, path: bytes) -> int:
        """Return the inode number of a directory, as far as that is known, else 0."""
        number, known, missing = self._known(path)
        for name in missing:
            row = self.find(number, name)
            if row is None or row.kind != DIRECTORY:
                return 0
            number = row.id
            known = name if known == b"." else known + b"/" + name
            self._remember(known, number)
        return self.inode_at(number)

    def inode_at(self, number: int) -> int:
        """Return the inode number of a directory by the number of its row, as far as that is known, else 0."""
        found = self._connection.execute("SELECT inode FROM entry WHERE id = ?", (number,)).fetchone()
        return 0 if found is None else int(found[0])

    def _known(self, path: bytes) -> tuple[int, bytes, list[bytes]]:
        """Return the directory on the way to a path, or at it, that is at hand, and what is missing from there on."""
        missing: list[bytes] = []
        while path not in self._ids:
            above, _, name = path.rpartition(b"/")
            missing.append(name)
            path = above or b"."
        return self._ids[path], path, missing[::-1]

    def _remember(self, path: bytes, number: int) -> None:
        if len(self._ids) >= _MOST_CACHED:
            self._forget_paths()
        self._ids[path], self._paths[number] = number, path

    def path_of(self, number: int) -> bytes | None:
        """Return the path of a directory that is there."""
        names: list[bytes] = []
        while number != ROOT_ID:
            found = self._connection.execute("SELECT parent, name, kind FROM entry WHERE id = ?", (number,)).fetchone()
            if found is None or found[2] != DIRECTORY:
                return None
            number = found[0]
            names.append(found[1])
        return b"/".join(reversed(names)) or b"."

    def _forget_path(self, number: int) -> None:
        """Take note that a directory is where it was no longer, nor is what is below it."""
        self.moves += 1
        has_below = "SELECT 1 FROM entry WHERE parent = ? AND kind = ? LIMIT 1"
        if self._connection.execute(has_below, (number, DIRECTORY)).fetchone() is not None:
            self._forget_paths()
        elif (path := self._paths.pop(number, None)) is not None:
            del self._ids[path]

    def _forget_paths(self) -> None:
        self._ids, self._paths = {b".": ROOT_ID}, {ROOT_ID: b"."}

    # --- cleaning up -------------------------------------------------------------------------------------------------

    def purge(self) -> bool:
        """Delete some of what is below directories that have gone; return whether there may be more."""
        found = self._connection.execute("SELECT id FROM orphan LIMIT 1").fetchone()
        if found is None:
            return False
        self._connection.execute(
            "INSERT OR IGNORE INTO orphan SELECT id FROM entry WHERE parent = ? AND kind = ?", (*found, DIRECTORY)
        )
        below = "SELECT id FROM entry WHERE parent = ? LIMIT ?"
        done = self._connection.execute(f"DELETE FROM entry WHERE id IN ({below})", (*found, _PURGED_AT_ONCE)).rowcount
        if done < _PURGED_AT_ONCE:
            self._connection.execute("DELETE FROM orphan WHERE id = ?", found)
        return True


def _told(look: Look | None, is_dir: bool) -> Look:
    """Return what was seen of an object that was told of, unless it was its successor: that is still to be told."""
    return look if look is not None and look.is_dir == is_dir else unseen(is_dir=is_dir)
