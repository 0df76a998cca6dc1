"""Looks through /proc for who watches a filesystem by inotify or fanotify: a program of its own.

It is started as `python -I -S procmarks.py PID...`, looks whenever it gets a `REQUEST` on its standard input, and ends
with that. A thread of the daemon would have to take turns with its interpreter for each of thousands of system calls.
It touches nothing but /proc: no access to the mount, which is answered by a daemon that may be waiting for us.
"""

import os
import re
import struct
import sys
import time
from array import array
from contextlib import suppress

# Which filesystem to look for: the one whose device is 0:MINOR.
REQUEST = struct.Struct("=I")
# An answer begins with this: seconds that it took, whether everything is watched (by a mark on the filesystem or on a
# mount), how many processes did not let themselves be looked at, how many nodeids follow (64 bits each).
HEADER = struct.Struct("=dBII")

# What a replay can raise of the kinds of both interfaces: modify, attrib, close_write, moved_from, moved_to, create,
# delete, delete_self, move_self; FAN_RENAME. Who asks for nothing of these needs none.
_REPLAYED = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800 | 0x10000000
_FILEID_INO64_GEN = 0x81  # nodeid in two halves, the upper one first, and generation
_INODE = struct.Struct("=III")
_FIELD = re.compile(rb"(\S+):([0-9a-f]+)")
_LINKS = ("anon_inode:inotify", "anon_inode:[fanotify]")


class Looker:
    """Knows which filesystem to look for, and collects who watches what of it.

    Attributes:
        nodeids: the nodes with a mark.
        is_everything: whether there is a mark on the filesystem or on a mount of it.
        hidden: how many processes did not let themselves be looked at.
    """

    def __init__(self, minor: int, left_out: frozenset[int], proc: str = "/proc") -> None:
        """Look for the filesystem whose device is 0:`minor`, in every process but those `left_out`."""
        self._device = f" 0:{minor} ".encode()
        self._sdev = b"sdev:%x " % minor  # the kernel's own numbers: major << 20 | minor
        self._left_out = left_out
        self._proc = proc
        self.nodeids: set[int] = set()
        self.is_everything = False
        self.hidden = 0

    def look(self) -> None:
        """Look at every process."""
        for entry in os.listdir(self._proc):
            if entry.isdecimal() and int(entry) not in self._left_out:
                try:
                    self._look_at(f"{self._proc}/{entry}")
                except PermissionError:
                    self.hidden += 1
                except OSError:
                    pass  # it has ended

    def _look_at(self, process: str) -> None:
        for descriptor in os.listdir(f"{process}/fd"):
            try:
                if os.readlink(f"{process}/fd/{descriptor}") in _LINKS:
                    self._read(process, descriptor)
            except FileNotFoundError:
                pass  # it has been closed

    def _read(self, process: str, descriptor: str) -> None:
        with open(f"{process}/fdinfo/{descriptor}", "rb") as marks:
            for line in marks:
                if line.startswith((b"inotify wd:", b"fanotify ")):
                    self._take(process, line)

    def _take(self, process: str, line: bytes) -> None:
        is_of_mount = line.startswith(b"fanotify mnt_id:")
        if self._sdev not in line and not is_of_mount:
            return
        fields = dict(_FIELD.findall(line))
        if not int(fields[b"mask"], 16) & _REPLAYED:
            return
        if is_of_mount:
            self.is_everything |= self._is_of_filesystem(process, int(fields[b"mnt_id"], 16))
        elif (nodeid := _nodeid(fields)) is not None:
            self.nodeids.add(nodeid)
        else:
            self.is_everything = True

    def _is_of_filesystem(self, process: str, mount_id: int) -> bool:
        """Whether a mount is one of the filesystem; one that the process itself does not see may be."""
        begin = b"%d " % mount_id
        with open(f"{process}/mountinfo", "rb") as table:
            return all(self._device in line for line in table if line.startswith(begin))


def _nodeid(fields: dict[bytes, bytes]) -> int | None:
    """Return the node that an inode's mark is on; None for a mark on the filesystem.

    The inode number beside it does not tell: it is what stat(2) shows, which need not be the nodeid.
    """
    if int(fields.get(b"fhandle-type", b"0"), 16) != _FILEID_INO64_GEN:
        return None
    high, low, _ = _INODE.unpack_from(bytes.fromhex(fields[b"f_handle"].decode()))
    return int(high) << 32 | int(low)


def looked(minor: int, left_out: frozenset[int]) -> bytes:
    """Return the answer that a look gives."""
    began = time.perf_counter()
    looker = Looker(minor, left_out)
    looker.look()
    found = array("Q", looker.nodeids)
    header = HEADER.pack(time.perf_counter() - began, looker.is_everything, looker.hidden, len(found))
    return header + found.tobytes()


def main() -> None:
    """Answer every request on the standard input with what a look shows that begins then."""
    left_out = frozenset((os.getpid(), *map(int, sys.argv[1:])))
    with suppress(BrokenPipeError):  # who asked may be killed at any time
        while request := os.read(0, REQUEST.size):
            (minor,) = REQUEST.unpack(request)
            answer = looked(minor, left_out)
            while answer:
                answer = answer[os.write(1, answer) :]


if __name__ == "__main__":
    main()
