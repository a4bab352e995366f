"""Large answers as msgspec structs: they are quick to encode, and OpenAPI describes them too."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Response

from moescope.service.api.params.query import Bounds
from moescope.service.api.schemas.windows import words_of
from moescope.service.windows.window import ModelWindow


class CompactSpan(msgspec.Struct):
    """Earliest and latest instant among the producers, Unix seconds."""

    earliest: float
    latest: float


class CompactWindow(msgspec.Struct):
    """The window asked for (null: open) and the one answered, Unix seconds on the service's clock."""

    start: float | None
    end: float | None
    used_start: CompactSpan
    used_end: CompactSpan
    truncated: bool
    weights: str | None


class CompactAbsent(msgspec.Struct):
    """MoE layers that the model's config has and that were not found; layer null: it isn't known which."""

    layer: int | None
    reason: str


class CompactUncovered(msgspec.Struct):
    """An MoE layer whose routing can't be seen."""

    layer: int
    reason: str


def compact_absent(absent: Mapping[int | None, str]) -> list[CompactAbsent]:
    """Layers that the model's config has and that were not found, to the reason."""
    return [CompactAbsent(layer, reason) for layer, reason in absent.items()]


def window_of(window: ModelWindow, bounds: Bounds) -> CompactWindow:
    """What was asked and what was used."""
    used = window.used
    return CompactWindow(
        start=bounds.start,
        end=bounds.end,
        used_start=CompactSpan(used.start_earliest, used.start_latest),
        used_end=CompactSpan(used.end_earliest, used.end_latest),
        truncated=used.truncated,
        weights=words_of(bounds.moved, window.weights),
    )


def answer(value: msgspec.Struct) -> Response:
    """The struct as JSON; none of its values may be NaN."""
    return Response(msgspec.json.encode(value), media_type="application/json")


def described(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """OpenAPI's content of an answer of this kind, with nested structs written out in place."""
    return {"content": {"application/json": {"schema": _schema(kind)}}}


@functools.cache
def _schema(kind: type[msgspec.Struct]) -> Any:
    (top,), components = msgspec.json.schema_components([kind])
    return _inline(top, components)


def _inline(schema: Any, components: dict[str, Any]) -> Any:
    if isinstance(schema, dict):
        if "$ref" in schema:
            return _inline(components[schema["$ref"].rpartition("/")[2]], components)
        written = {name: _inline(value, components) for name, value in schema.items()}
        if "properties" in written:
            # msgspec adds what a dict's values may be. A dict whose keys are described has no others.
            written.pop("additionalProperties", None)
        return written
    if isinstance(schema, list):
        return [_inline(value, components) for value in schema]
    return schema
