"""Snapshots as frames of the wire."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from moescope.capture import wire
from tests.oracle.layout import Copies, Fleet, Layer
from tests.oracle.traffic import Loads, Snapshot


def frame_of(fleet: Fleet, snapshot: Snapshot) -> wire.Frame:
    """The frame that carries a snapshot."""
    worker, totals = snapshot.worker, snapshot.totals
    decode = {}
    if snapshot.phased:
        decode = {
            "decode_counts": _pack(
                value for layer in snapshot.layers for value in totals.decode_slots[layer.index]
            ),
            "decode_rows": _pack(totals.decode_rows[layer.index] for layer in snapshot.layers),
            "decode_tokens": totals.decode_tokens,
            "decode_steps": totals.decode_steps,
            "mixed_steps": totals.mixed_steps,
        }
    return wire.Frame(
        wire=(wire.WIRE_MAJOR, wire.WIRE_MINOR),
        producer=wire.Producer(
            server=fleet.server,
            model=fleet.model,
            dp_rank=worker.dp,
            dp_size=fleet.dp,
            tp_rank=worker.tp,
            tp_size=fleet.tp,
            pp_rank=worker.pp,
            pp_size=fleet.pp,
            ep_rank=(worker.dp * fleet.tp + worker.tp) % fleet.ep,
            ep_size=fleet.ep,
        ),
        epoch=snapshot.epoch,
        seq=snapshot.seq,
        acknowledged=0,  # no service had frames of these workers before
        captured_at_ns=snapshot.captured,
        layers=[wire.MoeLayer(layer.index, layer.experts, layer.top_k) for layer in snapshot.layers],
        uncovered=[wire.UncoveredLayer(layer.index, "no router") for layer in fleet.not_covered(worker)],
        counts=_pack(value for layer in snapshot.layers for value in totals.slots[layer.index]),
        rows=_pack(totals.rows[layer.index] for layer in snapshot.layers),
        tokens=totals.tokens,
        steps=totals.steps,
        idle_steps=totals.idle_steps,
        placement=None if snapshot.placement is None else _placement(snapshot, snapshot.placement),
        step_loads=None if snapshot.loads is None else _loads(fleet, snapshot, snapshot.loads),
        **decode,
    )


def _pack(values: object) -> bytes:
    return wire.pack_counts(np.array(list(values), dtype=np.int64))  # type: ignore[call-overload]


def _placement(snapshot: Snapshot, placed: Mapping[int, Copies]) -> wire.Placement:
    tables = [_table(placed[layer.index]) for layer in snapshot.layers]
    return wire.Placement(version=snapshot.version, tables=tables, table_of_layer=list(range(len(tables))))


def _table(copies: Copies) -> wire.PlacementTable:
    return wire.PlacementTable(wire.pack_ids([e for e, _ in copies]), wire.pack_ids([r for _, r in copies]))


def _loads(fleet: Fleet, snapshot: Snapshot, loads: Loads) -> wire.StepLoads:
    entries = [
        (step, microbatch, part)
        for step in sorted(loads.steps)
        for microbatch, part in enumerate(loads.steps[step])
        if microbatch == 0 or any(map(any, part.values()))
    ]
    values = [[part[layer.index] for layer in snapshot.layers] for _, _, part in entries]
    array = np.array(values, dtype=np.int64).reshape(len(entries), len(snapshot.layers), fleet.ep)
    steps, microbatches = (np.array([entry[i] for entry in entries], dtype=np.int64) for i in (0, 1))
    return wire.pack_step_loads(loads.first, loads.end, steps, array, snapshot.version, microbatches)


def layer_of(fleet: Fleet, index: int) -> Layer:
    """The layer with this index."""
    (found,) = (layer for layer in fleet.layers if layer.index == index)
    return found
