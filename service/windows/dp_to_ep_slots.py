"""Who sends to whom: slots by source DP rank and destination EP rank."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.ep_slots import EpSlots
from moescope.service.counts.layers import Layout
from moescope.service.live.producers import ProducerSpan
from moescope.service.live.spans import Rise
from moescope.service.measures.arrays import FloatArray


def dp_to_ep_slots(
    spans: Sequence[ProducerSpan], dp_ranks: Sequence[int], layers: Sequence[int], ep_size: int
) -> FloatArray:
    """Slots of each DP rank's tokens that went to each EP rank, summed over layers.

    Exact over changes of placement: each frame's slots were placed by the placement that it names
    (see :mod:`moescope.service.counts.ep_slots`).

    Args:
        spans: what the producers counted; several of one DP rank add up (TP ranks have rows of their own).
        dp_ranks: C DP ranks, the rows.
        layers: ids of the layers to sum over.
        ep_size: R, the EP ranks that there are now.

    Returns:
        float64 [C, R], or wider where slots went to EP ranks that are gone now.
    """
    width, found = ep_size, []
    for item in spans:
        rise = item.span.rise
        if max(totals.ep_slots.ranks for totals, _ in rise.terms) > width:
            slots = _difference(rise, None)
            width = max(width, _used(slots.whole, slots.parts))
        chosen = [rise.layout.index[layer] for layer in layers if layer in rise.layout.index]
        sent = _difference(rise, chosen).over_layers().floats()
        found.append((item.producer.latest.producer.dp_rank, sent))
    flows = np.zeros((len(dp_ranks), width))
    row = {rank: i for i, rank in enumerate(dp_ranks)}
    for rank, sent in found:
        kept = sent[:width]
        flows[row[rank], : len(kept)] += kept
    return flows


def _difference(rise: Rise, layers: list[int] | None) -> EpSlots:
    """Slots by EP rank between two instants in n layers of a rise, [n, R]; None: in all of them."""
    ranks = max(totals.ep_slots.ranks for totals, _ in rise.terms)
    last, *first = (_some(totals.ep_slots, rise.layout, layers, ranks) for totals, _ in rise.terms)
    return last.minus(*first) if first else last


def _some(slots: EpSlots, layout: Layout, layers: list[int] | None, ranks: int) -> EpSlots:
    wide = slots if slots.ranks == ranks else slots.widened(layout, layout, ranks)
    return wide if layers is None else wide.at(layers)


def _used(whole: Int64Array, parts: Int64Array | None) -> int:
    """One past the last EP rank that got something."""
    used = np.flatnonzero(whole.any(axis=0) if parts is None else (whole | parts).any(axis=0))
    return int(used[-1]) + 1 if used.size else 0
