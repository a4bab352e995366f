"""What a worker's session does on the path of a steady step: little, whatever the size of the batch."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.host_share import MODES, measure

MOST_CALLS = 18
"""Of a step without traces. `python -m benchmarks.host_share` prints what they are and take."""
MOST_INSTRUCTIONS = 560
"""Versions of Python differ in them; 3.11 has 499."""
MORE_CALLS_WITH_TRACES = 9
"""Where requests may ask for a trace and none of the batch did."""
MORE_INSTRUCTIONS_WITH_TRACES = 150


@pytest.fixture(scope="module")
def found() -> dict[tuple[int, str], dict[str, Any]]:
    """By size of the batch and mode."""
    rows = [row for batch in (2, 40) for row in measure(batch, 30)]
    return {(row["batch"], row["mode"]): row for row in rows}


@pytest.mark.parametrize(
    ("what", "most", "more_with_traces", "slack"),
    [
        ("calls", MOST_CALLS, MORE_CALLS_WITH_TRACES, 1),
        ("instructions", MOST_INSTRUCTIONS, MORE_INSTRUCTIONS_WITH_TRACES, 30),
    ],
)
def test_a_steady_step_does_little_however_many_requests_it_has(
    found: dict[tuple[int, str], dict[str, Any]], what: str, most: int, more_with_traces: int, slack: int
) -> None:
    plain, traces = MODES
    assert found[2, plain][what] <= found[40, plain][what] + slack
    assert found[40, plain][what] <= found[2, plain][what] + slack
    assert found[40, traces][what] <= found[2, traces][what] + slack
    assert found[40, plain][what] <= most
    assert found[40, traces][what] <= found[40, plain][what] + more_with_traces
