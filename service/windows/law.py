"""Where a window's rows don't add up to the tokens, so that what rests on them is not known.

Two things say so: the comparisons of the workers' snapshots, of which a breach overlaps the window (see
:mod:`moescope.service.counts.row_law`), and the window's own sums. The sums need no snapshots of one step,
and tell of windows from before this service started. They are exact with one TP worker. With several they
are bounds, because the workers report one after the other.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.service.counts.layers import Layout
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.row_comparison import KINDS
from moescope.service.counts.row_law import Breach
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan, heard_last
from moescope.service.live.spans import Rise

_KIND_OF = {None: KINDS.index("rows"), Phase.PREFILL: KINDS.index("prefill_rows")}


def not_conserved(
    rank: int,
    spans: Sequence[ProducerSpan],
    deltas: Sequence[Rise],
    phase: Phase | None,
    in_doubt: Container[int] = (),
) -> dict[int, str]:
    """Layer to why its rows are not the tokens that a DP rank computed in the window.

    Args:
        rank: the DP rank.
        spans: what its producers counted, sorted by key; one at least.
        deltas: their differences, parallel; of one phase, if one is asked for.
        phase: the phase that is asked for, or None.
        in_doubt: layers of which a worker doesn't count (see :mod:`moescope.service.windows.doubts`). Too few
            rows are no breach there: the layer is partial.
    """
    if len(spans) == 1 and _adds_up(spans[0], deltas[0]):
        return {}  # with hundreds of ranks almost always
    found: dict[int, str] = {}
    pairs = zip(spans, deltas, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].producer.latest.producer.pp_rank):
        workers = list(group)
        stage, parts = [span for span, _ in workers], [delta for _, delta in workers]
        found |= _by_comparisons(rank, stage, phase) | _by_sums(rank, stage, parts, phase, in_doubt)
    return found


def _adds_up(span: ProducerSpan, delta: Rise) -> bool:
    """Whether a DP rank's only worker saw each token in each layer, now and always."""
    return not span.producer.law.breaches and bool((delta.rows == delta.tokens).all())


def _by_comparisons(rank: int, stage: Sequence[ProducerSpan], phase: Phase | None) -> dict[int, str]:
    """Layers with a breach in the window."""
    breaches = stage[0].producer.law.breaches
    if not breaches:
        return {}
    start, end = min(item.span.start for item in stage), max(item.span.end for item in stage)
    kind = _KIND_OF.get(phase, KINDS.index("decode_rows"))
    return {
        layer: f"its rows don't add up to the tokens of DP rank {rank}: see /v1/ranks"
        for layer, items in breaches.items()
        if _overlap(items, start, end, kind)
    }


def _overlap(breaches: Iterable[Breach], start: float, end: float, kind: int) -> bool:
    return any(item.kinds[kind] and item.since < end and item.until > start for item in breaches)


def _by_sums(
    rank: int,
    stage: Sequence[ProducerSpan],
    parts: Sequence[Rise],
    phase: Phase | None,
    in_doubt: Container[int],
) -> dict[int, str]:
    """Layers whose rows of the window are more or fewer than its tokens can be."""
    if not any(part.rows.any() for part in parts):
        return {}  # where nothing was seen, the law says nothing
    who = heard_last(item.producer for item in stage).tp_size
    if who == 1 and len(parts) == 1:
        [part] = parts
        bounds = (part.tokens, part.tokens)
        layout, rows = part.layout, part.rows
    else:
        within = _bounds(stage, phase)
        if within is None:
            return {}
        bounds = within
        layout, rows = _summed(parts)
    if any(part.unphased_tokens for part in parts) and phase is not None:
        return {}
    fewest, most = bounds
    wrong = (rows != 0) & ((rows < fewest) | (rows > most))
    return {
        layout.layers[i].layer: _why(rank, int(rows[i]), fewest, most)
        for i in np.flatnonzero(wrong).tolist()
        if rows[i] > most or layout.layers[i].layer not in in_doubt
    }


def _bounds(stage: Sequence[ProducerSpan], phase: Phase | None) -> tuple[int, int] | None:
    """The fewest and the most tokens of the window, over the workers' boundaries; None: not comparable.

    The workers' totals compare within one start only: of what was before it each may have seen another end.
    """
    starts, ends = [], []
    for item in stage:
        whole = item.producer.totals
        base = _tokens(whole, phase) - _tokens(item.producer.latest.counted, phase)
        first = 0 if item.span.first is None else _tokens(item.span.first, phase)
        if first < base:
            return None
        starts.append(first - base)
        ends.append(_tokens(item.span.last, phase) - base)
    return max(0, min(ends) - max(starts)), max(ends) - min(starts)


def _tokens(totals: Totals, phase: Phase | None) -> int:
    decode = 0 if totals.decode is None else totals.decode.tokens
    if phase is None:
        return totals.tokens
    return decode if phase is Phase.DECODE else totals.tokens - decode - totals.unphased_tokens


def _summed(parts: Sequence[Rise]) -> tuple[Layout, Int64Array]:
    layout = parts[0].layout
    for part in parts[1:]:
        layout = layout.union(part.layout)
    rows = np.zeros(len(layout.layers), np.int64)
    for part in parts:
        rows += layout.widened_layers(part.layout, part.rows)
    return layout, rows


def _why(rank: int, rows: int, fewest: int, most: int) -> str:
    tokens = str(fewest) if fewest == most else f"{fewest} to {most}"
    return f"its rows don't add up to the tokens of DP rank {rank}: {rows} of {tokens}"


def told(broken: Mapping[int, str]) -> str | None:
    """What is said of a layer that DP ranks break, or None."""
    return "; ".join(dict.fromkeys(broken.values())) or None
