"""A trace in vLLM's own shape: all decoder layers, its types, and no zero that only looks like data."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from moescope.capture.wire import MoeLayer, UncoveredLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TracePart, encode_part
from tests.service.conftest import Service
from tests.service.frames import frame, producer
from tests.service.trace_parts import experts_of, part


@pytest.fixture
def service(start_service: Callable[..., Service], tmp_path: Any) -> Service:
    return start_service(store=str(tmp_path / "store"))


def push(service: Service, *parts: TracePart) -> None:
    for made in parts:
        headers = {"content-type": TRACE_CONTENT_TYPE}
        answer = service.client.post("/v1/traces", content=encode_part(made), headers=headers)
        assert answer.status_code == 200, answer.text


def report(service: Service, depth: int, seq: int = 1, **fields: Any) -> None:
    made = frame(
        {1: [2] * 16, 3: [2] * 64}, seq=seq, rows=[16, 64], tokens=64, decoder_layers=depth, **fields
    )
    answer = service.push(made)
    assert answer.status_code == 200, answer.text


def vllm(service: Service, path: str = "x1.raw", **params: Any) -> httpx.Response:
    return service.client.get(f"/v1/traces/{path}", params={"form": "vllm", **params})


def array(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    shape = [int(size) for size in response.headers["x-moescope-shape"].split(",")]
    return np.frombuffer(response.content, response.headers["x-moescope-dtype"]).reshape(shape)


def problem(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    assert response.json()["type"] == f"urn:moescope:problem:{kind}"
    return str(response.json()["detail"])


def expected(trace: int, tokens: int, depth: int) -> np.ndarray:
    one, three = experts_of(trace, tokens)
    made = np.zeros((tokens, depth, 4), np.uint8)
    made[:, 1, :2], made[:, 3] = one, three
    return made


def test_the_depth_is_what_the_workers_say_or_what_the_question_says(service: Service) -> None:
    push(service, part(1, tokens=9))
    assert "Give decoder_layers" in problem(vllm(service), 409, "unknown-depth")
    np.testing.assert_array_equal(array(vllm(service, decoder_layers=4)), expected(1, 9, 4))
    assert "tell 3" in problem(vllm(service, decoder_layers=3), 409, "unknown-depth")
    report(service, 6)
    found = vllm(service)
    np.testing.assert_array_equal(array(found), expected(1, 9, 6))
    assert found.headers["x-moescope-dtype"] == "|u1"
    assert found.headers["x-moescope-zero-layers"] == "0,2,4,5"
    assert found.headers["x-moescope-missing"] == ""


def test_every_format_has_the_same_numbers(service: Service) -> None:
    push(service, part(1, tokens=9))
    report(service, 5)
    wanted = expected(1, 9, 5)
    npz = np.load(io.BytesIO(vllm(service, "x1.npz").content))
    np.testing.assert_array_equal(npz["routed_experts"], wanted)
    assert npz["routed_experts"].dtype == np.uint8
    assert (npz["layers"].tolist(), npz["num_experts"].tolist()) == ([0, 1, 2, 3, 4], [0, 16, 0, 64, 0])
    np.testing.assert_array_equal(np.array(vllm(service, "x1.json").json()["routed_experts"]), wanted)
    table = pa.ipc.open_stream(vllm(service, "x1.arrow").content).read_all()
    for layer in range(5):
        assert table[f"layer_{layer}"].to_pylist() == wanted[:, layer].tolist()


def test_ranges_of_positions_and_layers(service: Service) -> None:
    push(service, part(1, tokens=9))
    report(service, 5)
    wanted = expected(1, 9, 5)
    np.testing.assert_array_equal(array(vllm(service, first=2, end=5)), wanted[2:5])
    np.testing.assert_array_equal(array(vllm(service, layer=[3, 2])), wanted[:, 2:4])
    np.testing.assert_array_equal(array(vllm(service, layer=0)), wanted[:, :1])
    problem(vllm(service, layer=5), 404, "no-such-layer")


def test_more_than_256_experts_take_two_bytes(service: Service) -> None:
    many = [MoeLayer(0, 300, 2)]
    ids = [np.array([[299, 0], [256, 255]], np.uint16)]
    push(service, part(1, tokens=2, experts=ids, layers=many, id_bytes=2))
    found = vllm(service, decoder_layers=1)
    assert found.headers["x-moescope-dtype"] == "<u2"
    assert array(found)[:, 0].tolist() == [[299, 0], [256, 255]]


def test_what_is_missing_is_said_and_never_zero_without_being_asked_for(service: Service) -> None:
    push(service, part(1, tokens=6, runs=[(3, 4), (9, 2)], cached_tokens=3))
    report(service, 4)
    assert "positions 0-2,7-8" in problem(vllm(service), 409, "positions-missing")
    np.testing.assert_array_equal(array(vllm(service, first=3, end=7)), expected(1, 6, 4)[:4])
    zero = vllm(service, missing="zero")
    assert zero.headers["x-moescope-missing"] == "0-2,7-8"
    assert not array(zero)[[0, 1, 2, 7, 8]].any()
    np.testing.assert_array_equal(array(zero)[[3, 4, 5, 6, 9, 10]], expected(1, 6, 4))


def test_a_position_that_only_some_layers_computed_is_missing(service: Service) -> None:
    # Two pipeline stages, the second of which lost its last position.
    experts = experts_of(1, 5)
    stages = [{"pp_size": 2, "pp_rank": rank} for rank in range(2)]
    push(
        service,
        part(1, 5, experts[:1], layers=[MoeLayer(1, 16, 2)], who=stages[0]),
        part(1, 4, [experts[1][:4]], layers=[MoeLayer(3, 64, 4)], who=stages[1]),
    )
    assert "positions 4:" in problem(vllm(service, decoder_layers=4), 409, "positions-missing")


def test_a_layer_that_nobody_saw_is_no_dense_layer(service: Service) -> None:
    push(service, part(1, tokens=3))
    report(service, 4, uncovered=[UncoveredLayer(2, "a monolithic kernel")])
    assert "layer 2 uncovered: a monolithic kernel" in problem(vllm(service), 409, "layers-missing")
    assert array(vllm(service, missing="zero")).shape == (3, 4, 4)


def test_a_layer_whose_worker_sent_no_trace_is_no_dense_layer(service: Service) -> None:
    push(service, part(1, 3, experts_of(1, 3)[:1], layers=[MoeLayer(1, 16, 2)], who={"pp_size": 2}))
    report(service, 4)
    assert "layer 3 not in this trace" in problem(vllm(service), 409, "layers-missing")
    np.testing.assert_array_equal(array(vllm(service, layer=[0, 1]))[:, 1, :2], experts_of(1, 3)[0])
    assert not array(vllm(service, missing="zero"))[:, 3].any()


def test_a_trace_that_a_worker_has_not_brought_whole_is_refused(service: Service) -> None:
    # The other tensor-parallel worker had the last two of its five tokens.
    push(service, part(1, tokens=3, who={"tp_size": 2}, computed_tokens=5, started_step=7))
    said = problem(vllm(service, decoder_layers=4), 409, "trace-incomplete")
    assert "0 pipeline stages and 2 tokens are missing" in said
    assert array(vllm(service, decoder_layers=4, missing="zero")).shape == (3, 4, 4)
    answer = service.client.get("/v1/traces/export", params={"form": "vllm", "decoder_layers": 4})
    assert "2 tokens are missing" in json.loads(answer.text)["left_out"]


def test_a_stage_that_is_missing_is_refused_before_any_frame_came(service: Service) -> None:
    push(service, part(1, 3, experts_of(1, 3)[:1], layers=[MoeLayer(1, 16, 2)], who={"pp_size": 2}))
    for layers in (None, [3], [1, 3]):
        found = vllm(service, decoder_layers=4, layer=layers or [])
        assert "1 pipeline stages" in problem(found, 409, "trace-incomplete")
    assert array(vllm(service, decoder_layers=4, layer=1)).shape == (3, 1, 2)


def test_layers_of_another_deployment_are_not_its_own(service: Service) -> None:
    push(service, part(1, tokens=3))
    report(service, 4)
    report(service, 9, who=producer(server="other"), uncovered=[UncoveredLayer(2, "a monolithic kernel")])
    assert array(vllm(service)).shape == (3, 4, 4)


def test_a_masked_slot_ends_the_answer(service: Service) -> None:
    ids = [np.array([[3, 0xFFFF]], np.uint16)]
    push(service, part(1, tokens=1, experts=ids, layers=[MoeLayer(0, 16, 2)], id_bytes=2))
    assert "masked a slot" in problem(vllm(service, decoder_layers=1), 503, "store-failed")


def test_the_other_form_takes_none_of_it(service: Service) -> None:
    push(service, part(1, tokens=3))
    for params in ({"missing": "zero"}, {"decoder_layers": 4}):
        problem(service.client.get("/v1/traces/x1", params=params), 400, "wrong-form")
