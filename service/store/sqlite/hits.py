"""Which experts the tokens of a trace took, so that a search need not read the tokens.

A map of hits has a lane for each of several pieces of traces, and in each lane a bit for each expert of
each layer. Eight lanes make a plane, with a byte for each (layer, expert); planes are compressed, since most
of their bytes are all ones or all zeros.

The most experts of a shape are 8 MiB of them (1,024 layers x 8,192). So a map is never larger than that: a
shape with many experts has fewer lanes (:func:`most_lanes`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import zstandard

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import NO_EXPERT

Planes = npt.NDArray[np.uint8]
"""uint8 [planes, experts of all layers]: in each byte a bit for each of eight lanes, the lowest first."""

_LEVEL: Final = 3
MAP_BYTES: Final = 8 << 20
"""Of a map, unless a single plane has more."""
MAX_LANES: Final = 64
_MOST_PLANES: Final = MAX_LANES // 8  # also of maps that were written before they had a bound in bytes
_DAMAGED: Final = "a damaged map of the experts that traces took"


def most_lanes(layers: Sequence[MoeLayer]) -> int:
    """How many lanes a map of these layers has at most."""
    planes = MAP_BYTES // max(1, sum(layer.num_experts for layer in layers))
    return min(MAX_LANES, 8 * max(1, planes))


def planes_of(
    experts: Sequence[bytes], tokens: Sequence[int], layers: Sequence[MoeLayer], id_bytes: int
) -> Planes:
    """Which piece took which expert, a lane a piece: uint8 [planes, experts of all layers].

    Besides the map it holds one layer: lanes x experts of the layer, and the ids of the layer in eight bytes.

    Args:
        experts: for each layer raw ids of all pieces, one after the other.
        tokens: of each piece.
    """
    planes, lanes = -(-len(tokens) // 8), min(8, len(tokens))
    found = np.zeros((planes, sum(layer.num_experts for layer in layers)), np.uint8)
    begins: dict[tuple[int, int], npt.NDArray[np.unsignedinteger]] = {}
    at = 0
    for data, layer in zip(experts, layers, strict=True):
        kind = layer.num_experts, layer.top_k
        if kind not in begins:
            begins[kind] = _begins_of(tokens, *kind)
        ids = np.frombuffer(data, "<u2" if id_bytes == 2 else np.uint8)
        places = begins[kind]
        if id_bytes == 2:
            real = ids != NO_EXPERT
            ids, places = ids[real], places[real]
        taken = np.zeros(planes * lanes * layer.num_experts, np.uint8)
        # As the index type: an index of another takes NumPy longer than the conversion.
        taken[(places + ids).astype(np.intp)] = 1
        of_lanes = taken.reshape(planes, lanes, layer.num_experts)
        of_layer = found[:, at : at + layer.num_experts]
        # `np.packbits` along this axis takes 30 times as long, and keeps the interpreter's lock meanwhile.
        for lane in range(lanes):
            of_layer |= of_lanes[:, lane] << lane
        at += layer.num_experts
    return found


def _begins_of(tokens: Sequence[int], num_experts: int, top_k: int) -> npt.NDArray[np.unsignedinteger]:
    """For each id of a layer where its piece's experts begin; in two bytes if it can be, which is quicker."""
    small = len(tokens) * num_experts < 1 << 16
    begins = np.arange(len(tokens), dtype=np.uint16 if small else np.uint32) * num_experts
    return np.repeat(begins, np.asarray(tokens) * top_k)


def write_hits(planes: Planes) -> bytes:
    """The map with these planes, as :func:`planes_of` has them, as a blob."""
    data = np.ascontiguousarray(planes).data
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(data)


def lanes_hit(blob: bytes, layers: Sequence[MoeLayer], layer: int, expert: int) -> npt.NDArray[np.bool_]:
    """For each lane (and up to seven more) whether it has the expert; empty where there is no such expert.

    Raises:
        ValueError: the blob is damaged.
    """
    place = _place(layers, layer, expert)
    if place is None:
        return np.zeros(0, bool)
    return np.unpackbits(_planes(blob, layers)[:, place], bitorder="little").astype(bool)


def only_lanes(blob: bytes, layers: Sequence[MoeLayer], lanes: Collection[int]) -> bytes:
    """A map without any lanes but these, at least one, which keep their places.

    Raises:
        ValueError: the blob is damaged, or has one of them not.
    """
    planes = _planes(blob, layers)
    if max(lanes) >= 8 * len(planes):
        raise ValueError(_DAMAGED)
    kept = np.zeros((len(planes), 8), bool)
    kept.reshape(-1)[list(lanes)] = True
    planes = planes[: max(lanes) // 8 + 1]
    return write_hits(planes & np.packbits(kept, axis=1, bitorder="little")[: len(planes)])


def old_bit(hits: bytes, layers: Sequence[MoeLayer], layer: int, expert: int) -> bool:
    """Whether a trace took the expert, by bits of stores up to schema 3: each layer begins at a byte."""
    begin = 0
    for item in layers:
        if item.layer == layer and expert < item.num_experts:
            byte = begin + expert // 8
            return byte < len(hits) and bool(hits[byte] >> (expert % 8) & 1)
        begin += -(-item.num_experts // 8)
    return False


def _planes(blob: bytes, layers: Sequence[MoeLayer]) -> Planes:
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
