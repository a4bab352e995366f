"""Panels of the measures that are gauges, made from their declarations."""

from __future__ import annotations

from typing import Final

from moescope.dashboards.spec import LAYER, NAME, Panel, Query, Thresholds, most
from moescope.service.measures.balance import GAUGES, MEASURES
from moescope.service.measures.measure import Gauge

_UNITS: Final = {"ratio": "short", "share": "percentunit", "number": "short"}
_COLUMNS: Final = 24


def thresholds(gauge: Gauge) -> Thresholds:
    """From which values on a panel is orange and red."""
    known = ((gauge.notable, "orange"), (gauge.bad, "red"))
    return tuple((value, colour) for value, colour in known if value is not None)


RATIO_THRESHOLDS: Final = thresholds(GAUGES["imbalance_ratio"])
"""Of every imbalance ratio, whatever it is summed over."""


def layer_stats() -> tuple[Panel, ...]:
    """One number for each measure of a layer, as many in a row as fit."""
    return tuple(
        Panel(
            "stat",
            gauge.title,
            f"{gauge.help} {MEASURES[name].meaning}",
            (Query(most(gauge.name, LAYER), NAME),),
            _UNITS[MEASURES[name].unit],
            width=max(4, _COLUMNS // len(GAUGES)),
            height=4,
            thresholds=thresholds(gauge),
        )
        for name, gauge in GAUGES.items()
    )


def layer_ratios() -> Panel:
    """Over time, the measures of a layer that are multiples of a fair share."""
    shown = [(MEASURES[name], gauge) for name, gauge in GAUGES.items() if MEASURES[name].unit == "ratio"]
    words = ", ".join(f"{item.over(gauge.axis)} ({item.best} is best)" for item, gauge in shown)
    queries = tuple(Query(most(gauge.name, LAYER, "server"), item.title) for item, gauge in shown)
    return Panel("timeseries", "Measures over time", f"{words}.", queries, width=8)
