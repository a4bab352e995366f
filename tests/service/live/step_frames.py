"""Frames that carry the loads of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.capture import wire
from tests.service.frames import EPOCH, frame, producer

S = 10**9
"""A second, in nanoseconds."""
ZERO = {0: [0, 0], 2: [0, 0]}


def stepped(
    dp_rank: int,
    first: int,
    loads: Sequence[Sequence[int]],
    epoch: int = EPOCH,
    at: float = 30.0,
    **fields: Any,
) -> wire.Frame:
    """A frame with steps from number ``first`` on.

    ``loads`` has each step's slots by EP rank, the same in both layers; a step of zeros is a dummy step.
    """
    values = np.repeat(np.array(loads, dtype=np.int64).reshape(-1, 1, 2), 2, axis=1)
    busy = np.flatnonzero(values.any(axis=(1, 2)))
    packed = wire.pack_step_loads(first, first + len(values), first + busy, values[busy], 1)
    who = producer(**{"dp_rank": dp_rank, "dp_size": 2, "ep_rank": dp_rank, "ep_size": 2, **fields})
    made = frame(ZERO, who=who, epoch=epoch, after_s=at - (epoch - EPOCH) / S, step_loads=packed)
    wire.check_frame(made)
    return made
