"""GET /v1/traces/export: all formats have the numbers of the single traces, and what is left out is said."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.api.routes import trace_export
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces import export as exporting
from tests.service.conftest import Clock, Service
from tests.service.frames import frame
from tests.service.trace_parts import experts_of, part


@pytest.fixture
def service(start_service: Callable[..., Service], store_setting: str) -> Service:
    return start_service(store=store_setting)


def push(service: Service, *parts: Any) -> None:
    for made in parts:
        headers = {"content-type": TRACE_CONTENT_TYPE}
        answer = service.client.post("/v1/traces", content=encode_part(made), headers=headers)
        assert answer.status_code == 200, answer.text


def export(service: Service, **params: Any) -> httpx.Response:
    answer = service.client.get("/v1/traces/export", params=params)
    assert answer.status_code == 200, answer.text
    return answer


def lines(service: Service, **params: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export(service, **params).text.splitlines()]


def table(service: Service, kind: str, **params: Any) -> pa.Table:
    content = export(service, format=kind, **params).content
    if kind == "parquet":
        return pq.read_table(io.BytesIO(content))
    return pa.ipc.open_stream(content).read_all()


def names(rows: list[dict[str, Any]]) -> list[str]:
    return [row["client_id"] for row in rows]


def test_lines_are_what_each_trace_is_newest_first(service: Service) -> None:
    push(service, *(part(n, tokens=5 + n) for n in range(1, 4)))
    answer = export(service)
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert (answer.headers["x-moescope-requests"], answer.headers["x-moescope-tokens"]) == ("3", "21")
    assert answer.headers["x-moescope-next-cursor"] == ""
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert names(found) == ["x3", "x2", "x1"]
    for line in found:
        one = service.get(f"/v1/traces/{line['client_id']}")
        assert line.pop("last") is True
        for name in ("cursor", "client_id"):
            assert isinstance(line.pop(name), str)
        assert line == {name: one[name] for name in line}
        assert line["routed_experts"] == one["routed_experts"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
@pytest.mark.parametrize("columns", ["layers", "packed"])
def test_tables_have_a_row_a_position(service: Service, kind: str, columns: str) -> None:
    push(service, part(1, tokens=4, runs=[(2, 4)], cached_tokens=2), part(2, tokens=7))
    found = table(service, kind, columns=columns)
    assert found["client_id"].to_pylist() == ["x2"] * 7 + ["x1"] * 6
    assert found["position"].to_pylist() == [*range(7), *range(6)]
    assert found["times_computed"].to_pylist() == [1] * 7 + [0, 0, 1, 1, 1, 1]
    assert found["left_out"].null_count == 13
    assert {str(each) for each in found["server"].to_pylist()} == {"prod"}
    assert found["stored_at"][0].as_py().timestamp() == pytest.approx(service.clock.now)
    one = [np.load(io.BytesIO(service.client.get(f"/v1/traces/x{n}.npz").content)) for n in (2, 1)]
    expected = np.concatenate([each["routed_experts"] for each in one])
    if columns == "packed":
        packed = found["routed_experts"].to_pylist()
        assert packed[7:9] == [None, None]
        for at in [*range(7), *range(9, 13)]:
            np.testing.assert_array_equal(np.frombuffer(packed[at], "<i2").reshape(2, 4), expected[at])
        metadata = found.schema.metadata
        assert metadata[b"moescope.layers"] == b"1,3"
        assert metadata[b"moescope.dtype"] == b"<i2"
        return
    for at, (layer, top_k) in enumerate(((1, 2), (3, 4))):
        values = found[f"layer_{layer}"].to_pylist()
        assert values[7:9] == [None, None]
        assert [each for each in values if each is not None] == expected[
            [*range(7), *range(9, 13)], at, :top_k
        ].tolist()


def test_pages_lead_on_and_are_not_moved_by_what_arrives(service: Service) -> None:
    push(service, *(part(n) for n in range(1, 6)))
    first = export(service, limit=2)
    cursor = first.headers["x-moescope-next-cursor"]
    assert json.loads(first.text.splitlines()[-1])["cursor"] == cursor
    push(service, part(6))
    seen, pages = names([json.loads(line) for line in first.text.splitlines()]), 1
    while cursor:
        answer = export(service, limit=2, cursor=cursor)
        seen += names([json.loads(line) for line in answer.text.splitlines()])
        cursor, pages = answer.headers["x-moescope-next-cursor"], pages + 1
    assert (seen, pages) == (["x5", "x4", "x3", "x2", "x1"], 3)


def test_filters(service: Service, clock: Clock) -> None:
    push(service, part(1), part(2, who={"server": "other"}), part(3, tokens=20))
    clock.now += 100
    push(service, part(4, who={"model": "large", "dp_rank": 1, "dp_size": 2}))
    push(service, part(5, lora="adapter", who={"server": "third", "model": "third"}))
    for params, expected in (
        ({"server": "other"}, ["x2"]),
        ({"model": "tiny"}, ["x3", "x2", "x1"]),
        ({"dp_rank": 1}, ["x4"]),
        ({"min_tokens": 11}, ["x3"]),
        ({"start": "-50s"}, ["x5", "x4"]),
        ({"end": "-50s", "server": "prod"}, ["x3", "x1"]),
        ({"lora": "none"}, ["x4", "x3", "x2", "x1"]),
        ({"lora": "adapter"}, ["x5"]),
        ({"lora": "other"}, []),
        ({"server": "nobody"}, []),
    ):
        assert names(lines(service, **params)) == expected, params
    several = service.client.get("/v1/traces/export", params={"format": "arrow"})
    assert several.status_code == 409
    assert "model=large, model=third, model=tiny" in several.json()["detail"]
    assert table(service, "arrow", model="large").num_rows == 10


@pytest.mark.parametrize("kind", ["ndjson", "arrow", "parquet"])
def test_nothing_is_an_answer_too(service: Service, kind: str) -> None:
    if kind == "ndjson":
        assert export(service).content == b""
    else:
        assert table(service, kind).num_rows == 0


def test_layers_are_chosen(service: Service) -> None:
    push(service, part(1))
    [line] = lines(service, layer=3)
    assert line["layers"] == [3]
    np.testing.assert_array_equal(np.array(line["routed_experts"])[:, 0], experts_of(1, 10)[1])
    assert "layer_1" not in table(service, "arrow", layer=3).column_names


def test_vllms_shape(service: Service) -> None:
    push(service, part(1), part(2, tokens=4, runs=[(2, 4)], cached_tokens=2))
    service.push(frame({1: [2] * 16, 3: [2] * 64}, rows=[16, 64], tokens=64, decoder_layers=5))
    found = table(service, "arrow", form="vllm", columns="packed")
    assert found["client_id"].to_pylist() == ["x2"] + ["x1"] * 10
    assert "positions 0-1" in found["left_out"][0].as_py()
    assert found["routed_experts"][0].as_py() is None
    ids = np.frombuffer(b"".join(found["routed_experts"].to_pylist()[1:]), np.uint8).reshape(10, 5, 4)
    one = service.client.get("/v1/traces/x1.raw", params={"form": "vllm"})
    np.testing.assert_array_equal(ids, np.frombuffer(one.content, np.uint8).reshape(10, 5, 4))
    zero = table(service, "parquet", form="vllm", missing="zero")
    assert zero["left_out"].null_count == 16
    assert zero["layer_0"].to_pylist() == [[0] * 4] * 16


def test_a_trace_of_another_shape_is_left_out_of_a_table_and_said(service: Service) -> None:
    other = [MoeLayer(1, 16, 2), MoeLayer(9, 64, 4)]
    push(service, part(1))
    push(service, *(part(n, layers=other) for n in range(2, 20)))
    push(service, part(20))
    found = table(service, "arrow", columns="layers")
    why = dict(zip(found["client_id"].to_pylist(), found["left_out"].to_pylist(), strict=True))
    assert len(why) == 20
    assert {name for name, text in why.items() if text is not None} == set()
    assert found["layer_9"].null_count == 20
    push(service, part(21, layers=[MoeLayer(1, 16, 4)]))
    found = table(service, "arrow")
    assert set(found["left_out"].to_pylist()) - {None} != set()
    assert all("choose server and model" in text for text in set(found["left_out"].to_pylist()) - {None})


def test_a_trace_that_vanishes_or_breaks_is_said_and_ends_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(service, *(part(n) for n in range(1, 5)))
    whole, broken = exporting.choose, WorkerTrace.read
    gone = service.get("/v1/traces", request_id="x3")["traces"][0]["request_id"]

    def choose(*arguments: Any) -> Any:
        chosen = whole(*arguments)
        numbers = np.insert(chosen.numbers, 1, chosen.numbers[0])  # what had a number and has none now
        numbers[0] += 1000
        return exporting.Chosen(numbers, chosen.tokens, chosen.models, chosen.next_before)

    def read(trace: WorkerTrace, start: int, end: int) -> Any:
        if trace.runs[0, 1] and (broken(trace, start, end)[0] == experts_of(3, 10)[0]).all():
            raise StoreError(f"{gone} is damaged")
        return broken(trace, start, end)

    monkeypatch.setattr(trace_export, "choose", choose)
    monkeypatch.setattr(WorkerTrace, "read", read)
    found = lines(service)
    assert [line.get("client_id") for line in found] == [None, "x4", "x3", "x2", "x1"]
    assert "was removed before it was read" in found[0]["left_out"]
    assert found[2]["left_out"] == f"{gone} is damaged"
    assert "routed_experts" not in found[2]
    rows = table(service, "parquet")
    assert rows.num_rows == 32
    assert rows["client_id"].to_pylist()[0] is None
    said = [line["left_out"] for line in (found[0], found[2])]
    assert [text for text in rows["left_out"].to_pylist() if text] == said


def test_requests_that_cannot_be_read_together_are_read_one_by_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a page of the file that has rows of one of them is damaged."""
    push(service, *(part(n) for n in range(1, 5)))
    whole = lines(service)

    def traces_of(*_: Any) -> Any:
        raise StoreError("database disk image is malformed")

    monkeypatch.setattr(SqliteStore, "traces_of", traces_of)
    assert lines(service) == whole
    assert len(whole) == 4


def test_a_long_trace_is_several_pieces(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace_export, "line_positions", lambda _: 4)
    push(service, part(1), part(2, tokens=4))
    found = lines(service)
    assert [(line["client_id"], line["first_position"], line["last"]) for line in found] == [
        ("x2", 0, True),
        ("x1", 0, False),
        ("x1", 4, False),
        ("x1", 8, True),
    ]
    joined = np.concatenate([line["routed_experts"] for line in found[1:]])
    assert joined.tolist() == service.get("/v1/traces/x1")["routed_experts"]


def test_wrong_questions_are_explained(service: Service) -> None:
    for params, status, said in (
        ({"columns": "packed"}, 400, "needs a table"),
        ({"missing": "zero"}, 400, "belong to form=vllm"),
        ({"cursor": "x"}, 400, "next_cursor"),
        ({"limit": 10_001}, 422, "limit"),
        ({"format": "csv"}, 422, "format"),
        ({"first": 3}, 422, "first"),
    ):
        answer = service.client.get("/v1/traces/export", params=params)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["detail"]
