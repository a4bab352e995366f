"""Benchmarks that need no GPU, run again and compared with their committed results: `make bench`.

Only figures that are the same on each machine are compared: ratios of two times that one run measured side by
side, exponents, counts of calls, memory that is allocated, and how even placements are. A figure that is
worse than the committed one by more than its tolerance fails the run. Times are in the results files, and no
comparison uses them.

    python -m benchmarks.compare                 # all
    python -m benchmarks.compare --only scale
    python -m benchmarks.compare --update        # keep what was measured now
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"
Figures = Iterator[tuple[str, float, float]]
"""Name, value, and the limit's distance from the committed value: positive where more is worse.

A distance from -1 to 0 is a share: -0.4 allows down to 60 % of the committed value. Above 0 it is a
difference.
"""


@dataclass(frozen=True)
class Benchmark:
    """One of them.

    Attributes:
        arguments: for a run that is short enough to compare.
        figures: those of its results that are compared.
    """

    name: str
    arguments: tuple[str, ...]
    figures: Callable[[Any], Figures]


def _exposition(results: Any) -> Figures:
    for row in results["rows"]:
        short = row["series"] <= 1000  # takes under a millisecond, so other work shows
        yield (
            f"{row['series']} series: the library's time over ours",
            row["library_over_fast"],
            -0.6 if short else -0.4,
        )


def _host_share(results: Any) -> Figures:
    for row in results["rows"]:
        yield f"batch {row['batch']}, {row['mode']}: calls a step", row["calls"], 2


def _placements(results: Any) -> Figures:
    for row in results["rows"]:
        where = f"{row['name']}, {row['redundant']} redundant"
        yield f"{where}: imbalance ratio", row["ours"], 0.001
        yield f"{where}: copies in vain", row["in_vain_ours"], 0.5


def _capture_memory(results: Any) -> Figures:
    for row in results["rows"]:
        for kind in ("device", "pinned", "kept_ids"):
            yield f"{row['tokens']} tokens, {row['mode']}: {kind}, MiB", row[kind] / 2**20, 0.5


def _scale(results: Any) -> Figures:
    for kind, found in results["exponents"].items():
        for what, value in found.items():
            yield f"{kind}: exponent of {what}", value, 0.15
    for row in results["rows"]:
        where = f"{row['kind']}, {row['ranks']} ranks, {row['layers']} layers"
        yield f"{where}: JSON's ingest over ours", row["ingest_ratio"], -0.4
        yield f"{where}: the library's scrape over ours", row["scrape_ratio"], -0.4


def _deployments(results: Any) -> Figures:
    rows = {row["deployments"]: row for row in results["rows"]}
    few, many = rows[256], rows[1024]
    yield (
        "a changed deployment's time, of 1,024 over that of 256",
        many["changed_cpu_ms_each"] / few["changed_cpu_ms_each"],
        0.5,
    )
    for name, row in (("256", few), ("1,024", many)):
        yield (
            f"{name} deployments: unchanged over changed",
            row["unchanged_cpu_ms"] / row["changed_cpu_ms"],
            0.2,
        )


def _stragglers(results: Any) -> Figures:
    ways = results["ingest"]
    for way in ("phases", "steps"):
        yield (
            f"a frame with {way} over a plain one",
            ways[way]["core_at_1_hz"] / ways["plain"]["core_at_1_hz"],
            0.8,
        )
    for row in results["fleets"]:
        yield f"{row['fleet']}: straggler cost", row["straggler_cost"], 0.02


def _verdict(results: Any) -> Figures:
    for fleet, found in results.items():
        yield (
            f"{fleet}: the verdict over the view",
            found["verdict"]["median_ms"] / found["view"]["median_ms"],
            1,
        )


def _views(results: Any) -> Figures:
    few, many = sorted(results["rows"], key=lambda row: row["ranks"])
    for name in ("overview", "heatmap", "ranks", "since the start", "prefill"):
        where = f"{name}, {many['ranks']} ranks"
        yield f"{where}: kB", many[f"{name} bytes"] / 1000, 5
        yield f"{where}: time over that of {few['ranks']} ranks", many[name] / few[name], 3


BENCHMARKS: Final = (
    Benchmark("host_share", ("--runs", "60"), _host_share),
    Benchmark("exposition", ("--runs", "3", "--sizes", "1000", "20000", "100000"), _exposition),
    Benchmark("deployments", ("--runs", "3", "--deployments", "256", "1024"), _deployments),
    Benchmark("stragglers", (), _stragglers),
    Benchmark("verdict", (), _verdict),
    Benchmark("views", (), _views),
    Benchmark("capture_memory", (), _capture_memory),
    Benchmark("placements", (), _placements),
    Benchmark("scale", (), _scale),
)


def limit(committed: float, distance: float) -> float:
    """The worst value that passes."""
    return committed * (1 + distance) if distance < 0 else committed + distance


def worse(value: float, committed: float, distance: float) -> bool:
    """Whether a value is beyond its limit."""
    worst = limit(committed, distance)
    return value < worst if distance < 0 else value > worst


def compared(benchmark: Benchmark, found: Any, committed: Any) -> int:
    """Print each figure beside the committed one; how many are worse than they may be, or are missing."""
    before, bad = {name: value for name, value, _ in benchmark.figures(committed)}, 0
    for name, value, distance in benchmark.figures(found):
        if name not in before:
            print(f"  new   {name}: {value:g}")
            continue
        committed_value = before.pop(name)
        failed = worse(value, committed_value, distance)
        bad += failed
        mark = "WORSE" if failed else "ok   "
        worst = limit(committed_value, distance)
        print(f"  {mark} {name}: {value:g}, committed {committed_value:g}, limit {worst:g}")
    for name in before:
        print(f"  GONE  {name}")
    return bad + len(before)


def run(benchmark: Benchmark, out: Path) -> Any:
    """Its results, from a process of its own."""
    command = [sys.executable, "-m", f"benchmarks.{benchmark.name}", *benchmark.arguments, "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return json.loads(out.read_text())


def main() -> int:
    """Run them, print the comparison; 1 if a figure is worse than it may be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--update", action="store_true", help="keep what was measured as the results files")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in BENCHMARKS:
            if benchmark.name not in options.only:
                continue
            print(f"{benchmark.name}: python -m benchmarks.{benchmark.name} ...", flush=True)
            began, out = time.monotonic(), Path(folder) / f"{benchmark.name}.json"
            found, kept = run(benchmark, out), RESULTS / out.name
            if kept.exists():
                bad += compared(benchmark, found, json.loads(kept.read_text()))
            if options.update:
                shutil.copyfile(out, kept)
            print(f"  {time.monotonic() - began:.0f} s", flush=True)
    print(f"{bad} figures are worse than they may be" if bad else "no figure is worse than it may be")
    return 1 if bad and not options.update else 0


if __name__ == "__main__":
    sys.exit(main())
