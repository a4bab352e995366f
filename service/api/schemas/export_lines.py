"""An export as lines of JSON: each has some positions of one request, and says all of the request anew."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Any, Final

import msgspec

from moescope.service.api.schemas.json_ids import json_ids
from moescope.service.api.schemas.trace_formats import JSON_BYTES, position_bytes, rows_of
from moescope.service.store.records import TracedRequest
from moescope.service.traces.export import LeftOut, Piece
from moescope.service.traces.forms import Shaped

_BLOCK_BYTES: Final = 256 << 10
_BLOCK_LINES: Final = 64  # so that a block of short requests is made soon

REQUEST_FIELDS: Final = (
    "server",
    "model",
    "dp_rank",
    "role",
    "pool",
    "lora",
    "outcome",
    "finish_reason",
    "prompt_tokens",
    "cached_tokens",
    "preemptions",
    "accepted_drafts",
    "rejected_drafts",
    "missing_stages",
    "missing_tokens",
    "started_at",
    "ended_at",
    "stored_at",
)
"""Fields of a :class:`TracedRequest` that an export has as they are."""


def line_positions(routing: Shaped) -> int:
    """How many positions a line has at most."""
    return rows_of(JSON_BYTES, position_bytes(routing))


def as_lines(items: Iterable[Piece | LeftOut]) -> Generator[bytes]:
    """The lines, in blocks; at least one block, which may be empty."""
    block, lines = bytearray(), 0
    for item in items:
        block += msgspec.json.encode(_line(item)) + b"\n"
        lines += 1
        if len(block) >= _BLOCK_BYTES or lines == _BLOCK_LINES:
            yield bytes(block)
            block, lines = bytearray(), 0
    yield bytes(block)


def _line(item: Piece | LeftOut) -> dict[str, Any]:
    if isinstance(item, LeftOut):
        return {"cursor": str(item.number), **_request(item.found), "left_out": item.why}
    routing = item.routing
    return {
        "cursor": str(item.found.number),
        **_request(item.found),
        "weights": [weights._asdict() for weights in item.of.versions],
        **({"joined": msgspec.Raw(item.of.told.encode())} if item.of.told else {}),
        "layers": [layer.layer for layer in routing.layers],
        "num_experts": [layer.num_experts for layer in routing.layers],
        "top_k": [layer.top_k for layer in routing.layers],
        "first_position": item.first,
        "times_computed": item.rows.times.tolist(),
        "routed_experts": msgspec.Raw(json_ids(item.rows.experts)),
        "last": item.last,
    }


def _request(found: TracedRequest | None) -> dict[str, Any]:
    if found is None:
        return {}
    return {
        "request_id": found.request_id,
        "client_id": found.names[-1],
        **{name: getattr(found, name) for name in REQUEST_FIELDS},
    }
