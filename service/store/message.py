"""Messages of msgpack with large arrays, written in pieces: nobody makes one text of all of them.

The bytes are those that msgspec writes for the same structs with ``bytes`` in place of :class:`Planes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import msgspec

from moescope.service.store.blobs import Piece, Planes

if TYPE_CHECKING:
    Packed = bytes | Planes
else:
    Packed = bytes  # which is what decoders make

_encoder: Final = msgspec.msgpack.Encoder()


class Message(msgspec.Struct, array_like=True, frozen=True):
    """A struct whose fields may be arrays as :class:`Planes`, other messages, or lists of them."""


def pieces_of(message: Message) -> Iterator[Piece]:
    """A message as msgpack, in pieces."""
    names = message.__struct_fields__
    yield _head_of_array(len(names))
    for name in names:
        yield from _pieces(getattr(message, name))


def _pieces(value: object) -> Iterator[Piece]:
    if isinstance(value, Planes):
        yield _head_of_bytes(len(value))
        yield from value.pieces()
    elif isinstance(value, Message):
        yield from pieces_of(value)
    elif isinstance(value, list) and value and isinstance(value[0], Message):
        yield _head_of_array(len(value))
        for item in value:
            yield from pieces_of(item)
    else:
        yield _encoder.encode(value)


def _head_of_array(size: int) -> bytes:
    """What is before the items of an array."""
    if size < 16:
        return bytes([0x90 | size])
    return b"\xdc" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xdd" + size.to_bytes(4, "big")


def _head_of_bytes(size: int) -> bytes:
    """What is before bytes."""
    if size < 1 << 8:
        return b"\xc4" + size.to_bytes(1, "big")
    return b"\xc5" + size.to_bytes(2, "big") if size < 1 << 16 else b"\xc6" + size.to_bytes(4, "big")
