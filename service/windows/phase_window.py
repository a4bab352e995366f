"""The window of one phase: the producers' differences, less what is of the other phase.

A DP rank with tokens of unknown phase is one that the layer doesn't show, with the reason: they never count
as either phase, nor as none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moescope.service.counts.phase_split import Phase, PhaseWork, of_phase, phase_work, why_unphased
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan
from moescope.service.windows.window import LayerWindow, ModelWindow, merge


def merge_phase(spans: Sequence[ProducerSpan], phase: Phase | None) -> ModelWindow:
    """Merge all producers of one deployment as :func:`merge` does, but only what is of a phase; None: all."""
    if phase is None:
        return merge(spans)
    split = _Split(phase)
    window = merge(spans, split)
    return replace(
        window,
        dp_ranks=tuple(replace(rank, phases=split.work[rank.rank]) for rank in window.dp_ranks),
        layers=tuple(_known(layer, split.rows.get(layer.shape.layer, {})) for layer in window.layers),
        phase=phase,
        phase_reason=why_unphased(split.tokens),
    )


def spans_of_phase(spans: Sequence[ProducerSpan], phase: Phase | None) -> list[ProducerSpan]:
    """The same, of one phase; see :meth:`Totals.of_phase`. None: all."""
    if phase is None:
        return list(spans)
    return [replace(item, span=replace(item.span, phase=phase)) for item in spans]


class _Split:
    """Takes one phase of what each DP rank counted, and notes what of the rank's tokens is known.

    Attributes:
        work: of each DP rank both phases.
        tokens: of each DP rank the tokens of which the phase is not known.
        rows: the same by layer, where there are any: layer to DP rank to tokens.
    """

    def __init__(self, phase: Phase) -> None:
        self._phase = phase
        self.work: dict[int, PhaseWork | None] = {}
        self.tokens: dict[int, int] = {}
        self.rows: dict[int, dict[int, int]] = {}

    def __call__(self, rank: int, deltas: list[Totals]) -> list[Totals]:
        """What is of the phase."""
        self.work[rank] = phase_work(deltas)
        self.tokens[rank] = min(delta.unphased_tokens for delta in deltas)
        for delta in deltas:
            for at in np.flatnonzero(delta.unphased_rows).tolist():
                by_rank = self.rows.setdefault(delta.layout.layers[at].layer, {})
                by_rank[rank] = by_rank.get(rank, 0) + int(delta.unphased_rows[at])
        return [of_phase(delta, self._phase) for delta in deltas]


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
