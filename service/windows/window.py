"""What a deployment counted in a window: the producers' differences, merged.

A DP rank may have several producers. Exactly one of its TP ranks counts each row, so counts and rows add up
over TP. Each PP rank has layers of its own, so layers are joined over PP. All of them count the same tokens
and steps, so the largest number is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer
from moescope.service.counts.phase_split import Phase, PhaseWork, phase_work, why_unphased
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan, sizes_of
from moescope.service.measures.arrays import FloatArray
from moescope.service.windows.health import absent_layers
from moescope.service.windows.stack import Stack, Stacker

Part = Callable[[int, list[Totals]], list[Totals]]
"""Takes a DP rank and what each of its producers counted; returns the part of that which is wanted."""


@dataclass(frozen=True, slots=True)
class Used:
    """The instants at which the producers' totals were really taken, seconds of Unix time.

    Producers report one after the other, so either boundary has an earliest and a latest instant. Producers
    that did not report in the window are left out, unless none did.
    """

    start_earliest: float
    start_latest: float
    end_earliest: float
    end_latest: float
    truncated: bool


@dataclass(frozen=True, slots=True)
class DpRank:
    """What one DP rank computed in the window; ``present`` unless all its producers fell silent.

    ``phases`` is None where the phases of some of its tokens are not known.
    """

    rank: int
    tokens: int
    steps: int
    idle_steps: int
    present: bool
    phases: PhaseWork | None = None


@dataclass(frozen=True, slots=True)
class LayerWindow:
    """One MoE layer in the window.

    Attributes:
        shape: its id, experts and top-k.
        dp_ranks: C DP ranks whose tokens were seen here, rising.
        counts: slots per (DP rank, logical expert), int64 [C, num_experts].
        rows: tokens seen, int64 [C].
        ep_slots: slots per EP rank, float64 [R]; only meaningful without ``ep_reason``.
        unplaced: slots of which the EP rank isn't known.
        ep_reason: why the load of the EP ranks isn't known, or None.
        unseen: DP ranks that computed tokens, none of which was seen here, though the layer is covered.
        uncovered: DP rank to the reason why its tokens can't be seen here.
        unphased: in the window of one phase, DP ranks that are left out, to their tokens of unknown phase.
    """

    shape: MoeLayer
    dp_ranks: tuple[int, ...]
    counts: Int64Array
    rows: Int64Array
    ep_slots: FloatArray
    unplaced: int
    ep_reason: str | None
    unseen: tuple[int, ...]
    uncovered: dict[int, str]
    unphased: Mapping[int, int] = field(default_factory=dict)

    @property
    def slots(self) -> Int64Array:
        """Slots per DP rank, int64 [C]."""
        return np.asarray(self.counts.sum(axis=1))

    @property
    def missing(self) -> tuple[int, ...]:
        """DP ranks with tokens that are not in the counts."""
        return tuple(sorted({*self.unseen, *self.uncovered, *self.unphased} - set(self.dp_ranks)))

    @property
    def not_seen(self) -> str | None:
        """Why there are no counts at all, or None."""
        if self.dp_ranks:
            return None
        if self.unphased:
            return why_unphased(self.unphased)
        if self.uncovered:
            return f"not covered: {next(iter(self.uncovered.values()))}"
        return f"not seen: DP ranks {list(self.unseen)} computed tokens, the layer's router reported none"


@dataclass(frozen=True, slots=True)
class ModelWindow:
    """A deployment in a window.

    ``dp_size`` and ``ep_size`` are those at the window's end (see :func:`sizes_of`). ``uncovered`` has the
    layers that no DP rank can see, with the reason, and ``absent`` those that the model's config has and that
    were not found; layer None: it isn't known which. ``phase`` is the one phase that was asked for, or None;
    ``phase_reason`` says why not all of its tokens are known.
    """

    server: str
    model: str
    used: Used
    dp_size: int
    ep_size: int
    dp_ranks: tuple[DpRank, ...]
    layers: tuple[LayerWindow, ...]
    uncovered: dict[int, str]
    phase: Phase | None = None
    phase_reason: str | None = None
    absent: Mapping[int | None, str] = field(default_factory=dict)

    @property
    def known_tokens(self) -> int | None:
        """Tokens over all DP ranks; None where it isn't known how many are of the phase."""
        return None if self.phase_reason else self.tokens

    @property
    def tokens(self) -> int:
        """Tokens over all DP ranks, as far as they are known to be of the phase."""
        return sum(rank.tokens for rank in self.dp_ranks)

    @property
    def missing_dp_ranks(self) -> list[int]:
        """DP ranks that should exist and never reported."""
        return sorted(set(range(self.dp_size)) - {rank.rank for rank in self.dp_ranks})


def merge_spans(spans: Sequence[ProducerSpan], part: Part | None = None) -> ModelWindow:
    """What all producers of one deployment counted, as one window.

    Args:
        spans: what each of them counted; one producer at least.
        part: takes the part of what a DP rank counted that is wanted; None: all of it.
    """
    by_rank: dict[int, list[ProducerSpan]] = {}
    for item in spans:
        by_rank.setdefault(item.producer.latest.producer.dp_rank, []).append(item)
    dp_size, ep_size = sizes_of(spans)
    layouts = (layout for rank in sorted(by_rank) for item in by_rank[rank] for layout in item.span.layouts)
    stacker, found = Stacker(layouts, len(by_rank), ep_size), []
    for rank in sorted(by_rank):
        deltas = [item.span.delta for item in by_rank[rank]]
        deltas = deltas if part is None else part(rank, deltas)
        found.append(_dp_rank(rank, by_rank[rank], deltas))
        stacker.add(deltas, found[-1].tokens != 0)
    dp_ranks, stack = tuple(found), stacker.stack()
    seen = {layer.layer for layer in stack.layout.layers}
    uncovered = {layer.layer: layer.reason for item in spans for layer in item.producer.latest.uncovered}
    return ModelWindow(
        server=spans[0].producer.latest.producer.server,
        model=spans[0].producer.latest.producer.model,
        used=_used(spans),
        dp_size=dp_size,
        ep_size=ep_size,
        dp_ranks=dp_ranks,
        layers=_layers(stack, [rank.rank for rank in dp_ranks], ep_size, _reasons(dp_ranks, by_rank)),
        uncovered={layer: uncovered[layer] for layer in sorted(uncovered) if layer not in seen},
        absent=absent_layers([item.producer.latest for item in spans], seen.union(uncovered)),
    )


def _used(spans: Sequence[ProducerSpan]) -> Used:
    # A producer that did not report in the window, say because it ended before, says nothing of its bounds.
    told = [item.span for item in spans if item.span.start < item.span.end] or [item.span for item in spans]
    starts, ends = [span.start for span in told], [span.end for span in told]
    return Used(min(starts), max(starts), min(ends), max(ends), any(item.span.truncated for item in spans))


def _dp_rank(rank: int, spans: list[ProducerSpan], deltas: list[Totals]) -> DpRank:
    return DpRank(
        rank=rank,
        tokens=max(delta.tokens for delta in deltas),
        steps=max(delta.steps for delta in deltas),
        idle_steps=max(delta.idle_steps for delta in deltas),
        present=not all(item.producer.stale for item in spans),
        phases=phase_work(deltas),
    )


def _layers(
    stack: Stack, ids: list[int], ep_size: int, uncovered: dict[int, dict[int, str]]
) -> tuple[LayerWindow, ...]:
    """All layers; ``ids`` are the DP ranks of the stack, in its order."""
    covering = stack.present & ~stack.lost
    offsets = stack.layout.offsets.tolist()
    everywhere: list[bool] = np.all(covering, axis=0).tolist()
    anywhere: list[bool] = np.any(stack.lost, axis=0).tolist()
    everybody, rows_by_layer = tuple(ids), np.ascontiguousarray(stack.rows.T)
    found = []
    for i, shape in enumerate(stack.layout.layers):
        counts, rows, shown = stack.counts[:, offsets[i] : offsets[i + 1]], rows_by_layer[i], everybody
        if not everywhere[i]:
            kept = np.flatnonzero(covering[:, i])
            counts, rows, shown = counts[kept], rows[kept], tuple(ids[at] for at in kept)
        reasons = uncovered.get(shape.layer, {})
        unseen = [ids[at] for at in np.flatnonzero(stack.lost[:, i])] if anywhere[i] else []
        found.append(
            LayerWindow(
                shape=shape,
                dp_ranks=shown,
                counts=counts,
                rows=rows,
                ep_slots=stack.ep_slots[i],
                unplaced=stack.unplaced[i],
                ep_reason=_ep_reason(ep_size, stack.unplaced[i]),
                unseen=tuple(rank for rank in unseen if rank not in reasons),
                uncovered=reasons,
            )
        )
    return tuple(found)


def _reasons(
    dp_ranks: tuple[DpRank, ...], by_rank: dict[int, list[ProducerSpan]]
) -> dict[int, dict[int, str]]:
    """Layer to DP rank to the reason why the tokens that the rank computed can't be seen there."""
    found: dict[int, dict[int, str]] = {}
    for rank in dp_ranks:
        newest = (item.producer.latest for item in by_rank[rank.rank])
        entries = (entry for latest in newest for entry in (*latest.uncovered, *latest.absent))
        for entry in entries if rank.tokens else ():
            found.setdefault(entry.layer, {}).setdefault(rank.rank, entry.reason)
    return found


def _ep_reason(ep_size: int, unplaced: int) -> str | None:
    if ep_size == 1:
        return "ep_size is 1: the experts are not spread over ranks"
    if unplaced:
        return f"no placement was known for {unplaced} slots, so it is not known which ranks they went to"
    return None
