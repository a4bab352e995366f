"""From what the service remembers to advice: the parts put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import MoeLayer, Placement, PlacementTable
from moescope.service.advice.evidence import Evidence, Waiting, Windows, cut, gather
from moescope.service.advice.placements import PlacementArrays, from_tables
from moescope.service.advice.verdict import Drift, Scale, Verdict, decide, drift_of, no_sample
from moescope.service.advice.what_if import Question, WhatIf, fitting, sweep, what_if
from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState

PIECES: Final = 4
DEFAULT_FIT_SHARE: Final = 0.5
DEFAULT_MIN_GAIN: Final = 0.05
DEFAULT_MEMORY_PRICE: Final = 0.1
MAX_WORK: Final = 1 << 30  # layers x ranks x physical experts, over all options: a few seconds


class UnanswerableError(ValueError):
    """A question that can't be answered as it was put; ``kind`` is a slug, the message says what to do."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacementWish:
    """Which placements are asked for.

    Attributes:
        ranks: EP ranks; None: as many as the deployment has.
        nodes: nodes; they matter only where ``groups`` is a multiple of them. None: as many as its hosts.
        groups: expert groups of the model's router.
        redundant: numbers of redundant experts; none: those worth trying.
        min_tokens: fewer tokens are no sample.
    """

    ranks: int | None
    nodes: int | None
    groups: int
    redundant: tuple[int, ...]
    min_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdviceWish(PlacementWish):
    """Which placements are asked for, and what they are judged by.

    Attributes:
        fit_share: share of the window to fit on; the rest checks.
        min_gain: least saving that is worth a change.
        memory_price: saving that twice the memory for experts must bring.
    """

    fit_share: float
    min_gain: float
    memory_price: float


@dataclass(frozen=True, slots=True, eq=False)
class Advice:
    """The answer; ``found`` and ``drift`` are None where nothing could be judged."""

    windows: Windows
    evidence: Evidence
    question: Question
    found: WhatIf | None
    drift: Drift | None
    waiting: Waiting | None
    verdict: Verdict


def advise(
    state: LiveState, deployment: Deployment, start: float | None, end: float | None, wish: AdviceWish
) -> Advice:
    """Judge the placements that come into question for a deployment.

    Raises:
        UnanswerableError: the numbers don't fit together, or there are no ranks to place on.
        StoreError: the archive can't be read.
    """
    windows = cut(state, deployment, start, end, fit_share=wish.fit_share, pieces=PIECES)
    ranks = ranks_of(wish, windows.fit.ep_size)
    evidence = gather(windows, ranks, wish.min_tokens)
    question = ask(evidence, wish, ranks, hosts_of(state, deployment))
    if not evidence.layers:
        return Advice(
            windows=windows,
            evidence=evidence,
            question=question,
            found=None,
            drift=None,
            waiting=None,
            verdict=no_sample(evidence),
        )
    present = None
    if windows.fit.ep_size == ranks:
        present = present_placement(state.placements(deployment), evidence.layers, evidence.experts, ranks)
    found, drift = what_if(evidence, question, present), drift_of(evidence)
    observed = found.base.held_out.summary.ratio_of_sums if found.base.strategy == "present" else None
    waiting = windows.waiting(observed)
    scale = Scale(groups=wish.groups, min_gain=wish.min_gain, memory_price=wish.memory_price)
    return Advice(
        windows=windows,
        evidence=evidence,
        question=question,
        found=found,
        drift=drift,
        waiting=waiting,
        verdict=decide(evidence, found, drift, waiting, scale),
    )


def ask(evidence: Evidence, wish: PlacementWish, ranks: int, hosts: int) -> Question:
    """The question with its blanks filled in, checked.

    Raises:
        UnanswerableError: see :func:`advise`.
    """
    experts = evidence.experts
    nodes = wish.nodes if wish.nodes is not None else (hosts if hosts and ranks % hosts == 0 else 1)
    if ranks % nodes:
        raise UnanswerableError(
            "bad-nodes", f"{ranks} ranks can't be shared out evenly over {nodes} nodes: give other nodes."
        )
    if not experts:  # no layer is counted, so there is nothing for the other numbers to fit
        return Question(ranks=ranks, nodes=nodes, groups=wish.groups, redundant=wish.redundant)
    if experts % wish.groups:
        raise UnanswerableError(
            "bad-groups",
            f"{experts} experts can't be cut into {wish.groups} equal groups: give n_group of the model's "
            "config.",
        )
    redundant = wish.redundant or sweep(experts, ranks)
    for wanted in redundant:
        if (experts + wanted) % ranks:
            near = fitting(experts, ranks, wanted + ranks)[-2:]
            raise UnanswerableError(
                "bad-redundant",
                f"{experts} experts and {wanted} redundant ones can't be shared out evenly over {ranks} "
                f"ranks: give redundant={' or '.join(map(str, near))}.",
            )
    check_work(len(evidence.layers), experts, ranks, redundant)
    return Question(ranks=ranks, nodes=nodes, groups=wish.groups, redundant=tuple(sorted(set(redundant))))


def check_work(layers: int, experts: int, ranks: int, redundant: Sequence[int]) -> None:
    """Check that placements with so many redundant experts, one at least, don't take too long.

    Raises:
        UnanswerableError: they do.
    """
    if layers * ranks * sum(experts + number for number in redundant) > MAX_WORK:
        raise UnanswerableError(
            "too-large",
            f"{layers} layers of {experts} experts with {max(redundant)} redundant ones on "
            f"{ranks} ranks would take too long: ask for fewer ranks or redundant experts.",
        )


def hosts_of(state: LiveState, deployment: Deployment) -> int:
    """On how many hosts a deployment's workers are."""
    hosts = {item.latest.producer.host for item in state.producers(deployment) if not item.expired}
    return len(hosts - {""})


def present_placement(
    reported: Sequence[tuple[tuple[MoeLayer, ...], Placement]],
    layers: Sequence[int],
    experts: int,
    ranks: int,
) -> PlacementArrays | None:
    """Where the experts of some layers are now, by the newest placement that a worker reported.

    None where that is not known of all of them, or not on these ranks.
    """
    newest: dict[int, tuple[int, PlacementTable]] = {}
    for shapes, placement in reported:
        for shape, table in zip(shapes, placement.table_of_layer, strict=True):
            known = newest.get(shape.layer)
            if shape.num_experts == experts and (known is None or placement.version >= known[0]):
                newest[shape.layer] = placement.version, placement.tables[table]
    if not layers or any(layer not in newest for layer in layers):
        return None
    return from_tables([newest[layer][1] for layer in layers], experts, ranks)


def ranks_of(wish: PlacementWish, ep_size: int) -> int:
    """On how many EP ranks to place; ``ep_size`` is how many the deployment has.

    Raises:
        UnanswerableError: it has one, and the wish names no number.
    """
    if wish.ranks is not None:
        return wish.ranks
    if ep_size == 1:
        raise UnanswerableError(
            "ranks-needed",
            "This deployment has one EP rank, so there is nothing to place: give ranks, such as ranks=8, "
            "to ask what that many would get.",
        )
    return ep_size
