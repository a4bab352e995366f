"""The options of ``moescope simulate`` in groups, and the plan that they make."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Final

import typer

from moescope.service.simulation.faults import Faults
from moescope.service.simulation.feed import Pace
from moescope.service.simulation.plan import Outage, Plan
from moescope.service.simulation.routing import Habits, Shape

# The defaults of the command are those of the simulation.
_PLAN: Final = Plan()
_SHAPE: Final = _PLAN.shape
_HABITS: Final = _PLAN.habits
_PACE: Final = Pace()

_fleet = partial(typer.Option, rich_help_panel="Fleet")
_routing = partial(typer.Option, rich_help_panel="Routing")
_steps = partial(typer.Option, rich_help_panel="Tokens and steps")
_faults = partial(typer.Option, rich_help_panel="Faults and changes")
_feeding = partial(typer.Option, rich_help_panel="Feeding")


@dataclass(frozen=True, slots=True)
class FleetOptions:
    """Who is simulated, and the shape of its model."""

    server: Annotated[str, _fleet(help="Name of the deployment.")] = _PLAN.server
    model: Annotated[str, _fleet(help="Name of the model.")] = _PLAN.model
    replicas: Annotated[int, _fleet(min=1, help="Deployments of the model, each of so many ranks.")] = (
        _PLAN.replicas
    )
    pool: Annotated[str, _fleet(help="Name of their pool; none when absent.")] = _PLAN.pool
    roles: Annotated[
        bool, _fleet("--roles", help="The first half of the replicas computes prefill only, the rest decode.")
    ] = _PLAN.roles
    replica_imbalance: Annotated[
        float, _fleet(min=1, help="Max / mean of tokens over replicas; replica 0 has the most.")
    ] = _PLAN.replica_imbalance
    replica_shift: Annotated[
        float,
        _fleet(min=0, help="How far the last replica's log-popularity of experts is off its siblings'."),
    ] = _PLAN.replica_shift
    ranks: Annotated[int, _fleet(min=1, help="Workers, each a DP rank and an EP rank.")] = _PLAN.ranks
    layers: Annotated[int, _fleet(min=1, help="MoE layers.")] = _SHAPE.layers
    first_layer: Annotated[int, _fleet(min=0, help="Decoder layer that is the first of the MoE layers.")] = (
        _SHAPE.first_layer
    )
    experts: Annotated[int, _fleet(min=1, help="Experts of a layer.")] = _SHAPE.experts
    top_k: Annotated[int, _fleet(min=1, help="Experts that a token takes in a layer.")] = _SHAPE.top_k

    @property
    def shape(self) -> Shape:
        """Raises ValueError where a token takes more experts than there are."""
        return Shape(layers=self.layers, experts=self.experts, top_k=self.top_k, first_layer=self.first_layer)


@dataclass(frozen=True, slots=True)
class RoutingOptions:
    """How popular experts are."""

    skew: Annotated[
        float, _routing(min=0, help="Exponent of Zipf's law over a layer's experts; 0 is uniform.")
    ] = _HABITS.skew
    drift: Annotated[
        float, _routing(min=0, help="Walk of log-popularity per sqrt(second); 0 stands still.")
    ] = _HABITS.drift
    hot: Annotated[
        float,
        _routing(min=0, max=1, help="Share of tokens that take a layer's hot expert; 0: none is hot."),
    ] = _HABITS.hot
    hot_moves_s: Annotated[float, _routing(min=1, help="Seconds until another expert is the hot one.")] = (
        _HABITS.hot_moves_s
    )
    dead: Annotated[int, _routing(min=0, help="Experts of a layer that no token takes.")] = _HABITS.dead
    decode_shift: Annotated[
        float, _routing(min=0, help="How far decode's log-popularity of experts is off prefill's.")
    ] = _HABITS.decode_shift
    seed: Annotated[int, _routing(min=0, help="Seed of everything random.")] = _PLAN.seed

    @property
    def habits(self) -> Habits:
        """For the model of routing."""
        return Habits(
            skew=self.skew,
            drift=self.drift,
            hot=self.hot,
            hot_moves_s=self.hot_moves_s,
            dead=self.dead,
            decode_shift=self.decode_shift,
        )


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What the ranks compute."""

    tokens: Annotated[float, _steps(min=0, help="Tokens per second of a rank, on average.")] = (
        _PLAN.tokens_per_s
    )
    rank_imbalance: Annotated[
        float, _steps(min=1, help="Max / mean of tokens over DP ranks; rank 0 has the most.")
    ] = _PLAN.rank_imbalance
    steps: Annotated[
        float,
        _steps(min=0, help="Steps per second, which all ranks do together; fewer for hundreds of ranks."),
    ] = _PLAN.steps_per_s
    decode_share: Annotated[float, _steps(min=0, max=1, help="Share of tokens that are of decode.")] = (
        _PLAN.decode_share
    )
    draft_share: Annotated[float, _steps(min=0, max=1, help="Share of decode tokens that are drafts.")] = (
        _PLAN.draft_share
    )
    draft_acceptance: Annotated[float, _steps(min=0, max=1, help="Share of drafts that are accepted.")] = (
        _PLAN.draft_acceptance
    )
    phases: Annotated[
        bool, _steps("--phases/--no-phases", help="Without: frames of wire 1.2, no phases, no steps.")
    ] = _PLAN.phases
    alternate: Annotated[
        float,
        _steps(min=1, help="Max / mean over EP ranks in a step; the hot rank changes each step; 1: none."),
    ] = _PLAN.alternate
    hot_rank: Annotated[
        float,
        _steps(
            min=1, help="Max / mean over EP ranks in each layer: one rank's experts are popular; 1: none."
        ),
    ] = _PLAN.hot_rank
    hot_rank_by_layer: Annotated[
        bool, _steps("--hot-rank-by-layer", help="Another EP rank is the hot one in each layer; else rank 0.")
    ] = _PLAN.hot_rank_by_layer


@dataclass(frozen=True, slots=True)
class FaultOptions:
    """What goes wrong, and what moves."""

    fail: Annotated[
        list[str] | None,
        _faults(
            help="RANK@START or RANK@START-END, in seconds since the begin: the rank is silent; may be "
            "repeated; no rank fails when absent."
        ),
    ] = None
    lost_steps: Annotated[float, _faults(min=0, max=1, help="Share of steps whose loads are lost.")] = (
        _PLAN.lost_steps
    )
    rearrange_s: Annotated[
        float | None,
        _faults(min=1, help="Seconds between rearrangements of experts; never when absent."),
    ] = _PLAN.rearrange_s
    uncovered: Annotated[
        list[int] | None,
        _faults(help="Decoder layer that can't be seen; may be repeated; all can when absent."),
    ] = None

    absent: Annotated[
        list[int] | None,
        _faults(help="Decoder layer that was not found in the model; may be repeated; all are when absent."),
    ] = None

    unseen: Annotated[
        list[int] | None,
        _faults(
            help="Decoder layer that is covered and reports no tokens; may be repeated; none when absent."
        ),
    ] = None
    miscounted: Annotated[
        list[int] | None,
        _faults(help="Decoder layer that counts each slot twice; may be repeated; none when absent."),
    ] = None
    disabled: Annotated[
        list[int] | None, _faults(help="Rank whose capture is off; may be repeated; none when absent.")
    ] = None
    missing: Annotated[
        list[int] | None, _faults(help="Rank that never reports; may be repeated; none when absent.")
    ] = None
    twice: Annotated[
        list[int] | None,
        _faults(help="Rank that two live processes claim; may be repeated; none when absent."),
    ] = None
    no_loads: Annotated[
        list[int] | None,
        _faults(help="Rank whose loads of steps never come; may be repeated; none when absent."),
    ] = None
    silent_tp: Annotated[
        bool, _faults("--silent-tp", help="Each rank has a second TP worker that never reports.")
    ] = False
    restart_s: Annotated[
        float | None, _faults(min=0.1, help="Seconds between two starts of rank 0; never when absent.")
    ] = None
    drops_per_s: Annotated[
        float, _faults(min=0, help="Snapshots that each rank fails to send, a second.")
    ] = 0.0
    trace_drops_per_s: Annotated[float, _faults(min=0, help="Traces that each rank loses, a second.")] = 0.0

    @property
    def faults(self) -> Faults:
        """What is wrong with capture and workers."""
        return Faults(
            unseen=tuple(self.unseen or ()),
            miscounted=tuple(self.miscounted or ()),
            disabled=tuple(self.disabled or ()),
            missing=tuple(self.missing or ()),
            twice=tuple(self.twice or ()),
            no_loads=tuple(self.no_loads or ()),
            silent_tp=self.silent_tp,
            restart_s=self.restart_s,
            drops_per_s=self.drops_per_s,
            trace_drops_per_s=self.trace_drops_per_s,
        )

    @property
    def outages(self) -> tuple[Outage, ...]:
        """Raises ValueError where one is not as ``3@60`` or ``3@60-120``."""
        return tuple(map(outage, self.fail or ()))


@dataclass(frozen=True, slots=True)
class FeedOptions:
    """What is sent, how often and for how long."""

    trace_rate: Annotated[
        float, _feeding(min=0, max=1, help="Share of the requests whose routing is traced.")
    ] = _PLAN.trace_rate
    interval_s: Annotated[float, _feeding("--interval", min=0.05, help="Seconds between frames.")] = (
        _PACE.interval_s
    )
    duration_s: Annotated[
        float | None, _feeding("--duration", min=0, help="Seconds to run; until Ctrl-C when absent.")
    ] = _PACE.duration_s

    @property
    def pace(self) -> Pace:
        """For the feed."""
        return Pace(interval_s=self.interval_s, duration_s=self.duration_s)


def plan_of(
    fleet: FleetOptions,
    routing: RoutingOptions,
    steps: StepOptions,
    faults: FaultOptions,
    feeding: FeedOptions,
) -> Plan:
    """The options as the simulation takes them.

    Raises:
        ValueError: options that don't fit each other.
    """
    return Plan(
        server=fleet.server,
        replicas=fleet.replicas,
        pool=fleet.pool,
        roles=fleet.roles,
        replica_imbalance=fleet.replica_imbalance,
        replica_shift=fleet.replica_shift,
        model=fleet.model,
        ranks=fleet.ranks,
        shape=fleet.shape,
        habits=routing.habits,
        tokens_per_s=steps.tokens,
        steps_per_s=steps.steps,
        decode_share=steps.decode_share,
        draft_share=steps.draft_share,
        draft_acceptance=steps.draft_acceptance,
        phases=steps.phases,
        alternate=steps.alternate,
        hot_rank=steps.hot_rank,
        hot_rank_by_layer=steps.hot_rank_by_layer,
        lost_steps=faults.lost_steps,
        rank_imbalance=steps.rank_imbalance,
        outages=faults.outages,
        rearrange_s=faults.rearrange_s,
        uncovered=tuple(faults.uncovered or ()),
        absent=tuple(faults.absent or ()),
        faults=faults.faults,
        trace_rate=feeding.trace_rate,
        seed=routing.seed,
    )


def outage(text: str) -> Outage:
    """``3@60`` or ``3@60-120`` as an outage.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+)@(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", text)
    if found is None:
        raise ValueError(f"--fail {text}: write RANK@START or RANK@START-END, as 3@60 or 3@60-120")
    rank, start, end = found.groups()
    return Outage(int(rank), float(start), None if end is None else float(end))
