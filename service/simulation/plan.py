"""What is simulated: the deployment, its routing, its steps, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from moescope.service.simulation.crowd import Crowd
from moescope.service.simulation.faults import Faults
from moescope.service.simulation.routing import Habits, Shape

Role = Literal["", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Outage:
    """A rank that sends nothing for a time.

    Attributes:
        rank: DP rank.
        start: when it falls silent, seconds since the simulation began.
        end: when it starts again, seconds since the simulation began; None: never.
    """

    rank: int
    start: float
    end: float | None = None

    def covers(self, elapsed: float) -> bool:
        """Whether the rank is silent ``elapsed`` seconds after the simulation began."""
        return self.start <= elapsed and (self.end is None or elapsed < self.end)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to simulate.

    Attributes:
        server: name of the deployment; that of each replica ends with its number.
        replicas: deployments of the model, each of so many ranks; they serve the same traffic.
        pool: name of their pool; empty: none.
        roles: whether the first half of the replicas computes prefill only, and the others decode only.
        replica_imbalance: max / mean of tokens over replicas, from 1 to their number. Replica 0 gets so many
            times its fair share; the others share the rest.
        replica_shift: how far the last replica's log-popularity of experts is off its siblings'.
        model: name of the model.
        ranks: R, the number of workers; each is one DP rank and one EP rank. Experts are placed linearly.
        shape: layers and experts of the model.
        habits: how popular experts are.
        tokens_per_s: tokens per second of a rank, on average over the ranks.
        steps_per_s: steps per second. All ranks step together; a rank that has no token in a step does a
            dummy step.
        decode_share: share of the tokens that are of decode.
        draft_share: share of the decode tokens that are drafts of speculative decoding.
        draft_acceptance: share of the drafts that are accepted.
        phases: whether frames tell prefill from decode; without phases they are frames of wire 1.2, which
            have no loads of steps either.
        alternate: max / mean of slots over EP ranks in every step. One EP rank is hot in a step, and the next
            one in the next step; 1: none is hot.
        hot_rank: max / mean of slots over EP ranks in every layer: the experts of one rank are popular
            together, as linear placement has them; 1: none is hot.
        hot_rank_by_layer: another EP rank is the hot one in each layer; else rank 0 is in all of them.
        lost_steps: share of the steps whose loads a rank loses before it sends its frame.
        rank_imbalance: max / mean of tokens over DP ranks, from 1 to R. Rank 0 gets so many times its fair
            share; the others share the rest.
        outages: ranks that fail.
        rearrange_s: seconds between rearrangements of experts by load, as EPLB would do them; None: never.
        uncovered: decoder layers that are reported as not seen.
        absent: decoder layers that are reported as not found in the model.
        faults: what is wrong with capture and workers.
        trace_rate: share of the requests that are traced. A request has 240 tokens on average.
        seed: seed of everything random.

    Raises:
        ValueError: values that don't fit each other.
    """

    server: str = "simulated"
    replicas: int = 1
    pool: str = ""
    roles: bool = False
    replica_imbalance: float = 1.0
    replica_shift: float = 0.0
    model: str = "simulated/moe"
    ranks: int = 32
    shape: Shape = field(default_factory=Shape)
    habits: Habits = field(default_factory=Habits)
    tokens_per_s: float = 2000.0
    steps_per_s: float = 25.0
    decode_share: float = 0.8
    draft_share: float = 0.0
    draft_acceptance: float = 0.7
    phases: bool = True
    alternate: float = 1.0
    hot_rank: float = 1.0
    hot_rank_by_layer: bool = False
    lost_steps: float = 0.0
    rank_imbalance: float = 1.0
    outages: tuple[Outage, ...] = ()
    rearrange_s: float | None = None
    uncovered: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()
    faults: Faults = field(default_factory=Faults)
    trace_rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.replica_imbalance <= self.replicas:
            raise ValueError(
                f"replica imbalance {self.replica_imbalance:g} is not in 1..{self.replicas} (max / mean)"
            )
        if self.roles and self.replicas < 2:
            raise ValueError("prefill and decode are computed apart by 2 replicas or more")
        if not 1 <= self.rank_imbalance <= self.ranks:
            raise ValueError(f"rank imbalance {self.rank_imbalance:g} is not in 1..{self.ranks} (max / mean)")
        most = min(self.ranks, (self.shape.experts - self.habits.dead) / self.shape.top_k)
        if not 1 <= self.alternate <= most:
            raise ValueError(
                f"alternate {self.alternate:g} is not in 1..{most:g}: max / mean over {self.ranks} EP ranks, "
                f"each of which has {self.shape.experts / self.ranks:g} experts"
            )
        if not 1 <= self.hot_rank <= most:
            raise ValueError(
                f"hot rank {self.hot_rank:g} is not in 1..{most:g}: max / mean over {self.ranks} EP ranks, "
                f"each of which has {self.shape.experts / self.ranks:g} experts"
            )
        if self.hot_rank > 1 and (self.habits.hot or self.habits.dead):
            raise ValueError("a hot rank is simulated without a hot expert and without dead ones")
        for outage in self.outages:
            if not 0 <= outage.rank < self.ranks:
                raise ValueError(f"rank {outage.rank} can't fail: ranks are 0..{self.ranks - 1}")
        faults = self.faults
        for rank in (*faults.disabled, *faults.missing, *faults.twice, *faults.no_loads):
            if not 0 <= rank < self.ranks:
                raise ValueError(f"there is no rank {rank}: ranks are 0..{self.ranks - 1}")
        for layer in (*faults.unseen, *faults.miscounted):
            if layer not in self.covered_layers:
                raise ValueError(
                    f"layer {layer} is no MoE layer that is seen: those are {self.covered_layers}"
                )
        shares = {"trace rate": self.trace_rate, "draft share": self.draft_share}
        for name, share in (shares | {"draft acceptance": self.draft_acceptance}).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share:g} is not in 0..1")

    @property
    def crowd(self) -> Crowd:
        """The experts that are popular together."""
        return Crowd(self.hot_rank, self.ranks, self.hot_rank_by_layer)

    @property
    def covered_layers(self) -> list[int]:
        """Decoder layers that are MoE layers and are seen, in order."""
        first, hidden = self.shape.first_layer, {*self.uncovered, *self.absent}
        return [layer for layer in range(first, first + self.shape.layers) if layer not in hidden]

    @property
    def deployments(self) -> list[Deployment]:
        """The replicas, one after the other."""
        return [self._replica(number) for number in range(self.replicas)]

    def _replica(self, number: int) -> Deployment:
        if self.replicas == 1:
            return Deployment(self)
        others = (self.replicas - self.replica_imbalance) / (self.replicas - 1)
        share = others if number else self.replica_imbalance
        role: Role = ""
        if self.roles:
            role = "prefill" if number < self.replicas // 2 else "decode"
        last = number == self.replicas - 1
        plan = replace(
            self,
            server=f"{self.server}-{number}",
            tokens_per_s=self.tokens_per_s * share,
            decode_share={"": self.decode_share, "prefill": 0.0, "decode": 1.0}[role],
            habits=replace(self.habits, shift=self.replica_shift if last else self.habits.shift),
        )
        return Deployment(plan, role, number)


@dataclass(frozen=True, slots=True)
class Deployment:
    """One of a plan's deployments.

    Attributes:
        plan: what it does.
        role: what it computes, if prefill and decode are computed apart.
        number: of the replica. Replicas with one seed have the same popularity of experts, and draw tokens of
            their own.
    """

    plan: Plan
    role: Role = ""
    number: int = 0
