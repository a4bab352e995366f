"""How long a scrape takes to write: the library's writer, the fast path, gzip; side by side.

    python -m benchmarks.exposition

The counters have four labels, as the families by layer and rank do, and numbers as after days of traffic. All
numbers rise before each run: between scrapes the fast path keeps texts of labels only (cached_bytes). Each
figure is the median of several interleaved runs. The bytes of both writers are compared at each size, before
the runs and after. peak_bytes is the most memory that the fast path takes during a scrape, the text included,
the kept texts of labels not.
"""

from __future__ import annotations

import gzip
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from benchmarks.results_file import keep, parser_of
from moescope.service.metrics.samples import Table, WideMetric
from moescope.service.metrics.text.writer import Writer

SIZES: Final = (1_000, 20_000, 100_000, 500_000)
EXPERTS: Final = 250
RESULTS: Final = Path(__file__).parent / "results" / "exposition.json"


class _One(Collector):
    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterable[Metric]:
        return [self._metric]


def metric_of(series: int, rng: np.random.Generator) -> WideMetric:
    """A family of ``series`` counters."""
    metric = WideMetric(
        "moescope_layer_expert_slots_total",
        "Slots that chose the logical expert.",
        "counter",
        "slots",
        ("server", "model", "layer", "expert"),
    )
    names = tuple(map(str, range(EXPERTS)))
    rows = tuple((str(layer), names) for layer in range(series // EXPERTS))
    values = np.exp(rng.uniform(0, np.log(1e10), series)).astype(np.int64)
    metric.tables.append(Table(metric.name, ("prod-eu-1", "deepseek-ai/DeepSeek-V3"), rows, values))
    return metric


def measure(series: int, runs: int) -> dict[str, float]:
    """Medians in milliseconds, and sizes in bytes."""
    rng = np.random.default_rng(0)
    metric = metric_of(series, rng)
    writer = Writer()
    body = compared(metric, writer)
    ways: dict[str, Callable[[], bytes]] = {
        "library_ms": lambda: generate_latest(_One(metric)),
        "fast_ms": lambda: writer.write([metric], openmetrics=False),
        "fast_first_ms": lambda: Writer().write([metric], openmetrics=False),
        "gzip_1_ms": lambda: gzip.compress(body, 1, mtime=0),
        "gzip_6_ms": lambda: gzip.compress(body, 6, mtime=0),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        raise_all(metric, rng)
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append((time.perf_counter() - began) * 1e3)
    body = compared(metric, writer)
    found = {name: round(statistics.median(values), 2) for name, values in times.items()}
    return {
        "series": series,
        **found,
        "library_over_fast": round(found["library_ms"] / found["fast_ms"], 1),
        "bytes": len(body),
        "gzip_1_bytes": len(gzip.compress(body, 1, mtime=0)),
        "cached_bytes": writer.cached_bytes,
        "peak_bytes": peak(lambda: writer.write([metric], openmetrics=False)),
    }


def raise_all(metric: WideMetric, rng: np.random.Generator) -> None:
    """Raise every counter by 1 to a million."""
    metric.tables[:] = [
        replace(table, values=table.values + rng.integers(1, 10**6, len(table.values)))
        for table in metric.tables
    ]


def compared(metric: WideMetric, writer: Writer) -> bytes:
    """The text, on which both writers must agree."""
    body = writer.write([metric], openmetrics=False)
    if body != generate_latest(_One(metric)):
        raise SystemExit(f"the bytes differ at {len(metric)} series")
    return body


def peak(way: Callable[[], bytes]) -> int:
    """The most bytes of memory that are taken at one time."""
    tracemalloc.start()
    try:
        way()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    """Measure, print, keep the results."""
    parser = parser_of(__doc__, RESULTS, runs=5)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="numbers of series")
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        rows.append(measure(size, options.runs))
        print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
    keep(options, rows)


if __name__ == "__main__":
    main()
