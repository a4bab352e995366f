"""Traces over a real connection: in, listed, found by any id, in every format, sliced, joined, removed."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, encode_part
from moescope.service.api.schemas.trace_formats import TraceFormat
from tests.service.conftest import Service
from tests.service.frames import frame
from tests.service.trace_parts import LAYERS, experts_of, part


@pytest.fixture
def service(start_service: Callable[..., Service], store_setting: str) -> Service:
    return start_service(store=store_setting)


def post(service: Service, made: TracePart) -> httpx.Response:
    body = encode_part(made)
    return service.client.post("/v1/traces", content=body, headers={"content-type": TRACE_CONTENT_TYPE})


def push(service: Service, *parts: TracePart) -> None:
    for made in parts:
        response = post(service, made)
        assert response.status_code == 200, response.text


def problem(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return str(response.json()["type"]).removeprefix("urn:moescope:problem:")


def names(answer: dict[str, Any]) -> list[str]:
    return [trace["names"][-1] for trace in answer["traces"]]


def routed(service: Service, path: str, **params: Any) -> np.ndarray:
    return np.array(service.get(f"/v1/traces/{path}", **params)["routed_experts"])


def test_what_was_sent_is_answered_by_every_id(service: Service) -> None:
    push(service, part(1, tokens=2300), part(2))
    expected = experts_of(1, 2300)
    for name in ("x1", "cmpl-x1", "cmpl-x1-0", "cmpl-x1-0-00000001"):
        answer = service.get(f"/v1/traces/{name}")
        assert (answer["layers"], answer["top_k"], answer["num_experts"]) == ([1, 3], [2, 4], [16, 64])
        found = np.array(answer["routed_experts"])
        np.testing.assert_array_equal(found[:, 0, :2], expected[0])
        np.testing.assert_array_equal(found[:, 1], expected[1])
        assert (found[:, 0, 2:] == -1).all()  # layer 1 takes two experts only
        assert answer["times_computed"] == [1] * 2300
        assert (answer["request_id"], answer["tokens"]) == ("cmpl-x1-0-00000001", 2300)


def test_hits_are_missing_and_recomputed_positions_have_their_last(service: Service) -> None:
    experts = experts_of(1, 6)
    push(service, part(1, experts=experts, runs=[(2, 2), (0, 4)], cached_tokens=2, preemptions=1))
    push(service, part(2, experts=experts, runs=[(4, 6)], cached_tokens=4))
    again = service.get("/v1/traces/x1")
    assert again["times_computed"] == [1, 1, 2, 2]
    np.testing.assert_array_equal(np.array(again["routed_experts"])[:, 1], experts[1][2:6])
    hit = service.get("/v1/traces/x2")
    assert hit["times_computed"] == [0] * 4 + [1] * 6
    assert (np.array(hit["routed_experts"])[:4] == -1).all()
    assert hit["tokens"] == 6


def test_formats_by_suffix_and_by_accept_are_the_same(service: Service) -> None:
    push(service, part(1, runs=[(3, 10)], cached_tokens=3))
    expected = routed(service, "x1")
    assert expected.shape == (13, 2, 4)
    url = "/v1/traces/cmpl-x1"
    by_suffix = {kind: service.client.get(f"{url}.{kind}") for kind in TraceFormat}
    for kind, accept in (
        ("json", "application/json"),
        ("npz", "text/html, application/x-npz;q=0.9"),
        ("raw", "application/octet-stream"),
        ("parquet", "application/vnd.apache.parquet"),
        ("arrow", "application/vnd.apache.arrow.stream"),
    ):
        by_accept = service.client.get(url, headers={"accept": accept})
        assert by_accept.headers["content-type"] == by_suffix[kind].headers["content-type"]
        if kind != "npz":  # a zip has the time in it
            assert by_accept.content == by_suffix[kind].content
    npz = np.load(io.BytesIO(by_suffix["npz"].content))
    np.testing.assert_array_equal(npz["routed_experts"], expected)
    assert npz["times_computed"].tolist() == [0] * 3 + [1] * 10
    raw = by_suffix["raw"]
    shape = [int(size) for size in raw.headers["x-moescope-shape"].split(",")]
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<i2").reshape(shape), expected)
    assert raw.headers["x-moescope-layers"] == "1,3"
    table = pyarrow.parquet.read_table(io.BytesIO(by_suffix["parquet"].content)).to_pydict()
    assert table["position"] == list(range(13))
    assert table["layer_1"] == [None] * 3 + expected[3:, 0, :2].tolist()
    assert table["layer_3"] == [None] * 3 + expected[3:, 1].tolist()
    assert pyarrow.ipc.open_stream(by_suffix["arrow"].content).read_all().to_pydict() == table
    assert problem(service.client.get(url, headers={"accept": "text/html"}), 406) == "no-such-format"


def test_slices(service: Service) -> None:
    push(service, part(1, tokens=1500))
    whole = routed(service, "x1")
    answer = service.get("/v1/traces/x1", first=990, end=1010, layer=3)
    assert (answer["first_position"], answer["layers"]) == (990, [3])
    np.testing.assert_array_equal(np.array(answer["routed_experts"]), whole[990:1010, 1:])
    assert service.get("/v1/traces/x1", first=5000)["routed_experts"] == []
    response = service.client.get("/v1/traces/x1", params={"layer": 2})
    assert problem(response, 404) == "no-such-layer"


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("layers[1]", {"layers": LAYERS[:1]}),
        ("layers[0]", {"layers": [MoeLayer(1, 128, 2), LAYERS[1]]}),
        ("layers[1]", {"layers": [LAYERS[0], MoeLayer(3, 64, 5)]}),
        ("layers[0]", {"layers": [MoeLayer(2, 16, 2), LAYERS[1]]}),
        ("parts", {"parts": 3}),
        ("id_bytes", {"experts": [ids.astype(np.uint16) for ids in experts_of(1, 10)], "id_bytes": 2}),
    ],
)
def test_a_part_that_contradicts_its_trace_is_refused_and_harms_nothing(
    service: Service, field: str, change: dict[str, Any]
) -> None:
    push(service, part(1, part=0, parts=2))
    response = post(service, part(1, **{"part": 1, "parts": 2, **change}))
    assert problem(response, 409) == "contradicts"
    assert response.json()["detail"].startswith(f"{field}: ")
    assert service.push(frame({0: [1, 1]})).status_code == 200
    assert service.get("/v1/traces")["traces"] == []
    push(service, part(1, part=1, parts=2, runs=[(10, 10)]))
    expected = experts_of(1, 10)[1]
    np.testing.assert_array_equal(routed(service, "x1")[:, 1], np.concatenate([expected, expected]))
    assert problem(post(service, part(1, layers=LAYERS[:1])), 409) == "contradicts"
    assert routed(service, "x1").shape == (20, 2, 4)


def test_of_workers_that_contradict_each_other_the_first_is_believed(service: Service) -> None:
    push(service, part(1, who={"tp_size": 2}))
    other = [MoeLayer(1, 16, 3), MoeLayer(3, 32, 4)]
    push(service, part(1, who={"tp_size": 2, "tp_rank": 1}, layers=other, runs=[(10, 10)]))
    for kind in ("npz", "raw", "parquet", "arrow"):
        assert service.client.get(f"/v1/traces/x1.{kind}").status_code == 200
    answer = service.get("/v1/traces/x1")
    assert (answer["layers"], answer["top_k"], answer["num_experts"]) == ([1, 3], [2, 4], [16, 64])


def test_an_absurd_position_is_no_absurd_answer(service: Service) -> None:
    push(service, part(1, runs=[(2**39, 10)]))
    for kind in TraceFormat:
        response = service.client.get(f"/v1/traces/x1.{kind}")
        assert problem(response, 400) == "too-many-positions"
        assert "ask for fewer with first and end" in response.json()["detail"]
    answer = service.get("/v1/traces/x1", first=2**39)
    np.testing.assert_array_equal(np.array(answer["routed_experts"])[:, 1], experts_of(1, 10)[1])


def test_workers_of_one_request_make_one_trace(service: Service) -> None:
    """Two TP shards of tokens, and a pipeline stage with other layers, in any order."""
    stage = [MoeLayer(9, 16, 2)]
    push(
        service,
        part(1, tokens=4, runs=[(6, 4)], who={"tp_rank": 1, "tp_size": 2, "pp_size": 2}),
        part(1, tokens=10, layers=stage, who={"pp_rank": 1, "tp_size": 2, "pp_size": 2}),
        part(1, tokens=6, who={"tp_size": 2, "pp_size": 2}),
    )
    [entry] = service.get("/v1/traces")["traces"]
    assert entry["tokens"] == 10
    answer = service.get("/v1/traces/x1")
    assert answer["layers"] == [1, 3, 9]
    assert answer["times_computed"] == [1] * 10
    found = np.array(answer["routed_experts"])
    np.testing.assert_array_equal(found[:6, 1], experts_of(1, 6)[1])
    np.testing.assert_array_equal(found[6:, 1], experts_of(1, 4)[1])
    np.testing.assert_array_equal(found[:, 2, :2], experts_of(1, 10, stage)[0])


def test_what_another_worker_computed_again_after_a_preemption_is_the_last(service: Service) -> None:
    """Positions 2 and 3 were at the second TP worker in step 5, and at the first one in step 9."""
    again, before = experts_of(2, 2), experts_of(1, 4)
    steps = [np.array(numbers, "<i8").tobytes() for numbers in ([9, 10], [4, 4, 5, 5])]
    first, second = {"tp_size": 2}, {"tp_size": 2, "tp_rank": 1}
    push(service, part(1, experts=again, runs=[(2, 2)], who=first, steps=steps[0], started_step=4))
    push(service, part(1, experts=before, runs=[(0, 4)], who=second, steps=steps[1], started_step=4))
    expected = np.concatenate([before[1][:2], again[1]])
    np.testing.assert_array_equal(routed(service, "x1")[:, 1], expected)
    assert service.get("/v1/traces/x1")["times_computed"] == [1, 1, 2, 2]


def test_what_is_told_of_a_request_and_what_is_missing_of_it(service: Service) -> None:
    who = {"pp_size": 2, "tp_size": 2, "role": "decode", "pool": "chat"}
    push(service, part(1, who=who, computed_tokens=14, started_step=3, lora="sql", finish_reason="stop"))
    [listed] = service.get("/v1/traces")["traces"]
    for entry in (listed, service.get("/v1/traces/x1")):
        assert (entry["role"], entry["pool"]) == ("decode", "chat")
        assert (entry["lora"], entry["finish_reason"]) == ("sql", "stop")
        assert (entry["missing_stages"], entry["missing_tokens"]) == (1, 4)


def test_why_a_trace_is_not_there(service: Service) -> None:
    def why(name: str) -> str:
        response = service.client.get(f"/v1/traces/{name}")
        assert problem(response, 404) == "no-such-trace"
        return str(response.json()["detail"])

    push(service, part(1, part=0, parts=2))
    assert "parts of its trace came, others did not" in why("x1")
    assert "it wasn't sampled" in why("x2")
    assert "parts of" in why("x1.npz")


def test_an_id_that_vllm_gave_twice_finds_the_newest_request(service: Service) -> None:
    for trace in (1, 2):
        push(service, part(trace, name="x1", request_id="same", tokens=10 * trace))
    assert service.get("/v1/traces/x1")["tokens"] == 20
    np.testing.assert_array_equal(routed(service, "x1")[:, 1], experts_of(2, 20)[1])
    listed = service.get("/v1/traces", request_id="same")["traces"]
    assert [entry["tokens"] for entry in listed] == [20, 10]


def test_a_trace_in_parts_is_there_when_all_are_and_twice_is_once(service: Service) -> None:
    experts = experts_of(1, 30)
    parts = [
        part(1, experts=[ids[a:b] for ids in experts], runs=[(a, b - a)], part=i, parts=3)
        for i, (a, b) in enumerate([(0, 10), (10, 20), (20, 30)])
    ]
    push(service, parts[2], parts[0], parts[0])
    assert service.get("/v1/traces")["traces"] == []
    assert problem(service.client.get("/v1/traces/x1"), 404) == "no-such-trace"
    push(service, parts[1], parts[1], parts[2])
    [entry] = service.get("/v1/traces")["traces"]
    assert entry["tokens"] == 30
    np.testing.assert_array_equal(routed(service, "x1")[:, 1], experts[1])


def test_pages_are_newest_first_and_complete(service: Service) -> None:
    push(service, *(part(n) for n in range(1, 8)))
    first = service.get("/v1/traces", limit=3)
    assert names(first) == ["x7", "x6", "x5"]
    push(service, part(8))
    second = service.get("/v1/traces", limit=3, cursor=first["next_cursor"])
    third = service.get("/v1/traces", limit=3, cursor=second["next_cursor"])
    assert names(second) + names(third) == ["x4", "x3", "x2", "x1"]
    assert third["next_cursor"] is None
    assert service.get("/v1/traces", limit=8)["next_cursor"] is None


def test_filters(service: Service) -> None:
    push(service, part(1, tokens=5), part(2, tokens=50, who={"dp_rank": 1, "dp_size": 2}))
    service.clock.now += 100
    push(service, part(3, tokens=500, who={"model": "other"}))
    for query, expected in (
        ({"dp_rank": 1}, ["x2"]),
        ({"model": "tiny"}, ["x2", "x1"]),
        ({"server": "nobody"}, []),
        ({"min_tokens": 50}, ["x3", "x2"]),
        ({"request_id": "cmpl-x2"}, ["x2"]),
        ({"start": "-50s"}, ["x3"]),
        ({"end": "-50s", "min_tokens": 6}, ["x2"]),
    ):
        assert names(service.get("/v1/traces", **query)) == expected, query


def test_hits_of_an_expert(service: Service) -> None:
    push(service, *(part(n, tokens=3) for n in range(1, 20)))
    for layer_index, layer in enumerate(LAYERS):
        for expert in range(layer.num_experts):
            expected = [f"x{n}" for n in range(19, 0, -1) if expert in experts_of(n, 3)[layer_index]]
            assert names(service.get("/v1/traces", layer=layer.layer, expert=expert)) == expected
    assert names(service.get("/v1/traces", layer=1, expert=16)) == []
    assert names(service.get("/v1/traces", layer=2, expert=0)) == []


def test_an_id_of_several_requests(service: Service) -> None:
    push(service, part(1, name="same"), part(2, name="same"))
    response = service.client.get("/v1/traces/same")
    assert problem(response, 409) == "several-traces"
    assert "cmpl-same-0-00000001" in response.json()["detail"]
    assert names(service.get("/v1/traces", request_id="same")) == ["same", "same"]


def test_an_id_that_looks_like_a_path_or_a_format(service: Service) -> None:
    push(service, part(1, name="team/run.npz"))
    assert len(routed(service, "team/run.npz")) == 10
    assert service.client.get("/v1/traces/team/run.npz.raw").headers["x-moescope-shape"] == "10,2,4"


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/v1/traces?layer=1", 400, "half-a-hit"),
        ("/v1/traces?cursor=x", 400, "bad-cursor"),
        ("/v1/traces?limit=0", 422, "invalid-parameters"),
        ("/v1/traces/unknown", 404, "no-such-trace"),
    ],
)
def test_bad_questions(service: Service, path: str, status: int, kind: str) -> None:
    assert problem(service.client.get(path), status) == kind


def test_bad_bodies(service: Service) -> None:
    headers = {"content-type": TRACE_CONTENT_TYPE}
    response = service.client.post("/v1/traces", content=b"rubbish", headers=headers)
    assert problem(response, 400) == "malformed"
    assert problem(service.client.post("/v1/traces", content=b"", headers={}), 415) == "content-type"


def test_without_a_store(start_service: Callable[..., Service]) -> None:
    service = start_service()
    assert problem(post(service, part(1)), 409) == "no-store"
    assert problem(service.client.get("/v1/traces"), 404) == "no-store"


def test_the_token_guards_traces(start_service: Callable[..., Service], tmp_path: Path) -> None:
    service = start_service(store=tmp_path, token="hush")
    assert problem(post(service, part(1)), 401) == "unauthorized"


def test_ranks_show_the_account_of_traces(service: Service) -> None:
    service.push(frame({0: [2, 0]}, traces={"captured": 9, "delivered": 4, "dropped_buffer_full": 2}))
    [rank] = service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    assert rank["producers"][0]["traces"] == {
        "captured": 9,
        "delivered": 4,
        "dropped_buffer_full": 2,
        "in_flight": 3,
    }
