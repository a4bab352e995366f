"""Experts of some tokens as a blob.

Packed: a zstd frame a layer, so that one layer is read alone. Routing hardly compresses; a frame a layer does
better than one over all, since a layer's experts are alike. Each frame has a table of codes of its own, some
60 bytes: frames of thousands of tokens don't notice it. All frames go through one call, which lets go of the
interpreter's lock once and not once a layer.

Quick: one frame over all layers, hardly compressed, for tokens that are soon written again, packed.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
import zstandard

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import ExpertArray, read_ids

_LEVEL: Final = 1
_QUICK_LEVEL: Final = -20
_LENGTH: Final = np.dtype("<u4")
_DAMAGED: Final = "a damaged segment of a trace"


class SegmentWriter:
    """Makes blobs; one compressor for all of them, for one thread."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=_LEVEL, write_content_size=True, write_checksum=True
        )
        self._quick = zstandard.ZstdCompressor(
            level=_QUICK_LEVEL, write_content_size=True, write_checksum=True
        )

    def quick(self, experts: Sequence[bytes]) -> bytes:
        """For each layer raw ids [n, top_k] to a blob, at once."""
        return self._quick.compress(b"".join(experts))

    def packed(self, experts: Sequence[bytes]) -> bytes:
        """For each layer raw ids [n, top_k] to a blob: lengths of the frames, then the frames."""
        made = self._compressor.multi_compress_to_buffer(list(experts))
        frames = [made[i].tobytes() for i in range(len(made))]
        return b"".join([np.array([len(frame) for frame in frames], _LENGTH).tobytes(), *frames])


def read_quick(
    blob: bytes, layers: Sequence[MoeLayer], id_bytes: int, tokens: int, wanted: Collection[int] | None
) -> list[ExpertArray]:
    """The ids of a quick blob; see :func:`read_packed`, which has the same arguments and errors."""
    sizes = [tokens * layer.top_k * id_bytes for layer in layers]
    try:
        if zstandard.frame_content_size(blob) != sum(sizes):
            raise ValueError(_DAMAGED)
        data = zstandard.ZstdDecompressor().decompress(blob, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"{_DAMAGED}: {error}") from error
    ends = itertools.accumulate(sizes)
    return [
        read_ids(data[end - size : end], id_bytes, layer.top_k)
        for layer, size, end in zip(layers, sizes, ends, strict=True)
        if wanted is None or layer.layer in wanted
    ]


def read_packed(
    blob: bytes, layers: Sequence[MoeLayer], id_bytes: int, tokens: int, wanted: Collection[int] | None
) -> list[ExpertArray]:
    """The ids [tokens, top_k] of the wanted layers, all if None, in the order of ``layers``.

    Raises:
        ValueError: the blob is damaged.
    """
    at = len(layers) * _LENGTH.itemsize
    if len(blob) < at:
        raise ValueError(_DAMAGED)
    lengths = np.frombuffer(blob[:at], _LENGTH).astype("<u8")
    if len(blob) != at + int(lengths.sum()):
        raise ValueError(_DAMAGED)
    begins = at + np.cumsum(lengths) - lengths
    chosen = [i for i, layer in enumerate(layers) if wanted is None or layer.layer in wanted]
    if not chosen:
        return []
    sizes = np.array([tokens * layers[i].top_k * id_bytes for i in chosen], "<u8")
    try:
        found = zstandard.ZstdDecompressor().multi_decompress_to_buffer(
            zstandard.BufferWithSegments(blob, np.stack([begins, lengths], axis=1)[chosen].tobytes()),
            decompressed_sizes=sizes.tobytes(),
        )
    except zstandard.ZstdError as error:
        raise ValueError(f"{_DAMAGED}: {error}") from error
    return [read_ids(found[place].tobytes(), id_bytes, layers[i].top_k) for place, i in enumerate(chosen)]
