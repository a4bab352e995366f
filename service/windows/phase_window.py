"""The window of one phase: the producers' differences, less what is of the other phase.

A layer leaves out a DP rank with tokens of unknown phase, and says why. Such tokens are counted as neither
phase, and never as zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moescope.service.counts.phase_split import Phase, of_phase, why_unphased
from moescope.service.counts.rank_work import RankWork
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan, why_unavailable
from moescope.service.windows.layer_window import LayerWindow
from moescope.service.windows.window import ModelWindow, merge_spans


def merge_spans_of_phase(
    spans: Sequence[ProducerSpan], phase: Phase | None, only: int | None = None
) -> ModelWindow:
    """What all producers of one deployment counted of a phase, as one window; None: of both phases.

    See :func:`moescope.service.windows.window.merge_spans`.
    """
    if phase is None:
        return merge_spans(spans, only=only)
    split = _Split(phase)
    told = why_unavailable((item.producer for item in spans), "phases")
    window = merge_spans(spans, split, only)
    return replace(
        window,
        layers=tuple(_known(layer, split.rows.get(layer.shape.layer, {}), told) for layer in window.layers),
        phase=phase,
        phase_reason=why_unphased(split.tokens, told),
    )


def spans_of_phase(spans: Sequence[ProducerSpan], phase: Phase | None) -> list[ProducerSpan]:
    """The spans, each with only what is of a phase (see :func:`of_phase`); None: unchanged."""
    if phase is None:
        return list(spans)
    return [replace(item, span=replace(item.span, phase=phase)) for item in spans]


class _Split:
    """Takes one phase of what each DP rank counted, and notes the tokens whose phase is not known.

    Attributes:
        phase: the phase.
        tokens: DP rank to its tokens of unknown phase.
        rows: layer to DP rank to its tokens of unknown phase in the layer; only where there are any.
    """

    def __init__(self, phase: Phase) -> None:
        self.phase = phase
        self.tokens: dict[int, int] = {}
        self.rows: dict[int, dict[int, int]] = {}

    def __call__(self, rank: int, deltas: list[Totals], work: RankWork) -> list[Totals]:
        """What is of the phase."""
        self.tokens[rank] = work.unknown_tokens
        for delta in deltas:
            for at in np.flatnonzero(delta.unphased_rows).tolist():
                by_rank = self.rows.setdefault(delta.layout.layers[at].layer, {})
                by_rank[rank] = by_rank.get(rank, 0) + int(delta.unphased_rows[at])
        return [of_phase(delta, self.phase) for delta in deltas]

    def left_out(self, rank: int) -> set[int]:
        """Layers in which the DP rank has tokens of unknown phase."""
        return {layer for layer, by_rank in self.rows.items() if rank in by_rank}


def _known(layer: LayerWindow, unphased: dict[int, int], told: str | None) -> LayerWindow:
    """The layer without the DP ranks that have tokens of unknown phase in it."""
    if not unphased:
        return layer
    kept = np.array([i for i, rank in enumerate(layer.dp_ranks) if rank not in unphased], dtype=np.int64)
    return replace(
        layer,
        dp_ranks=tuple(layer.dp_ranks[i] for i in kept),
        slots=layer.slots[kept],
        rows=layer.rows[kept],
        unphased=unphased,
        broken={rank: why for rank, why in layer.broken.items() if rank not in unphased},
        phase_reason=why_unphased(unphased, told),
    )
