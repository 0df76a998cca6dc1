"""A program that changes a few names as fast as it can: `python storm.py DIRECTORY SEED SECONDS [names|all]`.

Prints, as JSON, how many changes of names it made and which errors it met.
"""

import errno
import json
import os
import random
import sys
import time
from collections import Counter

NAMES = ["a", "b", "c", "d"]


class Storm:
    """Random operations on the entries of a directory and of the two directories in it."""

    def __init__(self, root: str, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self.changes = 0
        self.errors: Counter[str] = Counter()

    def run(self, seconds: float, *, names_only: bool) -> None:
        of_names = [self._make, self._make_directory, self._link, self._rename, self._remove, self._remove_directory]
        of_content = [] if names_only else [self._write, self._change_mode, self._read, self._list]
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            operation = self._random.choice(of_names + of_content)
            try:
                operation()
            except OSError as error:
                self.errors[errno.errorcode[error.errno or 0]] += 1
            else:
                self.changes += operation in of_names

    def _path(self) -> str:
        return os.path.join(self._root, self._random.choice(["one", "two"]), self._random.choice(NAMES))

    def _make(self) -> None:
        os.mknod(self._path())

    def _make_directory(self) -> None:
        os.mkdir(self._path())

    def _link(self) -> None:
        os.symlink("nowhere", self._path())

    def _rename(self) -> None:
        old, new = self._path(), self._path()
        while new == old:  # which changes nothing
            new = self._path()
        os.rename(old, new)

    def _remove(self) -> None:
        os.unlink(self._path())

    def _remove_directory(self) -> None:
        os.rmdir(self._path())

    def _write(self) -> None:
        flags = self._random.choice([os.O_TRUNC, os.O_APPEND])
        fd = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | flags, 0o644)
        try:
            os.write(fd, self._random.randbytes(self._random.randrange(1, 5000)))
        finally:
            os.close(fd)

    def _change_mode(self) -> None:
        os.chmod(self._path(), self._random.choice([0o600, 0o644, 0o755]), follow_symlinks=True)

    def _read(self) -> None:
        fd = os.open(self._path(), os.O_RDONLY | os.O_NOFOLLOW)
        try:
            os.read(fd, 8192)
        finally:
            os.close(fd)

    def _list(self) -> None:
        os.listdir(os.path.dirname(self._path()))


def main() -> None:
    root, seed, seconds, *what = sys.argv[1:]
    storm = Storm(root, int(seed))
    storm.run(float(seconds), names_only="names" in what)
    json.dump({"changes": storm.changes, "errors": storm.errors}, sys.stdout)


if __name__ == "__main__":
    main()
