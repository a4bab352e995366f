"""The window of one phase: the producers' differences, less what is of the other phase.

A DP rank with tokens of unknown phase is one that the layer doesn't show, with the reason: they never count
as either phase, nor as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moescope.service.phases import phase_work, why_unphased
from moescope.service.state import ProducerSpan
from moescope.service.totals import Phase
from moescope.service.window import LayerWindow, ModelWindow, merge


def merge_phase(spans: Sequence[ProducerSpan], phase: Phase | None) -> ModelWindow:
    """Merge all producers of one deployment as :func:`merge` does, but only what is of a phase; None: all."""
    if phase is None:
        return merge(spans)
    window = merge(spans_of_phase(spans, phase))
    by_rank: dict[int, list[ProducerSpan]] = {}
    for item in spans:
        by_rank.setdefault(item.producer.latest.producer.dp_rank, []).append(item)
    tokens = {
        rank: min(item.span.delta.unphased_tokens for item in members) for rank, members in by_rank.items()
    }
    return replace(
        window,
        dp_ranks=tuple(
            replace(rank, phases=phase_work([item.span.delta for item in by_rank[rank.rank]]))
            for rank in window.dp_ranks
        ),
        layers=tuple(_known(layer, _unphased(layer, by_rank)) for layer in window.layers),
        phase=phase,
        phase_reason=why_unphased(tokens),
    )


def spans_of_phase(spans: Sequence[ProducerSpan], phase: Phase | None) -> list[ProducerSpan]:
    """The same, of one phase; see :meth:`Totals.of_phase`. None: all."""
    if phase is None:
        return list(spans)
    return [replace(item, span=replace(item.span, delta=item.span.delta.of_phase(phase))) for item in spans]


def _unphased(layer: LayerWindow, by_rank: dict[int, list[ProducerSpan]]) -> dict[int, int]:
    """DP rank to its tokens in the layer of which the phase is not known, where there are any."""
    found = {}
    for rank, members in by_rank.items():
        rows = 0
        for delta in (item.span.delta for item in members):
            at = delta.layout.index.get(layer.shape.layer)
            rows += 0 if at is None else int(delta.unphased_rows[at])
        if rows:
            found[rank] = rows
    return found


def _known(layer: LayerWindow, unphased: dict[int, int]) -> LayerWindow:
    """The layer without the DP ranks of which something is not known."""
    if not unphased:
        return layer
    kept = np.array([i for i, rank in enumerate(layer.dp_ranks) if rank not in unphased], dtype=np.int64)
    return replace(
        layer,
        dp_ranks=tuple(layer.dp_ranks[i] for i in kept),
        counts=layer.counts[kept],
        rows=layer.rows[kept],
        unphased=unphased,
    )
