"""docs/metrics.md, written from the catalogue: ``python -m moescope.service.metrics.document``."""

from __future__ import annotations

import sys
from typing import Final

from moescope.service.metrics.alerts import ALERT_LEVELS
from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.metrics.family import Family
from moescope.service.settings import MetricsLevel

_INTRODUCTION: Final = """# Metrics

Written from the catalogue (`service/metrics/catalogue.py`) by
`python -m moescope.service.metrics.document > docs/metrics.md`; a test compares them. The measures are
defined in [measures.md](measures.md).

`GET /metrics` answers in Prometheus' text format or in OpenMetrics, by the `Accept` header.

- **Levels.** `--metrics-level` chooses how fine-grained it is; each level includes those before it.
  Each level's section says which alerts need it; `moescope check-config`, and a line in the log when the
  service starts, say which can't fire.
- **A hard cap.** Setting `metrics_max_series` (default 200,000). A family that does not fit is left out
  whole, because half of one would add up to sums and ratios that look like data;
  `moescope_overflowed_series_total` says which, and how many series.
- **No sample, no series.** Gauges of balance have no series for a window without enough tokens: idle is
  neither 1 nor 0.
- **Vanished ranks.** Their series leave after `expire_after_s`. Sums over sources, such as slots by EP rank,
  keep what they counted.
- **Rearrangements by EPLB** are counted by `moescope_rearrangements_total`; by DP rank they are changes of
  the version: `changes(moescope_placement_version[1h])`.
- **Prefill and decode apart, and the straggler of each step**, need capturers that tell them (wire 1.3).
  Without, tokens are of phase `unknown`, and there are no `moescope_straggler_*` of the deployment, nor are
  there under EPLB.
"""
_LEVELS: Final = {
    MetricsLevel.RANK: "series per rank; grows with the number of ranks",
    MetricsLevel.LAYER_RANK: "the default: a series per layer and rank",
    MetricsLevel.LAYER_EXPERT: "a series per layer and expert, summed over ranks",
}


def markdown() -> str:
    """The whole document."""
    sections = [_INTRODUCTION]
    for level, meaning in _LEVELS.items():
        rows = [_row(family) for family in CATALOGUE.values() if family.level is level]
        head = ["| metric | type | labels | |", "|---|---|---|---|"]
        alerts = [f"`{name}`" for name, needed in ALERT_LEVELS.items() if needed is level]
        needing = [f"Alerts that can't fire at a coarser level: {', '.join(alerts)}.", ""] if alerts else []
        title = f"## Level `{level.value}`: {meaning}"
        sections.append("\n".join([title, "", *needing, *head, *rows, ""]))
    return "\n".join(sections)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
