"""A frame with all that frames have, for tests of the wire."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from moescope.capture.wire import (
    WIRE_MAJOR,
    WIRE_MINOR,
    Frame,
    MoeLayer,
    Placement,
    PlacementTable,
    Producer,
    StepLoads,
    UncoveredLayer,
    pack_counts,
    pack_ids,
    pack_step_loads,
)


def frame(**changes: Any) -> Frame:
    """Two layers of unlike sizes, placed on two EP ranks; `changes` replace fields."""
    fields: dict[str, Any] = {
        "wire": (WIRE_MAJOR, WIRE_MINOR),
        "producer": Producer(server="a", model="m", dp_rank=1, dp_size=2, ep_rank=1, ep_size=2),
        "epoch": 10**18,
        "seq": 1,
        "captured_at_ns": 10**18,
        "layers": [MoeLayer(1, 4, 2), MoeLayer(3, 2, 1)],
        "uncovered": [UncoveredLayer(5, "monolithic kernel")],
        "counts": pack_counts(np.array([1, 2, 3, 4, 5, 0])),
        "rows": pack_counts(np.array([5, 5])),
        "tokens": 5,
        "steps": 2,
        "placement": Placement(
            version=0,
            tables=[
                PlacementTable(pack_ids([0, 1, 2, 3]), pack_ids([0, 0, 1, 1])),
                PlacementTable(pack_ids([0, 1, 1]), pack_ids([0, 0, 1])),
            ],
            table_of_layer=[0, 1],
        ),
        "drops": {"sends_failed": 3},
    }
    return Frame(**(fields | changes))


PHASES: dict[str, Any] = {
    "decode_counts": pack_counts(np.array([1, 0, 3, 4, 5, 0])),
    "decode_rows": pack_counts(np.array([4, 5])),
    "decode_tokens": 4,
    "decode_steps": 1,
    "mixed_steps": 1,
}

BY_RANK: dict[str, Any] = {
    **PHASES,
    "ep_slots": pack_counts(np.array([3, 7, 5, 0])),
    "decode_ep_slots": pack_counts(np.array([1, 7, 5, 0])),
}
"""Slots by EP rank, in both phases."""


def step_loads(**changes: Any) -> StepLoads:
    """Loads of steps 11 and 14, of the layers and EP ranks of `frame`; `changes` replace fields."""
    loads = np.array([[[3, 1], [2, 0]], [[0, 4], [1, 1]]])
    sent = pack_step_loads(10, 15, np.array([11, 14]), loads, version=0)
    return msgspec.structs.replace(sent, **changes)
