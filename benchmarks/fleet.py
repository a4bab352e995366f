"""What a scrape costs with many ranks: series, bytes and times at each level, for a simulated fleet.

    python benchmarks/fleet.py

256 ranks of DeepSeek-V3's shape (58 layers of 256 experts, top-8), in this process: frames go straight into
the live state, the scrape is what GET /metrics does without HTTP. Times are medians, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
from prometheus_client import CollectorRegistry

from moescope.service.metrics.collector import RoutingCollector
from moescope.service.metrics.exposition import expose
from moescope.service.metrics.instruments import Instruments
from moescope.service.metrics.writer import Writer
from moescope.service.settings import MetricsLevel, Settings
from moescope.service.simulate_fleet import Fleet, Plan
from moescope.service.state import LiveState

RESULTS: Final = Path(__file__).parent / "results" / "fleet.json"
ROUNDS: Final = 3
INTERVAL_S: Final = 5.0


def timed(runs: int, way: Callable[[], object]) -> float:
    """Median of some runs, milliseconds."""
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        way()
        times.append((time.perf_counter() - began) * 1e3)
    return round(statistics.median(times), 1)


def measure(ranks: int, level: MetricsLevel, runs: int) -> dict[str, Any]:
    """One row: a fleet's first rounds of frames, then scrapes."""
    settings = Settings(metrics_level=level)
    now = 1_700_000_000.0
    state = LiveState(settings, lambda: now)
    fleet = Fleet(Plan(ranks=ranks), int(now * 1e9))
    ingest = []
    for _ in range(ROUNDS):
        now += INTERVAL_S
        for frame in fleet.advance(INTERVAL_S):
            began = time.perf_counter()
            state.ingest(frame)
            ingest.append((time.perf_counter() - began) * 1e3)
    registry, writer = CollectorRegistry(), Writer()
    registry.register(RoutingCollector(state, settings, Instruments()))

    def scrape(encoding: str) -> int:
        return len(expose(registry, writer, "", encoding).body)

    metrics = list(registry.collect())
    return {
        "ranks": ranks,
        "level": level.value,
        "series": sum(len(metric.samples) for metric in metrics),
        "ingest_frame_ms": round(statistics.median(ingest), 2),
        "collect_ms": timed(runs, lambda: list(registry.collect())),
        "scrape_ms": timed(runs, lambda: scrape("")),
        "scrape_gzip_ms": timed(runs, lambda: scrape("gzip")),
        "bytes": scrape(""),
        "gzip_bytes": scrape("gzip"),
    }


def main() -> None:
    """Measure, print, keep the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 256], help="sizes of the fleet")
    parser.add_argument("--runs", type=int, default=5, help="runs a figure (default: %(default)s)")
    parser.add_argument("--no-results", action="store_true", help=f"don't write {RESULTS.name}")
    options = parser.parse_args()
    rows = []
    for ranks in options.ranks:
        for level in MetricsLevel:
            rows.append(measure(ranks, level, options.runs))
            print("  ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if not options.no_results:
        machine = {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "machine": platform.machine(),
        }
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(
            json.dumps({"machine": machine, "runs": options.runs, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
