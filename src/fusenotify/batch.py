"""Events that travel together: as records where they are looked at, encoded where they wait."""

from collections.abc import Sequence
from typing import Final

import msgspec

from fusenotify.events import EventRecord

_BATCH_COST: Final = 160  # bytes of memory that a batch takes on top of what is encoded
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[EventRecord])


class Batch:
    """Some events. They are encoded once, however many groups hold them.

    A record takes about 330 bytes of memory and encoded a fifth of that, so what may wait for long is packed.

    Attributes:
        time_ns: when the last of them was heard, nanoseconds since the epoch.
    """

    __slots__ = ("_count", "_encoded", "_records", "time_ns")

    def __init__(self, records: Sequence[EventRecord]) -> None:
        self._records: Sequence[EventRecord] | None = records
        self._count = len(records)
        self.time_ns = records[-1].time_ns if records else 0
        self._encoded: bytes | None = None

    def __len__(self) -> int:
        return self._count

    @property
    def records(self) -> Sequence[EventRecord]:
        """The events. Of a packed batch they are decoded anew each time."""
        if self._records is None:
            return _decoder.decode(self.encoded())
        return self._records

    @property
    def size(self) -> int:
        """Bytes of memory that it takes when it is packed."""
        return len(self.encoded()) + _BATCH_COST

    def encoded(self) -> bytes:
        """Return the records as one MessagePack array."""
        if self._encoded is None:
            self._encoded = _encoder.encode(self._records)
        return self._encoded

    def pack(self) -> None:
        """Keep nothing but the encoded form."""
        self.encoded()
        self._records = None

    def part(self, start: int, count: int) -> "Batch":
        """Return up to `count` records from index `start` on."""
        if start == 0 and count >= self._count:
            return self
        return Batch(self.records[start : start + count])
