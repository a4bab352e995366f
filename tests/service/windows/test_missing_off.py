"""Workers whose capture is off: what they would have counted is null, with the reason, everywhere."""

from __future__ import annotations

import re
from pathlib import Path

from moescope.service.report.document import document
from moescope.service.report.facts import gather
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import EPOCH
from tests.service.windows.missing import AT, EVEN, hold_partial, hold_whole, push


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
