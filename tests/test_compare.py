"""The comparison of benchmarks with their committed results."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.compare import BENCHMARKS, RESULTS, Benchmark, compared, worse


def figures(results: Any) -> Iterator[tuple[str, float, float]]:
    for name, value in results.items():
        yield name, value, -0.4 if name == "ratio" else 2


@pytest.mark.parametrize(
    ("value", "committed", "distance", "expected"),
    [(6.0, 10.0, -0.4, False), (5.9, 10.0, -0.4, True), (12.0, 10.0, 2, False), (12.1, 10.0, 2, True)],
)
def test_a_figure_fails_beyond_its_tolerance_only(
    value: float, committed: float, distance: float, expected: bool
) -> None:
    assert worse(value, committed, distance) is expected


def test_figures_that_are_worse_or_gone_are_counted_and_better_or_new_ones_are_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    benchmark = Benchmark("any", (), figures)
    committed = {"ratio": 10.0, "calls": 40, "other calls": 7}
    assert compared(benchmark, {"ratio": 25.0, "calls": 41, "other calls": 7, "more": 1}, committed) == 0
    assert compared(benchmark, {"ratio": 5.0, "calls": 43}, committed) == 3
    printed = capsys.readouterr().out
    assert "WORSE ratio: 5, committed 10, limit 6" in printed
    assert "GONE  other calls" in printed


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda one: one.name)
def test_each_benchmark_has_committed_results_with_figures_to_compare(
    benchmark: Benchmark, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = json.loads((RESULTS / f"{benchmark.name}.json").read_text())
    assert compared(benchmark, committed, committed) == 0
    assert "ok" in capsys.readouterr().out
