"""Parts of traces for tests: as a worker would send them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.capture.wire.traces import TRACE_MAJOR, TRACE_MINOR, Run, TracePart, check_part
from tests.service.frames import EPOCH, producer

LAYERS = [MoeLayer(1, 16, 2), MoeLayer(3, 64, 4)]


def experts_of(trace: int, tokens: int, layers: Sequence[MoeLayer] = LAYERS) -> list[np.ndarray]:
    """Ids [tokens, top_k] of each layer, different in a token, made from the trace's number."""
    rng = np.random.default_rng(trace)
    return [
        np.argsort(rng.random((tokens, layer.num_experts)), axis=1)[:, : layer.top_k].astype(np.uint8)
        for layer in layers
    ]


def part(
    trace: int,
    tokens: int = 10,
    experts: Sequence[np.ndarray] | None = None,
    runs: Sequence[tuple[int, int]] | None = None,
    name: str | None = None,
    layers: Sequence[MoeLayer] = LAYERS,
    who: dict[str, Any] | None = None,
    **fields: Any,
) -> TracePart:
    """A checked part: all of a trace, unless said otherwise."""
    ids = experts_of(trace, tokens, layers) if experts is None else experts
    outer = f"x{trace}" if name is None else name
    made = TracePart(
        **{
            "wire": (TRACE_MAJOR, TRACE_MINOR),
            "producer": producer(**(who or {})),
            "epoch": EPOCH,
            "trace": trace,
            "part": 0,
            "parts": 1,
            "request_id": f"cmpl-{outer}-0-{trace:08x}",
            "client_ids": [f"cmpl-{outer}-0", f"cmpl-{outer}", outer],
            "outcome": "ended",
            "prompt_tokens": 4,
            "cached_tokens": 0,
            "preemptions": 0,
            "started_at_ns": EPOCH,
            "ended_at_ns": EPOCH + 10**9,
            "layers": list(layers),
            "runs": [Run(*run) for run in (runs or [(0, tokens)])],
            "id_bytes": 1,
            "experts": [array.tobytes() for array in ids],
            **fields,
        }
    )
    check_part(made)
    return made
