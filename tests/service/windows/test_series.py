"""Series whose intervals are mostly empty: merged once where nothing happened, and the same as one by one."""

from __future__ import annotations

import math
from dataclasses import fields
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from moescope.service.counts.phase_split import Phase
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows import series
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.series import merge_series
from tests.service.conftest import Clock
from tests.service.frames import EPOCH, frame, producer

BORN = EPOCH / 1e9
DEPLOYMENT = ("prod", "tiny")


@pytest.fixture
def state() -> LiveState:
    """Three ranks, of which the last falls silent; frames come every 5 s, of each rank at another second."""
    clock = Clock(BORN + 1)
    made = LiveState(Settings(store=None, port=0), clock)
    for second in range(1, 41):
        clock.now = BORN + second
        rank = second % 5
        if rank < 3 and not (rank == 2 and second > 20):
            who = producer(dp_rank=rank, dp_size=3)
            counts = {0: [2 * second, second], 4: [second, 2 * second]}
            made.ingest(frame(counts, seq=second, who=who, after_s=second))
    clock.now = BORN + 60
    return made


def _told(value: Any) -> Any:
    """A window as something that compares."""
    if isinstance(value, np.ndarray):
        return value.dtype.name, value.tolist()
    if isinstance(value, list | tuple):
        return [_told(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: _told(getattr(value, item.name)) for item in fields(value)}
    return value


@pytest.mark.parametrize("phase", [None, Phase.DECODE])
@pytest.mark.parametrize("only", [None, 1])
def test_a_series_is_what_its_intervals_are(state: LiveState, phase: Phase | None, only: int | None) -> None:
    instants = [BORN - 30 + second / 2 for second in range(180)]
    found = list(merge_series(state.walk(DEPLOYMENT, instants), phase, only))
    apart = [merge_spans_of_phase(state.spans(DEPLOYMENT, *ends), phase, only) for ends in pairwise(instants)]
    assert [_told(window) for window in found] == [_told(window) for window in apart]
    whole = merge_spans_of_phase(state.spans(DEPLOYMENT, instants[0], instants[-1]), phase, only)
    for i, layer in enumerate(whole.layers):
        assert sum(int(window.layers[i].counts.sum()) for window in found) == int(layer.counts.sum())


def test_intervals_in_which_nothing_came_are_merged_once(
    state: LiveState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand of them over 256 ranks took a minute."""
    merged = []

    def counted(*given: Any) -> Any:
        merged.append(given)
        return merge_spans_of_phase(*given)

    monkeypatch.setattr(series, "merge_spans_of_phase", counted)
    instants = [BORN - 1000 + second for second in range(1100)]
    assert len(list(merge_series(state.walk(DEPLOYMENT, instants), None))) == 1099
    frames = 2 * 8 + 4  # each is an interval, and one in which nothing comes may follow
    assert len(merged) <= 2 * frames + 2


def test_where_nothing_came_a_span_has_no_difference_of_its_own(state: LiveState) -> None:
    [before, after] = state.series(DEPLOYMENT, (BORN + 41, BORN + 42, BORN + 43))
    for item, again in zip(before, after, strict=True):
        assert item.span.is_empty
        assert item.span.delta.counts is again.span.delta.counts
        assert not item.span.delta.counts.any()
        assert item.span.delta.dp_size == 3
        assert math.isclose(item.span.start, item.span.end)
    for item in state.spans(DEPLOYMENT, BORN + 2, BORN + 42):
        assert not item.span.is_empty
