"""Zero means that nothing was computed: what a worker didn't tell is null, with the reason, everywhere."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from moescope.capture import wire
from moescope.service.report.document import document
from moescope.service.report.facts import gather
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

AT = EPOCH / 1e9
EVEN = [100, 100, 100, 100]
"""Slots of 200 tokens with top-k 2."""
PARTIAL = "partial: the tokens of DP ranks [1] are not seen in this layer"


def push(
    service: Service,
    dp_rank: int,
    counts: Mapping[int, Sequence[int]],
    *,
    pp_rank: int = 0,
    tp_rank: int = 0,
    sizes: tuple[int, int, int] = (2, 1, 1),
    **fields: Any,
) -> None:
    """Push a frame; ``sizes`` are DP, PP and TP. Its EP rank is its DP rank, of two."""
    who = producer(
        dp_rank=dp_rank,
        dp_size=sizes[0],
        pp_rank=pp_rank,
        pp_size=sizes[1],
        tp_rank=tp_rank,
        tp_size=sizes[2],
        ep_rank=dp_rank,
        ep_size=2,
    )
    made = frame(counts, who=who, **{"placement": halves(4, len(counts)), **fields})
    assert service.push(made).json()["result"] == "accepted"


def balance(service: Service, layer: int = 0, **params: Any) -> dict[str, Any]:
    [found] = service.get("/v1/balance", layer=layer, **params)["layers"]
    return dict(found)


def hold_partial(service: Service, layer: int = 0, why: str = "", **params: Any) -> None:
    """DP rank 1 is missing in a layer, and no answer has a load of DP or EP ranks for it."""
    found = balance(service, layer, **params)
    for axis in ("over_dp_ranks", "over_ep_ranks"):
        assert (found[axis]["loads"], found[axis]["measures"]) == (None, None), axis
        assert found[axis]["reason"].startswith(PARTIAL)
        assert why in found[axis]["reason"]
    [histogram] = service.get("/v1/histogram", layer=layer, **params)["layers"]
    assert histogram["missing_dp_ranks"] == [1]
    view = service.get("/v1/view", parts=["flows"], flow_layer=layer, **params)
    assert view["flows"] is None
    assert view["flows_reason"].startswith(PARTIAL)
    params.pop("phase", None)  # a step has both
    [straggler] = service.get("/v1/stragglers", layer=layer, **params)["layers"]
    assert straggler["windowed_straggler_share"] is None


def hold_whole(service: Service, loads: Sequence[int], layer: int = 0, **params: Any) -> None:
    found = balance(service, layer, **params)
    assert (found["over_dp_ranks"]["loads"], found["over_dp_ranks"]["reason"]) == (list(loads), None)
    assert found["over_ep_ranks"]["measures"] is not None
    assert service.get("/v1/histogram", layer=layer, **params)["layers"][0]["missing_dp_ranks"] == []


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


def test_tokens_of_a_disabled_worker_are_not_known_from_then_on(service: Service) -> None:
    for second in range(1, 21):
        service.clock.now = AT + second
        push(service, 0, {0: [2 * second] * 4}, seq=second, after_s=second)
        stopped = {"state": "disabled", "state_reason": "a row layout"} if second > 10 else {}
        push(service, 1, {0: [2 * min(second, 10)] * 4}, seq=second, after_s=second, **stopped)
    for params in ({}, {"start": AT + 15}):
        answer = service.get("/v1/balance", **params)
        reason = answer["tokens_reason"]
        why = "capture is disabled: a row layout"
        assert reason == f"partial: the tokens of DP ranks [1] are not known ({why})"
        assert (answer["tokens"], answer["dp_tokens"]["loads"]) == (None, None)
        assert answer["dp_tokens"]["reason"] == reason
        hold_partial(service, why="capture is disabled: a row layout", **params)
        histogram = service.get("/v1/histogram", **params)
        assert (histogram["tokens"], histogram["tokens_reason"]) == (None, reason)
    rates = service.get("/v1/trend", step=5, points=2)["tokens_per_second"]
    assert rates == [[4, 4], [None, None]]
    ranks = service.get("/v1/view")["dp_ranks"]
    assert [(rank["tokens"], rank["reason"] is None) for rank in ranks] == [(80, True), (None, False)]
    hold_whole(service, [40, 40], start=AT + 5, end=AT + 10)
    assert service.get("/v1/balance", start=AT + 5, end=AT + 10)["dp_tokens"]["loads"] == [20, 20]
    assert series(service) == {0}
    # It starts again and counts: what came in between stays unknown.
    for second in range(21, 31):
        service.clock.now = AT + second
        push(service, 0, {0: [2 * second] * 4}, seq=second, after_s=second)
        counts = {0: [2 * (second - 20)] * 4}
        push(service, 1, counts, seq=second, after_s=second - 20, epoch=EPOCH + 20 * 10**9)
    hold_whole(service, [40, 40], start=AT + 25)
    for start, end in ((12, 18), (15, 25), (5, 15)):
        hold_partial(service, why="capture was disabled in it", start=AT + start, end=AT + end)
    hold_partial(service, why="capture was disabled in it")
    assert service.get("/v1/view")["dp_ranks"][1]["tokens"] is None
    assert series(service) == {0, 1}  # a counter's rate is of the time since, so it comes back


def series(service: Service) -> set[int]:
    """DP ranks of which /metrics has tokens, steps by phase and slots by layer."""
    text = service.client.get("/metrics").text
    found = [
        {int(rank) for rank in re.findall(rf'^{name}{{.*dp_rank="(\d+)"', text, re.MULTILINE)}
        for name in (
            "moescope_tokens_total",
            "moescope_phase_tokens_total",
            "moescope_layer_dp_rank_slots_total",
        )
    ]
    assert found[0] == found[1] == found[2], found
    whole = "moescope_layer_ep_rank_slots_total{" in text
    assert whole is (found[0] == {0, 1})
    return found[0]


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


def test_an_idle_dp_rank_makes_no_zeros_of_what_was_not_seen(service: Service) -> None:
    idle = [0] * 4
    push(service, 0, {0: idle, 1: idle}, tokens=0, steps=0)
    push(service, 1, {0: idle, 1: [250] * 4}, tokens=500)
    reason = "not seen: DP ranks [1] computed tokens, the layer's router reported none"
    found = balance(service)
    for axis in ("over_dp_ranks", "over_ep_ranks", "over_experts"):
        assert found[axis] == {"loads": None, "measures": None, "reason": reason}
    [histogram, _] = service.get("/v1/histogram", start=AT, step="1h")["layers"]
    assert (histogram["counts"], histogram["tokens"], histogram["reason"]) == (None, None, reason)
    [interval] = service.get("/v1/histogram", start=AT, step="1h")["series"]
    assert interval["layers"][0] == {"layer": 0, "tokens": None, "counts": None, "not_conserved": None}
    view = service.get("/v1/view", parts=["counts", "flows"])
    assert (view["counts"], view["flows_reason"]) == ([None, [250] * 4], reason)
    assert service.get("/v1/compare")["layers"][0]["reason"] == reason
    assert service.get("/v1/drift")["layers"][0]["reason"] == reason
    hold_whole(service, [0, 1000], 1)


def test_an_idle_dp_rank_makes_no_zeros_of_tokens_of_unknown_phase(service: Service) -> None:
    idle = [0] * 4
    push(service, 0, {0: idle}, decode={0: idle}, tokens=0, steps=0)
    push(service, 1, {0: [250] * 4})
    reason = "the phases of 500 tokens of DP ranks [1] are not known"
    for phase in ("prefill", "decode"):
        found = balance(service, phase=phase)
        for axis in ("over_dp_ranks", "over_ep_ranks", "over_experts"):
            assert (found[axis]["loads"], found[axis]["measures"]) == (None, None)
            assert found[axis]["reason"].startswith(reason)
        [layer] = service.get("/v1/histogram", phase=phase)["layers"]
        assert (layer["counts"], layer["reason"][: len(reason)]) == (None, reason)
        assert service.get("/v1/drift", phase=phase)["layers"][0]["reason"].startswith(reason)


def test_an_idle_dp_rank_makes_no_zeros_of_a_layer_that_another_cannot_see(service: Service) -> None:
    idle = [0] * 4
    push(service, 0, {0: idle, 1: idle}, tokens=0, steps=0)
    push(service, 1, {1: EVEN}, uncovered=[wire.UncoveredLayer(0, "its kernel routes inside")])
    [layer, _] = service.get("/v1/histogram")["layers"]
    assert (layer["counts"], layer["reason"]) == (None, "not covered: its kernel routes inside")


def test_where_all_are_idle_zeros_are_zeros(service: Service) -> None:
    for dp_rank in (0, 1):
        push(service, dp_rank, {0: [0] * 4}, tokens=0, steps=0)
    [layer] = service.get("/v1/histogram")["layers"]
    assert (layer["counts"], layer["reason"]) == ([0] * 4, "idle: no tokens in the window")


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_silent_stage_is_missing_in_a_phase_that_others_do_not_tell(service: Service, phase: str) -> None:
    sizes = (2, 2, 1)
    push(service, 0, {0: EVEN}, decode={0: [50] * 4}, sizes=sizes)
    push(service, 0, {1: EVEN}, decode={1: [50] * 4}, pp_rank=1, sizes=sizes)
    push(service, 1, {1: EVEN}, pp_rank=1, sizes=sizes)
    hold_partial(service, 0, phase=phase)


def test_people_are_told_that_tokens_are_not_known(service: Service, tmp_path: Path) -> None:
    push(service, 0, {0: EVEN})
    push(service, 1, {0: EVEN}, state="disabled", state_reason="a row layout")
    done = run("balance", "--url", service.url)
    assert "Tokens by DP rank: not known: partial: the tokens of DP ranks [1]" in done.stdout, done.stderr
    page = document(gather(service.url, 3600, None, None))
    assert "<dd>unknown</dd>" in page
    assert "Tokens: partial: the tokens of DP ranks [1] are not known (capture is disabled" in page
    done = run("report", "--url", service.url, "-o", tmp_path / "report.html")
    assert "unknown tokens of tiny" in done.stdout, done.stderr


def test_a_stage_that_starts_again_with_capture_off_is_missing(service: Service) -> None:
    sizes = (2, 2, 1)
    off = {"state": "disabled", "state_reason": "a bad setting", "placement": None}
    again = {"epoch": EPOCH + 15 * 10**9, "after_s": 5}
    for dp_rank in (0, 1):
        push(service, dp_rank, {0: EVEN}, pp_rank=0, sizes=sizes)
        push(service, dp_rank, {1: EVEN}, pp_rank=1, sizes=sizes)
    service.clock.now += 20
    for dp_rank in (0, 1):
        push(service, dp_rank, {0: EVEN}, pp_rank=0, sizes=sizes, **again)
    push(service, 0, {1: EVEN}, pp_rank=1, sizes=sizes, **again)
    push(service, 1, {}, pp_rank=1, sizes=sizes, tokens=0, steps=0, **again, **off)
    hold_whole(service, [800, 800], 0)
    hold_partial(service, 1, why="capture is disabled: a bad setting")


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


def test_a_rank_whose_workers_drew_apart_is_not_idle_once_the_one_ahead_stops(service: Service) -> None:
    """TP rank 1 was off in its former life, so TP rank 0 is ahead of it for good; then that one stops."""
    tp = {"sizes": (1, 1, 2)}
    off = {"state": "disabled", "state_reason": "a fault"}
    push(service, 0, {0: EVEN}, tp_rank=0, tokens=400, **tp)
    push(service, 0, {0: [0, 0, 0, 0]}, tp_rank=1, tokens=0, **off, **tp)
    service.clock.now += 60
    for seq in (1, 2, 3):
        for tp_rank in (0, 1):
            told = off if (seq, tp_rank) == (3, 0) else {}
            tokens = 100 * min(seq, 2) if tp_rank == 0 else 100 * seq
            counts = {0: [tokens // 4] * 4}
            push(
                service,
                0,
                counts,
                tp_rank=tp_rank,
                epoch=EPOCH + 60 * 10**9,
                seq=seq,
                tokens=tokens,
                **told,
                **tp,
            )
        service.clock.now += 10
    answer = service.get("/v1/balance", start="-11s")
    assert answer["tokens"] is None
    assert "drew apart while capture was off in one of them" in answer["tokens_reason"]
    whole = service.get("/v1/balance", start="-25s", end="-11s")
    assert (whole["tokens"], whole["tokens_reason"]) == (100, None)
    lines = service.client.get("/metrics").text.splitlines()
    assert not any(line.startswith("moescope_tokens_total{") for line in lines)
