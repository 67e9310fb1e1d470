"""The framing of event files: each record with its length and two checksums. TensorBoard's own writer is not imported:
with it come packages that cost a short run more than all that it logs.

    uint64 length · uint32 masked CRC of it · the record · uint32 masked CRC of it        little endian (TFRecord)
"""

from __future__ import annotations

import struct


def _table() -> tuple[int, ...]:
    """CRC-32C (Castagnoli) of every byte, reflected."""
    found = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        found.append(byte)
    return tuple(found)


_TABLE = _table()


def framed(record: bytes) -> bytes:
    """A record as it stands in an event file."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _checksum(length), record, _checksum(record)))


def _checksum(data: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
