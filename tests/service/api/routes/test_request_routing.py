"""The routing of a request, joined from the traces of prefill, decode, attempts and cached prefixes."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet
import pytest

from moescope.capture.wire.traces import TakenOver
from tests.service.conftest import Service
from tests.service.disaggregated import DECODE, LOADED, PREFILL, PROMPT, TRUTH, push, some
from tests.service.trace_parts import LAYERS, experts_of, part


@pytest.fixture
def service(start_service: Callable[..., Service], store_setting: str) -> Service:
    return start_service(store=store_setting)


def routing(service: Service, name: str = "x", **params: Any) -> dict[str, Any]:
    return service.get(f"/v1/requests/{name}/routing", **params)


def expected(positions: Sequence[tuple[int, int]], end: int = 60, first: int = 0) -> np.ndarray:
    """The array of an answer that has the truth at some positions, and -1 at the others."""
    array = np.full((end, 2, 4), -1)
    for begin, stop in positions:
        array[begin:stop, 0, :2], array[begin:stop, 1] = TRUTH[0][begin:stop], TRUTH[1][begin:stop]
    return array[first:]


def assert_has(answer: dict[str, Any], positions: Sequence[tuple[int, int]], end: int = 60) -> None:
    np.testing.assert_array_equal(np.array(answer["routed_experts"]), expected(positions, end))
    computed = np.array(answer["times_computed"]) > 0
    assert computed.tolist() == (expected(positions, end)[:, 1, 0] >= 0).tolist()


def parts(answer: dict[str, Any]) -> list[tuple[str, str, list[list[int]], str]]:
    return [(item["kind"], item["server"], item["positions"], item["unused"]) for item in answer["parts"]]


def missing(answer: dict[str, Any]) -> list[tuple[int, int, str, str]]:
    return [(item["first"], item["end"], item["why"], item["request_id"]) for item in answer["missing"]]


def problem(service: Service, status: int, name: str = "x", **params: Any) -> dict[str, Any]:
    response = service.client.get(f"/v1/requests/{name}/routing", params=params)
    assert response.status_code == status, response.text
    found: dict[str, Any] = response.json()
    return found


def test_prefill_and_decode_are_one(service: Service) -> None:
    """The decode instance loads all but the last token of the prompt, which both compute."""
    push(service, some(1, 0, 40, who=PREFILL, ended_s=9))  # its clock is ahead
    push(service, some(2, 39, 60, who=DECODE, cached_tokens=39, taken_over=LOADED, ended_s=2))
    answer = routing(service)
    assert_has(answer, [(0, 60)])
    assert parts(answer) == [("main", "d", [[39, 60]], ""), ("same_id", "p", [[0, 39]], "")]
    assert [item["role"] for item in answer["parts"]] == ["decode", "prefill"]
    assert answer["missing"] == []
    assert (answer["request_id"], answer["server"]) == ("cmpl-x-0-00000002", "d")
    of_decode = routing(service, server="d")
    assert_has(of_decode, [(39, 60)])
    assert missing(of_decode) == [(0, 39, "kv_transfer", "")]
    by_internal_id = routing(service, "cmpl-x-0-00000001")
    assert_has(by_internal_id, [(0, 40)], end=40)


def test_a_cached_prefix_is_that_of_the_request_that_computed_it(service: Service) -> None:
    push(service, some(1, 0, 20, name="first"), some(2, 16, 50, name="second"))
    taken = [
        TakenOver(0, 16, "cmpl-first-0-00000001"),
        TakenOver(16, 8, "cmpl-second-0-00000002"),
        TakenOver(24, 8, "", "not_traced"),
    ]
    push(service, some(3, 32, 60, cached_tokens=32, taken_over=taken))
    answer = routing(service)
    assert_has(answer, [(0, 24), (32, 60)])
    assert parts(answer) == [
        ("main", "prod", [[32, 60]], ""),
        ("taken_over", "prod", [[0, 16]], ""),
        ("taken_over", "prod", [[16, 24]], ""),
    ]
    assert missing(answer) == [(24, 32, "not_traced", "")]


def test_only_the_same_rank_is_meant_by_a_reference(service: Service) -> None:
    push(service, some(1, 0, 20, name="first", who={"dp_rank": 1, "dp_size": 2}))
    taken = [TakenOver(0, 20, "cmpl-first-0-00000001")]
    push(service, some(3, 20, 60, cached_tokens=20, taken_over=taken, who={"dp_size": 2}))
    answer = routing(service)
    assert_has(answer, [(20, 60)])
    assert missing(answer) == [(0, 20, "not_kept", "cmpl-first-0-00000001")]


def test_a_prefix_whose_trace_has_expired_is_missing_and_said(
    start_service: Callable[..., Service], store_setting: str
) -> None:
    service = start_service(store=store_setting, keep_traces_s=1000, maintenance_s=0.2)
    push(service, some(1, 0, 20, name="first"))
    service.clock.now += 900
    taken = [TakenOver(0, 20, "cmpl-first-0-00000001")]
    push(service, some(2, 20, 60, cached_tokens=20, taken_over=taken))
    assert_has(routing(service), [(0, 60)])
    service.clock.now += 500
    push(service, some(3, 0, 1, name="other"))
    gone = [(0, 20, "expired", "cmpl-first-0-00000001")]
    deadline = time.monotonic() + 60
    # The writer's thread removes it after its next write; who asks at that moment is told to ask again.
    while (asked := service.client.get("/v1/requests/x/routing")).status_code == 503 or (
        missing(asked.json()) != gone
    ):
        assert time.monotonic() < deadline, asked.text
        time.sleep(0.05)
    answer = routing(service)
    assert_has(answer, [(20, 60)])


def test_the_account_of_an_id_over_instances_when_one_is_killed(service: Service) -> None:
    """The prefill instance dies between two parts of its trace; started anew it sends nothing more of it."""
    first = some(1, 0, 20, who=PREFILL, parts=2)
    decode = some(2, 39, 60, who=DECODE, cached_tokens=39, taken_over=LOADED, ended_s=2)
    push(service, decode)
    assert routing(service)["absent"] is None
    push(service, first)
    answer = routing(service)
    assert (answer["absent"], missing(answer)) == ("incomplete", [(0, 39, "kv_transfer", "")])
    push(service, some(1, 20, 40, who=PREFILL, parts=2, part=1))
    answer = routing(service)
    assert_has(answer, [(0, 60)])
    assert answer["absent"] is None
    told = [(item["tokens"], item["missing_stages"], item["missing_tokens"]) for item in answer["parts"]]
    assert told == [(21, 0, 0), (40, 0, 0)]


def test_the_account_of_an_id_whose_other_trace_has_expired(
    start_service: Callable[..., Service], store_setting: str
) -> None:
    service = start_service(store=store_setting, keep_traces_s=1000, maintenance_s=0.2)
    push(service, some(1, 0, 40, who=PREFILL))
    service.clock.now += 900
    push(service, some(2, 39, 60, who=DECODE, cached_tokens=39, taken_over=LOADED, ended_s=2))
    assert routing(service)["absent"] is None
    service.clock.now += 500
    push(service, some(3, 0, 1, name="other"))
    deadline = time.monotonic() + 60
    while (asked := service.client.get("/v1/requests/x/routing")).status_code == 503 or (
        asked.json()["absent"] != "expired"
    ):
        assert time.monotonic() < deadline, asked.text
        time.sleep(0.05)
    assert missing(routing(service)) == [(0, 39, "kv_transfer", "")]


def test_what_a_worker_of_a_part_did_not_bring_is_said_of_that_part(service: Service) -> None:
    """Two tensor-parallel workers of the prefill instance; one died with its half."""
    sharded = {**PREFILL, "tp_size": 2, "tp_rank": 0}
    push(service, some(1, 0, 20, who=sharded, started_step=3, computed_tokens=40))
    push(service, some(2, 39, 60, who=DECODE, cached_tokens=39, taken_over=LOADED, ended_s=2))
    answer = routing(service, end=40)
    assert [item["missing_tokens"] for item in answer["parts"]] == [0, 20]


def test_what_no_worker_tells_of_is_missing_too(service: Service) -> None:
    """An earlier moescope tells only how much was cached, and a worker's share may be lost."""
    push(service, some(1, 24, 60, cached_tokens=16))
    assert missing(routing(service)) == [(0, 16, "not_told", ""), (16, 24, "no_trace", "")]


def test_a_share_that_the_trace_of_another_lacks(service: Service) -> None:
    push(service, some(1, 8, 20, name="first"))
    taken = [TakenOver(0, 20, "cmpl-first-0-00000001")]
    push(service, some(2, 20, 60, cached_tokens=20, taken_over=taken))
    assert missing(routing(service)) == [(0, 8, "not_in_trace", "cmpl-first-0-00000001")]


def test_the_attempt_that_ended_well_wins_whole(service: Service) -> None:
    """Another attempt gives positions of the prompt only, though it generated more and ended later."""
    other = [np.concatenate([ids[:40], ids[40:][::-1]]) for ids in TRUTH]
    push(service, some(1, 0, 60, other, ended_s=9, finish_reason="abort", who={"server": "a"}))
    taken = [TakenOver(0, 16, "", "not_traced")]
    push(service, some(2, 16, 50, cached_tokens=16, taken_over=taken, finish_reason="stop"))
    answer = routing(service)
    assert_has(answer, [(0, 50)], end=50)
    assert parts(answer) == [("main", "prod", [[16, 50]], ""), ("same_id", "a", [[0, 16]], "")]
    assert [item["finish_reason"] for item in answer["parts"]] == ["stop", "abort"]


def test_an_attempt_that_is_not_needed_is_listed(service: Service) -> None:
    push(service, some(1, 0, 45, ended_s=1, who={"server": "a"}), some(2, 0, 60, ended_s=2))
    assert parts(routing(service)) == [("main", "prod", [[0, 60]], ""), ("same_id", "a", [], "not_needed")]


def test_an_attempt_whose_prompt_cannot_be_compared_gives_nothing(service: Service) -> None:
    push(service, some(1, 0, 16, finish_reason="abort", who={"server": "a"}))
    push(service, some(2, 16, 60, cached_tokens=16))
    answer = routing(service)
    assert_has(answer, [(16, 60)])
    assert parts(answer) == [("main", "prod", [[16, 60]], ""), ("same_id", "a", [], "nothing_shared")]


def test_requests_that_differ_are_never_mixed(service: Service) -> None:
    push(service, some(1, 0, 60, experts_of(8, 60), who={"server": "a"}), some(2, 39, 60))
    found = problem(service, 409)
    assert found["type"] == "urn:moescope:problem:several-requests"
    assert "cmpl-x-0-00000001 (server=a dp_rank=0)" in found["detail"]
    assert "cmpl-x-0-00000002 (server=prod dp_rank=0)" in found["detail"]
    assert_has(routing(service, server="prod"), [(39, 60)])
    assert_has(routing(service, "cmpl-x-0-00000002"), [(39, 60)])


def test_prompts_that_differ_at_their_end_only(service: Service) -> None:
    other = [
        np.concatenate([ids[:38], more[38:]]) for ids, more in zip(TRUTH, experts_of(9, 60), strict=True)
    ]
    push(service, some(1, 0, 60, other, who={"server": "a"}), some(2, 39, 60))
    assert "Their prompts differ" in problem(service, 409)["detail"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt_tokens": 41}, "lengths of the prompt"),
        ({"lora": "poet"}, "LoRA"),
        ({"who": {"model": "other"}}, "models"),
        ({"request_id": "cmpl-x-1-00000009"}, "prompts of a completion"),
    ],
)
def test_what_is_said_of_them_tells_requests_apart(
    service: Service, change: dict[str, Any], said: str
) -> None:
    made = part(1, tokens=60, experts=TRUTH, name="x", **{"prompt_tokens": PROMPT, **change})
    push(service, made, some(2, 0, 60))
    assert said in problem(service, 409)["detail"]


def test_samples(service: Service) -> None:
    """The prefill instance computes the prompt once, for all of them."""
    push(service, some(1, 0, 40, who=PREFILL))
    for sample in range(2):
        push(service, some(2 + sample, 39, 60 - sample, who=DECODE, request_id=f"{sample}_cmpl-x-0-0000000a"))
    found = problem(service, 409)
    assert "sample=0, sample=1" in found["detail"]
    for sample in range(2):
        answer = routing(service, sample=sample)
        assert answer["request_id"] == f"{sample}_cmpl-x-0-0000000a"
        assert_has(answer, [(0, 60 - sample)], end=60 - sample)
    assert problem(service, 404, sample=2)["type"] == "urn:moescope:problem:no-such-sample"
    assert_has(routing(service, "1_cmpl-x-0-0000000a"), [(39, 59)], end=59)


def test_a_stage_that_is_lost_is_taken_whole_from_another_part(service: Service) -> None:
    """Rows never have layers of two computations; what has some layers only is said."""
    stage = {"pp_size": 2}
    push(service, some(1, 0, 40, who={**PREFILL}))
    push(
        service,
        part(
            2,
            experts=[TRUTH[0][20:60]],
            layers=LAYERS[:1],
            runs=[(20, 40)],
            name="x",
            prompt_tokens=PROMPT,
            who={**DECODE, **stage},
        ),
    )
    answer = routing(service)
    assert parts(answer) == [("main", "d", [[40, 60]], ""), ("same_id", "p", [[0, 40]], "")]
    array = expected([(0, 60)])
    array[40:, 1] = -1
    np.testing.assert_array_equal(np.array(answer["routed_experts"]), array)
    [lost] = answer["missing"]
    assert (lost["first"], lost["end"], lost["why"], lost["layers"]) == (40, 60, "layers_missing", [3])
    assert routing(service, layer=1)["missing"] == []


def test_formats_ranges_layers_and_forms(service: Service) -> None:
    push(service, some(1, 0, 38, who=PREFILL), some(2, 36, 60, who=DECODE, cached_tokens=36))
    url = "/v1/requests/x/routing"
    whole = expected([(0, 60)])
    npz = np.load(io.BytesIO(service.client.get(f"{url}.npz").content))
    np.testing.assert_array_equal(npz["routed_experts"], whole)
    told = json.loads(str(npz["joined"]))
    answer = routing(service)
    assert (told["parts"], told["missing"]) == (answer["parts"], answer["missing"])
    raw = service.client.get(
        url, params={"first": 30, "end": 44, "layer": 3}, headers={"accept": "application/octet-stream"}
    )
    np.testing.assert_array_equal(np.frombuffer(raw.content, "<i2").reshape(14, 1, 4), whole[30:44, 1:])
    assert (raw.headers["x-moescope-parts"], raw.headers["x-moescope-missing"]) == ("2", "")
    table = pyarrow.parquet.read_table(io.BytesIO(service.client.get(f"{url}.parquet").content)).to_pydict()
    assert table["layer_3"] == whole[:, 1].tolist()
    vllm = np.load(
        io.BytesIO(service.client.get(f"{url}.npz", params={"form": "vllm", "decoder_layers": 5}).content)
    )
    assert vllm["routed_experts"].shape == (60, 5, 4)
    np.testing.assert_array_equal(vllm["routed_experts"][:, 3], whole[:, 1])
    part_of_it = routing(service, first=37, end=39)
    assert [item["positions"] for item in part_of_it["parts"]] == [[[37, 39]], []]
    assert problem(service, 404, layer=2)["type"] == "urn:moescope:problem:no-such-layer"
    assert problem(service, 422, limit=2)["type"] == "urn:moescope:problem:unknown-parameter"


def test_a_hole_is_refused_by_the_form_that_cannot_say_it(service: Service) -> None:
    push(service, some(2, 36, 60, who=DECODE, cached_tokens=36))
    assert "0-35" in problem(service, 409, form="vllm", decoder_layers=5)["detail"]
    params = {"form": "vllm", "decoder_layers": 5, "missing": "zero"}
    response = service.client.get("/v1/requests/x/routing", params=params)
    assert response.headers["x-moescope-missing"] == "0-35"


def test_an_id_with_a_slash_and_a_dot(service: Service) -> None:
    push(service, some(1, 0, 60, name="team/run.npz"))
    assert_has(routing(service, "team/run.npz"), [(0, 60)])
    response = service.client.get("/v1/requests/team/run.npz/routing.raw")
    assert response.headers["x-moescope-shape"] == "60,2,4"


def test_nothing_is_there(service: Service) -> None:
    assert "wasn't sampled" in problem(service, 404)["detail"]


def test_too_many_of_one_id(service: Service) -> None:
    push(service, *(some(n, 0, 2, who={"server": f"s{n}"}) for n in range(1, 34)))
    assert "32 can be joined at most" in problem(service, 409)["detail"]


def test_an_absurd_position_is_no_absurd_answer(service: Service) -> None:
    push(service, part(1, name="x", runs=[(2**39, 10)]))
    assert problem(service, 400)["type"] == "urn:moescope:problem:too-many-positions"
    answer: httpx.Response = service.client.get("/v1/requests/x/routing", params={"first": 2**39})
    assert len(answer.json()["routed_experts"]) == 10


def test_an_internal_id_that_came_again_is_the_newest(service: Service) -> None:
    """vLLM without random suffixes; the two have nothing in common but the id."""
    for trace, truth in ((1, experts_of(8, 60)), (2, TRUTH)):
        push(service, some(trace, 0, 60, truth, ended_s=trace, request_id="cmpl-x-0"))
    assert_has(routing(service, "cmpl-x-0"), [(0, 60)])
    assert "Their prompts differ" in problem(service, 409)["detail"]


def test_a_stage_that_no_trace_has_is_no_dense_layer(service: Service) -> None:
    lost = part(
        2,
        experts=[TRUTH[0]],
        layers=LAYERS[:1],
        runs=[(0, 60)],
        name="x",
        prompt_tokens=PROMPT,
        who={"pp_size": 2},
    )
    push(service, lost)
    assert missing(routing(service)) == [(0, 60, "stages_missing", "cmpl-x-0-00000002")]
    assert routing(service, layer=1)["missing"] == []
    vllm = {"form": "vllm", "decoder_layers": 5}
    for params in ({}, {"layer": 3}, {"layer": [1, 3]}):
        found = problem(service, 409, **vllm, **params)
        assert found["type"] == "urn:moescope:problem:trace-incomplete"
    assert len(routing(service, **vllm, layer=1)["routed_experts"]) == 60
    response = service.client.get("/v1/requests/x/routing", params={**vllm, "missing": "zero"})
    assert response.headers["x-moescope-missing"] == "0-59"


def test_an_end_that_a_worker_has_not_brought_is_refused_by_vllms_form(service: Service) -> None:
    # The other tensor-parallel worker had the last two positions.
    push(service, some(1, 0, 58, who={"tp_size": 2}, computed_tokens=60, started_step=7))
    vllm = {"form": "vllm", "decoder_layers": 5}
    assert "2 tokens are missing" in problem(service, 409, **vllm)["detail"]
    assert len(routing(service, **vllm, end=58)["routed_experts"]) == 58
    npz = np.load(io.BytesIO(service.client.get("/v1/requests/x/routing.npz").content))
    assert json.loads(str(npz["joined"]))["missing_tokens"] == 2
