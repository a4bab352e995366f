"""The OpenAPI document says what the service really answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from moescope.capture import wire
from tests.service.conftest import Service
from tests.service.frames import frame, halves, producer


def _push_both(service: Service) -> None:
    """Two ranks; layer 1 was never seen, layer 5 can't be, and rank 1 is idle."""
    for dp_rank, slots in ((0, 40), (1, 0)):
        who = producer(dp_rank=dp_rank, ep_rank=dp_rank, dp_size=2, ep_size=2)
        uncovered = [wire.UncoveredLayer(5, "monolithic kernel")]
        counts = {0: [slots, slots], 1: [0, 0]}
        made = frame(counts, who=who, placement=halves(2, 2), uncovered=uncovered, drops={"late": 1})
        assert service.push(made).status_code == 200


def _resolve(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        found: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return found
    return schema


def _check(value: Any, schema: dict[str, Any], document: dict[str, Any], at: str) -> None:
    """The value has exactly the properties that the schema names, of the types that it names."""
    schema = _resolve(schema, document)
    options = schema.get("anyOf", [schema])
    if value is None:
        assert {"type": "null"} in options, at
        return
    schemas = [_resolve(option, document) for option in options if option != {"type": "null"}]
    named = [
        item for item in schemas if isinstance(value, dict) and set(value) == set(item.get("properties", ()))
    ]
    schema = (named or schemas)[0]
    if schema.get("type") == "array":
        for i, item in enumerate(value):
            _check(item, schema["items"], document, f"{at}[{i}]")
    elif "properties" in schema:
        assert set(value) == set(schema["properties"]), at
        for name, inner in schema["properties"].items():
            _check(value[name], inner, document, f"{at}.{name}")
    elif schema.get("type") == "integer":
        assert isinstance(value, int), at
    elif schema.get("type") == "number":
        assert isinstance(value, (int, float)), at
    elif schema.get("type") == "string":
        assert isinstance(value, str), at


@pytest.mark.parametrize(
    ("path", "params"),
    [
        ("/v1/ranks", {}),
        ("/v1/histogram", {}),
        ("/v1/balance", {}),
        ("/v1/advice/placement", {"min_tokens": 0}),
        ("/v1/advice/placement", {"min_tokens": 0, "form": "vllm-ascend"}),
        ("/healthz", {}),
        ("/readyz", {}),
    ],
)
def test_the_openapi_document_is_true(service: Service, path: str, params: dict[str, Any]) -> None:
    _push_both(service)
    document = service.get("/openapi.json")
    responses = document["paths"][path]["get"]["responses"]
    schema = responses["200"]["content"]["application/json"]["schema"]
    _check(service.get(path, **params), schema, document, path)
    assert all(
        "application/problem+json" in answer["content"] for code, answer in responses.items() if code != "200"
    )


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
    assert turned_away > 20
