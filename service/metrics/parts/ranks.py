"""The parts of the catalogue about ranks and layers: each is a function from a deployment to samples."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from itertools import groupby
from typing import Final

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.service.counts.rank_work import RankWork, work_between
from moescope.service.live.pools import Replica, replica_of
from moescope.service.live.producers import Deployment, ProducerSpan, ProducerState, sizes_of, within_sizes
from moescope.service.live.state import LiveState
from moescope.service.measures.balance import GAUGES
from moescope.service.measures.measure import Axis
from moescope.service.metrics.samples import Sample, Table, stacked
from moescope.service.windows.assessment import Assessment, Cell
from moescope.service.windows.health import absent_layers, mismatched, stages, unseen_layers
from moescope.service.windows.shared_sums import SharedSums
from moescope.service.windows.window import ModelWindow, merge_spans

Found = Sample | Table
_DROPPED: Final = "dropped_"


@dataclass(frozen=True)
class Group:
    """One deployment with a producer that has not expired and is not beyond its sizes.

    Attributes:
        deployment: (server, model).
        spans: its producers, sorted by key, since their counters began. Expired and gone ones are among them,
            because sums over ranks must not shrink.
        counters: whether counters can be shown; see :mod:`moescope.service.live.continuity`.
        made: what parts made of it, by the part's name, since anything of it changed but its age.
        experts: whether counts by expert are shown.
        sums: what its windows have in common.
    """

    deployment: Deployment
    spans: tuple[ProducerSpan, ...]
    counters: bool = True
    made: dict[str, list[Found]] = field(default_factory=dict)
    experts: bool = True
    sums: SharedSums = field(default_factory=SharedSums)

    @cached_property
    def producers(self) -> tuple[ProducerState, ...]:
        """The producers."""
        return tuple(item.producer for item in self.spans)

    @cached_property
    def replica(self) -> Replica:
        """Its pool, its role and its state."""
        return replica_of(self.producers)

    @cached_property
    def total(self) -> ModelWindow:
        """What was counted since the start. It takes much memory, so it is made when first asked for.

        A worker whose capture was off once and that counts again is no reason to withhold counters for ever.
        """
        found = merge_spans(self.spans, doubt_at_end=True, sums=self.sums, experts=self.experts)
        self.sums.drop_ends()
        return found

    @cached_property
    def ep_size(self) -> int:
        """How many EP ranks there are now; that of :attr:`total`, without making it."""
        return sizes_of(self.spans)[1]

    @cached_property
    def created(self) -> float:
        """When counters over all ranks were zero, seconds of Unix time."""
        return min(map(zero_at, self.spans))

    @cached_property
    def created_by_dp_rank(self) -> dict[int, float]:
        """When the counters of each DP rank were zero, seconds of Unix time."""
        found: dict[int, float] = {}
        for item in self.spans:
            rank = item.producer.latest.producer.dp_rank
            found[rank] = min(found.get(rank, math.inf), zero_at(item))
        return found

    @cached_property
    def spans_of(self) -> dict[int, list[ProducerSpan]]:
        """What the producers of each DP rank counted."""
        found: dict[int, list[ProducerSpan]] = {}
        for item in self.spans:
            found.setdefault(item.producer.latest.producer.dp_rank, []).append(item)
        return found

    @cached_property
    def work(self) -> dict[int, RankWork]:
        """What each DP rank computed."""
        return {
            rank: work_between((item.span.first, item.span.last) for item in members)
            for rank, members in self.spans_of.items()
        }

    @cached_property
    def by_dp_rank(self) -> tuple[tuple[int, list[ProducerState]], ...]:
        """The producers of each DP rank that has not expired; none of those that are beyond its sizes.

        Those that have shut down with their deployment stay: their last counts may not have been scraped yet.
        """
        found = []
        for rank, group in groupby(self.producers, key=lambda item: item.latest.producer.dp_rank):
            members = [item for item in group if item.outgrown is None]
            if not all(item.expired for item in members):
                found.append((rank, members))
        return tuple(found)


def groups(state: LiveState) -> list[Group]:
    """All deployments with a producer that has not expired and is not beyond their sizes."""
    found = []
    for deployment in state.deployments():
        spans = state.totals(deployment)
        if any(not item.producer.expired and item.producer.outgrown is None for item in spans):
            begun = tuple(map(_since_counters_began, spans))
            found.append(Group(deployment, begun, state.shows_counters(deployment)))
    return found


def _since_counters_began(item: ProducerSpan) -> ProducerSpan:
    base = item.producer.base
    return item if base is None else replace(item, span=replace(item.span, first=base.totals))


def zero_at(item: ProducerSpan) -> float:
    """When the counters of a producer were zero, seconds of Unix time."""
    base = item.producer.base
    return item.span.start if base is None else base.at


def rank_counters(group: Group) -> Iterable[Found]:
    """Tokens and steps of each DP rank that counts: a counter that stands still would look idle."""
    live = {rank for rank, _ in group.by_dp_rank}
    for rank in group.total.dp_ranks:
        if rank.rank in live and rank.reason is None:
            labels, created = (*group.deployment, str(rank.rank)), group.created_by_dp_rank[rank.rank]
            yield Sample("moescope_tokens_total", labels, rank.tokens, created)
            yield Sample("moescope_steps_total", labels, rank.steps, created)
            yield Sample("moescope_idle_steps_total", labels, rank.idle_steps, created)


def ep_counters(group: Group) -> Iterable[Found]:
    """Slots by EP rank, by layer and over layers; nothing where the experts are not spread over ranks.

    A layer of which some DP rank's tokens are not seen has no loads: ratios of what is left would be wrong.
    Its slots stay in the sums over layers, which must not shrink. EP ranks that the deployment no longer has
    leave with what they got: a counter that stands still would look like an idle rank.
    """
    size = group.ep_size
    if size == 1:
        return
    sums = np.zeros(size)
    rows = []
    names = _numbers(size)
    counted = False
    for layer in group.total.layers:
        if layer.not_seen:
            continue
        name = str(layer.shape.layer)
        unplaced = "moescope_layer_unplaced_slots_total"
        yield Sample(unplaced, (*group.deployment, name), layer.unplaced, group.created)
        estimated = "moescope_layer_estimated_slots_total"
        yield Sample(estimated, (*group.deployment, name), layer.estimated, group.created)
        if layer.unplaced and not layer.ep_slots.any():
            continue
        sums += layer.ep_slots[:size]
        counted = True
        if not layer.missing:
            rows.append(((name, names), layer.ep_slots[:size]))
    yield from stacked("moescope_layer_ep_rank_slots_total", group.deployment, rows)
    for ep_rank, slots in enumerate(sums.tolist() if counted else ()):
        yield Sample("moescope_ep_rank_slots_total", (*group.deployment, str(ep_rank)), slots, group.created)


def dp_counters(group: Group) -> Iterable[Found]:
    """Slots by layer and DP rank, of the DP ranks whose tokens are all seen there."""
    live = {rank for rank, _ in group.by_dp_rank}
    rows = []
    known: dict[tuple[int, ...], tuple[list[int], tuple[str, ...]]] = {}  # most layers have the same ranks
    for layer in group.total.layers:
        ranks = layer.dp_ranks
        if layer.partial:
            live_here = live - set(layer.partial)
            shown = [i for i, rank in enumerate(ranks) if rank in live_here]
            names = tuple(str(ranks[i]) for i in shown)
            rows.append(((str(layer.shape.layer), names), layer.slots[shown]))
            continue
        if ranks not in known:
            shown = [i for i, rank in enumerate(ranks) if rank in live]
            known[ranks] = shown, tuple(str(ranks[i]) for i in shown)
        shown, names = known[ranks]
        rows.append(((str(layer.shape.layer), names), layer.slots[shown]))
    yield from stacked("moescope_layer_dp_rank_slots_total", group.deployment, rows)


def expert_counters(group: Group) -> Iterable[Found]:
    """Slots by layer and logical expert, over DP ranks."""
    rows = [
        ((str(layer.shape.layer), _numbers(layer.shape.num_experts)), layer.counts)
        for layer in group.total.layers
        if not layer.not_seen
    ]
    yield from stacked("moescope_layer_expert_slots_total", group.deployment, rows)


@lru_cache(maxsize=8)
def _numbers(size: int) -> tuple[str, ...]:
    return tuple(map(str, range(size)))


def balance_gauges(deployment: Deployment, found: Assessment) -> Iterable[Found]:
    """Balance over the last window; where there is no sample there is no series."""
    ep = found.ep_ranks.summary
    if ep.ratio_of_sums is not None and ep.worst is not None:
        yield Sample("moescope_ep_imbalance_ratio", deployment, ep.ratio_of_sums)
        yield Sample("moescope_ep_worst_layer_imbalance_ratio", deployment, ep.worst)
    if found.dp_tokens.measures is not None:
        yield Sample("moescope_dp_imbalance_ratio", deployment, found.dp_tokens.measures["imbalance_ratio"])
    for i, layer in enumerate(found.window.layers):
        yield from _layer_gauges((*deployment, str(layer.shape.layer)), layer.shape, found.cells(i))


def _layer_gauges(labels: tuple[str, ...], shape: MoeLayer, cells: Mapping[Axis, Cell]) -> Iterator[Sample]:
    for measure, gauge in GAUGES.items():
        values = cells[gauge.axis].measures
        if values is not None:
            yield Sample(gauge.name, labels, values[measure])
            if gauge.limit is not None:
                yield Sample(gauge.limit.name, labels, gauge.limit.of(shape.num_experts, shape.top_k))


def snapshot_ages(group: Group) -> Iterable[Found]:
    """How long ago the producers that are not gone were heard."""
    for rank, everyone in group.by_dp_rank:
        present = within_sizes([item for item in everyone if item.gone is None])
        if present:
            age = max(item.age for item in present)
            yield Sample("moescope_snapshot_age_seconds", (*group.deployment, str(rank)), age)


def capture_health(group: Group) -> Iterable[Found]:
    """States, coverage and conservation of the producers that are not gone."""
    alive = [item for item in group.producers if not item.expired and item.gone is None]
    states = Counter(item.state for item in alive)
    for state in ("counting", "disabled", "stale", "conflict"):
        yield Sample("moescope_producers", (*group.deployment, state), states[state])
    yield Sample("moescope_missing_dp_ranks", group.deployment, len(group.total.missing_dp_ranks))
    for rank, everyone in group.by_dp_rank:
        members = [item for item in everyone if item.gone is None]
        if not members:
            continue
        labels = (*group.deployment, str(rank))
        present = within_sizes(members)
        uncovered = {entry.layer for item in present for entry in item.latest.uncovered}
        law = stages(members)
        broken = set().union(*(mismatched(item.latest) for item in members))
        broken |= {found.layer for stage in law for found in stage.broken}
        versions = [item.latest.placement_version for item in members]
        known = [version for version in versions if version is not None]
        covered = set().union(*(item.latest.counted.layout.index for item in present))
        claims = [len(item.conflict.lives) for item in members if item.conflict is not None]
        yield Sample("moescope_conflicting_lives", labels, max(claims, default=0))
        yield Sample("moescope_covered_layers", labels, len(covered))
        yield Sample("moescope_uncovered_layers", labels, len(uncovered))
        yield Sample("moescope_absent_layers", labels, len(absent_layers(item.latest for item in present)))
        yield Sample("moescope_unseen_layers", labels, len(unseen_layers(members)))
        yield Sample("moescope_conservation_mismatched_layers", labels, len(broken))
        unknown = sum(stage.state == "unknown" for stage in law)
        yield Sample("moescope_conservation_unknown_stages", labels, unknown)
        told = max(item.totals.weights.version for item in present)
        yield Sample("moescope_weights_version", labels, told)
        if known:
            yield Sample("moescope_placement_version", labels, max(known))


def producer_counters(group: Group) -> Iterable[Found]:
    """Starts and drops of the producers of each DP rank."""
    for rank, members in group.by_dp_rank:
        labels = (*group.deployment, str(rank))
        newest = max(item.started_at for item in members)
        yield Sample("moescope_producer_start_time_seconds", labels, newest)
        if not group.counters:
            continue
        restarts, created = max(map(_restarts, members)), group.created_by_dp_rank[rank]
        yield Sample("moescope_producer_restarts_total", labels, restarts, created)
        drops: Counter[str] = Counter()
        for item in group.spans_of[rank]:
            drops.update(item.span.drops)
        for reason in sorted(drops):
            yield Sample("moescope_producer_drops_total", (*labels, reason), drops[reason], created)


def _restarts(item: ProducerState) -> int:
    return item.restarts - (0 if item.base is None else item.base.restarts)


def trace_counters(group: Group) -> Iterable[Found]:
    """The account of routing traces of each worker; nothing for those that trace nothing."""
    for _, members in group.by_dp_rank:
        for item in members:
            worker, traces = item.latest.producer, item.latest.traces
            ranks = (worker.dp_rank, worker.pp_rank, worker.tp_rank)
            labels = (*group.deployment, *map(str, ranks))
            for name in ("captured", "delivered"):
                if name in traces:
                    yield Sample(f"moescope_traces_{name}_total", labels, traces[name])
            for name in sorted(traces):
                if name.startswith(_DROPPED):
                    reason = name.removeprefix(_DROPPED)
                    yield Sample("moescope_traces_dropped_total", (*labels, reason), traces[name])
