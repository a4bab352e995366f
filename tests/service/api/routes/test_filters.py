"""Filters that several routes take: what each leaves is what the histogram and balance of that part say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from tests.service.conftest import Service
from tests.service.frames import EPOCH, frame, halves, placement, producer
from tests.service.trace_parts import part

AT = EPOCH / 1e9
COUNTS = [
    {3: [600, 200, 200, 0], 4: [100, 200, 300, 400]},
    {3: [0, 0, 400, 1600], 4: [500, 500, 500, 500]},
]
"""Of each DP rank: layer to slots by expert, a second's worth."""


def _push(service: Service, seconds: int, at: float = 0.0) -> None:
    for second in range(1, seconds + 1):
        service.clock.now = AT + at + second
        for dp_rank, counts in enumerate(COUNTS):
            made = frame(
                {layer: [second * slots for slots in values] for layer, values in counts.items()},
                who=producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2),
                seq=second,
                after_s=at + second,
                placement=halves(4, 2),
            )
            assert service.push(made).status_code == 200


def test_balance_of_one_dp_rank_is_where_its_tokens_went(service: Service) -> None:
    _push(service, 1)
    answer = service.get("/v1/balance", dp_rank=1, layer=3)
    assert (answer["dp_rank"], answer["tokens"], answer["dp_ranks"]) == (1, 1000, [1])
    [layer] = answer["layers"]
    assert layer["over_ep_ranks"]["loads"] == [0, 2000]
    assert layer["over_experts"]["loads"] == COUNTS[1][3]
    assert "fewer than two DP ranks" in layer["over_dp_ranks"]["reason"]
    assert service.get("/v1/balance")["dp_rank"] is None
    assert service.client.get("/v1/balance", params={"dp_rank": 2}).status_code == 404


def test_the_view_of_some_layers(service: Service) -> None:
    _push(service, 1)
    parts = ["counts", "owners", "flows"]
    view = service.get("/v1/view", layer=4, parts=parts)
    assert [layer["layer"] for layer in view["layers"]] == [4]
    assert view["counts"] == [[600, 700, 800, 900]]
    assert view["owners"] == [[0, 0, 1, 1]]
    assert view["flows"] == [[300, 700], [1000, 1000]]
    assert view["over_ep_ranks"] == service.get("/v1/view")["over_ep_ranks"]
    other = service.get("/v1/view", layer=4, flow_layer=3, parts=parts)
    assert other["flows"] == [[800, 200], [0, 2000]]
    assert service.get("/v1/view", min_tokens=1 << 40)["over_ep_ranks"]["worst"] is None
    assert service.client.get("/v1/view", params={"layer": 9}).status_code == 404


def test_the_trend_of_a_rank_a_layer_and_a_window(service: Service) -> None:
    _push(service, 20)
    start, end = AT + 4, AT + 12
    trend = service.get("/v1/trend", start=start, end=end, step="2s")
    assert (trend["step"], trend["at"]) == (2.0, [AT + at for at in (6, 8, 10, 12)])
    assert trend["tokens_per_second"] == [[500.0] * 4, [1000.0] * 4]
    one = service.get("/v1/trend", start=start, end=end, step=2, dp_rank=1, layer=3)
    assert (one["dp_rank"], one["dp_ranks"], one["tokens_per_second"]) == (1, [1], [[1000.0] * 4])
    balance = service.get("/v1/balance", start=start, end=end, dp_rank=1, layer=3)
    ratio = balance["layers"][0]["over_ep_ranks"]["measures"]["imbalance_ratio"]
    assert (one["worst"], one["worst_layer"]) == ([ratio] * 4, [3] * 4)
    both = service.get("/v1/trend", start=start, end=end, step=2, layer=[3, 4])
    assert both["worst"] == trend["worst"]


@pytest.mark.parametrize(
    ("params", "status", "words"),
    [
        ({"start": "-1h", "points": 3}, 422, "start or points"),
        ({"start": "-1d", "step": "1s"}, 400, "86400 intervals"),
        ({"step": "0.5s"}, 400, "step is '0.5s'"),
        ({"step": "2d"}, 400, "step is '2d'"),
        ({"step": "soon"}, 400, "step is 'soon'"),
        ({"layer": 9}, 404, "no layer [9]"),
        ({"dp_rank": 9}, 404, "no DP rank [9]"),
    ],
)
def test_a_trend_that_cannot_be(service: Service, params: dict[str, Any], status: int, words: str) -> None:
    _push(service, 1)
    answer = service.client.get("/v1/trend", params=params)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text


def test_two_dp_ranks_are_compared(service: Service) -> None:
    _push(service, 1)
    answer = service.get("/v1/compare", dp_rank=0, base_dp_rank=1, layer=4)
    [layer] = answer["layers"]
    shares = [np.array(counts[4]) / sum(counts[4]) for counts in COUNTS]
    assert layer["difference"] == pytest.approx((shares[0] - shares[1]).tolist())
    assert (answer["side"]["tokens"], answer["base"]["tokens"]) == (500, 1000)
    same = service.get("/v1/compare", dp_rank=0, base_start=0)
    assert [layer["divergence"] for layer in same["layers"]] == [0, 0]
    assert service.client.get("/v1/compare", params={"layer": 9}).status_code == 404


def test_drift_of_some_layers_and_of_one_rank(service: Service) -> None:
    _push(service, 20)
    whole = service.get("/v1/drift", start="-5s")
    one = service.get("/v1/drift", start="-5s", layer=4, dp_rank=1)
    assert one["tokens"] == 5000
    assert [(layer["layer"], layer["tokens"]) for layer in one["layers"]] == [(4, 5000)]
    assert [layer["layer"] for layer in whole["layers"]] == [3, 4]
    assert service.client.post("/v1/baselines", json={"name": "a"}).status_code == 201
    refused = service.client.get("/v1/drift", params={"baseline": "a", "dp_rank": 1})
    assert (refused.status_code, "pinned of the whole" in refused.json()["detail"]) == (422, True)
    assert service.client.get("/v1/drift", params={"layer": 9}).status_code == 404


def test_ranks_of_one_dp_rank(service: Service) -> None:
    _push(service, 1)
    [deployment] = service.get("/v1/ranks", dp_rank=1)["deployments"]
    assert [rank["dp_rank"] for rank in deployment["dp_ranks"]] == [1]
    assert deployment["missing_dp_ranks"] == []


def test_rearrangements_of_a_window(service: Service) -> None:
    for second, version in ((10, 1), (30, 2), (60, 3)):
        service.clock.now = AT + second
        moved = placement(range(4), [version % 2, 0, 1, 1 - version % 2], layers=1, version=version)
        made = frame({3: [100 * second] * 4}, who=producer(ep_size=2), seq=second, placement=moved)
        assert service.push(made).status_code == 200

    def asked(**params: Any) -> list[int]:
        found = service.get("/v1/advice/rearrangements", **params)["rearrangements"]
        return [item["version"] for item in found]

    assert asked() == [3, 2]
    assert asked(start=AT + 40) == [3]
    assert asked(end=AT + 40) == [2]
    assert asked(start=AT + 40, end=AT + 50) == []


@pytest.fixture
def traced(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """One request that a prefill and a decode deployment traced, and two of one id on one DP rank."""
    service = start_service(store=str(tmp_path / "store"))
    for server, dp_rank, trace, name in (
        ("prefill", 0, 1, "one"),
        ("decode", 1, 2, "one"),
        ("decode", 0, 3, "same"),
        ("decode", 0, 4, "same"),
    ):
        who = {"server": server, "dp_rank": dp_rank, "dp_size": 2}
        body = encode_part(part(trace, name=name, who=who))
        answer = service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})
        assert answer.status_code == 200, answer.text
    return service


def test_two_traces_of_one_request_are_told_apart_by_their_server(traced: Service) -> None:
    answer = traced.client.get("/v1/traces/one")
    assert answer.status_code == 409
    assert "Choose one by server and dp_rank: server=decode" in answer.json()["detail"]
    assert "server=prefill model=tiny dp_rank=0" in answer.json()["detail"]
    for server in ("prefill", "decode"):
        assert traced.get("/v1/traces/one", server=server)["server"] == server
        assert traced.client.get(f"/v1/traces/one.npz?server={server}").status_code == 200
    assert traced.get("/v1/traces/one", dp_rank=1)["server"] == "decode"
    gone = traced.client.get("/v1/traces/one", params={"server": "other"})
    assert (gone.status_code, "of server 'other'" in gone.json()["detail"]) == (404, True)


def test_traces_that_no_filter_tells_apart_are_named_by_their_ids(traced: Service) -> None:
    answer = traced.client.get("/v1/traces/same", params={"server": "decode"})
    assert answer.status_code == 409
    assert "Ask for one of cmpl-same-0-00000004, cmpl-same-0-00000003." in answer.json()["detail"]


def test_coactivation_of_one_dp_rank(traced: Service) -> None:
    asked: dict[str, Any] = {"layer": 1, "server": "decode", "min_tokens": 1}
    made = frame({1: [10] * 16}, who=producer(server="decode"))
    assert traced.push(made).status_code == 200
    assert traced.get("/v1/coactivation", **asked)["traces"] == 3
    assert traced.get("/v1/coactivation", **asked, dp_rank=1)["traces"] == 1
