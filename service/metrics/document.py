"""docs/metrics.md, written from the catalogue: ``python -m moescope.service.metrics.document``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from typing import Final

from moescope.service.metrics.alerts import ALERT_LEVELS
from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.metrics.family import Family
from moescope.service.settings import MetricsLevel

_INTRODUCTION: Final = """# Metrics

`python -m moescope.service.metrics.document > docs/metrics.md` writes this document from the catalogue
(`service/metrics/catalogue.py`); a test compares the two. [measures.md](measures.md) defines the measures.

`GET /metrics` answers in Prometheus' text format or in OpenMetrics, by the `Accept` header.

- **Levels.** `--metrics-level` chooses how fine-grained the metrics are; each level includes the levels
  before it. Each level's section says which alerts need it. `moescope check-config`, and a line in the log
  when the service starts, say which alerts can't fire.
- **A hard cap.** The setting `metrics_max_series` (default 200,000) bounds the series. A family that does not
  fit is left out whole, because half of a family would add up to sums and ratios that look like data.
  `moescope_overflowed_series_total` says which families are left out, and how many series they have.
- **Counters show what is new.** They count since the service, or its store, knows the worker: what a worker
  counted before is left out, and so is what it delivered to another service. So `rate` and `increase` never
  report tokens that were not computed, whatever becomes of the service and its store. Absolute values are no
  totals since the start of vLLM; `/v1/histogram` has those. After a start from a store, the counters of a
  deployment appear when its workers have reported, `stale_after_s` later at most.
- **When a counter was zero** is in OpenMetrics only: each counter of level `rank` has a `_created` sample,
  but for the accounts of traces. Prometheus keeps these samples as series of their own, or takes them for
  zeros with `--enable-feature=created-timestamp-zero-ingestion`, in versions that read them from text.
- **Pool and role.** Each series of a deployment also has the label `pool` if its workers name one
  (`MOESCOPE_POOL`), and `role` if they compute only prefill or only decode. Other deployments' series have
  no such labels. All series of a deployment have the same, so these labels add none. A deployment that starts
  again in another pool begins new series.
- **No sample, no series.** Gauges of balance have no series for a window without enough tokens: idle is
  neither 1 nor 0.
- **Vanished ranks.** Their series leave after `expire_after_s`, and at once where the deployment has fewer
  ranks now: DP ranks beyond `dp_size`, EP ranks beyond `ep_size`. Sums over sources, such as slots by EP
  rank, keep what these ranks counted, and ranks that come back go on where they were.
- **Parts.** Where `moescope_missing_dp_ranks` is above 0, all balance of the deployment is that of a part.
- **Rearrangements by EPLB.** `moescope_rearrangements_total` counts them. A DP rank's rearrangements are the
  changes of its placement's version: `changes(moescope_placement_version[1h])`.
- **Phases and straggler cost** need capturers that tell them (wire 1.3). Without them, tokens are of phase
  `unknown`, and there are no `moescope_straggler_*` of the deployment. Under EPLB they need wire 1.6.
"""
_LEVELS: Final = {
    MetricsLevel.RANK: "series per rank, whose number grows with the ranks",
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
        needing = ["Alerts that can't fire at a coarser level:", *_list(alerts), ""] if alerts else []
        title = f"## Level `{level.value}`: {meaning}"
        sections.append("\n".join([title, "", *needing, *head, *rows, ""]))
    return "\n".join(sections)


def _list(names: Sequence[str]) -> list[str]:
    """The names with commas and a full stop, in lines that documents may have."""
    return textwrap.wrap(f"{', '.join(names)}.", 120, break_long_words=False, break_on_hyphens=False)


def _row(family: Family) -> str:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"| `{family.name}` | {family.kind} | {labels} | {family.help} |"


if __name__ == "__main__":
    sys.stdout.write(markdown())
