"""ClickHouse's RowBinary: rows of Int64, String and arrays, so that ids travel as the bytes they are.

Integers are little-endian, 8 bytes; strings and arrays begin with their length as a LEB128 varint.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

_INT64: Final = struct.Struct("<q")
_ARRAYS: Final[dict[str, np.dtype[Any]]] = {
    "B": np.dtype(np.uint8),
    "H": np.dtype("<u2"),
}

Value = int | str | bytes | list[str] | np.ndarray[Any, Any]


def encode_rows(rows: Iterable[Sequence[Value]]) -> bytes:
    """Rows as bytes: int is Int64, str and bytes String, list Array(String), an array Array(its dtype)."""
    out = bytearray()
    for row in rows:
        for value in row:
            _encode(out, value)
    return bytes(out)


def decode_rows(data: bytes, kinds: str) -> list[tuple[Any, ...]]:
    """Bytes to rows of columns of these kinds.

    Args:
        data: as ClickHouse answers.
        kinds: a letter a column: i Int64, t String of UTF-8, b String of bytes, T Array(String), B
            Array(UInt8), H Array(UInt16). What is no UTF-8 in a text, by damage, becomes U+FFFD.

    Raises:
        ValueError: the answer ends too early.
    """
    reader, rows = _Reader(data), []
    while reader.at < len(data):
        rows.append(tuple(reader.read(kind) for kind in kinds))
    return rows


def _encode(out: bytearray, value: Value) -> None:
    match value:
        case int():
            out += _INT64.pack(value)
        case str() | bytes():
            data = value.encode() if isinstance(value, str) else value
            out += _varint(len(data))
            out += data
        case list():
            out += _varint(len(value))
            for item in value:
                _encode(out, item)
        case np.ndarray():
            out += _varint(value.size)
            out += np.ascontiguousarray(value).tobytes()
        case _:
            raise TypeError(f"{type(value).__name__} is no type of a column")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def read(self, kind: str) -> Any:
        if kind == "i":
            return _INT64.unpack(self._take(8))[0]
        length = self._length()
        if kind == "T":
            return [self.read("t") for _ in range(length)]
        if kind in _ARRAYS:
            dtype = _ARRAYS[kind]
            return np.frombuffer(self._take(length * dtype.itemsize), dtype)
        data = self._take(length)
        return data.decode("utf-8", "replace") if kind == "t" else data

    def _take(self, size: int) -> bytes:
        data = self._data[self.at : self.at + size]
        if len(data) < size:
            raise ValueError("an answer that ends too early")
        self.at += size
        return data

    def _length(self) -> int:
        length = shift = 0
        while True:
            [byte] = self._take(1)
            length |= (byte & 127) << shift
            if byte < 128:
                return length
            shift += 7
