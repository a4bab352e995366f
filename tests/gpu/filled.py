"""Traces with their cached prefixes filled in by what they say of who computed them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.wire.traces import TracePart


@dataclass
class Filled:
    """A request's experts by position.

    Attributes:
        rows: int64 [positions, layers, top_k]; -1 where nobody is named.
        said: how many cached positions are ``named``, or why not.
        referred: the requests that are named.
    """

    rows: np.ndarray
    said: Counter[str] = field(default_factory=Counter)
    referred: set[str] = field(default_factory=set)


def fill(traces: Mapping[str, Sequence[TracePart]]) -> dict[str, Filled]:
    """All traces, each with the rows of those that it names where it has none.

    Args:
        traces: by any name, the parts of each trace, in their order.

    Raises:
        KeyError: a trace names a request that has none.
    """
    own = {parts[0].request_id: by_position(parts) for parts in traces.values()}
    found = {}
    for name, parts in traces.items():
        filled = Filled(own[parts[0].request_id].copy())
        for entry in parts[0].taken_over:
            filled.said["named" if entry.request_id else entry.why] += entry.count
            if entry.request_id:
                where = slice(entry.first, entry.first + entry.count)
                mine = filled.rows[where]  # what was computed after all, after a preemption, stays
                filled.rows[where] = np.where(mine == -1, own[entry.request_id][where], mine)
                filled.referred.add(entry.request_id)
        found[name] = filled
    return found


def by_position(parts: Sequence[TracePart]) -> np.ndarray:
    """What a trace's own request computed: int64 [positions, layers, top_k], -1 where it computed nothing."""
    experts = np.concatenate(
        [np.stack([part.ids_of(i) for i in range(len(part.layers))], axis=1) for part in parts]
    )
    positions = np.concatenate(
        [np.arange(run.first, run.first + run.count) for part in parts for run in part.runs]
    )
    rows = np.full((int(positions.max()) + 1, *experts.shape[1:]), -1, np.int64)
    for position, ids in zip(positions.tolist(), experts, strict=True):
        rows[position] = ids
    return rows
