"""What was counted between two snapshots."""

from __future__ import annotations

import pytest

from moescope.service.counts.account import Account
from moescope.service.live.history import Track
from moescope.service.live.past import Remembered
from moescope.service.live.spans import Snapshot
from tests.service.frames import frame


def _track() -> Track:
    """Begun at 100; its totals are of 10, 20 and 30 tokens from 105, 110 and 115 on."""
    account, track = Account(max_epochs=4), None
    for seq in (1, 2, 3):
        account.post(frame({0: [10 * seq, 10 * seq]}, seq=seq))
        snapshot = Snapshot(100.0 + 5 * seq, account.totals)
        if track is None:
            track = Track(100.0, snapshot)
        else:
            track.add(snapshot)
    assert track is not None
    return track


@pytest.mark.parametrize(
    ("start", "end", "tokens", "truncated", "late"),
    [
        (None, None, 30, False, False),
        (90.0, 100.0, 0, False, False),
        (100.0, 110.0, 20, False, False),
        (90.0, 103.0, 10, False, True),
        (101.0, 103.0, 0, True, True),
        (103.0, 114.9, 10, True, False),
        (105.0, 115.0, 20, False, False),
    ],
)
def test_boundaries_and_whether_they_are_later_than_asked(
    start: float | None, end: float | None, tokens: int, truncated: bool, late: bool
) -> None:
    span = _track().span(start, end)
    assert (span.delta.tokens, span.truncated, span.late) == (tokens, truncated, late)
    assert span.until == end


def test_spans_add_up_to_the_whole_even_if_a_later_boundary_has_older_totals() -> None:
    track = _track()
    found = [track.boundary(instant, None) for instant in (105.0, 115.0, 110.0, None)]
    memory = Remembered(100.0, 100.0, (105.0, 115.0, 116.0, None), tuple(found))
    assert [span.delta.tokens for span in memory.spans()] == [20, 0, 0]
    assert memory.whole().delta.tokens == 20
