"""What a run of events says of each path, so that each is looked at and written down once.

Pure: no system calls. Events of one path fold into one note. What moves or removes a directory stands on its own, since
what lies below it has another meaning before and after.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from fusenotify.events import (
    ATTRIB,
    CLOSE_WRITE,
    CREATE,
    DELETE,
    EXCHANGE,
    IS_DIR,
    MODIFY,
    OTHER_IS_DIR,
    RENAME,
    EventRecord,
)

_CONTENT: Final = MODIFY | ATTRIB | CLOSE_WRITE
CHANGES: Final = _CONTENT | CREATE | DELETE | RENAME


class Note:
    """What happened to what is at one path.

    Attributes:
        seq: when it happened last.
        exists: whether there is something, by the events; None where they do not say.
        born: when what is there came, 0 if it was there before.
        is_dir: whether it is a directory; of what is gone, whether it was one.
    """

    __slots__ = ("born", "exists", "is_dir", "seq")

    def __init__(self, seq: int, exists: bool | None, is_dir: bool) -> None:
        self.seq = seq
        self.exists = exists
        self.born = seq if exists else 0
        self.is_dir = is_dir

    def add(self, seq: int, exists: bool | None, is_dir: bool) -> None:
        """Take note of what happened after that."""
        self.seq = seq
        if exists is not None:
            self.exists = exists
            self.is_dir = is_dir
            if exists:
                self.born = seq


Notes = dict[bytes, Note]
Step = Notes | EventRecord


def folded(records: Iterable[EventRecord]) -> Iterator[Step]:
    """Yield what to do about events, in order: notes on paths, or the rename or removal of a directory."""
    notes: Notes = {}
    for record in records:
        if not record.kind & CHANGES:
            continue
        if _is_structural(record):
            if notes:
                yield notes
                notes = {}
            yield record
        elif record.kind == RENAME:
            _add(notes, record.old_path, record.seq, False, False)
            _add(notes, record.path, record.seq, True, False)
            if record.flags & EXCHANGE:
                _add(notes, record.old_path, record.seq, True, False)
        else:
            exists = None if record.kind & _CONTENT else record.kind == CREATE
            _add(notes, record.path, record.seq, exists, bool(record.flags & IS_DIR))
    if notes:
        yield notes


def _is_structural(record: EventRecord) -> bool:
    return bool(record.kind & (DELETE | RENAME) and record.flags & (IS_DIR | OTHER_IS_DIR))


def _add(notes: Notes, path: bytes | None, seq: int, exists: bool | None, is_dir: bool) -> None:
    if path is None:
        return
    note = notes.get(path)
    if note is None:
        notes[path] = Note(seq, exists, is_dir)
    else:
        note.add(seq, exists, is_dir)
