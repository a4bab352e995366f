"""What is wrong with capture: absent and unseen layers, and counts that don't add up."""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import numpy as np

from moescope.service.counts.account_state import Latest
from moescope.service.counts.layers import Layout
from moescope.service.live.producers import ProducerState


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A law of conservation that one layer of a producer's newest frame breaks.

    ``slots``: the counts of its experts must sum to rows x top-k (a router that masks slots breaks this).
    ``rows``: with one TP rank, every token that the DP rank computed must be a row of the layer.
    """

    layer: int
    law: Literal["slots", "rows"]
    expected: int
    got: int


def mismatches(latest: Latest) -> list[Mismatch]:
    """All broken laws of a producer's newest frame; layers never seen are :func:`unseen_layers`'s."""
    counted = latest.counted
    rows, slots = counted.rows, counted.layout.sums(counted.counts)
    expected = rows * counted.layout.top_k
    short = (rows != 0) & (rows != counted.tokens) & (latest.producer.tp_size == 1)
    found = []
    for i in np.flatnonzero((slots != expected) | short).tolist():
        layer = counted.layout.layers[i].layer
        if slots[i] != expected[i]:
            found.append(Mismatch(layer, "slots", int(expected[i]), int(slots[i])))
        if short[i]:
            found.append(Mismatch(layer, "rows", counted.tokens, int(rows[i])))
    return found


def absent_layers(newest: Iterable[Latest], found: Container[int] = ()) -> dict[int | None, str]:
    """Layers that a model's config has and that were not found, to the reason; rising, None comes last.

    Args:
        newest: the newest frames of some producers.
        found: layers that are known all the same, from other producers.

    Returns:
        None stands for layers of which it isn't known which they are.
    """
    reasons: dict[int | None, str] = {}
    for latest in newest:
        for layer, reason in latest.absences:
            if layer is None or layer not in found:
                reasons.setdefault(layer, reason)
    return {layer: reasons[layer] for layer in sorted(reasons, key=lambda at: (at is None, at or 0))}


def unseen_layers(producers: Iterable[ProducerState]) -> list[int]:
    """Layers that a DP rank claims to cover and never saw a row of, although it computed tokens.

    Args:
        producers: all producers of one DP rank; rows add up over its TP ranks.
    """
    newest = [producer.latest.counted for producer in producers]
    if not any(counted.tokens for counted in newest):
        return []
    layout = reduce(Layout.union, (counted.layout for counted in newest))
    rows = np.zeros(len(layout.layers), dtype=np.int64)
    for counted in newest:
        rows += layout.widened_layers(counted.layout, counted.rows)
    return sorted(layout.layers[i].layer for i in np.flatnonzero(rows == 0).tolist())
