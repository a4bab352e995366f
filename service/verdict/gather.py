"""From the totals of a window to the facts of a verdict: no history is read, and nothing is asked twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from moescope.capture.wire import Int64Array, MoeLayer, Placement
from moescope.service.drift.baseline import PREVIOUS_HOUR
from moescope.service.drift.measure import LayerDrift
from moescope.service.drift.watch import Drifted
from moescope.service.live.producers import ProducerSpan
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.chance import above_mean_by_chance
from moescope.service.verdict.facts import Balance, Dp, Drift, Facts, LayerFacts, Steps
from moescope.service.verdict.gaps import gaps_of
from moescope.service.verdict.sentences import duration
from moescope.service.verdict.thresholds import CHANCE, LEAST_SECONDS, LEAST_STEPS, WAITING
from moescope.service.windows.assessment import Assessment, assess
from moescope.service.windows.expert_ep_ranks import ep_ranks_of_experts
from moescope.service.windows.hot_spots import hot_spot
from moescope.service.windows.seconds import longest
from moescope.service.windows.silence import silence_of
from moescope.service.windows.step_window import Cost, cost_of, straggler_cost
from moescope.service.windows.window import ModelWindow, merge_spans

Placements = Sequence[tuple[tuple[MoeLayer, ...], Placement]]


@dataclass(frozen=True, slots=True)
class Question:
    """A window, seconds of Unix time; start None: since the workers' start; end None: until ``now``."""

    start: float | None
    end: float | None
    now: float
    min_tokens: int

    @property
    def is_open(self) -> bool:
        """Whether it ends now, so that states of now belong to it."""
        return self.end is None or self.end >= self.now

    @property
    def until(self) -> float:
        """When the window ends."""
        return self.now if self.end is None else min(self.end, self.now)


def facts_of(
    question: Question,
    spans: Sequence[ProducerSpan],
    placements: Callable[[], Placements],
    partial_of: Callable[[ModelWindow], str | None],
) -> Facts:
    """The facts of one deployment in a window, but for drift and remedy.

    Args:
        question: the window.
        spans: what the deployment's producers counted in it; one at least.
        placements: where its experts are now; asked only if ranks are uneven.
        partial_of: why a window shows a part of its deployment only.

    Raises:
        UnwantedError: nobody waits for it any more.
    """
    window = merge_spans(spans)
    found, cost = assess(window, question.min_tokens), cost_of(spans)
    producers = [item.producer for item in spans]
    balance = _balance(found, placements)
    steps = _steps(cost) if window.conflict is None else None
    partial = partial_of(window)
    computed = max((rank.steps for rank in window.dp_ranks), default=0)
    seconds = longest(spans, question.until)
    return Facts(
        server=window.server,
        model=window.model,
        start=question.start,
        end=question.until,
        open_end=question.is_open,
        tokens=window.known_tokens,
        tokens_reason=window.reason,
        seconds=seconds,
        steps=computed if steps is None else steps.joined,
        silence=silence_of(producers),
        reporting=sum(rank.present for rank in window.dp_ranks),
        dp=_dp(found),
        ep_size=window.ep_size,
        balance=balance,
        balance_reason=next((cell.reason for cell in found.ep_ranks.cells if cell.reason), None),
        in_steps=steps,
        too_little=_too_little(found, seconds, computed),
        caveats=_caveats(window),
        gaps=gaps_of(window, producers, question.is_open),
        partial=None if partial is None else partial.removeprefix("a part: "),
    )


def _balance(found: Assessment, placements: Callable[[], Placements]) -> Balance | None:
    """The layers that have a sample; which expert makes a rank busy is asked only if ranks are uneven."""
    sampled = [
        (layer, cell.loads)
        for layer, cell in zip(found.window.layers, found.ep_ranks.cells, strict=True)
        if cell.measures is not None and cell.loads is not None
    ]
    if not sampled:
        return None
    width = max(len(loads) for _, loads in sampled)
    slots = np.array([np.pad(loads, (0, width - len(loads))) for _, loads in sampled])
    most, mean = slots.max(axis=1), slots.mean(axis=1)
    busiest = slots.argmax(axis=1)
    ratio = float(most.sum() / mean.sum())
    placed = placements() if 1 - 1 / ratio >= WAITING else None
    layers = []
    for i, (layer, _) in enumerate(sampled):
        facts = LayerFacts(
            layer=layer.shape.layer,
            ratio=float(most[i] / mean[i]),
            rank=int(busiest[i]),
            waiting=float(most[i] - mean[i]),
        )
        if placed is not None:
            facts = _with_expert(facts, layer.shape, layer.counts, slots[i], placed)
        layers.append(facts)
    ranks = slots.sum(axis=0) / slots.sum(axis=0).mean()
    return Balance(tuple(layers), ratio, tuple(ranks.tolist()))


def _with_expert(
    facts: LayerFacts, shape: MoeLayer, counts: Int64Array, slots: FloatArray, placements: Placements
) -> LayerFacts:
    """With the busiest expert of the busiest rank, of those that have copies on no other rank."""
    found = hot_spot(counts, slots, ep_ranks_of_experts(shape, placements))
    if found is None or not found.owned or facts.waiting <= 0:
        return facts
    return replace(
        facts,
        expert=found.expert,
        expert_over_fair=found.over_fair,
        expert_part=(float(counts[found.expert]) - float(counts.mean())) / facts.waiting,
    )


def _steps(cost: Cost) -> Steps | None:
    share = straggler_cost(*cost.sums)
    if share is None:
        return None
    hottest = cost.hottest
    return Steps(
        cost=share,
        joined=max((stage.joined for stage in cost.stages.values()), default=0),
        busiest=tuple((hottest / max(hottest.sum(), 1e-300)).tolist()),
    )


def _dp(found: Assessment) -> Dp | None:
    cell = found.dp_tokens
    if cell.measures is None or cell.loads is None:
        return None
    ratio = cell.measures["imbalance_ratio"]
    return Dp(ratio, found.dp_rank_ids[int(np.argmax(cell.loads))], len(cell.loads))


def _too_little(found: Assessment, seconds: float, steps: int) -> tuple[str, ...]:
    """Why balance can't be judged; empty: the data are enough."""
    window = found.window
    said = []
    if window.tokens < found.min_tokens:
        said.append(f"{window.tokens:,} tokens, of at least {found.min_tokens:,}")
    if seconds < LEAST_SECONDS:
        said.append(f"the data span {duration(seconds)}, of at least {duration(LEAST_SECONDS)}")
    if steps < LEAST_STEPS:
        said.append(f"{steps:,} steps, of at least {LEAST_STEPS}")
    slots = [float(layer.counts.sum()) for layer in window.layers if layer.counts.any()]
    if slots and window.ep_size > 1:
        chance = CHANCE * above_mean_by_chance(float(np.mean(slots)), window.ep_size)
        if chance > 1 / (1 - WAITING) - 1:
            said.append(
                f"with {np.mean(slots):,.0f} slots a layer on {window.ep_size} EP ranks, chance alone may "
                f"make a ratio of {1 + chance:.2f}"
            )
    return tuple(said)


def _caveats(window: ModelWindow) -> tuple[str, ...]:
    estimates = (layer.ep_estimate for layer in window.layers)
    cut = "the window begins later than asked: nothing older is remembered" if window.used.truncated else None
    first = next((estimate for estimate in estimates if estimate), None)
    return tuple(item for item in (cut, window.weights, first) if item)


def drift_of(found: Sequence[Drifted]) -> Drift | None:
    """The drift that matters: from a pinned baseline that has a sample, else from the hour before.

    A base of fewer tokens than the window itself says too little.
    """
    whole = [item for item in found if item.phase is None]
    for item in sorted(whole, key=lambda drifted: drifted.base == PREVIOUS_HOUR):
        sampled = [layer for layer in item.layers if _tells(layer)]
        if sampled:
            return Drift(
                base=item.base,
                moved=median(layer.moved or 0.0 for layer in sampled),
                divergence=median(layer.divergence or 0.0 for layer in sampled),
                noise=median(layer.noise or 0.0 for layer in sampled),
                new_hot=sum(len(layer.new_hot) for layer in sampled),
                new_dead=sum(len(layer.new_dead) for layer in sampled),
            )
    return None


def _tells(layer: LayerDrift) -> bool:
    return layer.divergence is not None and layer.base_tokens >= layer.tokens > 0
