"""Real answers against the service's own OpenAPI document, by jsonschema, strictly.

The document leaves open whether an object may have more or fewer properties than it names. The service's
answers have all of them and no others, so both are faults here.
"""

from __future__ import annotations

import math
from typing import Any

import httpx
from jsonschema import Draft202012Validator
from jsonschema.validators import extend

JSON_TYPES = ("application/json", "application/problem+json")


def check(document: dict[str, Any], path: str, response: httpx.Response) -> None:
    """Fail unless the document describes this answer.

    Args:
        document: the OpenAPI document.
        path: the route's path as the document writes it, such as ``/v1/baselines/{name}``.
        response: what a request to this path got.
    """
    method = response.request.method.lower()
    described = document["paths"][path][method]["responses"]
    where = f"{method.upper()} {path} answered {response.status_code}"
    assert str(response.status_code) in described, f"{where}, which the document doesn't name"
    media_type = response.headers["content-type"].partition(";")[0]
    content = described[str(response.status_code)]["content"]
    assert media_type in content, f"{where} as {media_type}, which the document doesn't name"
    if media_type in JSON_TYPES:
        assert content[media_type], f"{where}: the document has no schema of it"
        faults = _faults(document, content[media_type]["schema"], response.json())
        assert not faults, f"{where}, which breaks its schema:\n" + "\n".join(faults[:20])


def _faults(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    whole = {**_strict(schema), "components": _strict(document["components"])}
    _Validator.check_schema(whole)
    return [f"{fault.json_path}: {fault.message}" for fault in _Validator(whole).iter_errors(value)]


def _strict(schema: Any) -> Any:
    """The schema, whose objects must have all properties that are named and no others."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    result = {name: _strict(item) for name, item in schema.items()}
    if result.get("type") == "object" and "properties" in result:
        result["required"] = list(result["properties"])
        result.setdefault("additionalProperties", False)
    return result


def _is_integer(_checker: object, value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(checker: object, value: Any) -> bool:
    return _is_integer(checker, value) or (isinstance(value, float) and math.isfinite(value))


# JSON Schema takes 1.0 for an integer, and Python's parser takes NaN, which is no JSON, for a number.
_TYPES = Draft202012Validator.TYPE_CHECKER.redefine_many({"integer": _is_integer, "number": _is_number})
_Validator = extend(Draft202012Validator, type_checker=_TYPES)
