"""What a deployment counted in a window: the producers' differences, merged.

A DP rank may have several producers. Exactly one of its TP ranks counts each row, so counts and rows add up
over TP. Each PP rank has layers of its own, so layers are joined over PP. All of them count the same tokens
and steps: see :mod:`moescope.service.counts.rank_work`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from moescope.service.counts.layers import Layout
from moescope.service.counts.phase_split import Phase, PhaseWork, phase_work, tokens_and_steps
from moescope.service.counts.rank_work import RankWork, work_between, work_of
from moescope.service.counts.totals import Totals
from moescope.service.live.producers import ProducerSpan, sizes_of, why_sizes_differ, why_unavailable
from moescope.service.live.spans import rise_of
from moescope.service.wanted import check_wanted
from moescope.service.windows.conflicts import why_conflicting
from moescope.service.windows.doubts import RankDoubt, doubtful, doubts_of, speaking, stages_of
from moescope.service.windows.health import absent_layers
from moescope.service.windows.law import not_conserved
from moescope.service.windows.layer_window import LayerWindow, Reasons, layers_of, uncovered_in
from moescope.service.windows.shared_sums import SharedSums
from moescope.service.windows.stack import BoolArray, Doubt, Stacker
from moescope.service.windows.weights import why_weights_differ


class Part(Protocol):
    """Takes the part of what a DP rank counted that is wanted."""

    @property
    def phase(self) -> Phase:
        """The phase that is wanted."""

    def __call__(self, rank: int, deltas: list[Totals], work: RankWork) -> list[Totals]:
        """From what each of the producers of a DP rank counted to the part of it."""

    def left_out(self, rank: int) -> set[int]:
        """Layers in which that part of a DP rank, which was taken before, isn't known."""


@dataclass(frozen=True, slots=True)
class Used:
    """The instants at which the producers' totals were really taken, seconds of Unix time.

    Producers report one after the other, so either boundary has an earliest and a latest instant. Producers
    that did not report in the window are left out, unless none did. ``truncated`` if one of them is from
    later than was asked, because nothing that is remembered is as old.
    """

    start_earliest: float
    start_latest: float
    end_earliest: float
    end_latest: float
    truncated: bool


@dataclass(frozen=True, slots=True)
class DpRank:
    """What one DP rank computed in the window; ``present`` unless all its producers fell silent or are gone.

    ``worked`` says whether it computed tokens in the window, of whichever phase.
    ``phases`` is None where the phases of some of its tokens are not known. ``reason`` says why not even the
    tokens are known, or is None.
    """

    rank: int
    tokens: int
    steps: int
    idle_steps: int
    present: bool
    worked: bool
    phases: PhaseWork | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class ModelWindow:
    """A deployment in a window.

    ``dp_size`` and ``ep_size`` are those at the window's end (see :func:`sizes_of`). ``reporting`` are all DP
    ranks that ever reported. ``uncovered`` has the layers that no DP rank can see, with the reason, and
    ``absent`` those that the model's config has and that were not found; layer None: it isn't known which.
    ``sizes_reason`` says why the loads of ranks can't be compared: their number changed in the window.
    ``phase`` is the one phase that was asked for, or None; ``phase_reason`` says why not all of its tokens
    are known. ``conflict`` says why all this may be of several deployments together, or is None. ``weights``
    says why it may be of several versions of the model's weights, or is None.
    """

    server: str
    model: str
    used: Used
    dp_size: int
    ep_size: int
    dp_ranks: tuple[DpRank, ...]
    reporting: frozenset[int]
    layers: tuple[LayerWindow, ...]
    uncovered: dict[int, str]
    phase: Phase | None = None
    phase_reason: str | None = None
    absent: Mapping[int | None, str] = field(default_factory=dict)
    sizes_reason: str | None = None
    conflict: str | None = None
    weights: str | None = None

    @property
    def reason(self) -> str | None:
        """Why the tokens of some DP rank are not known, or None."""
        unknown = [rank for rank in self.dp_ranks if rank.reason]
        if not unknown:
            return self.phase_reason
        ranks = [rank.rank for rank in unknown]
        return f"partial: the tokens of DP ranks {ranks} are not known ({unknown[0].reason})"

    @property
    def known_tokens(self) -> int | None:
        """Tokens over all DP ranks; None where they aren't known, or not how many are of the phase."""
        return None if self.reason else self.tokens

    @property
    def tokens(self) -> int:
        """Tokens over all DP ranks, as far as they are known to be of the phase."""
        return sum(rank.tokens for rank in self.dp_ranks)

    @property
    def absent_dp_ranks(self) -> list[int]:
        """DP ranks that should be in the window and are not, so that it shows a part of the deployment.

        They never reported, or computed nothing in it and fell silent while others report.
        """
        here = {rank.rank for rank in self.dp_ranks if rank.present or rank.worked or rank.reason}
        alive = any(rank.present for rank in self.dp_ranks)
        return sorted(set(range(self.dp_size)) - (here if alive else self.reporting))

    @property
    def missing_dp_ranks(self) -> list[int]:
        """DP ranks that should exist and never reported."""
        return sorted(set(range(self.dp_size)) - self.reporting)


def merge_spans(
    spans: Sequence[ProducerSpan],
    part: Part | None = None,
    only: int | None = None,
    doubt_at_end: bool = False,
    sums: SharedSums | None = None,
    experts: bool = True,
) -> ModelWindow:
    """What the producers of one deployment counted, as one window.

    Args:
        spans: what each of them counted; one producer at least.
        part: takes the part of what a DP rank counted that is wanted; None: all of it.
        only: the DP rank that is wanted; None: all of them.
        doubt_at_end: see ``at_end`` of :func:`doubts_of`; for counters, which begin with the same again.
        sums: where sums are that other windows of the deployment with the same end have too; None: nowhere.
        experts: whether anybody wants counts by expert; else those of all layers are zeros.

    Raises:
        UnwantedError: nobody waits for it any more.
    """
    by_rank = _by_dp_rank(spans)
    dp_size, ep_size = sizes_of(spans)
    layouts = (layout for members in by_rank.values() for item in members for layout in item.span.layouts)
    ended = {rank: work_of(item.span.last for item in members) for rank, members in by_rank.items()}
    doubts = doubts_of(by_rank, ended, doubt_at_end)
    stages = stages_of(spans) if doubts else {}
    shared = sums if part is None else None  # the parts are large, and only one rank's are held at a time
    shown = by_rank if only is None else {only: by_rank[only]}
    stacker, found = Stacker(layouts, len(shown), ep_size, shared, experts, doubt_at_end), []
    in_doubt: dict[int, dict[int, str]] = {}
    broken: dict[int, dict[int, str]] = {}
    told_tokens: list[int] = []
    conflict = why_conflicting(spans)
    phase = None if part is None else part.phase
    for rank, members in shown.items():
        check_wanted()
        told = doubts.get(rank)
        work = _work_of(members, ended[rank], doubt_at_end)
        mine = _dp_rank(rank, members, work, phase, told)
        found.append(mine)
        unknown: set[int] = set()
        rises = [] if part is not None else [item.span.rise for item in members]
        computed: bool | BoolArray = mine.tokens != 0 or mine.reason is not None
        if part is not None:
            deltas = [item.span.delta for item in members]
            if work.unknown_tokens and not computed:  # where nothing at all was seen of it, it isn't idle
                computed = stacker.rows_of(deltas) == 0
            rises = list(map(rise_of, part(rank, deltas, work)))
            unknown = part.left_out(rank)
        in_doubt[rank] = {} if told is None else told.of_layers(stacker.layout, stages)
        broken[rank] = not_conserved(rank, members, rises, phase, in_doubt[rank])
        if conflict is not None:
            broken[rank] = {layer.layer: conflict for layer in stacker.layout.layers}
        doubt = None if told is None else _doubt(told, members, stacker.layout, in_doubt[rank])
        stacker.add(rises, computed, doubt, doubtful(stacker.layout, unknown) if unknown else None)
        if mine.tokens or mine.reason or (part is not None and work.unknown_tokens):
            told_tokens.append(rank)
    dp_ranks, stack = tuple(found), stacker.stack()
    heard = speaking(spans, doubt_at_end)
    heard_of = _by_dp_rank(heard)
    reasons = Reasons(
        uncovered=uncovered_in({rank: heard_of.get(rank, []) for rank in told_tokens}),
        doubts=in_doubt,
        broken=broken,
        placement=why_unavailable((item.producer for item in spans), "placement"),
        sizes=why_sizes_differ(spans),
    )
    seen = {layer.layer for layer in stack.layout.layers}
    uncovered = {layer.layer: layer.reason for item in heard for layer in item.producer.latest.uncovered}
    return ModelWindow(
        server=spans[0].producer.latest.producer.server,
        model=spans[0].producer.latest.producer.model,
        used=_used([item for members in shown.values() for item in members]),
        dp_size=dp_size,
        ep_size=ep_size,
        dp_ranks=dp_ranks,
        reporting=frozenset(by_rank),
        layers=layers_of(stack, [rank.rank for rank in dp_ranks], ep_size, reasons),
        uncovered={layer: uncovered[layer] for layer in sorted(uncovered) if layer not in seen},
        absent=absent_layers([item.producer.latest for item in heard], seen.union(uncovered)),
        sizes_reason=reasons.sizes,
        conflict=conflict,
        weights=why_weights_differ(spans),
    )


def _work_of(members: Sequence[ProducerSpan], ended: RankWork, for_counters: bool) -> RankWork:
    """What a DP rank computed in a window.

    A counter's begin is each worker's own, and none of them may make it fall: it is the most that any of them
    tells since its own begin.
    """
    if for_counters:
        return work_between((item.span.first, item.span.last) for item in members)
    return ended.minus(work_of(item.span.first for item in members))


def _by_dp_rank(spans: Sequence[ProducerSpan]) -> dict[int, list[ProducerSpan]]:
    """The producers of each DP rank, by rising rank."""
    found: dict[int, list[ProducerSpan]] = {}
    for item in spans:
        found.setdefault(item.producer.latest.producer.dp_rank, []).append(item)
    return {rank: found[rank] for rank in sorted(found)}


def _doubt(
    told: RankDoubt, members: Sequence[ProducerSpan], layout: Layout, layers: Mapping[int, str]
) -> Doubt:
    """What the stack needs to know of a doubtful DP rank; ``layers`` are those in doubt."""
    counting = [told.counts(item) for item in members]
    return Doubt(doubtful(layout, layers), counting, may_be_whole=told.reason is None)


def _used(spans: Sequence[ProducerSpan]) -> Used:
    # A producer that did not report in the window, say because it ended before, says nothing of its bounds.
    told = [item.span for item in spans if item.span.start < item.span.end] or [item.span for item in spans]
    truncated = any(item.span.truncated or item.span.late for item in spans)
    starts, ends = [span.start for span in told], [span.end for span in told]
    return Used(min(starts), max(starts), min(ends), max(ends), truncated)


def _dp_rank(
    rank: int, spans: list[ProducerSpan], work: RankWork, phase: Phase | None, doubt: RankDoubt | None
) -> DpRank:
    tokens, steps = tokens_and_steps(work, phase)
    return DpRank(
        rank=rank,
        tokens=tokens,
        steps=steps,
        idle_steps=work.idle_steps,
        present=not all(item.producer.stale or item.producer.gone for item in spans),
        worked=tokens_and_steps(work, None)[0] > 0,
        phases=phase_work(work),
        reason=None if doubt is None else doubt.reason,
    )
