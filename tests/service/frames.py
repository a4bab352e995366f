"""Frames for tests: as a capturer would send them, with as few words as a test needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from moescope.capture import wire

EPOCH = 1_700_000_000_000_000_000
"""Nanoseconds of Unix time at which the epochs of tests begin."""


def producer(**fields: Any) -> wire.Producer:
    """A producer of deployment "prod", model "tiny", one rank of everything, unless said otherwise."""
    return wire.Producer(**{"server": "prod", "model": "tiny", "dp_rank": 0, "dp_size": 1, **fields})


def placement(
    physical_to_logical: Sequence[int], ranks: Sequence[int], layers: int, version: int = 1
) -> wire.Placement:
    """All layers placed alike: physical expert p is a copy of ``physical_to_logical[p]`` on ``ranks[p]``."""
    table = wire.PlacementTable(wire.pack_ids(physical_to_logical), wire.pack_ids(ranks))
    return wire.Placement(version=version, tables=[table], table_of_layer=[0] * layers)


def halves(experts: int, layers: int, ep_size: int = 2, version: int = 1) -> wire.Placement:
    """Experts in equal contiguous spans, the first on EP rank 0."""
    return placement(range(experts), [e * ep_size // experts for e in range(experts)], layers, version)


def pack(counts: Iterable[Sequence[int]]) -> bytes:
    """Counts of layers, one after the other, as the wire has them."""
    return b"".join(wire.pack_counts(np.array(values, dtype=np.int64)) for values in counts)


def frame(
    counts: Mapping[int, Sequence[int]],
    *,
    top_k: int = 2,
    who: wire.Producer | None = None,
    epoch: int = EPOCH,
    seq: int = 1,
    after_s: float = 1.0,
    rows: Sequence[int] | None = None,
    tokens: int | None = None,
    decode: Mapping[int, Sequence[int]] | None = None,
    **fields: Any,
) -> wire.Frame:
    """A checked frame.

    ``counts`` is layer id to slots by expert; ``rows`` and ``tokens`` follow from them (slots / top_k)
    unless given; ``after_s`` is the time of capture, seconds after the epoch's start. ``decode`` is the part
    of ``counts`` that is of decode; its rows and tokens follow likewise. Absent: phases are not told.
    """
    layers = [wire.MoeLayer(layer, len(values), top_k) for layer, values in counts.items()]
    per_layer = [sum(values) // top_k for values in counts.values()] if rows is None else list(rows)
    if decode is not None:
        of_decode = [sum(decode[layer]) // top_k for layer in counts]
        fields = {
            "decode_counts": pack(decode[layer] for layer in counts),
            "decode_rows": wire.pack_counts(np.array(of_decode, dtype=np.int64)),
            "decode_tokens": max(of_decode, default=0),
            **fields,
        }
    result = wire.Frame(
        wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
        producer=producer() if who is None else who,
        epoch=epoch,
        seq=seq,
        captured_at_ns=epoch + int(after_s * 1e9),
        layers=layers,
        counts=pack(counts.values()),
        rows=wire.pack_counts(np.array(per_layer, dtype=np.int64)),
        tokens=max(per_layer, default=0) if tokens is None else tokens,
        **{"steps": 1, **fields},
    )
    wire.check_frame(result)
    return result
