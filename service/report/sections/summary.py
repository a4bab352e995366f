"""What the window was, and its numbers in large."""

from __future__ import annotations

from moescope.service.measures.balance import MEASURES
from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section, number, percent, tiles


def section(facts: Facts) -> Section:
    """Tokens, imbalance, straggler cost, and who is missing."""
    imbalance, max_vio = MEASURES["imbalance_ratio"], MEASURES["max_vio"]
    over_ranks = facts.balance["summary"]["over_ep_ranks"]
    over_experts = facts.balance["summary"]["over_experts"]
    cost = facts.stragglers["straggler_cost"]
    items = [
        ("Tokens", facts.tokens, f"{len(facts.balance['dp_ranks'])} DP ranks"),
        (
            imbalance.over("over_ep_ranks"),
            number(over_ranks["ratio_of_sums"]),
            f"{imbalance.formula}, sum over layers; worst {number(over_ranks['worst'])} in layer "
            f"{_layer(over_ranks['worst_layer'])}",
        ),
        (
            "Straggler cost",
            percent(cost),
            "of the MoE time is waiting for the busiest EP rank, from single steps"
            if cost is not None
            else "no single steps were joined",
        ),
        (
            max_vio.over("over_experts"),
            number(_max_vio(over_experts["ratio_of_sums"])),
            f"sum over layers; worst {number(_max_vio(over_experts['worst']))} in layer "
            f"{_layer(over_experts['worst_layer'])}",
        ),
    ]
    note = f"This is {facts.balance['partial']}." if facts.balance.get("partial") else ""
    if facts.balance.get("tokens_reason"):
        note += f" Tokens: {facts.balance['tokens_reason']}."
    if facts.balance["window"]["truncated"]:
        note += " The window began before what is remembered, so that it is shorter than asked for."
    return Section("Summary", note + _not_conserved(facts), tiles(items))


def _not_conserved(facts: Facts) -> str:
    """What is said of layers whose rows don't add up to the window's tokens."""
    broken = [layer for layer in facts.stragglers["layers"] if layer["not_conserved"]]
    if not broken:
        return ""
    layers = ", ".join(str(layer["layer"]) for layer in broken)
    return (
        f" Sums over layers leave these out, because their counts don't add up: {layers} "
        f"(layer {broken[0]['layer']}: {broken[0]['not_conserved']})."
    )


def _layer(layer: int | None) -> str:
    return "-" if layer is None else str(layer)


def _max_vio(ratio: float | None) -> float | None:
    """(max - mean) / mean, from max / mean, which the API's summaries have."""
    return None if ratio is None else ratio - 1
