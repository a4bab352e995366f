"""Balance and throughput over time."""

from __future__ import annotations

from moescope.service.measures.balance import MEASURES
from moescope.service.report.facts import Facts
from moescope.service.report.lines import Line, chart
from moescope.service.report.markup import Section


def section(facts: Facts) -> Section:
    """The imbalance ratio over EP ranks, and tokens per second of each DP rank."""
    trend, ratio = facts.trend, MEASURES["imbalance_ratio"]
    over_ranks = ratio.over("over_ep_ranks")
    imbalance = [Line("sum over layers", trend["ratio_of_sums"]), Line("worst layer", trend["worst"])]
    rates = [
        Line(f"DP rank {rank}", values)
        for rank, values in zip(trend["dp_ranks"], trend["tokens_per_second"], strict=True)
    ]
    return Section(
        "Balance over time",
        f"Intervals of {trend['step']:g} s, UTC. {ratio.title}: {ratio.best} is best. "
        "A gap is an interval without a sample.",
        f"<h3>{over_ranks}</h3>"
        + chart(trend["at"], imbalance, f"{over_ranks}, over time", floor=1.0)
        + "<h3>Tokens per second by DP rank</h3>"
        + chart(trend["at"], rates, "Tokens per second by DP rank, over time"),
    )
