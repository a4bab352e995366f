"""What a worker's session does on the path of a steady step: few calls, whatever the size of the batch."""

from __future__ import annotations

import pytest

from benchmarks.host_share import MODES, measure

MOST_CALLS = 33
"""Of a step without traces; each takes about 0.1 us. `python -m benchmarks.host_share` prints them."""
MOST_WITH_TRACES = 24
"""More, where requests may ask for a trace and none of the batch did."""


@pytest.fixture(scope="module")
def calls() -> dict[tuple[int, str], float]:
    """By size of the batch and mode."""
    rows = [row for batch in (2, 40) for row in measure(batch, 10)]
    return {(row["batch"], row["mode"]): row["calls"] for row in rows}


def test_a_steady_step_makes_few_calls_however_many_requests_it_has(
    calls: dict[tuple[int, str], float],
) -> None:
    plain, traces = MODES
    assert calls[40, plain] <= calls[2, plain] + 2
    assert calls[40, traces] <= calls[2, traces] + 2
    assert calls[40, plain] <= MOST_CALLS
    assert calls[40, traces] <= calls[40, plain] + MOST_WITH_TRACES
