"""What a part costs the store's thread does not grow with pieces times runs."""

from __future__ import annotations

import pytest

from moescope.capture.wire.traces import Run, TracePart
from moescope.service.store.sqlite.packing import BLOCK_TOKENS, pieces_of
from tests.service.trace_parts import part


def test_the_runs_of_a_part_are_added_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    many = 20 * BLOCK_TOKENS
    made = part(1, tokens=many, runs=[(2 * i, 1) for i in range(many)])
    sums = []

    def counted(self: TracePart) -> int:
        sums.append(self)
        return sum(run.count for run in self.runs)

    monkeypatch.setattr(TracePart, "tokens", property(counted))
    assert [piece.tokens for piece in pieces_of(1, made)] == [BLOCK_TOKENS] * 20
    assert len(sums) == 1
    assert isinstance(made.runs[0], Run)
