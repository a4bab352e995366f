"""What counts as drift, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.service.drift.measure import LayerDrift, LayerSlots, layer_drifts, summary_of
from moescope.service.measures.divergence import jensen_shannon
from moescope.service.windows.window import ModelWindow, merge_spans
from tests.service.advice.fleets import START, Simulated, plan
from tests.service.frames import frame


def _window(counts: dict[int, list[int]], **fields: object) -> ModelWindow:
    simulated = Simulated(plan())
    simulated.now = START + 1
    simulated.state.ingest(frame(counts, epoch=int(START * 1e9), **fields))  # type: ignore[arg-type]
    return merge_spans(simulated.state.spans(("prod", "tiny"), None, None))


def _drift(now: list[int], base: list[int], min_tokens: int = 1) -> LayerDrift:
    base_slots = LayerSlots({3: np.array(base)}, {3: sum(base) // 2})
    [found] = layer_drifts(_window({3: now}), base_slots, min_tokens)
    return found


def test_the_same_shares_are_no_drift() -> None:
    found = _drift([200, 100, 100], [20, 10, 10])
    assert (found.divergence, found.moved) == (0, 0)
    assert (found.new_dead, found.new_hot, found.hot, found.reason) == ((), (), (), None)
    assert found.noise is not None
    assert found.noise > 0


def test_divergence_and_what_moved() -> None:
    found = _drift([100, 300], [300, 100])
    assert found.divergence == pytest.approx(float(jensen_shannon([1, 3], [3, 1])))
    assert found.moved == pytest.approx(0.5)
    assert (found.tokens, found.base_tokens) == (200, 200)


def test_the_noise_is_over_the_experts_with_a_slot_in_either_window() -> None:
    found = _drift([30, 0, 10, 0, 0], [30, 50, 0, 0, 0])  # two experts have none in both
    assert found.noise == pytest.approx((3 - 1) * (1 / 40 + 1 / 80) / (8 * np.log(2)))


def test_an_expert_is_newly_dead_only_where_it_would_have_got_something() -> None:
    # At the base's share 0 would have got 30 of 300 slots, 1 some 15, 2 none.
    found = _drift([0, 0, 0, 300], [100, 50, 0, 850])
    assert found.new_dead == (0,)


def test_an_expert_is_newly_hot_if_it_grew_to_three_fair_shares_beyond_chance() -> None:
    base = [100] * 8
    assert _drift([600] + [200] * 7, base).new_hot == ()  # 2.4 fair shares
    assert _drift([1000] + [200] * 7, base).new_hot == (0,)
    # It always was, so it is hot and not new.
    found = _drift([1000] + [200] * 7, [1000] + [200] * 7)
    assert (found.hot, found.new_hot) == ((0,), ())
    # 5 of 10 slots may be chance.
    assert _drift([5, 1, 1, 1, 1, 1, 0, 0], base).new_hot == ()


@pytest.mark.parametrize(
    ("base", "rows", "min_tokens", "words"),
    [
        ({}, {}, 1, "has not seen this layer"),
        ({3: [1, 1]}, {3: 1}, 1, "the base has 2 experts here, the window 3"),
        ({3: [0, 0, 0]}, {3: 0}, 1, "no tokens in the base"),
        ({3: [2, 2, 2]}, {3: 3}, 5, "too few tokens in the base: 3 of at least 5"),
        ({3: [200, 200, 200]}, {3: 300}, 50, "too few tokens in the window: 6 of at least 50"),
    ],
)
def test_no_sample_has_a_reason(
    base: dict[int, list[int]], rows: dict[int, int], min_tokens: int, words: str
) -> None:
    counts = {layer: np.array(values) for layer, values in base.items()}
    [found] = layer_drifts(_window({3: [4, 4, 4]}), LayerSlots(counts, rows), min_tokens)
    assert found.divergence is None
    assert found.reason is not None
    assert words in found.reason


def test_the_summary_names_the_worst_layer() -> None:
    window = _window({1: [10, 10], 2: [20, 0], 3: [12, 8], 4: [0, 0]}, rows=[10, 10, 10, 0], tokens=10)
    base = {layer: np.array([100, 100]) for layer in (1, 2, 3, 4)}
    found = layer_drifts(window, LayerSlots(base, dict.fromkeys(base, 100)), 1)
    summary = summary_of(found)
    assert (summary.worst_layer, summary.layers) == (2, 3)
    assert summary.worst == found[1].divergence
    assert summary.median == found[2].divergence
    assert summary_of([]).worst is None
