"""What is in a tree, so that two can be compared: the mount with the backing tree, or with a plain directory."""

import os
import stat
from pathlib import Path
from typing import Any

Entry = tuple[Any, ...]


def survey(root: Path, *, times: bool = False, numbers: bool = False) -> dict[str, Entry]:
    """Return every path below a directory with its type and mode, owner, links, size or content or target, xattrs.

    `times` adds the modification times, `numbers` the inode numbers.
    """
    found = {".": _entry(root, times, numbers)}
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _entry(path, times, numbers)
    return found


def _entry(path: Path, times: bool, numbers: bool) -> Entry:
    status = path.lstat()
    body: object = None
    if stat.S_ISREG(status.st_mode):
        body = path.read_bytes()
        assert len(body) == status.st_size, path
    elif stat.S_ISLNK(status.st_mode):
        body = os.readlink(path)
    links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
    entry: Entry = (oct(status.st_mode), status.st_uid, status.st_gid, links, status.st_rdev, body)
    entry += (tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in _xattrs(path))),)
    return entry + (status.st_mtime_ns,) * times + (status.st_ino,) * numbers


def _xattrs(path: Path) -> list[str]:
    return os.listxattr(path, follow_symlinks=False)


def assert_same(one: dict[str, Entry], other: dict[str, Entry]) -> None:
    """Compare two surveys, and name what differs only."""
    assert sorted(one.keys() ^ other.keys()) == []
    assert {path: (one[path], other[path]) for path in one if one[path] != other[path]} == {}
