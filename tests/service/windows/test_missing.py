"""Workers that are silent, or don't cover a layer: what they didn't tell is null, with the reason."""

from __future__ import annotations

import re

import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import EPOCH
from tests.service.windows.missing import AT, EVEN, PARTIAL, balance, hold_partial, hold_whole, push


def test_a_stage_whose_worker_never_reported_has_no_load_of_0(service: Service) -> None:
    sizes = (2, 2, 1)
    push(service, 0, {0: EVEN}, sizes=sizes)
    for dp_rank in (0, 1):
        push(service, dp_rank, {1: EVEN}, pp_rank=1, sizes=sizes)
    hold_partial(service, 0, why="PP rank 0, TP rank 0: never reported")
    hold_whole(service, [400, 400], 1)
    assert balance(service, 0)["over_experts"]["loads"] == EVEN
    [of_rank_1, _] = service.get("/v1/histogram", dp_rank=1)["layers"]
    assert (of_rank_1["layer"], of_rank_1["counts"], of_rank_1["missing_dp_ranks"]) == (0, None, [1])
    assert of_rank_1["reason"].startswith("not seen: DP ranks [1] computed tokens")
    metrics = service.client.get("/metrics").text
    for name in ("moescope_layer_ep_imbalance_ratio", "moescope_layer_ep_rank_slots_total"):
        shown = [line for line in metrics.splitlines() if line.startswith(f"{name}{{")]
        assert shown
        assert all('layer="1"' in line for line in shown)
    push(service, 1, {0: EVEN}, sizes=sizes)
    hold_whole(service, [400, 400], 0)


def test_advice_and_the_trend_leave_out_a_layer_with_a_silent_stage(service: Service) -> None:
    sizes = (2, 2, 1)
    for second in range(1, 41):
        service.clock.now = AT + second
        more = [slots * second for slots in EVEN]
        skewed = [8 * second, *[0] * 3]
        push(service, 0, {0: skewed}, seq=second, after_s=second, sizes=sizes)
        for dp_rank in (0, 1):
            push(service, dp_rank, {1: more}, pp_rank=1, seq=second, after_s=second, sizes=sizes)
    advice = service.get("/v1/advice", start=AT + 1)
    assert advice["layers"] == [1]
    [left] = advice["left_out"]
    assert (left["layer"], left["reason"][: len(PARTIAL)]) == (0, PARTIAL)
    trend = service.get("/v1/trend", step=10, points=3)
    assert trend["worst_layer"] == [1, 1, 1]
    assert trend["ratio_of_sums"] == [1, 1, 1]


def test_a_silent_tp_worker_is_missing_unless_another_counts_all_rows(service: Service) -> None:
    sizes = (2, 1, 2)
    for tp_rank in (0, 1):
        push(service, 0, {0: [50] * 4}, tp_rank=tp_rank, tokens=200, sizes=sizes)
    push(service, 1, {0: [50] * 4}, tokens=200, sizes=sizes)  # half of its rows
    hold_partial(service, why="PP rank 0, TP rank 1: never reported")
    assert balance(service)["over_experts"]["loads"] == [150] * 4
    push(service, 1, {0: EVEN}, tokens=200, seq=2, sizes=sizes)  # all of its rows
    hold_whole(service, [400, 400])


def test_a_stage_that_fell_silent_while_others_went_on_is_missing_from_then_on(service: Service) -> None:
    sizes = (2, 2, 1)
    for second in range(1, 61):
        service.clock.now = AT + second
        more = [2 * second] * 4
        for dp_rank in (0, 1):
            for pp_rank in (0, 1):
                if (dp_rank, pp_rank) != (1, 0) or second <= 30:
                    push(
                        service,
                        dp_rank,
                        {pp_rank: more},
                        pp_rank=pp_rank,
                        seq=second,
                        after_s=second,
                        sizes=sizes,
                    )
    why = "PP rank 0, TP rank 0: fell silent"
    hold_partial(service, 0, why=why)  # some of it was seen
    hold_partial(service, 0, why=why, start=AT + 40)  # none of it
    hold_partial(service, 0, why=why, start=AT + 20, end=AT + 40)
    hold_whole(service, [8 * 20] * 2, 0, start=AT + 10, end=AT + 30)
    hold_whole(service, [8 * 20] * 2, 1, start=AT + 40)
    both = service.get("/v1/histogram", layer=0, start=AT + 10, step="10s")
    assert sum(part["layers"][0]["counts"][0] for part in both["series"]) == both["layers"][0]["counts"][0]
    # Once it is back its totals are whole.
    push(service, 1, {0: [120] * 4}, seq=60, after_s=60, sizes=sizes)
    hold_whole(service, [480, 480], 0)


def test_a_stage_whose_worker_never_counted_is_missing(service: Service) -> None:
    sizes = (2, 2, 1)
    push(service, 0, {0: EVEN}, sizes=sizes)
    push(service, 1, {}, sizes=sizes, tokens=0, steps=0, state="disabled", state_reason="no", placement=None)
    for dp_rank in (0, 1):
        push(service, dp_rank, {1: EVEN}, pp_rank=1, sizes=sizes)
    hold_partial(service, 0, why="capture is disabled: no")
    hold_whole(service, [400, 400], 1)


def test_a_layer_that_only_one_tp_worker_covers_is_missing(service: Service) -> None:
    sizes = (2, 1, 2)
    push(service, 0, {0: [50] * 4, 1: EVEN}, tokens=200, rows=[100, 200], sizes=sizes)
    push(service, 0, {0: [50] * 4, 1: [0] * 4}, tp_rank=1, tokens=200, rows=[100, 0], sizes=sizes)
    push(service, 1, {0: [50] * 4, 1: EVEN}, tokens=200, rows=[100, 200], sizes=sizes)
    blind = [wire.UncoveredLayer(0, "a kernel of its own")]
    push(service, 1, {1: [0] * 4}, tp_rank=1, tokens=200, rows=[0], uncovered=blind, sizes=sizes)
    hold_partial(service, 0, why="not covered by all of its workers: a kernel of its own")
    hold_whole(service, [400, 400], 1)


def test_a_layer_that_is_no_longer_covered_after_a_restart_is_missing_from_then_on(service: Service) -> None:
    blind = {"uncovered": [wire.UncoveredLayer(0, "another kernel")], "epoch": EPOCH + 15 * 10**9}
    for second in (10, 20):
        service.clock.now = AT + second
        push(service, 0, {0: [10 * second] * 4, 1: [10 * second] * 4}, seq=second, after_s=second)
        if second == 10:
            push(service, 1, {0: EVEN, 1: EVEN}, after_s=second)
        else:
            push(service, 1, {1: EVEN}, after_s=5, **blind)
    hold_partial(service, 0, why="not covered by all of its workers: another kernel")
    hold_whole(service, [800, 800], 1)
    hold_whole(service, [400, 400], 0, end=AT + 10)
    hold_partial(service, 0, start=AT + 10)


def test_a_layer_that_only_one_dp_rank_has_is_missing_on_the_others(service: Service) -> None:
    push(service, 0, {0: EVEN, 1: EVEN})
    push(service, 1, {1: EVEN})
    hold_partial(service, 0)
    hold_whole(service, [400, 400], 1)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_silent_stage_is_missing_in_a_phase_that_others_do_not_tell(service: Service, phase: str) -> None:
    sizes = (2, 2, 1)
    push(service, 0, {0: EVEN}, decode={0: [50] * 4}, sizes=sizes)
    push(service, 0, {1: EVEN}, decode={1: [50] * 4}, pp_rank=1, sizes=sizes)
    push(service, 1, {1: EVEN}, pp_rank=1, sizes=sizes)
    hold_partial(service, 0, phase=phase)


def test_words_of_a_former_start_with_more_tp_workers_are_gone(service: Service) -> None:
    lacks = {
        "uncovered": [wire.UncoveredLayer(1, "another kernel")],
        "absent": [wire.UncoveredLayer(2, "not found")],
    }
    for tp_rank in range(4):
        counts = {0: EVEN if tp_rank == 0 else [0] * 4}
        push(
            service,
            0,
            counts,
            tp_rank=tp_rank,
            sizes=(1, 1, 4),
            tokens=200,
            rows=[200 * (tp_rank == 0)],
            **lacks,
        )
    begun = service.clock.now = service.clock.now + 60
    epoch = int((begun - 1) * 1e9)
    for tp_rank in range(2):
        counts = {layer: EVEN if tp_rank == 0 else [0] * 4 for layer in range(3)}
        rows = [200 * (tp_rank == 0)] * 3
        fields = {"tokens": 200, "rows": rows, "epoch": epoch, "after_s": 1}
        push(service, 0, counts, tp_rank=tp_rank, sizes=(1, 1, 2), **fields)
    text = service.client.get("/metrics").text
    for name in ("absent", "uncovered"):
        assert re.search(rf"^moescope_{name}_layers{{.*}} 0.0$", text, re.MULTILINE), name
    for layer in range(3):
        assert balance(service, layer, start=begun - 30)["over_ep_ranks"]["loads"] == [200, 200]


def test_a_dp_rank_that_does_not_cover_a_layer_is_named_with_its_reason(service: Service) -> None:
    push(service, 0, {0: EVEN, 1: EVEN})
    push(service, 1, {0: EVEN}, uncovered=[wire.UncoveredLayer(1, "another kernel")])
    hold_partial(service, 1, why="(another kernel)")
