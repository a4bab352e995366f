"""The requests that are most like another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moescope.service.measures.requests import Floats, roots_of, similarity
from moescope.service.store.slots import RequestSlots, begins_of
from moescope.service.traces.ranking import SPARE, highest
from moescope.service.traces.slot_table import Group


@dataclass(frozen=True, slots=True)
class Similar:
    """A request, how similar it is, and in how many layers it was compared."""

    number: int
    similarity: float
    layers: int


def similar(
    groups: Sequence[Group], to: RequestSlots, layers: Sequence[int] | None, limit: int
) -> list[Similar]:
    """The requests that are most like another one, which is not among them, the most similar first.

    Args:
        groups: the requests.
        to: the other one.
        layers: the layers that count; None: all.
        limit: how many, at most.
    """
    roots = roots_of(to.counts, begins_of(to.layers))
    of_layer = {
        layer: roots[begin : begin + layer.num_experts]
        for layer, begin in zip(to.layers, begins_of(to.layers).tolist(), strict=True)
        if layers is None or layer.layer in layers
    }
    of_kind = {
        group.layers: np.concatenate(
            [of_layer.get(layer, np.zeros(layer.num_experts)) for layer in group.layers]
        )
        for group in groups
    }
    rough = {kind: found.astype(np.float32) for kind, found in of_kind.items()}

    def values(group: Group, rows: slice) -> Floats:
        alike = similarity(group.counts[rows], group.of_layer[rows], rough[group.layers], group.begins)
        return np.where(group.numbers[rows] == to.number, np.nan, alike)

    found = []
    for row in highest(groups, values, limit + SPARE):
        group, wanted = row.group, of_kind[row.group.layers]
        alike = similarity(group.counts[row.at], group.of_layer[row.at], wanted, group.begins)
        both = (np.add.reduceat(wanted, group.begins) > 0) & (group.of_layer[row.at] > 0)
        found.append(Similar(row.number, float(alike), int(both.sum())))
    return sorted(found, key=lambda item: (-item.similarity, -item.number))[:limit]
