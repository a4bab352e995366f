"""Which EP rank the others waited for."""

from __future__ import annotations

from moescope.service.report.facts import Facts
from moescope.service.report.markup import Section, bar, percent, table


def section(facts: Facts) -> Section | None:
    """How often each EP rank was the busiest of a step, over all layers; None without single steps."""
    hottest = facts.stragglers["hottest"]
    whole = sum(hottest)
    if not whole:
        return None
    rows = [
        [str(rank), bar(times / max(hottest), hot=times / whole > 2 / len(hottest)), percent(times / whole)]
        for rank, times in enumerate(hottest)
    ]
    joined = sum(stage["joined"] for stage in facts.stragglers["stages"])
    return Section(
        "Busiest EP ranks",
        f"In what share of {joined:,} joined steps, over all layers, each EP rank was the one to wait for.",
        table(["EP rank", "", "Busiest"], rows, words=2),
    )
