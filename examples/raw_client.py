"""A client without our library, or any other: docs/protocol.md in Python's own words. `raw_client.py DIRECTORY`."""

import os
import select
import struct
import sys
from typing import Any

KINDS = (
    "create", "delete", "modify", "attrib", "close_write", "rename", "overflow", "unmount", "open", "access",
    "close_nowrite", "delete_self", "move_self", "ignored", "live",
)  # fmt: skip
_SIZED = {0xC4: "B", 0xC5: ">H", 0xC6: ">I", 0xD9: "B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I"}
_NUMBERS = {0xCC: "B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}


def packed(value: Any) -> bytes:
    """Encode the little of MessagePack that requests need."""
    match value:
        case None:
            return b"\xc0"
        case int():
            return bytes([value]) if value < 128 else b"\xcf" + struct.pack(">Q", value)
        case str():
            return bytes([0xA0 + len(value)]) + value.encode()  # up to 31 bytes
        case bytes():
            return b"\xc5" + struct.pack(">H", len(value)) + value
        case _:
            return bytes([0x90 + len(value)]) + b"".join(map(packed, value))  # up to 15 elements


def unpacked(data: bytes, at: int) -> tuple[Any, int]:
    """Decode what stands at an offset; return it and the offset behind it."""
    first, at = data[at], at + 1
    if first < 0x80:
        return first, at
    if first >= 0xC0 and first in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[first], at
    if first in _NUMBERS:
        return struct.unpack_from(_NUMBERS[first], data, at)[0], at + struct.calcsize(_NUMBERS[first])
    if first in _SIZED:
        (size,) = struct.unpack_from(_SIZED[first], data, at)
        at += struct.calcsize(_SIZED[first])
    else:  # short arrays and strings have their size in the first byte
        size = first & (0x0F if first < 0xA0 else 0x1F)
    if first < 0xA0 or first >= 0xDC:
        items = []
        for _ in range(size):
            item, at = unpacked(data, at)
            items.append(item)
        return items, at
    return (data[at : at + size] if first in (0xC4, 0xC5, 0xC6) else data[at : at + size].decode()), at + size


def send(fd: int, *message: Any) -> None:
    payload = packed(message)
    os.write(fd, struct.pack("<I", len(payload)) + payload)


def main(directory: str) -> None:
    fd = os.open(f"{directory}/.fusenotify/queue", os.O_RDWR | os.O_NONBLOCK)
    send(fd, "hello", 1, 0)
    send(fd, "mark", 1, 1, b".", "subtree", 255, 3)
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    while True:
        poll.poll()
        try:
            data = os.read(fd, 1 << 17)  # whole frames
        except BlockingIOError:
            continue
        at = 0
        while at < len(data):
            message, at = unpacked(data, at + 4)
            if message[0] == "events":
                for _, _, kind, flags, path, old_path, *_ in message[2]:
                    print("local" if flags & 8 else "remote", KINDS[kind.bit_length() - 1], old_path, path, flush=True)
            else:
                print(*message, flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: raw_client.py MOUNTPOINT")
    main(sys.argv[1])
