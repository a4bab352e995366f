"""A request of several deployments, for tests: the traces that each of them has of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.capture.wire.traces import TRACE_CONTENT_TYPE, TakenOver, TracePart, encode_part
from tests.service.conftest import Service
from tests.service.frames import EPOCH
from tests.service.trace_parts import experts_of, part

PROMPT = 40
TRUTH = experts_of(7, 60)  # of one request: 40 positions of the prompt, 20 generated
PREFILL, DECODE = {"server": "p", "role": "prefill"}, {"server": "d", "role": "decode"}
LOADED = [TakenOver(0, 39, "", "kv_transfer")]


def push(service: Service, *parts: TracePart) -> None:
    for made in parts:
        response = service.client.post(
            "/v1/traces", content=encode_part(made), headers={"content-type": TRACE_CONTENT_TYPE}
        )
        assert response.status_code == 200, response.text


def some(
    trace: int,
    first: int,
    end: int,
    truth: Sequence[np.ndarray] = TRUTH,
    ended_s: float = 1.0,
    name: str = "x",
    **fields: Any,
) -> TracePart:
    """A part with positions ``first`` to before ``end`` of the request."""
    return part(
        trace,
        experts=[ids[first:end] for ids in truth],
        runs=[(first, end - first)],
        name=name,
        prompt_tokens=PROMPT,
        ended_at_ns=EPOCH + int(ended_s * 1e9),
        **fields,
    )
