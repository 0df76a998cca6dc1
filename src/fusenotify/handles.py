"""The text form of handles that clients get: opaque, the same for one object whenever it is asked for, and sealed.

A client can neither make one nor change one into that of another object (HMAC-SHA-256, cut to 128 bits, with a key that
only the daemons of one state directory have).
"""

import base64
import binascii
import hashlib
import hmac
from typing import Final

from fusenotify.errors import StaleHandle
from fusenotify.identity import Identity, unpack_identity

_PREFIX: Final = "h:"
_TREE: Final = 8  # bytes
_NUMBER: Final = 8
_SEAL: Final = 16
_LONGEST: Final = 1024  # characters; the kernel's own handles have at most 128 bytes


class Sealer:
    """Makes and reads the handles of one tree."""

    def __init__(self, tree_id: bytes, secret: bytes) -> None:
        assert len(tree_id) == _TREE
        self._tree_id = tree_id
        self._secret = secret

    def seal(self, identity: Identity, number: int) -> str:
        """Return the handle of an object that has this inode number."""
        body = self._tree_id + number.to_bytes(_NUMBER, "little") + identity.packed()
        return _PREFIX + base64.urlsafe_b64encode(body + self._seal_of(body)).rstrip(b"=").decode()

    def unseal(self, handle: str) -> tuple[Identity, int]:
        """Return which object a handle is of, and its inode number.

        Raises:
            StaleHandle: it is none, or was not made by us.
        """
        body, seal = _parts(handle)
        if body[:_TREE] != self._tree_id:
            raise StaleHandle("this handle belongs to another tree, or to this one before its state directory was lost")
        if not hmac.compare_digest(seal, self._seal_of(body)):
            raise StaleHandle("this handle was not made by this daemon: it is damaged or forged")
        number = int.from_bytes(body[_TREE : _TREE + _NUMBER], "little")
        return unpack_identity(body[_TREE + _NUMBER :]), number

    def _seal_of(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, body, hashlib.sha256)[:_SEAL]


def _parts(handle: str) -> tuple[bytes, bytes]:
    text = handle.removeprefix(_PREFIX)
    try:
        if text == handle or len(handle) > _LONGEST:
            raise ValueError
        data = base64.b64decode(text.encode() + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
        if len(data) < _TREE + _NUMBER + _SEAL:
            raise ValueError
    except (ValueError, binascii.Error) as error:
        raise StaleHandle(f"{handle[:_LONGEST]!r} is no handle: take one from `lookup` or from an event") from error
    return data[:-_SEAL], data[-_SEAL:]
