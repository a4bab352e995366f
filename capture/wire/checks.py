"""What the types of a frame can't say: array lengths, signs, order, ranks, placement, phases, steps."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np

from moescope.capture.wire.arrays import COUNTS_DTYPE, Int64Array, WireError, unpack_counts, unpack_ids
from moescope.capture.wire.schema import (
    MAX_MICROBATCHES,
    MAX_RANKS,
    Frame,
    MoeLayer,
    Placement,
    PlacementTable,
    Producer,
    StepLoads,
)

MAX_SPAN: Final = 1 << 16
"""Steps, dummy steps included, that the loads of one frame account for, at most, and entries of them, where
steps have several microbatches: the service takes each entry on its own."""
MAX_CELLS: Final = 1 << 18
"""Layers x DP ranks, and layers x EP ranks, that a frame tells of, at most.

Answers have a number for each cell: 2 MiB of float64. A model of 64 layers may have 4,096 ranks.
"""
MAX_COPIES: Final = 1 << 20
"""Physical experts over all layers of a frame, at most: a model of 64 layers may have 16,384 in each."""
FEW_COPIES: Final = 256
"""Physical experts that any layer may have. Beyond them each logical one is twice on each EP rank at most."""


def check_frame(frame: Frame) -> None:
    """Check what the types alone can't say: array lengths, signs, order, ranks, placement, phases, steps.

    Raises:
        WireError: names the field, what it holds and what was expected.
    """
    _check_ranks(frame.producer)
    _check_sizes(frame)
    layer_ids = [layer.layer for layer in frame.layers]
    if any(a >= b for a, b in itertools.pairwise(layer_ids)):
        raise WireError(f"layers: ids must rise strictly, got {layer_ids}")
    for layer in frame.layers:
        if layer.top_k > layer.num_experts:
            raise WireError(
                f"layers: layer {layer.layer} has top_k {layer.top_k} > {layer.num_experts} experts"
            )
    both = set(layer_ids) & {layer.layer for layer in frame.uncovered}
    if both:
        raise WireError(f"uncovered: layers {sorted(both)} are in layers too")
    found = {*layer_ids, *(layer.layer for layer in frame.uncovered)} & {item.layer for item in frame.absent}
    if found:
        raise WireError(f"absent: layers {sorted(found)} are in layers or uncovered too")
    if frame.acknowledged is not None and frame.acknowledged >= frame.seq:
        raise WireError(f"acknowledged: {frame.acknowledged} is not below seq ({frame.seq})")
    _check_array("counts", frame.counts, sum(layer.num_experts for layer in frame.layers))
    _check_array("rows", frame.rows, len(frame.layers))
    _check_phases(frame)
    if frame.placement is not None:
        _check_placement(frame.placement, frame.layers, frame.producer.ep_size)
    _check_ep_slots(frame)
    if frame.step_loads is not None:
        _check_step_loads(frame.step_loads, len(frame.layers), frame.producer.ep_size)


def _check_ranks(producer: Producer) -> None:
    for axis, rank, size in (
        ("dp", producer.dp_rank, producer.dp_size),
        ("tp", producer.tp_rank, producer.tp_size),
        ("pp", producer.pp_rank, producer.pp_size),
        ("ep", producer.ep_rank, producer.ep_size),
    ):
        if rank >= size:
            raise WireError(f"producer.{axis}_rank: {rank} is not below {axis}_size {size}")


def _check_sizes(frame: Frame) -> None:
    """Check that what answers are made of has a bound, whatever few bytes a frame has."""
    who, layers = frame.producer, len(frame.layers) + len(frame.uncovered) + len(frame.absent)
    workers = who.dp_size * who.tp_size * who.pp_size
    if workers > MAX_RANKS:
        raise WireError(f"producer.dp_size: dp_size x tp_size x pp_size is {workers}, above {MAX_RANKS}")
    for axis, size in (("dp", who.dp_size), ("ep", who.ep_size)):
        if size * layers > MAX_CELLS:
            raise WireError(f"producer.{axis}_size: {size} x {layers} layers is above {MAX_CELLS}")


def _check_array(field: str, data: bytes, length: int) -> None:
    expected = length * COUNTS_DTYPE.itemsize
    if len(data) != expected:
        raise WireError(f"{field}: expected {expected} bytes ({length} int64 values), got {len(data)}")
    values = unpack_counts(data)
    if values.size and int(values.min()) < 0:
        raise WireError(f"{field}: value {int(np.argmin(values))} is negative ({int(values.min())})")


def _check_phases(frame: Frame) -> None:
    """Check that no number of decode is above the same number of both phases."""
    if not frame.decode_counts and not frame.decode_rows:
        return
    for name in ("counts", "rows"):
        whole, part = unpack_counts(getattr(frame, name)), getattr(frame, f"decode_{name}")
        _check_array(f"decode_{name}", part, len(whole))
        over = np.flatnonzero(unpack_counts(part) > whole)
        if over.size:
            raise WireError(f"decode_{name}: value {int(over[0])} is above that of {name}")
    if frame.decode_tokens > frame.tokens:
        raise WireError(f"decode_tokens: {frame.decode_tokens} is above tokens ({frame.tokens})")
    if frame.decode_steps + frame.mixed_steps > frame.steps:
        raise WireError(
            f"decode_steps: {frame.decode_steps} with mixed_steps {frame.mixed_steps} is above steps "
            f"({frame.steps})"
        )


def _check_ep_slots(frame: Frame) -> None:
    """Check that no layer has more slots by EP rank than slots, in both phases and in decode."""
    both = bool(frame.ep_slots) and bool(frame.decode_counts)
    if both != bool(frame.decode_ep_slots):
        raise WireError("decode_ep_slots: goes with ep_slots and decode_counts, and with nothing else")
    for name, counted in (("ep_slots", frame.counts), ("decode_ep_slots", frame.decode_counts)):
        told = getattr(frame, name)
        if not told:
            continue
        _check_array(name, told, len(frame.layers) * frame.producer.ep_size)
        by_rank = unpack_counts(told).reshape(len(frame.layers), -1)
        starts = np.cumsum([0, *(layer.num_experts for layer in frame.layers[:-1])])
        slots = np.add.reduceat(unpack_counts(counted), starts)
        over = np.flatnonzero(by_rank.sum(axis=1) > slots)
        if over.size:
            layer = frame.layers[int(over[0])].layer
            raise WireError(f"{name}: layer {layer} has more slots by EP rank than it has slots")
    if frame.decode_ep_slots:
        over = np.flatnonzero(unpack_counts(frame.decode_ep_slots) > unpack_counts(frame.ep_slots))
        if over.size:
            raise WireError(f"decode_ep_slots: value {int(over[0])} is above that of ep_slots")


def _check_step_loads(step_loads: StepLoads, num_layers: int, ep_size: int) -> None:
    span = step_loads.end - step_loads.first
    if not 0 <= span <= MAX_SPAN:
        raise WireError(f"step_loads.end: {step_loads.end} is not within {MAX_SPAN} of first")
    if len(step_loads.steps) % 4:
        raise WireError(f"step_loads.steps: {len(step_loads.steps)} bytes are no uint32 values")
    if len(step_loads.steps) > 4 * MAX_SPAN:
        raise WireError(f"step_loads.steps: {len(step_loads.steps) // 4} entries, above {MAX_SPAN}")
    steps = np.frombuffer(step_loads.steps, dtype="<u4").astype(np.int64)
    entries = _entries_in_order(step_loads, steps)
    if steps.size and (int(steps[-1]) >= span or not bool((np.diff(entries) > 0).all())):
        raise WireError(f"step_loads.steps: must rise strictly and stay below {span} (end - first)")
    expected = steps.size * num_layers * ep_size * step_loads.width
    if len(step_loads.loads) != expected:
        raise WireError(
            f"step_loads.loads: expected {expected} bytes ({steps.size} steps x {num_layers} layers x "
            f"{ep_size} EP ranks x {step_loads.width}), got {len(step_loads.loads)}"
        )


def _entries_in_order(step_loads: StepLoads, steps: Int64Array) -> Int64Array:
    """int64 [n], a number of each entry that rises if its step does, or else its microbatch."""
    parts = np.frombuffer(step_loads.microbatches, np.uint8)
    if not parts.size:
        return steps
    if parts.size != steps.size:
        raise WireError(f"step_loads.microbatches: {parts.size} for {steps.size} steps")
    return steps * MAX_MICROBATCHES + parts


def _check_placement(placement: Placement, layers: list[MoeLayer], ep_size: int) -> None:
    if len(placement.table_of_layer) != len(layers):
        raise WireError(
            f"placement.table_of_layer: {len(placement.table_of_layer)} entries for {len(layers)} layers"
        )
    used = [placement.tables[i] for i in placement.table_of_layer if i < len(placement.tables)]
    copies = sum(len(table.physical_to_logical) // 2 for table in used)
    if copies > MAX_COPIES:
        raise WireError(f"placement: {copies} physical experts over all layers, above {MAX_COPIES}")
    checked: set[tuple[int, int]] = set()  # most layers share a table: look at each once
    for layer, index in zip(layers, placement.table_of_layer, strict=True):
        if (index, layer.num_experts) in checked:
            continue
        checked.add((index, layer.num_experts))
        if index >= len(placement.tables):
            raise WireError(f"placement.table_of_layer: no table {index} among {len(placement.tables)}")
        _check_table(f"placement.tables[{index}]", placement.tables[index], layer, ep_size)


def _check_table(field: str, table: PlacementTable, layer: MoeLayer, ep_size: int) -> None:
    if len(table.physical_to_logical) % 2 or len(table.physical_to_logical) != len(table.physical_to_ep_rank):
        raise WireError(
            f"{field}: {len(table.physical_to_logical)} and {len(table.physical_to_ep_rank)} bytes, expected "
            "two uint16 arrays of one length"
        )
    copies = len(table.physical_to_logical) // 2
    most = max(FEW_COPIES, 2 * layer.num_experts * ep_size)
    if copies > most:
        raise WireError(
            f"{field}: {copies} physical experts, above {most}, for {layer.num_experts} logical experts on "
            f"{ep_size} EP ranks"
        )
    logical, ep_ranks = unpack_ids(table.physical_to_logical), unpack_ids(table.physical_to_ep_rank)
    placed = np.bincount(logical, minlength=layer.num_experts)
    if len(placed) > layer.num_experts or not bool((placed > 0).all()):
        raise WireError(
            f"{field}: layer {layer.layer} needs each of its {layer.num_experts} logical experts placed at "
            "least once, and no other"
        )
    if int(ep_ranks.max()) >= ep_size:
        raise WireError(f"{field}: EP rank {int(ep_ranks.max())} is not below ep_size {ep_size}")
