"""Two live deployments of one name: every answer says so, and the one that is left is answered alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

LOADS = {"left": (15886, 4114), "right": (4045, 15955)}
"""Slots by EP rank of the two deployments, each of 5,000 tokens in 16 experts."""
STEPS = 55
YEAR_NS = 365 * 86400 * 10**9
START = 1_700_000_100.0


def _frame(host: str, step: int, skew_ns: int = 0) -> wire.Frame:
    """All of 20,000 slots up to a step, and the loads of that step; four slots a token."""
    left, right = (slots * step // STEPS for slots in LOADS[host])
    tokens = (left + right) // 4
    right = 4 * tokens - left
    counts = [left // 8 + (i < left % 8) for i in range(8)] + [right // 8 + (i < right % 8) for i in range(8)]
    loads = np.array([[[left, right]]], dtype=np.int64)
    return frame(
        {3: counts},
        top_k=4,
        who=producer(ep_size=2, host=host, pid=len(host), start=f"start-{host}"),
        epoch=EPOCH + skew_ns,
        seq=step,
        after_s=100.0 + step,
        tokens=tokens,
        steps=step,
        acknowledged=step - 1,
        placement=halves(16, 1),
        step_loads=wire.pack_step_loads(step, step + 1, np.array([step]), loads, 1),
    )


def _push(service: Service, host: str, step: int) -> None:
    skew = YEAR_NS if host == "right" else 0
    assert service.push(_frame(host, step, skew)).status_code == 200


@pytest.fixture
def both(service: Service) -> Service:
    """Both deployments have sent all their steps, in turn."""
    for step in range(1, STEPS + 1):
        service.clock.now = START + step
        _push(service, "left", step)
        service.clock.now += 0.5
        _push(service, "right", step)
    return service


def _worker(service: Service) -> dict[str, Any]:
    [rank] = service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    [worker] = rank["producers"]
    found: dict[str, Any] = worker
    return found


def _alone(service: Service, host: str) -> None:
    """The other deployment is ended; this one goes on for 20 s."""
    before = service.clock.now
    for n in range(1, 21):
        service.clock.now = before + n
        _push(service, host, STEPS + n)


def test_ranks_name_both(both: Service) -> None:
    worker = _worker(both)
    assert worker["state"] == "conflict"
    assert "pid 4 on host left, pid 5 on host right" in worker["state_reason"]
    assert "MOESCOPE_SERVER" in worker["state_reason"]
    told = [(life["host"], life["pid"], life["start"], life["tokens"]) for life in worker["lives"]]
    assert told == [("left", 4, "start-left", 5000), ("right", 5, "start-right", 5000)]
    deployment = both.get("/v1/ranks")["deployments"][0]
    assert deployment["conflict"] == worker["state_reason"]
    assert deployment["dp_ranks"][0]["tokens"] == 10_000


def test_balance_stragglers_trend_and_view_have_no_numbers_but_the_reason(both: Service) -> None:
    why = _worker(both)["state_reason"]
    balance = both.get("/v1/balance")
    assert (balance["conflict"], balance["tokens"]) == (why, 10_000)
    [layer] = balance["layers"]
    for axis in ("over_ep_ranks", "over_experts"):
        assert (layer[axis]["measures"], layer[axis]["reason"]) == (None, why)
        assert balance["summary"][axis]["ratio_of_sums"] is None
    assert balance["dp_tokens"]["reason"] == why
    stragglers = both.get("/v1/stragglers", start="-60s", step="10s")
    assert (stragglers["straggler_cost"], stragglers["windowed_straggler_share"]) == (None, None)
    assert (stragglers["reason"], stragglers["stages"][0]["reason"]) == (why, why)
    assert {interval["straggler_cost"] for interval in stragglers["series"][1:]} == {None}
    trend = both.get("/v1/trend", step=5, points=6)
    assert (set(trend["ratio_of_sums"]), trend["conflict"]) == ({None}, why)
    view = both.get("/v1/view")
    assert (view["over_ep_ranks"]["ratio_of_sums"], view["conflict"]) == (None, why)
    assert view["layers"][0]["ep_reason"] == why
    assert both.get("/v1/histogram")["layers"][0]["not_conserved"] == why
    advice = both.get("/v1/advice", start=START - 1)
    assert why in str(advice["left_out"]) or why in str(advice["verdict"])
    drift = both.get("/v1/drift", start="-30s")
    assert drift["layers"][0]["reason"] == why


def test_metrics_have_the_conflict_and_no_gauges_of_balance(both: Service) -> None:
    lines = both.client.get("/metrics").text.splitlines()
    assert any(line.startswith("moescope_conflicting_lives{") and line.endswith(" 2.0") for line in lines)
    assert any('state="conflict"} 1.0' in line for line in lines)
    for gauge in (
        "moescope_ep_imbalance_ratio",
        "moescope_dp_imbalance_ratio",
        "moescope_straggler_cost_ratio",
    ):
        assert not any(line.startswith(f"{gauge}{{") for line in lines)
    assert any(line.startswith("moescope_tokens_total{") and line.endswith(" 10000.0") for line in lines)


def test_the_log_says_when_it_begins_and_when_it_is_over(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "moescope.service.live.ledger")
    for step in range(1, 9):
        service.clock.now = START + step
        _push(service, "left", step)
        _push(service, "right", step)
    service.clock.now += 20
    _push(service, "right", 9)
    began, over = [record.getMessage() for record in caplog.records if "conflict" in record.getMessage()]
    assert "pid 4 on host left, pid 5 on host right" in began
    assert "pid 5 on host right goes on alone" in over


@pytest.mark.parametrize("host", ["left", "right"])
def test_the_one_that_is_left_is_alone_live_and_answered(both: Service, host: str) -> None:
    ended_at = both.clock.now
    _alone(both, host)
    worker = _worker(both)
    assert (worker["state"], worker["host"], worker["lives"]) == ("counting", host, [])
    both.clock.now += 5
    balance = both.get("/v1/balance")
    assert balance["conflict"] is None
    assert balance["window"]["used_start"]["earliest"] >= ended_at - 0.5
    skew = balance["layers"][0]["over_ep_ranks"]["measures"]["imbalance_ratio"]
    assert skew == pytest.approx(1.59, abs=0.01)
    spanning = both.get("/v1/balance", start=START)
    assert spanning["layers"][0]["over_ep_ranks"]["measures"] is None
    assert "choose a window that begins after it" in spanning["conflict"]
    stragglers = both.get("/v1/stragglers", start="-10s")
    assert (stragglers["reason"], stragglers["straggler_cost"] is None) == (None, False)
    [rank] = both.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    assert rank["tokens"] == 5000 + _frame(host, STEPS + 20).tokens


def test_a_conflict_outlives_the_service(start_service: Callable[..., Service], tmp_path: Any) -> None:
    service = start_service(min_tokens=1, store=str(tmp_path / "store"))
    for step in range(1, 9):
        service.clock.now = START + step
        _push(service, "left", step)
        _push(service, "right", step)
    start_service.end_all()  # type: ignore[attr-defined]
    again = start_service(min_tokens=1, store=str(tmp_path / "store"))
    worker = _worker(again)
    assert (worker["state"], [life["host"] for life in worker["lives"]]) == ("conflict", ["left", "right"])
    assert again.get("/v1/balance")["conflict"] == worker["state_reason"]


def test_where_the_experts_are_is_not_known_of_two_deployments(both: Service) -> None:
    [layer] = both.get("/v1/placement")["layers"]
    assert layer["copies"] is None
    assert layer["reason"].startswith("conflict: 2 live processes claim")
    _alone(both, "right")
    [layer] = both.get("/v1/placement")["layers"]
    assert [copies[0]["ep_rank"] for copies in layer["copies"]] == [0] * 8 + [1] * 8
