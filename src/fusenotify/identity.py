"""What an object is, whatever its name: the file handle, and the number that the kernel's node gets from it."""

import struct
import zlib
from typing import Final, NamedTuple

_HANDLE: Final = struct.Struct("<cQQi")  # tag, fsid (upper and lower half), handle type; the handle's bytes follow
_NUMBER: Final = struct.Struct("<cQQq")
_HANDLE_TAG: Final = b"h"
_NUMBER_TAG: Final = b"n"
_HALF: Final = (1 << 64) - 1


class FileHandle(NamedTuple):
    """Persistent identity of a backing object, as name_to_handle_at(2) gives it.

    The handle bytes embed the generation, so a reused inode number has another handle.

    Attributes:
        fsid: the filesystem's id (`_linux.filesystem_id`; below the root see `Backing.fsid`).
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

    def packed(self) -> bytes:
        """Return bytes that `unpack_identity` reads."""
        return _HANDLE.pack(_HANDLE_TAG, self.fsid >> 64, self.fsid & _HALF, self.handle_type) + self.handle_bytes


class InodeNumber(NamedTuple):
    """Identity where the filesystem gives nothing better.

    Attributes:
        device, number: st_dev and st_ino.
        born: the birth time in nanoseconds, which tells a number used again; 0 where the filesystem does not say.
    """

    device: int
    number: int
    born: int

    def generation(self, serial: int) -> int:
        """Return `serial`, a number of the caller's that it never gave before: the inode itself tells nothing."""
        return serial & 0xFFFFFFFF

    def packed(self) -> bytes:
        """Return bytes that `unpack_identity` reads."""
        return _NUMBER.pack(_NUMBER_TAG, self.device, self.number, self.born)


Identity = FileHandle | InodeNumber


def unpack_identity(packed: bytes) -> Identity:
    """Read what `packed` returned.

    Raises:
        ValueError: it is nothing of the kind.
    """
    try:
        if packed[:1] == _NUMBER_TAG:
            return InodeNumber(*_NUMBER.unpack(packed)[1:])
        tag, upper, lower, handle_type = _HANDLE.unpack_from(packed)
    except struct.error as error:
        raise ValueError(f"{packed!r} is no identity: {error}") from error
    if tag != _HANDLE_TAG:
        raise ValueError(f"{packed!r} is no identity")
    return FileHandle(upper << 64 | lower, handle_type, packed[_HANDLE.size :])


class InodeKey(NamedTuple):
    """(st_dev, st_ino): names a live object to code that sees both sides of one moment, and to nothing else."""

    device: int
    number: int
