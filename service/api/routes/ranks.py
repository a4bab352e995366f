"""GET /v1/ranks: who reports, and how well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby

from fastapi import APIRouter

from moescope.service.api.limits.turns import Turns
from moescope.service.api.params.query import DpRankParam, ModelParam, PoolParam, ServerParam
from moescope.service.api.problems import documented
from moescope.service.api.schemas.common import Absent, Uncovered
from moescope.service.api.schemas.ranks import (
    DeploymentOut,
    DpRankOut,
    DraftsOut,
    LifeOut,
    MismatchOut,
    PartOut,
    PhasesOut,
    ProducerOut,
    Ranks,
    SilenceOut,
    StageOut,
)
from moescope.service.api.schemas.windows import partial_of_members
from moescope.service.counts.conflict import Conflict
from moescope.service.counts.phase_split import phase_work
from moescope.service.counts.rank_work import RankWork, work_of
from moescope.service.live.parts import Part, other_parts
from moescope.service.live.pools import Replica, replica_of
from moescope.service.live.producers import ProducerState, heard_last
from moescope.service.live.state import LiveState
from moescope.service.verdict.sentences import silence_words
from moescope.service.windows.doubts import why_off
from moescope.service.windows.health import Mismatch, StageHealth, mismatches, stages, unseen_layers
from moescope.service.windows.silence import silence_of


def ranks_router(state: LiveState, turns: Turns) -> APIRouter:
    """The route over ``state``."""
    router = APIRouter(tags=["queries"], route_class=turns.route)

    @router.get("/v1/ranks", responses=documented(422))
    def ranks(
        server: ServerParam = None,
        model: ModelParam = None,
        pool: PoolParam = None,
        dp_rank: DpRankParam = None,
    ) -> Ranks:
        """All DP ranks and their producers: state, totals since the start, coverage, conservation."""
        known = state.producers()
        chosen = [
            item
            for item in known
            if server in (None, item.latest.producer.server) and model in (None, item.latest.producer.model)
        ]
        groups = groupby(chosen, key=lambda item: item.latest.producer.key[:2])
        parts = other_parts(known)
        replicas = [replica_of(list(group)) for _, group in groups]
        found = [
            _deployment(item, parts.get(item.deployment, ()))
            for item in replicas
            if pool in (None, item.pool)
        ]
        if dp_rank is not None:
            for item in found:
                item.dp_ranks = [rank for rank in item.dp_ranks if rank.dp_rank == dp_rank]
        return Ranks(now=state.now(), deployments=found)

    return router


def _deployment(replica: Replica, others: Sequence[Part]) -> DeploymentOut:
    producers = replica.producers
    sizes = heard_last(producers)
    by_rank = groupby(producers, key=lambda item: item.latest.producer.dp_rank)
    members = [(rank, list(group)) for rank, group in by_rank]
    dp_ranks = [_known(_dp_rank(rank, group), group) for rank, group in members]
    return DeploymentOut(
        server=replica.deployment[0],
        model=replica.deployment[1],
        pool=replica.pool or None,
        role=replica.role or None,
        dp_size=sizes.dp_size,
        ep_size=sizes.ep_size,
        conflict=next((item.conflict.reason for item in producers if item.conflict is not None), None),
        missing_dp_ranks=sorted(set(range(sizes.dp_size)) - {rank.dp_rank for rank in dp_ranks}),
        other_parts=[PartOut(server=part.server, dp_ranks=list(part.dp_ranks)) for part in others],
        partial=partial_of_members(producers, others),
        silence=_silence(producers),
        dp_ranks=dp_ranks,
    )


def _silence(producers: Sequence[ProducerState]) -> SilenceOut | None:
    found = silence_of(producers)
    if found is None:
        return None
    return SilenceOut(seconds=found.age, ended=found.ended, words=silence_words(found))


def _known(rank: DpRankOut, producers: list[ProducerState]) -> DpRankOut:
    """The rank, with the reason why its numbers are not all, and without those that nobody ever counted."""
    reasons = [why_off(item, None, item.totals) for item in producers]
    if not all(reasons):
        return rank
    if rank.tokens:
        return rank.model_copy(update={"tokens_reason": reasons[0]})
    nothing = {"tokens": None, "steps": None, "idle_steps": None, "phases": None, "drafts": None}
    return rank.model_copy(update={**nothing, "tokens_reason": reasons[0]})


def _dp_rank(rank: int, producers: list[ProducerState]) -> DpRankOut:
    work = work_of(item.totals for item in producers)
    phases = phase_work(work)
    return DpRankOut(
        dp_rank=rank,
        tokens=work.tokens,
        steps=work.steps,
        idle_steps=work.idle_steps,
        tokens_reason=None,
        phases=None if phases is None else PhasesOut.model_validate(asdict(phases)),
        drafts=_drafts(work),
        unseen_layers=unseen_layers(producers),
        stages=[_stage(item) for item in stages(producers)],
        producers=[_producer(item) for item in producers],
    )


def _drafts(work: RankWork) -> DraftsOut | None:
    if not work.accepted_drafts and not work.rejected_drafts:
        return None
    return DraftsOut(accepted=work.accepted_drafts, rejected=work.rejected_drafts)


def _traces(counters: Mapping[str, int]) -> dict[str, int] | None:
    """The producer's account of its traces, with those in flight; None if it traces nothing."""
    if not counters:
        return None
    settled = sum(number for name, number in counters.items() if name != "captured")
    return {**counters, "in_flight": counters.get("captured", 0) - settled}


def _producer(item: ProducerState) -> ProducerOut:
    latest, who = item.latest, item.latest.producer
    return ProducerOut.model_validate(
        {
            "tp_rank": who.tp_rank,
            "pp_rank": who.pp_rank,
            "ep_rank": who.ep_rank,
            "host": who.host,
            "pid": who.pid,
            "vllm_version": who.vllm_version,
            "moescope_version": who.moescope_version,
            "state": item.state,
            "state_reason": latest.state_reason if item.conflict is None else item.conflict.reason,
            "gone_reason": item.gone,
            "lives": [] if item.conflict is None else _lives(item.conflict, item.received_at + item.age),
            "age_seconds": item.age,
            "started_seconds": max(0.0, item.received_at + item.age - item.started_at),
            "epoch": latest.epoch,
            "seq": latest.seq,
            "restarts": item.restarts,
            "placement_version": latest.placement_version,
            "weights_version": item.totals.weights.version,
            "weights_label": item.totals.weights.label,
            "weights_changed_at": item.totals.weights.at or None,
            "strategy": latest.strategy,
            "layers": [layer.layer for layer in latest.counted.layout.layers],
            "traces": _traces(latest.traces),
            "uncovered": [Uncovered(layer=entry.layer, reason=entry.reason) for entry in latest.uncovered],
            "absent": [Absent(layer=layer, reason=reason) for layer, reason in latest.absences],
            "mismatches": _mismatches(mismatches(item.latest)),
            "unavailable": dict(latest.unavailable),
            "drops": dict(item.totals.drops),
        }
    )


def _lives(conflict: Conflict, now: float) -> list[LifeOut]:
    return [
        LifeOut(
            host="" if life.producer is None else life.producer.host,
            pid=0 if life.producer is None else life.producer.pid,
            start="" if life.producer is None else life.producer.start,
            epoch=life.epoch,
            seq=life.seq,
            age_seconds=max(0.0, now - life.heard_at),
            tokens=life.counted.tokens,
            steps=life.counted.steps,
        )
        for life in conflict.lives
    ]


def _stage(item: StageHealth) -> StageOut:
    return StageOut(
        pp_rank=item.pp_rank,
        state=item.state,
        reason=item.reason,
        compared_steps=item.compared_steps,
        compared_tokens=item.compared_tokens,
        compared_age_seconds=item.compared_age,
        mismatches=_mismatches(item.broken),
    )


def _mismatches(found: Iterable[Mismatch]) -> list[MismatchOut]:
    return [
        MismatchOut(layer=item.layer, law=item.law, expected=item.expected, got=item.got) for item in found
    ]
