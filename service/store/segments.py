"""Experts of up to 1000 tokens as a blob: a zstd frame a layer, so that one layer is read alone.

Routing hardly compresses; a frame a layer does better than one over all, since a layer's experts are alike.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import zstandard

from moescope.capture.trace_wire import NO_EXPERT, ExpertArray, read_ids
from moescope.capture.wire import MoeLayer

SEGMENT_TOKENS: Final = 1000
_LEVEL: Final = 1
_LENGTH: Final = np.dtype("<u4")


class SegmentWriter:
    """Makes blobs; one compressor for all of them, for one thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_content_size=True, write_checksum=True
        )

    def write(self, experts: Sequence[ExpertArray]) -> bytes:
        """For each layer ids [n, top_k] to a blob: lengths of the frames, then the frames."""
        frames = [self._compressor.compress(np.ascontiguousarray(ids).tobytes()) for ids in experts]
        return np.array([len(frame) for frame in frames], _LENGTH).tobytes() + b"".join(frames)


def read_segment(
    blob: bytes, layers: Sequence[MoeLayer], id_bytes: int, wanted: Collection[int] | None
) -> list[ExpertArray]:
    """The ids [n, top_k] of the wanted layers, all if None, in the order of ``layers``.

    Raises:
        ValueError: the blob is damaged.
    """
    at = len(layers) * _LENGTH.itemsize
    lengths = np.frombuffer(blob[:at], _LENGTH)
    if len(lengths) != len(layers) or len(blob) != at + int(lengths.sum()):
        raise ValueError("a damaged segment of a trace")
    decompressor = zstandard.ZstdDecompressor()
    found: list[ExpertArray] = []
    for layer, length in zip(layers, lengths.tolist(), strict=True):
        if wanted is None or layer.layer in wanted:
            try:
                data = decompressor.decompress(blob[at : at + length])
            except zstandard.ZstdError as error:
                raise ValueError(f"a damaged segment of a trace: {error}") from error
            found.append(read_ids(data, id_bytes, layer.top_k))
        at += length
    return found


def hits_of(experts: Sequence[ExpertArray], layers: Sequence[MoeLayer]) -> bytes:
    """A bit for each expert of each layer that a token took; every layer begins at a byte."""
    return b"".join(_bits(ids, layer.num_experts) for ids, layer in zip(experts, layers, strict=True))


def hit_bit(layers: Sequence[MoeLayer], layer: int, expert: int) -> int | None:
    """Where the bit of an expert is in :func:`hits_of`, from the blob's begin; None if there is none."""
    at = 0
    for item in layers:
        if item.layer == layer:
            return at * 8 + expert if expert < item.num_experts else None
        at += -(-item.num_experts // 8)
    return None


def merge_hits(one: bytes, other: bytes) -> bytes:
    """Bits of both, which are of the same layers; if one is damaged those of the first."""
    if len(one) != len(other):
        return one
    return (np.frombuffer(one, np.uint8) | np.frombuffer(other, np.uint8)).tobytes()


def _bits(ids: ExpertArray, num_experts: int) -> bytes:
    taken = np.zeros(num_experts, bool)
    # As the index type: an index of bytes takes NumPy more than twice as long.
    found = ids.reshape(-1).astype(np.intp)
    taken[found[found != NO_EXPERT] if ids.dtype.itemsize == 2 else found] = True
    return np.packbits(taken, bitorder="little").tobytes()
