"""The frames of a deployment's workers, and what they say, as values of JSON."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from devkit.frame_sink import FrameSink
from moescope.capture.wire import Frame, unpack_counts, unpack_ids
from tests.step_loads import microbatch_loads, placed_counts, step_loads

SETTLE = 30.0

Worker = tuple[int, int, int]
"""DP, PP and TP rank."""


def by_worker(frames: Sequence[Frame], server: str | None = None) -> dict[Worker, list[Frame]]:
    """All frames, or those of one deployment, by worker."""
    found: dict[Worker, list[Frame]] = {}
    for frame in list(frames):
        who = frame.producer
        if server in (None, who.server):
            found.setdefault((who.dp_rank, who.pp_rank, who.tp_rank), []).append(frame)
    return found


def settled(
    sink: FrameSink, expected: Sequence[int], workers: int, server: str | None = None
) -> dict[Worker, list[Frame]]:
    """The frames once all workers have sent all, or as they are when time is up.

    Args:
        expected: by DP rank, the tokens that it computed.
        server: the deployment's name; None if no other sends here.
    """
    deadline = time.monotonic() + SETTLE
    passes: set[int] = set()
    while time.monotonic() < deadline:
        time.sleep(1)
        found = by_worker(sink.frames, server)
        last = [frames[-1] for frames in found.values()]
        before, passes = passes, {frame.steps + frame.idle_steps for frame in last}
        complete = all(frame.tokens >= expected[frame.producer.dp_rank] for frame in last)
        if len(found) == workers and complete and len(passes) == 1 and passes == before:
            break
    return by_worker(sink.frames, server)


def describe(frames: list[Frame]) -> dict[str, Any]:
    """One worker's account."""
    frame = frames[-1]
    who = frame.producer
    ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
    has_loads = frame.step_loads is not None
    return {
        "state": [frame.state, frame.state_reason],
        "strategy": frame.strategy,
        "ranks": {"dp": who.dp_rank, "pp": who.pp_rank, "tp": who.tp_rank, "ep": who.ep_rank},
        "ep_size": who.ep_size,
        "layers": [[layer.layer, layer.num_experts, layer.top_k] for layer in frame.layers],
        "uncovered": [[layer.layer, layer.reason] for layer in frame.uncovered],
        "tokens": frame.tokens,
        "rows": unpack_counts(frame.rows).tolist(),
        "counts": [part.tolist() for part in np.split(unpack_counts(frame.counts), ends)],
        "decode_tokens": frame.decode_tokens,
        "decode_rows": unpack_counts(frame.decode_rows).tolist(),
        "steps": [frame.steps, frame.decode_steps, frame.mixed_steps, frame.idle_steps],
        "drops": frame.drops,
        "loads": {step: load.tolist() for step, load in step_loads(frames).items()} if has_loads else None,
        "parts": parts_of(frames) if has_loads else None,
        "placed": placed_counts(frame) if has_loads else None,
        "ep_slots": unpack_counts(frame.ep_slots).reshape(len(frame.layers), -1).tolist(),
        "unavailable": frame.unavailable,
        "placements": placements(frames),
    }


def parts_of(frames: list[Frame]) -> dict[int, dict[int, list[list[int]]]]:
    """The loads of each step's microbatches."""
    found: dict[int, dict[int, list[list[int]]]] = {}
    for (step, part), loads in microbatch_loads(frames).items():
        found.setdefault(step, {})[part] = loads.tolist()
    return found


def placements(frames: list[Frame]) -> list[list[Any]]:
    """The placements in the frames' order: version, and for each layer the logical expert of each copy."""
    found: list[list[Any]] = []
    for frame in sorted(frames, key=lambda frame: frame.seq):
        placement = frame.placement
        if placement is None:
            latest = [None, None]
        else:
            tables = [unpack_ids(table.physical_to_logical).tolist() for table in placement.tables]
            latest = [placement.version, [tables[index] for index in placement.table_of_layer]]
        if not found or found[-1] != latest:
            found.append(latest)
    return found


def by_layer(workers: list[dict[str, Any]], dp: int, what: str) -> dict[int, Any]:
    """A DP rank's value of each decoder layer, summed over the workers that have the layer."""
    found: dict[int, Any] = {}
    for worker in workers:
        if worker["ranks"]["dp"] == dp:
            for (layer, _, _), value in zip(worker["layers"], worker[what], strict=True):
                found[layer] = found.get(layer, 0) + np.asarray(value)
    return {layer: value.tolist() for layer, value in sorted(found.items())}
