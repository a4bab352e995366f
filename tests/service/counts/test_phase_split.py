"""Prefill and decode apart: the two add up to the whole, and what isn't known is never a zero."""

from __future__ import annotations

from typing import Any

import pytest

from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, producer

AT = EPOCH / 1e9
WHOLE = ({0: [40, 20, 10, 10], 3: [20, 20, 20, 20]}, {0: [30, 10, 0, 0], 3: [10, 10, 10, 10]})
DECODE = ({0: [30, 0, 0, 0], 3: [0, 0, 10, 20]}, {0: [0, 10, 0, 0], 3: [10, 0, 0, 0]})
STEPS = {"steps": 9, "decode_steps": 5, "mixed_steps": 3}


def push(service: Service, dp_rank: int, phased: bool = True, times: int = 1, **fields: Any) -> None:
    whole, decode = (
        {layer: [times * slots for slots in row] for layer, row in part[dp_rank].items()}
        for part in (WHOLE, DECODE)
    )
    who = producer(dp_rank=dp_rank, dp_size=2, ep_rank=dp_rank, ep_size=2)
    told = {"decode": decode, **STEPS} if phased else {"steps": 9}
    made = frame(whole, who=who, seq=times, placement=halves(4, 2), **{**told, **fields})
    assert service.push(made).status_code == 200


def counts(service: Service, **params: Any) -> list[list[int] | None]:
    return [layer["counts"] for layer in service.get("/v1/histogram", **params)["layers"]]


def test_phases_add_up_to_the_whole(service: Service) -> None:
    push(service, 0)
    push(service, 1)
    assert counts(service, phase="decode") == [[30, 10, 0, 0], [10, 0, 10, 20]]
    assert counts(service, phase="prefill") == [[40, 20, 10, 10], [20, 30, 20, 10]]
    assert counts(service, phase="prefill", dp_rank=1) == [[30, 0, 0, 0], [0, 10, 10, 10]]
    tokens = [
        service.get("/v1/histogram", **p)["tokens"] for p in ({"phase": "prefill"}, {"phase": "decode"}, {})
    ]
    assert tokens == [40, 20, 60]
    balance = service.get("/v1/balance", phase="decode")
    assert (balance["phase"], balance["phase_reason"]) == ("decode", None)
    assert balance["layers"][0]["over_ep_ranks"]["loads"] == [40, 0]
    assert balance["layers"][1]["over_dp_ranks"]["loads"] == [30, 10]
    assert balance["dp_tokens"]["loads"] == [15, 5]


def test_ranks_and_view_tell_tokens_and_steps_by_phase(service: Service) -> None:
    push(service, 0)
    push(service, 1)
    expected = {
        "prefill_tokens": 25,
        "decode_tokens": 15,
        "prefill_steps": 1,
        "decode_steps": 5,
        "mixed_steps": 3,
    }
    [deployment] = service.get("/v1/ranks")["deployments"]
    assert deployment["dp_ranks"][0]["phases"] == expected
    for params, tokens, steps in (({}, 40, 9), ({"phase": "prefill"}, 25, 4), ({"phase": "decode"}, 15, 8)):
        view = service.get("/v1/view", parts=["counts", "flows"], **params)
        rank = view["dp_ranks"][0]
        assert (rank["tokens"], rank["steps"], rank["phases"]) == (tokens, steps, expected)
        assert view["counts"] == counts(service, **params)
        assert sum(map(sum, view["flows"])) == sum(map(sum, view["counts"]))


def test_windows_and_series_are_by_phase_too(service: Service) -> None:
    service.clock.now = AT + 10
    push(service, 0)
    push(service, 1)
    service.clock.now = AT + 20
    push(service, 0, times=3, steps=20)
    push(service, 1, times=3, steps=20)
    answer = service.get("/v1/histogram", phase="decode", start=AT + 10, end=AT + 20, step="10s")
    assert answer["layers"][0]["counts"] == answer["series"][0]["layers"][0]["counts"] == [60, 20, 0, 0]
    assert answer["series"][0]["tokens"] == 40
    trend = service.get("/v1/trend", phase="decode", step=10, points=1)
    assert (trend["phase"], trend["tokens_per_second"]) == ("decode", [[3], [1]])
    assert trend["ratio_of_sums"] == [pytest.approx((80 + 60) / (40 + 40))]
    both = service.get("/v1/compare", phase="decode", base_phase="prefill")
    assert (both["side"]["phase"], both["base"]["phase"]) == ("decode", "prefill")
    assert both["layers"][0]["divergence"] > 0.1
    assert both["layers"][0]["difference"] == pytest.approx([0.25, 0, -0.125, -0.125])


def test_what_is_not_known_is_null_with_a_reason_and_never_zero(service: Service) -> None:
    push(service, 0)
    push(service, 1, phased=False)
    reason = "the phases of 20 tokens of DP ranks [1] are not known"
    answer = service.get("/v1/histogram", phase="prefill")
    assert answer["phase_reason"].startswith(reason)
    assert answer["tokens"] is None
    assert answer["layers"][0]["counts"] == [10, 20, 10, 10]
    assert (answer["layers"][0]["dp_ranks"], answer["layers"][0]["missing_dp_ranks"]) == ([0], [1])
    [layer, _] = service.get("/v1/histogram", phase="decode", dp_rank=1)["layers"]
    assert (layer["counts"], layer["tokens"], layer["shares"]) == (None, None, None)
    assert layer["reason"].startswith(reason)
    balance = service.get("/v1/balance", phase="decode")
    assert balance["dp_tokens"]["loads"] is None
    assert balance["dp_tokens"]["reason"].startswith(reason)
    assert balance["layers"][0]["over_ep_ranks"]["measures"] is None
    assert balance["layers"][0]["over_ep_ranks"]["reason"].startswith("partial")
    view = service.get("/v1/view", phase="decode", parts=["flows", "counts"])
    assert (view["tokens"], view["flows"]) == (None, None)
    assert view["flows_reason"].startswith(reason)
    assert [rank["tokens"] for rank in view["dp_ranks"]] == [15, None]
    assert view["dp_ranks"][1]["phases"] is None
    [rank] = service.get("/v1/view", phase="decode", dp_rank=1)["dp_ranks"]
    assert (rank["tokens"], rank["steps"]) == (None, None)
    compared = service.get("/v1/compare", phase="decode", base_phase="prefill")["layers"][0]
    assert (compared["divergence"], compared["reason"][: len(reason)]) == (None, reason)
    assert service.get("/v1/balance")["layers"][0]["over_ep_ranks"]["loads"] == [100, 20]


def test_a_window_after_the_capturer_was_upgraded_has_phases(service: Service) -> None:
    service.clock.now = AT + 10
    push(service, 0, phased=False)
    service.clock.now = AT + 20
    push(service, 0, epoch=EPOCH + 15 * 10**9)
    assert counts(service, phase="decode", start=AT + 10) == [[30, 0, 0, 0], [0, 0, 10, 20]]
    assert counts(service, phase="decode") == [None, None]
    assert service.get("/v1/trend", phase="decode", step=10, points=1)["tokens_per_second"] == [[1.5]]


def test_an_idle_window_is_idle_in_both_phases(service: Service) -> None:
    service.clock.now = AT + 10
    push(service, 0)
    service.clock.now = AT + 30
    layer = service.get("/v1/histogram", phase="decode", start=AT + 20)["layers"][0]
    assert layer["reason"] == "idle: no tokens in the window"
    assert service.client.get("/v1/view", params={"phase": "both"}).status_code == 422
