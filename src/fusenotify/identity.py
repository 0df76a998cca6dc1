"""What an object is, whatever its name: the file handle, and the number that the kernel's node gets from it."""

import zlib
from typing import NamedTuple


class FileHandle(NamedTuple):
    """Persistent identity of a backing object, as name_to_handle_at(2) gives it.

    The handle bytes embed the generation, so a reused inode number has another handle.

    Attributes:
        fsid: the filesystem's id (statfs f_fsid).
        handle_type: how the filesystem encoded the bytes.
        handle_bytes: opaque.
    """

    fsid: int
    handle_type: int
    handle_bytes: bytes

    def generation(self, serial: int) -> int:
        """Return 32 bits that differ between any two objects that ever have the same inode number.

        Filesystems put the inode number and a generation of at most 32 bits into the handle (ext4, xfs: number first;
        tmpfs: generation first). A CRC-32 maps inputs that differ only within one run of 32 bits to different values,
        so it tells generations apart without knowing where they lie. `serial` is not needed for that.
        """
        return zlib.crc32(self.handle_bytes)


class InodeNumber(NamedTuple):
    """Identity where the filesystem has no handles; good only while a descriptor keeps the inode from being reused."""

    device: int
    number: int

    def generation(self, serial: int) -> int:
        """Return `serial`, a number of the caller's that it never gave before: the inode itself tells nothing."""
        return serial & 0xFFFFFFFF


Identity = FileHandle | InodeNumber


class InodeKey(NamedTuple):
    """(st_dev, st_ino): names a live object to code that sees both sides of one moment, and to nothing else."""

    device: int
    number: int
