"""What is in a file: random reads, writes, mappings, truncations and appends on both sides, against a model."""

import contextlib
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.filesystems import filesystem
from tests.harness import Mount, mounted
from tests.soak import SEED, examples

MOST = 300_000

_offset = st.integers(0, MOST)
_length = st.one_of(st.integers(0, 5000), st.integers(0, 140_000), st.sampled_from((4096, 8192, 65_536, 131_072)))
_slot = st.integers(0, 3)
_steps = st.one_of(
    st.tuples(st.sampled_from(("read", "write", "map", "store")), _slot, _offset, _length),
    st.tuples(st.just("truncate"), _slot, _offset, st.booleans()),
    st.tuples(st.sampled_from(("append", "append behind")), _length.filter(lambda length: length < 20_000)),
    st.tuples(st.just("write behind"), _offset, _length.filter(lambda length: length < 20_000)),
    st.tuples(st.just("reopen"), _slot, st.sampled_from((0, os.O_SYNC))),
    st.tuples(st.just("sync"), _slot),
)


class Model:
    """A file of the mount, and the bytes that should be in it."""

    def __init__(self, mount: Mount) -> None:
        self._path = mount.mountpoint / "file"
        self._behind = mount.source / "file"
        self._behind.unlink(missing_ok=True)
        self._fds = [os.open(self._path, os.O_CREAT | os.O_RDWR) for _ in range(4)]
        self._appending = os.open(self._path, os.O_RDWR | os.O_APPEND)
        self.expected = bytearray()
        self._serial = 0

    def close(self) -> None:
        """Close the descriptors."""
        for fd in (*self._fds, self._appending):
            os.close(fd)

    def do(self, what: str, *arguments: Any) -> None:
        """Make a step and compare what it returns."""
        getattr(self, f"_{what.replace(' ', '_')}")(*arguments)

    def check(self) -> None:
        """Compare everything, on both sides."""
        assert self._path.read_bytes() == self.expected
        assert self._path.stat().st_size == len(self.expected)
        for fd in self._fds:
            os.fsync(fd)
        assert self._behind.read_bytes() == self.expected

    def _data(self, length: int) -> bytes:
        self._serial += 1
        return (b"%08d" % self._serial * (length // 8 + 1))[:length]

    def _put(self, offset: int, data: bytes) -> None:
        if data:
            self.expected.extend(bytes(max(0, offset - len(self.expected))))
            self.expected[offset : offset + len(data)] = data

    def _read(self, slot: int, offset: int, length: int) -> None:
        assert os.pread(self._fds[slot], length, offset) == self.expected[offset : offset + length]

    def _write(self, slot: int, offset: int, length: int) -> None:
        data = self._data(length)
        assert os.pwrite(self._fds[slot], data, offset) == length
        self._put(offset, data)

    def _map(self, slot: int, offset: int, length: int) -> None:
        if self.expected:
            with mmap.mmap(self._fds[slot], len(self.expected), prot=mmap.PROT_READ) as mapped:
                assert mapped[offset : offset + length] == self.expected[offset : offset + length]

    def _store(self, slot: int, offset: int, length: int) -> None:
        length = min(length, len(self.expected) - offset)
        if length > 0:
            data = self._data(length)
            with mmap.mmap(self._fds[slot], len(self.expected)) as mapped:
                mapped[offset : offset + length] = data
            self._put(offset, data)

    def _truncate(self, slot: int, size: int, by_name: bool) -> None:
        os.truncate(self._path if by_name else self._fds[slot], size)
        del self.expected[size:]
        self.expected.extend(bytes(size - len(self.expected)))

    def _append(self, length: int) -> None:
        data = self._data(length)
        os.write(self._appending, data)
        self.expected += data

    def _append_behind(self, length: int) -> None:
        self._flush()
        data = self._data(length)
        with self._behind.open("ab") as file:
            file.write(data)
        self.expected += data

    def _write_behind(self, offset: int, length: int) -> None:
        self._flush()
        data = self._data(length)
        with self._behind.open("r+b") as file:
            file.seek(offset)
            file.write(data)
        self._put(offset, data)

    def _flush(self) -> None:
        """Let the pages of mappings be written before somebody else writes: which comes last is anybody's guess."""
        for fd in self._fds:
            os.fsync(fd)

    def _reopen(self, slot: int, flags: int) -> None:
        os.close(self._fds[slot])
        self._fds[slot] = os.open(self._path, os.O_RDWR | flags)

    def _sync(self, slot: int) -> None:
        os.fsync(self._fds[slot])


@pytest.fixture(scope="module", params=["tmpfs", "ext4"])
def mount_of(request: pytest.FixtureRequest, tmpfs: Path) -> Iterator[Mount]:
    """A mount over each kind of filesystem."""
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=tmpfs, ignore_cleanup_errors=True)))
        if request.param != "tmpfs":
            directory = stack.enter_context(filesystem(request.param, directory))
        yield stack.enter_context(mounted(directory))


@pytest.mark.timeout(examples(600, 7200))  # shrinking takes long
@settings(
    max_examples=examples(40, 3000),
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)
@seed(SEED)
@given(steps=st.lists(_steps, min_size=20, max_size=60))
def test_contents(mount_of: Mount, steps: list[tuple[Any, ...]]) -> None:
    model = Model(mount_of)
    try:
        for step in steps:
            model.do(*step)
        model.check()
    finally:
        model.close()


def test_a_change_behind_is_seen_whatever_is_answered_to_others_of_the_file(mount_of: Mount) -> None:
    """The kernel takes attributes in the answer to a change of them, and looks for no change of the content there."""
    behind = mount_of.source / "attributes"
    behind.write_bytes(b"old")
    fd = os.open(mount_of.mountpoint / "attributes", os.O_RDWR)
    try:
        assert os.pread(fd, 3, 0) == b"old"
        behind.write_bytes(b"new")
        os.fchmod(fd, 0o600)
        assert os.pread(fd, 3, 0) == b"new"
    finally:
        os.close(fd)
