"""Msgpack of the few types that a frame without counts has.

Specification: https://github.com/msgpack/msgpack/blob/master/spec.md
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence

Packable = str | bytes | int | Mapping[str, "Packable"] | Sequence["Packable"]


def pack(value: Packable) -> bytes:
    """The value as msgpack, its lengths always in 32 bits and its integers in 64.

    Characters that UTF-8 can't carry are replaced.

    Raises:
        TypeError: another type.
        struct.error: an integer outside 0 .. 2**64 - 1.
    """
    if isinstance(value, str):
        text = value.encode("utf-8", "replace")
        return struct.pack(">BI", 0xDB, len(text)) + text
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">BQ", 0xCF, value)
    if isinstance(value, Mapping):
        items = [pack(name) + pack(item) for name, item in value.items()]
        return struct.pack(">BI", 0xDF, len(items)) + b"".join(items)
    if isinstance(value, Sequence):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(pack, value))
    raise TypeError(f"can't pack {type(value).__name__}")
