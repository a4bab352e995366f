"""What a scrape costs with many ranks: series, bytes and times at each level, for a simulated fleet.

    python -m benchmarks.fleet

256 ranks of DeepSeek-V3's shape (58 layers of 256 experts, top-8) are simulated in this process. Every rank
sends a frame a second, straight into the live state. A scrape is what GET /metrics does, without HTTP. The
window of the balance gauges begins after the fleet's start, as in a fleet that has run for long. Times are in
milliseconds: medians unless they are called p99.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from benchmarks.results_file import keep, parser_of
from moescope.service.live.state import LiveState
from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.text.exposition import expose, negotiate
from moescope.service.metrics.text.writer import Writer
from moescope.service.settings import MetricsLevel, Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan

RESULTS: Final = Path(__file__).parent / "results" / "fleet.json"
ROUNDS: Final = 3
INTERVAL_S: Final = 1.0
WINDOW_S: Final = 1.5  # begins between the first two rounds, so that earlier totals are subtracted


def timed(runs: int, way: Callable[[], object]) -> list[float]:
    """How long each of some runs takes, milliseconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        way()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def fill(ranks: int) -> tuple[LiveState, float]:
    """A state with a fleet's first rounds of frames, and the median time to ingest one, milliseconds."""
    now = 1_700_000_000.0
    state = LiveState(Settings(), lambda: now)
    fleet = Fleet(Plan(ranks=ranks), int(now * 1e9))
    ingest = []
    for _ in range(ROUNDS):
        now += INTERVAL_S
        for frame in fleet.advance(INTERVAL_S):
            ingest += timed(1, partial(state.ingest, frame))
    return state, round(statistics.median(ingest), 2)


def measure(state: LiveState, level: MetricsLevel, runs: int) -> dict[str, Any]:
    """One row of the results: scrapes at a level."""
    settings = Settings(metrics_level=level, window_s=WINDOW_S)
    registry, writer = CollectorRegistry(), Writer()
    registry.register(RoutingCollector(state, settings, Instruments()))

    def scrape(encoding: str) -> int:
        [body] = expose(registry, writer, [negotiate("", encoding)]).values()
        return len(body)

    metrics = list(registry.collect())
    scrape("")  # the label texts are kept from here on
    times = timed(runs, lambda: scrape(""))
    return {
        "level": level.value,
        "series": sum(len(metric.samples) for metric in metrics),
        "collect_ms": round(statistics.median(timed(runs, lambda: list(registry.collect()))), 1),
        "scrape_ms": round(statistics.median(times), 1),
        "scrape_p99_ms": round(float(np.percentile(times, 99)), 1),
        "scrape_gzip_ms": round(statistics.median(timed(runs, lambda: scrape("gzip"))), 1),
        "bytes": scrape(""),
        "gzip_bytes": scrape("gzip"),
    }


def main() -> None:
    """Measure, print, keep the results."""
    parser = parser_of(__doc__, RESULTS, runs=30)
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 256], help="sizes of the fleet")
    options = parser.parse_args()
    rows = []
    for ranks in options.ranks:
        state, ingest_ms = fill(ranks)
        for level in MetricsLevel:
            measured = measure(state, level, options.runs)
            rows.append({"ranks": ranks, "ingest_frame_ms": ingest_ms, **measured})
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    keep(options, rows)


if __name__ == "__main__":
    main()
