"""What was counted between two snapshots."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moescope.service.counts.account import Account
from moescope.service.counts.phase_split import Phase
from moescope.service.live.history import Track
from moescope.service.live.spans import Snapshot
from tests.service.frames import frame


@pytest.mark.parametrize("phase", [None, *Phase])
@pytest.mark.parametrize("told", [True, False])
def test_tokens_of_a_span_are_those_of_its_difference(phase: Phase | None, told: bool) -> None:
    account = Account(max_epochs=4)
    track: Track | None = None
    for seq in range(1, 6):
        phases = {"decode": {0: [seq, 0]}} if told or seq > 3 else {}
        account.post(frame({0: [4 * seq, 2 * seq]}, seq=seq, **phases))
        snapshot = Snapshot(100.0 + seq, account.totals)
        if track is None:
            track = Track(100.0, snapshot)
        else:
            track.add(snapshot)
    assert track is not None
    for start, end in ((None, None), (101.0, 103.0), (103.0, 105.0), (104.0, None)):
        span = replace(track.span(start, end), phase=phase)
        known = phase is None or not span.delta.unphased_tokens
        assert span.tokens == (span.delta.tokens if known else None)
