"""The parts of the catalogue about phases and steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from moescope.service.live.producers import Deployment, ProducerSpan
from moescope.service.live.state import LiveState
from moescope.service.live.step_stage import Status
from moescope.service.metrics.parts.ranks import Found, Group
from moescope.service.metrics.samples import Sample
from moescope.service.windows.step_window import cost_of, straggler_cost


def phase_counters(group: Group) -> Iterable[Found]:
    """Tokens and steps of each DP rank by phase; they add up to those of both."""
    unknown_ranks = {rank.rank for rank in group.total.dp_ranks if rank.reason is not None}
    for rank, _ in group.by_dp_rank:
        if rank in unknown_ranks:
            continue
        work = group.work[rank]
        labels, created = (*group.deployment, str(rank)), group.created_by_dp_rank[rank]
        told = work.prefill_tokens or work.decode_tokens or not work.unknown_tokens
        unknown = {"unknown": (work.unknown_tokens, work.unknown_steps)} if work.unknown_tokens else {}
        known = {
            "prefill": (work.prefill_tokens, work.prefill_steps),
            "decode": (work.decode_tokens, work.decode_steps),
        }
        for phase, (tokens, steps) in ({**known, **unknown} if told else unknown).items():
            yield Sample("moescope_phase_tokens_total", (*labels, phase), tokens, created)
            yield Sample("moescope_phase_steps_total", (*labels, phase), steps, created)
        if told:
            yield Sample("moescope_phase_steps_total", (*labels, "mixed"), work.mixed_steps, created)


def draft_counters(group: Group) -> Iterable[Found]:
    """Draft tokens of each DP rank by what became of them; nothing of a rank that verified none."""
    for rank, _ in group.by_dp_rank:
        work = group.work[rank]
        if work.accepted_drafts or work.rejected_drafts:
            labels, created = (*group.deployment, str(rank)), group.created_by_dp_rank[rank]
            for outcome, tokens in (("accepted", work.accepted_drafts), ("rejected", work.rejected_drafts)):
                yield Sample("moescope_draft_tokens_total", (*labels, outcome), tokens, created)


def straggler_samples(state: LiveState, groups: list[Group]) -> Iterator[Found]:
    """Sums over joined steps, and the state of the joins; nothing where no loads of steps ever came."""
    for group in groups:
        if group.ep_size > 1:
            rises = state.rearrangements(group.deployment)
            created = max(group.created, state.begun)
            yield Sample("moescope_rearrangements_total", group.deployment, rises, created)
        yield from _sums(group, state.joins(group.deployment))


def straggler_gauge(deployment: Deployment, spans: list[ProducerSpan]) -> Iterable[Found]:
    """Straggler cost over the last window; without a joined step there is no series."""
    cost = straggler_cost(*cost_of(spans).sums)
    if cost is not None:
        yield Sample("moescope_straggler_cost_ratio", deployment, cost)


def _sums(group: Group, joins: dict[int, Status]) -> Iterator[Found]:
    deployment, created = group.deployment, group.created
    for rank, status in joins.items():
        yield Sample("moescope_straggler_pending_steps", (*deployment, str(rank)), status.pending)
    if not group.counters:
        return
    cost = cost_of(group.spans)
    for rank, stage in cost.stages.items():
        labels = (*deployment, str(rank))
        yield Sample("moescope_straggler_joined_steps_total", labels, stage.joined, created)
        yield Sample("moescope_straggler_incomplete_steps_total", labels, stage.incomplete, created)
    if not cost.layers:
        return
    most, mean = cost.sums
    yield Sample("moescope_straggler_max_slots_total", deployment, most, created)
    yield Sample("moescope_straggler_mean_slots_total", deployment, mean, created)
    for rank, steps in enumerate(cost.hottest.tolist()[: group.ep_size]):
        labels = (*deployment, str(rank))
        yield Sample("moescope_straggler_hottest_layer_steps_total", labels, steps, created)
    for rank, slots in enumerate(cost.caused.tolist()[: group.ep_size]):
        yield Sample("moescope_straggler_caused_slots_total", (*deployment, str(rank)), slots, created)
    for layer in cost.layers:
        labels = (*deployment, str(layer.layer))
        yield Sample("moescope_layer_straggler_max_slots_total", labels, layer.max_slots, created)
        yield Sample("moescope_layer_straggler_mean_slots_total", labels, layer.mean_slots, created)
