"""The layers that lose most to imbalance."""

from __future__ import annotations

from typing import Any, Final

from moescope.service.measures.balance import MEASURES
from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section, bar, number, percent, table

_MOST: Final = 12


def section(facts: Facts) -> Section | None:
    """Layers by imbalance ratio over EP ranks, worst first; None without a sample."""
    layers = [item for item in facts.balance["layers"] if item["over_ep_ranks"]["measures"] is not None]
    if not layers:
        return None
    layers.sort(key=_ratio, reverse=True)
    costs = {item["layer"]: item["straggler_cost"] for item in facts.stragglers["layers"]}
    ratio, dead = MEASURES["imbalance_ratio"], MEASURES["dead"]
    heads = ["Layer", "", ratio.formula, "Busiest EP rank", "Straggler cost", f"{dead.title} experts"]
    rows = [_row(item, costs.get(item["layer"]), _ratio(layers[0])) for item in layers[:_MOST]]
    return Section(
        "Worst layers",
        f"The {len(rows)} of {len(layers)} layers with the highest {ratio.title.lower()} over EP ranks.",
        table(heads, rows, words=2),
    )


def _ratio(layer: dict[str, Any]) -> float:
    return float(layer["over_ep_ranks"]["measures"]["imbalance_ratio"])


def _row(layer: dict[str, Any], cost: float | None, most: float) -> list[str]:
    loads = layer["over_ep_ranks"]["loads"]
    experts = layer["over_experts"]["measures"]
    share = (_ratio(layer) - 1) / max(most - 1, 1e-9)
    return [
        str(layer["layer"]),
        bar(share, hot=_ratio(layer) >= 1.5),
        number(_ratio(layer)),
        str(max(range(len(loads)), key=loads.__getitem__)),
        percent(cost),
        "-" if experts is None else str(experts["dead"]),
    ]
