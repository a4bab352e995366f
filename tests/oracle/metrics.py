"""What /metrics should have of a deployment, by the catalogue in docs/metrics.md."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, Final

from tests.oracle.balance import AXES, layer_balance, samples
from tests.oracle.deployment import Deployment
from tests.oracle.exact import measures, summary
from tests.oracle.ledger import Number, combined
from tests.oracle.ranks import covered_layers, unseen_layers
from tests.oracle.window import Window

WINDOW_S: Final = 60
"""The setting window_s."""
Samples = dict[tuple[str, frozenset[tuple[str, str]]], Number | float]


def counters(deployment: Deployment) -> Samples:
    """Counters and the gauges that tell of coverage, by name and labels; those that are 0 too."""
    found: Samples = {}
    for name, labels, value in [*_of_ranks(deployment), *_of_layers(deployment)]:
        found[_key(name, **labels)] = value
    return found


def gauges(deployment: Deployment, min_tokens: int) -> Samples:
    """The gauges of balance over the window of the gauges; where there is no sample there is no series."""
    window = Window(deployment, deployment.now - WINDOW_S, None)
    layers = [layer_balance(window, layer, min_tokens) for layer in deployment.layers]
    over = {axis: summary(samples(layers, axis)) for axis in AXES}
    named = {
        _key("moescope_ep_imbalance_ratio"): over["over_ep_ranks"]["ratio_of_sums"],
        _key("moescope_ep_worst_layer_imbalance_ratio"): over["over_ep_ranks"]["worst"],
        _key("moescope_dp_imbalance_ratio"): _dp_imbalance(window, min_tokens),
    }
    for shape, layer in zip(deployment.layers, layers, strict=True):
        where = {"layer": str(shape.index)}
        ep, experts = layer["over_ep_ranks"]["measures"], layer["over_experts"]["measures"]
        named[_key("moescope_layer_ep_imbalance_ratio", **where)] = ep and ep["imbalance_ratio"]
        for gauge, measure in (
            ("max_vio_ratio", "max_vio"),
            ("normalised_entropy_ratio", "normalised_entropy"),
            ("dead_experts", "dead"),
            ("hot_experts", "hot"),
        ):
            named[_key(f"moescope_layer_{gauge}", **where)] = experts and experts[measure]
        limit = Fraction(shape.experts, shape.top_k) - 1
        named[_key("moescope_layer_max_vio_limit_ratio", **where)] = limit if experts else None
    return {key: value for key, value in named.items() if value is not None}


def _dp_imbalance(window: Window, min_tokens: int) -> Any:
    tokens = [window.tokens(dp) or 0 for dp in window.dp_ranks]
    found = measures(tokens) if len(tokens) > 1 and sum(tokens) >= min_tokens else None
    return found and found["imbalance_ratio"]


def _of_ranks(deployment: Deployment) -> Iterator[tuple[str, dict[str, str], Number | float]]:
    window = Window(deployment, None, None)
    states = [deployment.is_stale(worker) for worker in deployment.ledgers]
    yield "moescope_producers", {"state": "stale"}, sum(states)
    yield "moescope_producers", {"state": "counting"}, len(states) - sum(states)
    yield "moescope_missing_dp_ranks", {}, len(deployment.missing_dp_ranks)
    for dp in deployment.dp_ranks:
        where = {"dp_rank": str(dp)}
        tokens, steps = window.figures(dp, "tokens"), window.figures(dp, "steps")
        yield "moescope_tokens_total", where, tokens["all"]
        yield "moescope_steps_total", where, steps["all"]
        yield "moescope_idle_steps_total", where, window.idle_steps(dp)
        for phase in ("prefill", "decode", "unknown"):
            yield "moescope_phase_tokens_total", {**where, "phase": phase}, tokens[phase]
        for phase in ("prefill", "decode", "mixed", "unknown"):
            yield "moescope_phase_steps_total", {**where, "phase": phase}, steps[phase]
        ledgers = [deployment.ledgers[worker] for worker in deployment.workers_of(dp)]
        yield "moescope_producer_restarts_total", where, max(len(ledger.latest) for ledger in ledgers) - 1
        yield (
            "moescope_snapshot_age_seconds",
            where,
            deployment.now - min(ledger.newest_at for ledger in ledgers),
        )
        yield "moescope_covered_layers", where, len(covered_layers(deployment, dp))
        yield "moescope_unseen_layers", where, len(unseen_layers(deployment, dp))
        cant = {a.index for w in deployment.workers_of(dp) for a in deployment.fleet.not_covered(w)}
        yield "moescope_uncovered_layers", where, len(cant)


def _of_layers(deployment: Deployment) -> Iterator[tuple[str, dict[str, str], Number | float]]:
    """Sums over phases: what was counted, also where the DP rank is missing in the layer."""
    window = Window(deployment, None, None)
    of_ep: dict[int, Number] = {}
    for layer in deployment.layers:
        where = {"layer": str(layer.index)}
        seen = window.layer(layer)
        whole = combined(window.numbers.values())
        unplaced = sum(v for name, v in whole.items() if name[0] == "unplaced" and name[2] == layer.index)
        if deployment.fleet.ep > 1:
            yield "moescope_layer_unplaced_slots_total", where, unplaced
            estimated = sum(v for n, v in whole.items() if n[0] == "estimated" and n[2] == layer.index)
            yield "moescope_layer_estimated_slots_total", where, estimated
        for expert, slots in enumerate(seen.slots):
            yield "moescope_layer_expert_slots_total", {**where, "expert": str(expert)}, slots
        for dp, slots in seen.by_dp.items() if not seen.missing else ():
            yield "moescope_layer_dp_rank_slots_total", {**where, "dp_rank": str(dp)}, slots
        for rank in range(deployment.fleet.ep):
            slots = sum(v for name, v in whole.items() if name[0] == "ep" and name[2:] == (layer.index, rank))
            of_ep[rank] = of_ep.get(rank, 0) + slots
            if deployment.fleet.ep > 1 and not seen.missing:
                yield "moescope_layer_ep_rank_slots_total", {**where, "ep_rank": str(rank)}, slots
    for rank, slots in of_ep.items() if deployment.fleet.ep > 1 else ():
        yield "moescope_ep_rank_slots_total", {"ep_rank": str(rank)}, slots


def _key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())
