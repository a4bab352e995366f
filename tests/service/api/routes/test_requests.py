"""Questions about many requests: what was planted among usual requests is found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.capture.wire import MoeLayer
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer
from tests.service.planted import TOKENS, USUAL, likelihoods, only, planted, send, send_usual, usual
from tests.service.trace_parts import part


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A service with usual requests."""
    made = start_service(store=tmp_path / "store", min_tokens=1)
    send_usual(made)
    return made


def names(answer: dict[str, Any]) -> list[str]:
    return [item["request"]["names"][-1] for item in answer["requests"]]


def place(service: Service, ep_size: int = 2, **fields: Any) -> None:
    """Tell where the experts are: the lower half on EP rank 0, the upper one on EP rank 1."""
    who = producer(ep_size=ep_size)
    made = frame({1: [2] * 16, 3: [2] * 16}, who=who, placement=halves(16, 2, ep_size), **fields)
    response = service.push(made)
    assert response.status_code == 200, response.text


def test_a_planted_request_is_the_most_unusual(service: Service) -> None:
    send(service, planted(100, only(4, 5, 6), name="odd"))
    answer = service.get("/v1/requests/unusual", limit=3)
    assert answer["model"] == "tiny"
    assert answer["compared"] == {
        "requests": USUAL + 1,
        "tokens": (USUAL + 1) * TOKENS,
        "left_out": 0,
        "truncated": False,
        "unreadable": 0,
    }
    assert names(answer)[0] == "odd"
    assert len(answer["requests"]) == 3
    first, second, third = answer["requests"]
    assert first["surprise_score"] > second["surprise_score"] >= third["surprise_score"]
    assert {item["expert"] for item in first["telling"]} <= {4, 5, 6}
    assert {item["layer"] for item in first["telling"]} == {1, 3}
    assert first["request"]["tokens"] == TOKENS


def test_the_histogram_is_that_of_the_requests_that_match(service: Service) -> None:
    """Among requests of its own kind only, what all of them do is not unusual."""
    for trace in range(101, 111):
        send(service, planted(trace, only(4, 5, 6), who={"server": "other"}))
    everywhere = service.get("/v1/requests/unusual", limit=10)
    assert {item["request"]["server"] for item in everywhere["requests"]} == {"other"}
    among = service.get("/v1/requests/unusual", server="other")
    assert among["compared"]["requests"] == 10
    assert max(abs(item["surprise_bits"] - np.log2(3)) for item in among["requests"]) < 0.1


def test_surprise_is_what_the_document_defines(service: Service) -> None:
    """Computed here from all experts that the traces have."""
    answer = service.get("/v1/requests/unusual", by="surprise_bits", limit=1000)
    counts = {}
    for trace in range(1, USUAL + 1):
        ids = np.array(service.get(f"/v1/traces/x{trace}")["routed_experts"])
        counts[f"x{trace}"] = np.array([np.bincount(ids[:, at].ravel(), minlength=16) for at in range(2)])
    window = sum(counts.values()) + 0.5
    bits = -np.log2(window / window.sum(axis=1, keepdims=True))
    wanted = {name: (found * bits).sum() / found.sum() for name, found in counts.items()}
    assert names(answer) == sorted(wanted, key=lambda name: -wanted[name])
    for item in answer["requests"]:
        assert item["surprise_bits"] == pytest.approx(wanted[item["request"]["names"][-1]])


def test_a_layer_and_a_window_of_time(service: Service) -> None:
    """In layer 3 the planted request is as usual as any."""
    odd, like = planted(100, only(4)), usual(2)
    odd.experts[1] = like.experts[1]
    send(service, odd)
    assert names(service.get("/v1/requests/unusual", layer=1))[0] == "x100"
    ranked = service.get("/v1/requests/unusual", layer=3, limit=1000)["requests"]
    scores = {item["request"]["names"][-1]: item["surprise_score"] for item in ranked}
    assert scores["x100"] == pytest.approx(scores["x2"])
    before = service.get("/v1/requests/unusual", end="-5s", limit=1000)
    assert before["compared"]["requests"] == USUAL - 4
    assert "x100" not in names(before)
    assert service.get("/v1/requests/unusual", min_tokens=TOKENS + 1)["requests"] == []


def test_what_comes_later_and_what_goes_is_heeded(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(store=tmp_path / "store")
    for trace in range(1, 10):
        send(service, usual(trace))
    assert service.get("/v1/requests/unusual")["compared"]["requests"] == 9
    send(service, planted(100, only(4, 6)))
    assert names(service.get("/v1/requests/unusual"))[0] == "x100"
    # Another worker's trace of the same request comes: it has more slots now.
    before = service.get("/v1/requests/unusual", limit=1)["requests"][0]
    send(service, planted(100, only(5, 7), who={"tp_rank": 1}))
    after = service.get("/v1/requests/unusual", limit=1)["requests"][0]
    assert (before["request"]["tokens"], after["request"]["tokens"]) == (TOKENS, 2 * TOKENS)
    assert {item["expert"] for item in before["telling"]} == {4, 6}
    assert {item["expert"] for item in after["telling"]} <= {4, 5, 6, 7}
    assert {item["expert"] for item in after["telling"]} & {5, 7}


def test_the_most_concentrated_on_an_ep_rank(service: Service) -> None:
    send(service, planted(100, only(9, 10, 12), name="high"))
    send(service, planted(101, only(0, 1, 2, 3, 4, 9), name="mostly-low"))
    missing = service.client.get("/v1/requests/concentrated")
    assert (missing.status_code, missing.json()["type"]) == (404, "urn:moescope:problem:no-deployments")
    place(service)
    answer = service.get("/v1/requests/concentrated", limit=2)
    assert (answer["server"], answer["model"], answer["ep_size"]) == ("prod", "tiny", 2)
    high, low = answer["requests"]
    assert names(answer) == ["high", "mostly-low"]
    assert (high["busiest_ep_rank"], high["busiest_ep_rank_share"]) == (1, 1)
    assert low["busiest_ep_rank"] == 0
    ids = np.array(service.get("/v1/traces/mostly-low")["routed_experts"])
    assert low["busiest_ep_rank_share"] == pytest.approx((ids < 8).mean())
    assert low["slots"] == ids.size
    assert answer["unplaced_layers"] == []
    one = service.get("/v1/requests/concentrated", limit=1, layer=3)["requests"][0]
    assert one["slots"] == ids.size // 2


def test_concentration_where_no_placement_is_known(service: Service) -> None:
    assert service.push(frame({1: [2] * 16, 3: [2] * 16})).status_code == 200
    response = service.client.get("/v1/requests/concentrated")
    assert (response.status_code, response.json()["type"]) == (404, "urn:moescope:problem:no-placement")
    assert "ep_size is 1" in response.json()["detail"]


def test_requests_from_before_the_present_placement_say_so(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service(store=tmp_path / "store", min_tokens=1)
    send(service, usual(1))
    place(service)
    service.clock.now += 10
    place(service, seq=2, after_s=11)
    ended = int(service.clock.now * 1e9)
    made = frame(
        {1: [3] * 16, 3: [3] * 16},
        who=producer(ep_size=2),
        seq=3,
        after_s=12,
        rows=[24, 24],
        placement=halves(16, 2, 2, version=2),
    )
    assert service.push(made).status_code == 200
    send(service, usual(2, started_at_ns=ended, ended_at_ns=ended + 10**9))
    found = service.get("/v1/requests/concentrated")["requests"]
    told = {item["request"]["names"][-1]: item["earlier_placement"] for item in found}
    assert told == {"x1": True, "x2": False}


def test_the_most_similar_are_of_the_same_kind(service: Service) -> None:
    answer = service.get("/v1/requests/similar", like="x7", limit=15)
    assert answer["like"]["names"][-1] == "x7"
    assert {int(name[1:]) % 2 for name in names(answer)} == {1}
    assert "x7" not in names(answer)
    assert len(names(answer)) == 15
    alike = [item["similarity"] for item in answer["requests"]]
    assert alike == sorted(alike, reverse=True)
    assert {item["layers"] for item in answer["requests"]} == {2}
    # A copy is as similar as can be.
    copy = usual(7)
    copy.trace, copy.request_id, copy.client_ids = 300, "cmpl-copy-0", ["copy"]
    send(service, copy)
    [first] = service.get("/v1/requests/similar", like="x7", limit=1)["requests"]
    assert first["request"]["request_id"] == "cmpl-copy-0"
    assert first["similarity"] == pytest.approx(1)


def test_an_internal_id_that_came_again_is_the_newest(service: Service) -> None:
    """Nothing could choose the older one."""
    for trace in (101, 102):
        send(service, usual(trace, request_id="again"))
    listed = service.get("/v1/traces", request_id="again")["traces"]
    assert [item["names"][-1] for item in listed] == ["x102", "x101"]
    answer = service.get("/v1/requests/similar", like="again", limit=1)
    assert answer["like"]["names"][-1] == "x102"


def test_a_request_that_several_have_must_be_chosen(service: Service) -> None:
    send(service, usual(1, who={"server": "decode"}))
    response = service.client.get("/v1/requests/similar", params={"like": "x1"})
    assert response.status_code == 409
    assert "like_server=decode" in response.json()["detail"]
    answer = service.get("/v1/requests/similar", like="x1", like_server="decode", limit=1)
    # The other trace of the same request.
    assert answer["requests"][0]["request"]["server"] == "prod"
    unknown = service.client.get("/v1/requests/similar", params={"like": "nobody"})
    assert (unknown.status_code, unknown.json()["type"]) == (404, "urn:moescope:problem:no-such-trace")
    other = service.client.get("/v1/requests/similar", params={"like": "x3", "model": "large"})
    assert other.status_code == 400


def test_a_request_that_two_models_have_is_chosen_by_model(service: Service) -> None:
    """One deployment may serve several models under one name."""
    send(service, usual(1, who={"model": "large"}))
    response = service.client.get("/v1/requests/similar", params={"like": "x1"})
    assert (response.status_code, "like_model=large" in response.json()["detail"]) == (409, True)
    answer = service.get("/v1/requests/similar", like="x1", like_model="tiny", limit=1)
    assert answer["like"]["model"] == "tiny"


def test_requests_of_a_pool_are_compared(service: Service) -> None:
    send(service, usual(100, who={"pool": "chat"}))
    send(service, usual(102, who={"pool": "chat"}))
    for route in ("unusual", "histogram"):
        compared = service.get(f"/v1/requests/{route}", pool="chat")["compared"]
        assert compared["requests"] == 2
    assert service.get("/v1/requests/histogram", pool="chat")["counted_tokens"] is None


def test_requests_of_one_model_are_compared(service: Service) -> None:
    send(service, usual(100, who={"model": "large"}))
    response = service.client.get("/v1/requests/unusual")
    assert (response.status_code, response.json()["type"]) == (400, "urn:moescope:problem:several-models")
    assert "large, tiny" in response.json()["detail"]
    assert names(service.get("/v1/requests/unusual", model="large")) == ["x100"]
    # The same name may stand for another model later: its layers are other ones, with a histogram apart.
    wide = part(101, tokens=5, layers=[MoeLayer(1, 64, 2)], who={"model": "large"})
    send(service, wide)
    found = service.get("/v1/requests/unusual", model="large", by="surprise_bits")["requests"]
    assert {item["request"]["names"][-1] for item in found} == {"x100", "x101"}
    assert max(item["surprise_bits"] for item in found) < 6


def test_unknown_layers_and_a_service_without_a_store(
    service: Service, start_service: Callable[..., Service]
) -> None:
    place(service)
    for path, params in (("unusual", {}), ("concentrated", {}), ("similar", {"like": "x1"})):
        response = service.client.get(f"/v1/requests/{path}", params={**params, "layer": 2})
        assert (response.status_code, response.json()["type"]) == (404, "urn:moescope:problem:no-such-layer")
        assert "[1, 3]" in response.json()["detail"]
        alone = start_service(store="none").client.get(f"/v1/requests/{path}", params=params)
        assert (alone.status_code, alone.json()["type"]) == (404, "urn:moescope:problem:no-store")


def test_lines_tell_how_far_it_is(service: Service) -> None:
    response = service.client.get("/v1/requests/unusual", headers={"accept": "application/x-ndjson"})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert lines[-1]["answer"] == service.get("/v1/requests/unusual")
    for line in lines[:-1]:
        assert 0 < line["progress"]["read"] < line["progress"]["total"] == USUAL
    wrong = service.client.get(
        "/v1/requests/unusual", params={"start": "later"}, headers={"accept": "application/x-ndjson"}
    )
    assert (wrong.status_code, wrong.json()["type"]) == (400, "urn:moescope:problem:bad-instant")


def test_what_does_not_fit_into_memory_is_said(start_service: Callable[..., Service], tmp_path: Path) -> None:
    """Each request takes a quarter of a mebibyte: of six the newest ones fit."""
    layers = [MoeLayer(n, 8192, 1) for n in range(31)]
    service = start_service(store=tmp_path / "store", request_counts_mib=1)
    rng = np.random.default_rng(0)
    began = service.clock.now
    for trace in range(1, 7):
        ids = [rng.integers(0, 8192, (3, 1)).astype("<u2") for _ in layers]
        send(service, part(trace, tokens=3, experts=ids, layers=layers, id_bytes=2))
        service.clock.now += 1
    answer = service.get("/v1/requests/unusual")
    assert (answer["compared"]["requests"], answer["compared"]["left_out"]) == (4, 2)
    assert sorted(names(answer)) == ["x3", "x4", "x5", "x6"]
    # Older ones take the place of newer ones that are not asked about.
    older = service.get("/v1/requests/unusual", end=str(began + 1))
    assert older["compared"]["left_out"] == 0
    assert sorted(names(older)) == ["x1", "x2"]


def test_likelihoods_of_both_kinds_differ() -> None:
    """The tests above rest on it."""
    assert abs(likelihoods(0) - likelihoods(1)).sum() / 2 > 0.2


def test_adapters_are_told_apart(service: Service) -> None:
    """Usual requests are of no adapter; the tokens of each adapter go to experts of its own."""
    for trace, lora, experts in (
        (101, "sql", (4, 5)),
        (102, "sql", (4, 5)),
        (103, "law", (8, 9)),
        (104, "x", (1, 2)),
    ):
        send(service, planted(trace, only(*experts), lora=lora))
    answer = service.get("/v1/requests/histogram", adapters=2, layer=3)
    assert (answer["model"], answer["compared"]["requests"]) == ("tiny", USUAL + 4)
    told = [(item["lora"], item["adapters"], item["requests"], item["tokens"]) for item in answer["adapters"]]
    assert told == [
        ("", 1, USUAL, USUAL * TOKENS),
        ("sql", 1, 2, 2 * TOKENS),
        ("law", 1, 1, TOKENS),
        (None, 1, 1, TOKENS),
    ]
    for item, experts in zip(answer["adapters"][1:], ((4, 5), (8, 9), (1, 2)), strict=True):
        [layer] = item["layers"]
        assert (layer["layer"], layer["top_k"], sum(layer["counts"])) == (3, 2, item["tokens"] * 2)
        assert tuple(np.flatnonzero(layer["counts"])) == experts
    # The histogram of all is that of the requests of no adapter and of all adapters together.
    base = service.get("/v1/requests/histogram", base=True)
    assert [item["lora"] for item in base["adapters"]] == [""]
    assert base["adapters"][0]["layers"][1] == answer["adapters"][0]["layers"][0]
    one = service.get("/v1/requests/histogram", lora="law")
    assert [(item["lora"], item["requests"]) for item in one["adapters"]] == [("law", 1)]
    assert sorted(names(service.get("/v1/requests/unusual", lora="sql"))) == ["x101", "x102"]
    assert "x101" not in names(service.get("/v1/requests/unusual", base=True, limit=1000))
    both = service.client.get("/v1/requests/unusual", params={"lora": "sql", "base": True})
    assert (both.status_code, both.json()["type"]) == (400, "urn:moescope:problem:lora-and-base")


def test_the_histogram_says_how_many_tokens_there_were(service: Service) -> None:
    assert service.get("/v1/requests/histogram")["counted_tokens"] is None
    place(service)
    answer = service.get("/v1/requests/histogram")
    assert answer["counted_tokens"] == 16
    assert service.get("/v1/requests/histogram", min_tokens=2)["counted_tokens"] is None


def test_a_histogram_of_too_many_counts_is_refused(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    layers = [MoeLayer(n, 8192, 1) for n in range(30)]
    service = start_service(store=tmp_path / "store")
    for trace in range(1, 6):
        ids = [np.full((1, 1), trace, "<u2") for _ in layers]
        made = part(trace, tokens=1, experts=ids, layers=layers, id_bytes=2, lora=f"a{trace}")
        send(service, made)
    response = service.client.get("/v1/requests/histogram")
    assert (response.status_code, response.json()["type"]) == (400, "urn:moescope:problem:too-many-numbers")
    few = service.get("/v1/requests/histogram", adapters=1)
    assert [(item["lora"], item["adapters"]) for item in few["adapters"]] == [("a1", 1), (None, 4)]
