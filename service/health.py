"""What is wrong with capture: unseen layers and counts that don't add up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from moescope.service.ledger import Latest
from moescope.service.state import ProducerState


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
    slots = counted.layout.sums(counted.counts)
    expected = counted.rows * counted.layout.top_k
    found = []
    for i, layer in enumerate(counted.layout.layers):
        if slots[i] != expected[i]:
            found.append(Mismatch(layer.layer, "slots", int(expected[i]), int(slots[i])))
        if latest.producer.tp_size == 1 and counted.rows[i] not in (0, counted.tokens):
            found.append(Mismatch(layer.layer, "rows", counted.tokens, int(counted.rows[i])))
    return found


def unseen_layers(producers: Iterable[ProducerState]) -> list[int]:
    """Layers that a DP rank claims to cover and never saw a row of, although it computed tokens.

    Args:
        producers: all producers of one DP rank; rows add up over its TP ranks.
    """
    newest = [producer.latest.counted for producer in producers]
    if not any(counted.tokens for counted in newest):
        return []
    rows: dict[int, int] = {}
    for counted in newest:
        for i, layer in enumerate(counted.layout.layers):
            rows[layer.layer] = rows.get(layer.layer, 0) + int(counted.rows[i])
    return sorted(layer for layer, seen in rows.items() if not seen)
