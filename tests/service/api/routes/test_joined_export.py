"""GET /v1/traces/export?joined=true: whole requests, each once, as GET /v1/requests/{id}/routing has them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moescope.capture.wire.traces import TakenOver
from moescope.service.api.routes import trace_export
from moescope.service.api.schemas import export_whole
from tests.service.conftest import Service
from tests.service.disaggregated import DECODE, LOADED, PREFILL, TRUTH, push, some
from tests.service.trace_parts import experts_of


@pytest.fixture
def service(start_service: Callable[..., Service], store_setting: str) -> Service:
    return start_service(store=store_setting)


def lines(service: Service, **params: Any) -> list[dict[str, Any]]:
    answer = service.client.get("/v1/traces/export", params={"joined": True, **params})
    assert answer.status_code == 200, answer.text
    return [json.loads(line) for line in answer.text.splitlines()]


def disaggregated(service: Service, number: int = 1, name: str = "x", **fields: Any) -> None:
    """A request of a prefill and a decode instance, whose weights have other versions."""
    push(service, some(number, 0, 40, who=PREFILL, name=name, weights_version=7, **fields))
    decode: dict[str, Any] = {"cached_tokens": 39, "taken_over": LOADED, "weights_version": 3, **fields}
    push(service, some(number + 1, 39, 60, who=DECODE, name=name, ended_s=2, **decode))


def test_each_request_is_there_once_and_whole(service: Service) -> None:
    disaggregated(service, 1, "x")
    disaggregated(service, 3, "y")
    push(service, some(5, 0, 60, name="alone"))
    found = lines(service)
    assert [line["client_id"] for line in found] == ["alone", "y", "x"]
    for line in found:
        whole = service.get(f"/v1/requests/{line['client_id']}/routing")
        assert line["routed_experts"] == whole["routed_experts"]
        assert line["times_computed"] == whole["times_computed"]
        assert line["joined"] == {name: whole[name] for name in ("parts", "missing", "absent")}
        assert (line["request_id"], line["server"]) == (whole["request_id"], whole["server"])
    assert found[1]["weights"] == [
        {"version": 3, "first": 39, "end": 60},
        {"version": 7, "first": 0, "end": 39},
    ]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables(service: Service, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_export, "_positions", lambda *_: lambda _: 25)  # a request in several pieces
    disaggregated(service, 1, "x")
    push(service, some(4, 20, 60, name="y", cached_tokens=20))
    answer = service.client.get(
        "/v1/traces/export", params={"joined": True, "format": kind, "columns": "packed"}
    )
    assert answer.status_code == 200, answer.text
    content = answer.content
    found: Any = (
        pq.read_table(io.BytesIO(content)) if kind == "parquet" else pa.ipc.open_stream(content).read_all()
    )
    assert found["client_id"].to_pylist() == ["y"] * 60 + ["x"] * 60
    assert found["times_computed"].to_pylist() == [0] * 20 + [1] * 100
    assert found["weights_version"].to_pylist() == [0] * 60 + [7] * 39 + [3] * 21
    told = [json.loads(str(text)) for text in found["joined"].to_pylist()]
    assert told[0]["missing"][0]["why"] == "not_told"
    for at in range(60, 120):
        assert [part["server"] for part in told[at]["parts"]] == ["d", "p"]
        packed = np.frombuffer(found["routed_experts"][at].as_py(), "<i2").reshape(2, 4)
        np.testing.assert_array_equal(packed[1], TRUTH[1][at - 60])


def test_filters_choose_main_traces(service: Service) -> None:
    """The other traces of a request are looked for wherever they are."""
    disaggregated(service)
    assert [line["times_computed"] for line in lines(service, server="d")] == [[1] * 60]
    assert lines(service, server="p") == []


def test_a_prefix_is_filled_from_another_request(service: Service) -> None:
    push(service, some(1, 0, 40, name="first"))
    push(service, some(2, 32, 60, cached_tokens=32, taken_over=[TakenOver(0, 32, "cmpl-first-0-00000001")]))
    second, first = lines(service)
    assert (second["times_computed"], first["client_id"]) == ([1] * 60, "first")
    assert [part["kind"] for part in second["joined"]["parts"]] == ["main", "taken_over"]


def test_samples_are_requests_of_their_own(service: Service) -> None:
    push(service, some(1, 0, 40, who=PREFILL))
    for sample in range(2):
        internal = f"{sample}_cmpl-x-0-0000000{sample + 5}"
        push(
            service,
            some(2 + sample, 39, 60, who=DECODE, request_id=internal, cached_tokens=39, taken_over=LOADED),
        )
    found = lines(service)
    assert [line["request_id"][0] for line in found] == ["1", "0"]
    assert [line["times_computed"] for line in found] == [[1] * 60] * 2


def test_a_request_whose_id_was_given_to_samples_later_is_not_silently_gone(service: Service) -> None:
    """It has no sample's number, as a prefill instance's trace, but generated tokens of its own."""
    push(service, some(1, 0, 60))
    for sample in range(2):
        push(service, some(2 + sample, 0, 60, request_id=f"{sample}_cmpl-x-0-0000000{sample + 5}", ended_s=2))
    *samples, earlier = lines(service)
    assert [line["request_id"][0] for line in samples] == ["1", "0"]
    assert "several samples" in earlier["left_out"]


def test_what_is_not_joined_is_said(service: Service) -> None:
    """An id that a client gave twice, to other prompts: nothing is mixed, and nothing is silently gone."""
    push(service, some(1, 0, 40))
    push(service, some(2, 0, 60, truth=experts_of(9, 60), ended_s=2))
    newer, older = lines(service)
    assert "prompts differ" in newer["left_out"]
    assert "prompts differ" in older["left_out"]
    push(service, some(3, 0, 30, name="z", ended_s=1), some(4, 30, 60, name="z", ended_s=2, cached_tokens=30))
    main, other = lines(service)[:2]
    assert main["times_computed"] == [0] * 30 + [1] * 30
    assert "not joined with it (nothing_shared)" in other["left_out"]


def test_vllms_form(service: Service) -> None:
    disaggregated(service)
    push(service, some(4, 20, 60, name="y", cached_tokens=20))
    y, x = lines(service, form="vllm", decoder_layers=4)
    assert "has no experts at positions 0-19" in y["left_out"]
    whole = service.get("/v1/requests/x/routing", form="vllm", decoder_layers=4)
    assert x["routed_experts"] == whole["routed_experts"]


def test_what_takes_too_much_is_left_out(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    disaggregated(service)
    monkeypatch.setattr(export_whole, "MAX_TOLD", 10)
    assert "too many runs" in lines(service)[0]["left_out"]
    monkeypatch.setattr(export_whole, "WHOLE_BYTES", 10)
    assert "too much memory" in lines(service)[0]["left_out"]
