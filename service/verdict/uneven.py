"""Causes of uneven EP ranks: one expert, one rank, or another rank in each layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from moescope.service.measures.balance import HOT
from moescope.service.verdict.facts import Facts, LayerFacts
from moescope.service.verdict.links import Links
from moescope.service.verdict.model import Finding, Kind, Number
from moescope.service.verdict.remedies import action_of
from moescope.service.verdict.sentences import SENTENCES, percent, times
from moescope.service.verdict.thresholds import MOST
from moescope.service.verdict.waiting import (
    is_uneven_by,
    severity_of,
    waiting_numbers,
    waiting_of,
    waiting_words,
)


def one_expert_hot(facts: Facts, links: Links) -> Finding | None:
    """In many layers the busiest rank is the busiest because of one of its experts."""
    if facts.balance is None or not is_uneven_by(facts.balance):
        return None
    layers = facts.balance.layers
    hot = [item for item in layers if _expert_is_cause(item)]
    if len(hot) < MOST * len(layers) or _waiting_in(hot) < MOST * _waiting_in(layers):
        return None
    worst = max(hot, key=lambda item: (item.waiting, -item.layer))
    words = SENTENCES["one_expert_hot"].format(
        hot=len(hot),
        layers=len(layers),
        expert=worst.expert,
        layer=worst.layer,
        rank=worst.rank,
        over_fair=times(worst.expert_over_fair),
        waiting=waiting_words(facts),
    )
    view = links.view("layer", layer=worst.layer)
    api = links.api("view", layer=worst.layer, parts="counts")
    numbers = (
        *waiting_numbers(facts, links),
        Number("layers with a hot expert", len(hot), "layers", links.view("heatmap"), links.api("view")),
        Number("layer", worst.layer, "id", view, api),
        Number("expert", worst.expert or 0, "id", view, api),
        Number("expert's slots over a fair share", worst.expert_over_fair, "ratio", view, api),
    )
    return _finding("one_expert_hot", facts, links, words, numbers)


def one_rank_hot(facts: Facts, links: Links) -> Finding | None:
    """One rank is the busiest in most layers and causes most of the waiting."""
    if facts.balance is None or not is_uneven_by(facts.balance):
        return None
    layers = facts.balance.layers
    rank, times_hot = Counter(item.rank for item in layers).most_common(1)[0]
    caused = _caused(layers)[rank]
    balance = facts.balance
    itself = (balance.ranks[rank] - 1) / (balance.ratio - 1)  # as far as it isn't idle in other layers
    if times_hot < MOST * len(layers) or caused < MOST or itself < MOST:
        return None
    words = SENTENCES["one_rank_hot"].format(
        rank=rank, hot=times_hot, layers=len(layers), caused=percent(caused), waiting=waiting_words(facts)
    )
    view, api = links.view("ranks"), links.api("view")
    numbers = [
        *waiting_numbers(facts, links),
        Number("EP rank", rank, "id", view, api),
        Number("layers in which it is the busiest", times_hot, "layers", view, api),
        Number("waiting that it causes", caused, "share", view, api),
        Number("its slots over a fair share", facts.balance.ranks[rank], "ratio", view, api),
    ]
    steps = facts.in_steps
    if steps is not None and rank < len(steps.busiest):
        proof = links.view("ranks"), links.api("stragglers")
        numbers.append(
            Number("steps and layers in which it was the busiest", steps.busiest[rank], "share", *proof)
        )
    return _finding("one_rank_hot", facts, links, words, tuple(numbers))


def ranks_hot_by_layer(facts: Facts, links: Links) -> Finding | None:
    """Ranks are uneven in the layers; to be asked where neither one expert nor one rank is the cause."""
    if facts.balance is None or not is_uneven_by(facts.balance):
        return None
    ranks, layers = facts.balance.ranks, facts.balance.layers
    caused = _caused(layers)
    words = SENTENCES["ranks_hot_by_layer"].format(
        busiest=len(caused),
        ranks=len(ranks),
        caused=percent(max(caused.values())),
        least=f"{min(ranks):.2f}",
        most=f"{max(ranks):.2f} times",
        waiting=waiting_words(facts),
    )
    worst = max(layers, key=lambda item: (item.ratio, -item.layer))
    view, api = links.view("ranks"), links.api("view")
    at_layer = links.view("layer", layer=worst.layer), links.api("view", layer=worst.layer)
    numbers = (
        *waiting_numbers(facts, links),
        Number("ranks that are the busiest of some layer", len(caused), "number", view, api),
        Number("most waiting that one of them causes", max(caused.values()), "share", view, api),
        Number("least slots of a rank over a fair share", min(ranks), "ratio", view, api),
        Number("most slots of a rank over a fair share", max(ranks), "ratio", view, api),
        Number("worst layer", worst.layer, "id", *at_layer),
        Number("its imbalance ratio", worst.ratio, "ratio", *at_layer),
    )
    return _finding("ranks_hot_by_layer", facts, links, words, numbers)


def _expert_is_cause(item: LayerFacts) -> bool:
    return item.expert is not None and item.expert_over_fair >= HOT and item.expert_part >= MOST


def _waiting_in(layers: Sequence[LayerFacts]) -> float:
    return sum(item.waiting for item in layers)


def _caused(layers: Sequence[LayerFacts]) -> dict[int, float]:
    """Share of the waiting, by the window's sums, of each rank that is the busiest of some layer."""
    found: dict[int, float] = {}
    for item in layers:
        found[item.rank] = found.get(item.rank, 0.0) + item.waiting
    return {rank: waiting / _waiting_in(layers) for rank, waiting in found.items()}


def _finding(kind: Kind, facts: Facts, links: Links, words: str, numbers: tuple[Number, ...]) -> Finding:
    return Finding(kind, severity_of(waiting_of(facts)), words, numbers, action_of(facts, links))
