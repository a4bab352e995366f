"""Arrays and messages as the compressed bytes that a store keeps.

The bytes of an array are regrouped by significance before compression (all lowest bytes first), since the
high bytes of counts are nearly all zero. Compression is zstd at level 1 with a checksum. Each blob begins
with a version byte.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from moescope.capture.wire import Int64Array
from moescope.service.measures.arrays import FloatArray

_VERSION: Final = b"\x01"
_LEVEL: Final = 1
_MAX_BYTES: Final = 1 << 30
_AT_ONCE: Final = 4 << 20
_MAX_WINDOW_LOG: Final = 26
"""64 MiB; every decoder of zstd takes windows up to 128 MiB."""
_ZEROS: Final = bytes(1 << 16)
Piece = bytes | memoryview
"""Some bytes of a message; a view is of single bytes."""


def compress(data: bytes) -> bytes:
    """A message as a blob."""
    return _VERSION + zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def compress_pieces(pieces: Sequence[Piece], repeats: bool = False) -> bytes:
    """A message in pieces as a blob; a large one is never in memory as a whole.

    Args:
        pieces: the message.
        repeats: it has much twice, megabytes apart, which is then looked for if it is large.
    """
    size = sum(map(len, pieces))
    if size <= _AT_ONCE:
        return compress(b"".join(pieces))
    window = min(_MAX_WINDOW_LOG, size.bit_length())
    far = {"enable_ldm": True, "window_log": window} if repeats else {}
    parameters = zstandard.ZstdCompressionParameters.from_level(
        _LEVEL, write_checksum=True, source_size=size, **far
    )
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj(size=size)
    return b"".join([_VERSION, *map(stream.compress, pieces), stream.flush()])


def decompress(blob: object) -> bytes:
    """A blob back to its message.

    Args:
        blob: what an engine has in its place: damage may have made a text or a number of it.

    Raises:
        ValueError: the blob is damaged, or of a newer version.
    """
    if not isinstance(blob, bytes):
        raise ValueError(f"a damaged blob: a {type(blob).__name__} is in its place")
    if blob[:1] != _VERSION:
        raise ValueError(f"a blob of version {blob[:1]!r}, this moescope reads {_VERSION!r}: upgrade it")
    try:
        # The size is checked first: a damaged one would be allocated, whatever it says.
        if not 0 <= zstandard.frame_content_size(blob[1:]) <= _MAX_BYTES:
            raise ValueError("a damaged blob: its size can't be true")
        return zstandard.ZstdDecompressor().decompress(blob[1:])
    except zstandard.ZstdError as error:
        raise ValueError(f"a damaged blob: {error}") from error


@dataclass(frozen=True, eq=False, slots=True)
class Planes:
    """The bytes of N values of 8 bytes, lowest first: planes of one byte of each.

    The highest planes are nearly always zero, and no memory is taken for them: an array of 32 MiB may be in a
    message three times.

    Attributes:
        planes: uint8 [N] each; those that are not here are zero.
        size: N.
    """

    planes: tuple[npt.NDArray[np.uint8], ...]
    size: int

    def __len__(self) -> int:
        return 8 * self.size

    def pieces(self) -> Iterator[Piece]:
        """All bytes, in pieces."""
        for plane in self.planes:
            yield plane.data
        left = (8 - len(self.planes)) * self.size
        while left:
            yield _ZEROS[:left] if left < len(_ZEROS) else _ZEROS
            left -= min(left, len(_ZEROS))

    def __bytes__(self) -> bytes:
        return b"".join(self.pieces())


def packed_ints(values: Int64Array) -> Planes:
    """Integers of any shape as bytes."""
    return _shuffle(values.astype("<i8", copy=False))


def packed_floats(values: FloatArray) -> Planes:
    """Floats of any shape as bytes."""
    return _shuffle(values.astype("<f8", copy=False))


def ints(data: bytes | Planes, size: int) -> Int64Array:
    """Bytes back to int64 [size].

    Raises:
        ValueError: they are not of so many integers.
    """
    return _unshuffle(data, size, "<i8").astype(np.int64)


def floats(data: bytes | Planes, rows: int, columns: int) -> FloatArray:
    """Bytes back to float64 [rows, columns].

    Raises:
        ValueError: they are not of so many floats.
    """
    if columns < 0:
        raise ValueError(f"a damaged blob: an array of {columns} columns")
    return _unshuffle(data, rows * columns, "<f8").astype(np.float64).reshape(rows, columns)


def _shuffle(values: np.ndarray) -> Planes:
    """Values of 8 bytes to planes of their bytes, lowest first; shifts are quicker than a transposed copy."""
    words = np.ascontiguousarray(values).reshape(-1).view("<u8")
    used = (int(words.max(initial=0)).bit_length() + 7) // 8
    planes = [words.astype(np.uint8)] if used else []
    planes += [(words >> np.uint64(8 * plane)).astype(np.uint8) for plane in range(1, used)]
    return Planes(tuple(planes), len(words))


def _unshuffle(data: bytes | Planes, size: int, dtype: str) -> np.ndarray:
    if len(data) != 8 * size:
        raise ValueError(f"a damaged blob: an array of {len(data)} bytes, not of {size} values")
    planes = np.frombuffer(bytes(data), np.uint8).reshape(8, -1)
    words = np.zeros(size, dtype="<u8")
    for number, plane in enumerate(planes):
        if plane.any():
            words |= plane.astype(np.uint64) << np.uint64(8 * number)
    return words.view(dtype)
