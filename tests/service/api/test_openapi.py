"""The OpenAPI document says what the service really answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from moescope.capture import wire
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, encode_part
from moescope.service.live.past import Remembered
from moescope.service.store.records import StoreError
from tests.service.api.schema_check import check
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer
from tests.service.trace_parts import part

SERIES = {"start": "-20s", "step": "10s"}
ANSWERS: list[tuple[str, str, dict[str, Any]]] = [
    ("/healthz", "/healthz", {}),
    ("/readyz", "/readyz", {}),
    ("/v1/advice", "/v1/advice", {"min_tokens": 0}),
    ("/v1/advice", "/v1/advice", {"min_tokens": 1 << 40}),
    ("/v1/advice/placement", "/v1/advice/placement", {"min_tokens": 0}),
    ("/v1/advice/placement", "/v1/advice/placement", {"strategy": "linear"}),
    ("/v1/advice/rearrangements", "/v1/advice/rearrangements", {}),
    ("/v1/balance", "/v1/balance", {}),
    ("/v1/balance", "/v1/balance", {"phase": "decode"}),
    ("/v1/baselines", "/v1/baselines", {}),
    ("/v1/baselines/{name}", "/v1/baselines/default", {}),
    ("/v1/coactivation", "/v1/coactivation", {"layer": 3, "min_tokens": 1}),
    ("/v1/compare", "/v1/compare", {"base_start": "-1h", "base_end": "now"}),
    ("/v1/drift", "/v1/drift", {"baseline": "default", "min_tokens": 0}),
    ("/v1/histogram", "/v1/histogram", {}),
    ("/v1/histogram", "/v1/histogram", {**SERIES, "phase": "prefill"}),
    ("/v1/placement", "/v1/placement", {}),
    ("/v1/placement", "/v1/placement", {"form": "tables"}),
    ("/v1/pools", "/v1/pools", {}),
    ("/v1/pools/{pool}", "/v1/pools/chat", {}),
    ("/v1/ranks", "/v1/ranks", {}),
    ("/v1/requests/concentrated", "/v1/requests/concentrated", {}),
    ("/v1/requests/histogram", "/v1/requests/histogram", {}),
    ("/v1/requests/similar", "/v1/requests/similar", {"like": "x1"}),
    ("/v1/requests/unusual", "/v1/requests/unusual", {}),
    ("/v1/requests/{request_id}/routing", "/v1/requests/x1/routing", {}),
    ("/v1/requests/{request_id}/routing.{suffix}", "/v1/requests/x1/routing.json", {}),
    ("/v1/stragglers", "/v1/stragglers", SERIES),
    ("/v1/traces", "/v1/traces", {"limit": 1}),
    ("/v1/traces/{request_id}", "/v1/traces/x1", {}),
    ("/v1/trend", "/v1/trend", {"points": 3}),
    ("/v1/verdict", "/v1/verdict", {}),
    ("/v1/view", "/v1/view", {}),
    ("/v1/view", "/v1/view", {"parts": ["ep_ranks", "hot"]}),
    ("/v1/view", "/v1/view", {"parts": ["counts", "flows", "owners"], "phase": "decode"}),
]
"""(path in the document, path asked for, parameters), each with an answer of 200."""


def _push_both(service: Service) -> None:
    """Two ranks; layer 1 was never seen, layer 5 can't be, and rank 1 is idle."""
    loads = wire.pack_step_loads(0, 1, np.array([0]), np.array([[[30, 10], [0, 0]]]), 4)
    for dp_rank, slots in ((0, 40), (1, 0)):
        made = frame(
            {0: [slots, slots], 1: [0, 0]},
            who=producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2, pool="chat"),
            placement=halves(2, 2),
            uncovered=[wire.UncoveredLayer(5, "monolithic kernel")],
            absent=[wire.UncoveredLayer(7, "not found")],
            absent_unnamed="others are not found",
            drops={"steps_lost": 1},
            decode={0: [slots // 2, slots // 2], 1: [0, 0]},
            traces={"captured": 1},
            step_loads=loads if slots else None,
        )
        assert service.push(made).status_code == 200


def _push_part(service: Service, trace: int) -> httpx.Response:
    return service.client.post(
        "/v1/traces", content=encode_part(part(trace)), headers={"content-type": TRACE_CONTENT_TYPE}
    )


@pytest.fixture
def full(start_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A service that has something to say on every path."""
    service = start_service(min_tokens=1, store=str(tmp_path / "store"))
    _push_both(service)
    service.clock.now += 5
    for trace in (1, 2):
        assert _push_part(service, trace).status_code == 200
    assert service.client.post("/v1/baselines", json={}).status_code == 201
    return service


@pytest.fixture(scope="module")
def documents() -> list[dict[str, Any]]:
    """Those that were asked for so far."""
    return []


@pytest.fixture
def document(full: Service, documents: list[dict[str, Any]]) -> dict[str, Any]:
    """The same of each such service, so the first one's: it takes longer to make than any answer."""
    if not documents:
        documents.append(full.get("/openapi.json"))
    return documents[0]


@pytest.mark.parametrize(("path", "asked", "params"), ANSWERS)
def test_answers_are_as_the_document_says(
    full: Service, document: dict[str, Any], path: str, asked: str, params: dict[str, Any]
) -> None:
    response = full.client.get(asked, params=params)
    assert response.status_code == 200, response.text
    check(document, path, response)


def test_a_failing_store_is_as_the_document_says(
    full: Service, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise StoreError("the disk can't be read.")

    for name in ("improve", "improve_all"):
        monkeypatch.setattr(f"moescope.service.live.walk.{name}", fail)
    monkeypatch.setattr(Remembered, "wants", lambda *_: True)
    monkeypatch.setattr("moescope.service.store.sqlite.store.SqliteStore.traced_requests", fail)
    failed = set()
    for path, asked, params in ANSWERS:
        response = full.client.get(asked, params=params)
        check(document, path, response)
        if response.status_code == 503:
            failed.add(path)
    assert {"/v1/histogram", "/v1/view", "/v1/trend", "/v1/traces"} <= failed


def test_what_is_sent_is_answered_as_the_document_says(full: Service, document: dict[str, Any]) -> None:
    check(document, "/v1/ingest", full.push(frame({0: [2, 2]}, who=producer(server="b"))))
    check(document, "/v1/ingest", full.push_bytes(b"x"))
    check(document, "/v1/traces", _push_part(full, 3))
    check(document, "/v1/baselines", full.client.post("/v1/baselines", json={"server": "prod"}))
    check(document, "/v1/baselines", full.client.post("/v1/baselines", json={"server": 1}))


def test_no_json_answer_is_left_out(document: dict[str, Any]) -> None:
    described = {
        path
        for path, operations in document["paths"].items()
        if "get" in operations and "application/json" in operations["get"]["responses"]["200"]["content"]
    }
    assert described == {path for path, _, _ in ANSWERS}


def test_every_error_is_a_problem_document(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for code, answer in operation["responses"].items():
                if not code.startswith("2"):
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, code)


def test_objects_whose_properties_are_named_allow_no_others(document: dict[str, Any]) -> None:
    objects = [item for item in _nodes(document) if isinstance(item.get("properties"), dict)]
    assert len(objects) > 40
    assert [item for item in objects if item.get("additionalProperties", False)] == []


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _nodes(item)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "boolean"}, 1),
        ({"type": "integer"}, 1.0),
        ({"type": "integer"}, True),
        ({"type": "string", "enum": ["a"]}, "b"),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": "1"}),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, {}),
        ({"type": "object", "properties": {"a": {"type": "integer"}}}, {"a": 1, "b": 2}),
        ({"anyOf": [{"type": "integer"}, {"type": "string"}]}, None),
    ],
)
def test_the_check_finds_what_breaks_a_schema(schema: dict[str, Any], value: Any) -> None:
    content = {"application/json": {"schema": schema}}
    made = {"paths": {"/x": {"get": {"responses": {"200": {"content": content}}}}}, "components": {}}
    response = httpx.Response(
        200,
        content=json.dumps(value),
        headers={"content-type": "application/json"},
        request=httpx.Request("GET", "http://x/x"),
    )
    with pytest.raises(AssertionError, match="breaks its schema"):
        check(made, "/x", response)


def test_the_openapi_document_refers_to_nothing_that_is_not_there(service: Service) -> None:
    response = service.client.get("/openapi.json")
    names = set(re.findall(r"#/components/schemas/(\w+)", response.text))
    assert names
    assert names <= set(response.json()["components"]["schemas"])
    body = response.json()["paths"]["/v1/ingest"]["post"]["requestBody"]["content"]
    assert list(body) == [wire.CONTENT_TYPE]
    assert service.client.get("/docs").status_code == 200


def test_the_openapi_document_has_the_guards_answers(start_service: Callable[..., Service]) -> None:
    service = start_service(token="a-token-of-this-test")
    known = {"Authorization": "Bearer a-token-of-this-test"}
    paths = service.client.get("/openapi.json", headers=known).json()["paths"]
    turned_away = 0
    for path, operations in paths.items():
        for method, operation in operations.items():
            answer = service.client.request(method, re.sub(r"{\w+}", "x", path))
            turned_away += answer.status_code == 401
            assert answer.status_code != 401 or {"401", "403"} <= set(operation["responses"]), (method, path)
            # What the document says of tokens is what the service does without one.
            assert (answer.status_code == 401) == bool(operation.get("security")), (method, path)
    assert turned_away > 20


def test_the_openapi_document_names_the_ways_to_show_a_token(start_service: Callable[..., Service]) -> None:
    service = start_service(token="a-token-of-this-test", open_read=True)
    document = service.get("/openapi.json")
    assert sorted(document["components"]["securitySchemes"]) == ["bearer", "session"]
    assert "security" not in document["paths"]["/v1/balance"]["get"]
    assert document["paths"]["/v1/ingest"]["post"]["security"] == [{"bearer": []}]
    known = start_service(token="a-token-of-this-test")
    headers = {"Authorization": "Bearer a-token-of-this-test"}
    paths = known.client.get("/openapi.json", headers=headers).json()["paths"]
    assert paths["/v1/balance"]["get"]["security"] == [{"bearer": []}, {"session": []}]


@pytest.mark.parametrize(
    ("method", "path", "sent"),
    [
        ("GET", "/v1/balance?windw=1", {}),
        ("GET", "/v1/live?x=1", {}),
        ("GET", "/v1/ranks", {"json": {}}),
        ("POST", "/v1/session", {"json": {}}),
        ("POST", "/v1/baselines", {"content": b"{}"}),
        ("POST", "/v1/baselines", {"content": b"{", "headers": {"content-type": "application/json"}}),
        ("POST", "/v1/ingest?x=1", {}),
    ],
)
def test_what_is_refused_before_the_route_is_in_the_document(
    service: Service, method: str, path: str, sent: dict[str, Any]
) -> None:
    answer = service.client.request(method, path, **sent)
    assert answer.status_code >= 400
    operation = service.get("/openapi.json")["paths"][path.partition("?")[0]][method.lower()]
    assert str(answer.status_code) in operation["responses"]
