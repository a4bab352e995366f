"""Which experts the tokens of a trace took, so that a search need not read the tokens.

A map of hits has a lane for each of several pieces of traces, and in each lane a bit for each expert of
each layer. Eight lanes make a plane, with a byte for each (layer, expert); planes are compressed, since most
of their bytes are all ones or all zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT

_LEVEL: Final = 3
_MOST_PLANES: Final = 1 << 10
_DAMAGED: Final = "a damaged map of the experts that traces took"


def taken_by(
    experts: Sequence[bytes], tokens: Sequence[int], layers: Sequence[MoeLayer], id_bytes: int
) -> npt.NDArray[np.bool_]:
    """Which piece took which expert: bool [pieces, experts of all layers, one after the other].

    Args:
        experts: for each layer raw ids of all pieces, one after the other.
        tokens: of each piece.
    """
    begins: dict[tuple[int, int], npt.NDArray[np.unsignedinteger]] = {}
    found = []
    for data, layer in zip(experts, layers, strict=True):
        kind = layer.num_experts, layer.top_k
        if kind not in begins:
            begins[kind] = _begins_of(tokens, *kind)
        ids = np.frombuffer(data, "<u2" if id_bytes == 2 else np.uint8)
        places = begins[kind]
        if id_bytes == 2:
            real = ids != NO_EXPERT
            ids, places = ids[real], places[real]
        taken = np.zeros(len(tokens) * layer.num_experts, bool)
        # As the index type: an index of another takes NumPy longer than the conversion.
        taken[(places + ids).astype(np.intp)] = True
        found.append(taken.reshape(len(tokens), -1))
    return np.concatenate(found, axis=1)


def _begins_of(tokens: Sequence[int], num_experts: int, top_k: int) -> npt.NDArray[np.unsignedinteger]:
    """For each id of a layer where its piece's experts begin; in two bytes if it can be, which is quicker."""
    small = len(tokens) * num_experts < 1 << 16
    begins = np.arange(len(tokens), dtype=np.uint16 if small else np.uint32) * num_experts
    return np.repeat(begins, np.asarray(tokens) * top_k)


def write_hits(taken: npt.NDArray[np.bool_]) -> bytes:
    """The map with these lanes, as :func:`taken_by` has them, as a blob."""
    planes = np.packbits(taken, axis=0, bitorder="little")
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(planes.tobytes())


def lanes_hit(blob: bytes, layers: Sequence[MoeLayer], layer: int, expert: int) -> npt.NDArray[np.bool_]:
    """For each lane (and up to seven more) whether it has the expert; empty where there is no such expert.

    Raises:
        ValueError: the blob is damaged.
    """
    place = _place(layers, layer, expert)
    if place is None:
        return np.zeros(0, bool)
    return np.unpackbits(_planes(blob, layers)[:, place], bitorder="little").astype(bool)


def read_lane(blob: bytes, layers: Sequence[MoeLayer], lane: int) -> npt.NDArray[np.bool_]:
    """One lane of a map, as :func:`taken_by` had it.

    Raises:
        ValueError: the blob is damaged.
    """
    planes = _planes(blob, layers)
    if lane >= 8 * len(planes):
        raise ValueError(_DAMAGED)
    bits: npt.NDArray[np.uint8] = planes[lane // 8] >> (lane % 8) & 1
    return bits.astype(bool)


def old_bit(hits: bytes, layers: Sequence[MoeLayer], layer: int, expert: int) -> bool:
    """Whether a trace took the expert, by bits of stores up to schema 3: each layer begins at a byte."""
    begin = 0
    for item in layers:
        if item.layer == layer and expert < item.num_experts:
            byte = begin + expert // 8
            return byte < len(hits) and bool(hits[byte] >> (expert % 8) & 1)
        begin += -(-item.num_experts // 8)
    return False


def _planes(blob: bytes, layers: Sequence[MoeLayer]) -> npt.NDArray[np.uint8]:
    width = sum(layer.num_experts for layer in layers)
    try:
        size = zstandard.frame_content_size(blob)
        if size % width or not 0 < size <= width * _MOST_PLANES:
            raise ValueError(_DAMAGED)
        planes = np.frombuffer(zstandard.ZstdDecompressor().decompress(blob), np.uint8)
    except zstandard.ZstdError as error:
        raise ValueError(f"{_DAMAGED}: {error}") from error
    return planes.reshape(-1, width)


def _place(layers: Sequence[MoeLayer], layer: int, expert: int) -> int | None:
    begin = 0
    for item in layers:
        if item.layer == layer and expert < item.num_experts:
            return begin + expert
        begin += item.num_experts
    return None
