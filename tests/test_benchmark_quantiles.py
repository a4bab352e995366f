"""A benchmark tells no quantile that is longer than the longest that it saw."""

from __future__ import annotations

import pytest

from benchmarks.clickhouse import told


def test_no_quantile_of_few_durations_is_beyond_the_longest(capsys: pytest.CaptureFixture[str]) -> None:
    told("asked", [0.010] * 60 + [0.090, 0.100])
    assert capsys.readouterr().out == "asked: p50 10 ms, p99 94 ms, longest 100 ms (62)\n"
