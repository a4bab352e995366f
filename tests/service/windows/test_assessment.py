"""Merging producers and judging balance; with the mistakes that peers make."""

from __future__ import annotations

import pytest

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.windows.assessment import Assessment, assess
from moescope.service.windows.window import ModelWindow, merge_spans
from tests.service.frames import frame, halves, producer


def _window(*frames: wire.Frame) -> ModelWindow:
    state = LiveState(Settings(), lambda: 1_700_000_100.0)
    for made in frames:
        state.ingest(made)
    return merge_spans(state.spans(("prod", "tiny"), None, None))


def _assess(*frames: wire.Frame, min_tokens: int = 1) -> Assessment:
    return assess(_window(*frames), min_tokens)


def _rank(dp_rank: int, **fields: int) -> wire.Producer:
    return producer(dp_rank=dp_rank, ep_rank=dp_rank, **{"dp_size": 2, "ep_size": 2, **fields})


def test_a_steady_skew_over_ep_ranks_is_a_third_not_one() -> None:
    # Both sources send twice as much to EP rank 0: averaging over sources, or over time, must not hide it.
    counts = {0: [150, 50, 60, 40], 3: [100, 100, 50, 50]}
    found = _assess(*(frame(counts, who=_rank(rank), placement=halves(4, 2)) for rank in (0, 1)))
    for cell in found.ep_ranks.cells:
        assert cell.loads is not None
        assert cell.loads.tolist() == [400, 200]
        assert cell.measures is not None
        assert cell.measures["imbalance_ratio"] == pytest.approx(4 / 3)
        assert cell.measures["balancedness"] == pytest.approx(3 / 4)
    assert found.ep_ranks.summary.ratio_of_sums == pytest.approx(4 / 3)
    over_dp = found.dp_ranks.cells[0].measures
    assert over_dp is not None
    assert over_dp["imbalance_ratio"] == 1


def test_a_skew_over_dp_ranks_is_seen_in_tokens_and_slots() -> None:
    found = _assess(
        frame({0: [20, 20]}, who=_rank(0), placement=halves(2, 1)),
        frame({0: [10, 10]}, who=_rank(1), placement=halves(2, 1)),
    )
    assert found.dp_tokens.measures is not None
    assert found.dp_tokens.measures["imbalance_ratio"] == pytest.approx(4 / 3)
    assert found.dp_ranks.cells[0].loads is not None
    assert found.dp_ranks.cells[0].loads.tolist() == [40, 20]
    assert found.ep_ranks.summary.worst == 1


def test_changing_hot_ranks_do_not_cancel_out_across_layers() -> None:
    found = _assess(frame({0: [30, 10], 1: [10, 30]}, who=_rank(0), placement=halves(2, 2)))
    assert found.ep_ranks.summary.ratio_of_sums == 1.5


def test_idle_is_no_sample_rather_than_balanced() -> None:
    found = _assess(*(frame({0: [0, 0]}, who=_rank(rank), placement=halves(2, 1)) for rank in (0, 1)))
    for axis in (found.ep_ranks, found.dp_ranks, found.experts):
        assert axis.cells[0].measures is None
        assert axis.cells[0].reason == "idle: no tokens in the window"
        assert axis.summary.worst is None
    assert found.dp_tokens.measures is None


def test_too_few_tokens_are_no_sample() -> None:
    found = _assess(frame({0: [4, 2]}, who=_rank(0), placement=halves(2, 1)), min_tokens=4)
    assert found.experts.cells[0].reason == "too few tokens: 3 of at least 4"
    assert found.experts.cells[0].measures is None


def test_an_unseen_layer_has_a_reason_and_no_zeros() -> None:
    window = _window(frame({0: [4, 4], 1: [0, 0]}, who=_rank(0), tokens=4, placement=halves(2, 2)))
    assert window.layers[1].dp_ranks == ()
    assert window.layers[1].unseen == (0,)
    found = assess(window, 1)
    for axis in (found.ep_ranks, found.dp_ranks, found.experts):
        assert axis.cells[1].loads is None
        assert axis.cells[1].measures is None
    assert (found.experts.cells[1].reason or "").startswith("not seen: DP ranks [0]")
    assert found.experts.summary.layers == 1


def test_a_layer_that_one_dp_rank_cannot_see_has_no_ep_load() -> None:
    found = _assess(
        frame({0: [4, 4]}, who=_rank(0), placement=halves(2, 1)),
        frame({}, who=_rank(1), tokens=4, uncovered=[wire.UncoveredLayer(0, "monolithic")]),
    )
    assert found.ep_ranks.cells[0].loads is None
    partial = "partial: the tokens of DP ranks [1] are not seen in this layer (monolithic)"
    assert found.ep_ranks.cells[0].reason == partial
    assert found.experts.cells[0].measures is not None


def test_a_layer_that_no_one_can_see_has_no_counts() -> None:
    window = _window(frame({0: [4, 4]}, uncovered=[wire.UncoveredLayer(1, "monolithic")]))
    assert [layer.shape.layer for layer in window.layers] == [0]
    assert window.uncovered == {1: "monolithic"}


@pytest.mark.parametrize(
    ("who", "reason"),
    [(producer(), "ep_size is 1"), (producer(dp_size=2, ep_size=2), "no placement was known for 8 slots")],
)
def test_without_ep_or_placement_there_is_no_ep_load(who: wire.Producer, reason: str) -> None:
    found = _assess(frame({0: [4, 4]}, who=who))
    assert found.ep_ranks.cells[0].loads is None
    assert (found.ep_ranks.cells[0].reason or "").startswith(reason)
    assert found.ep_ranks.summary.layers == 0


def test_tp_ranks_add_rows_and_share_tokens_and_pp_ranks_join_layers() -> None:
    def part(tp_rank: int, pp_rank: int, layer: int, counts: list[int]) -> wire.Frame:
        who = producer(tp_rank=tp_rank, tp_size=2, pp_rank=pp_rank, pp_size=2)
        return frame({layer: counts}, who=who, tokens=5, steps=3, idle_steps=1)

    window = _window(
        part(0, 0, 0, [4, 2]), part(1, 0, 0, [2, 2]), part(0, 1, 7, [5, 5]), part(1, 1, 7, [0, 0])
    )
    assert (window.tokens, window.dp_ranks[0].steps, window.dp_ranks[0].idle_steps) == (5, 3, 1)
    assert [layer.shape.layer for layer in window.layers] == [0, 7]
    assert [layer.counts.tolist() for layer in window.layers] == [[6, 4], [5, 5]]
    assert [layer.rows.tolist() for layer in window.layers] == [[5], [5]]


def test_any_top_k_is_taken_from_the_frame_and_slots_are_not_tokens() -> None:
    window = _window(frame({0: [7, 7, 7]}, top_k=3))
    assert (window.tokens, int(window.layers[0].rows.sum()), int(window.layers[0].slots.sum())) == (7, 7, 21)


def test_dp_ranks_that_never_reported_are_missing() -> None:
    assert _window(frame({0: [1, 1]}, who=producer(dp_rank=1, dp_size=3))).missing_dp_ranks == [0, 2]
