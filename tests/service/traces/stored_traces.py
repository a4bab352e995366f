"""Traces as a store would give them, for tests that need no store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moescope.capture.wire import MoeLayer
from moescope.service.store.records import TracedRequest
from moescope.service.store.worker_trace import WorkerTrace
from moescope.service.traces.sources import Source
from tests.service.trace_parts import LAYERS

PROMPT = 40


def request(number: int = 1, **fields: Any) -> TracedRequest:
    """A traced request."""
    request_id = fields.get("request_id", f"cmpl-x-0-{number:08x}")
    return TracedRequest(
        **{
            "number": number,
            "server": "srv",
            "model": "tiny",
            "dp_rank": 0,
            "request_id": request_id,
            "names": (request_id,),
            "outcome": "ended",
            "prompt_tokens": PROMPT,
            "cached_tokens": 0,
            "preemptions": 0,
            "started_at": 0.0,
            "ended_at": float(number),
            "stored_at": float(number),
            "tokens": 10,
            **fields,
        }
    )


def worker(
    truth: Sequence[np.ndarray],
    runs: Sequence[tuple[int, int]],
    layers: Sequence[MoeLayer] = LAYERS,
    steps: Sequence[int] | None = None,
) -> WorkerTrace:
    """What a worker traced that computed these runs of positions, with the experts that ``truth`` has."""
    positions = np.concatenate([np.arange(first, first + count) for first, count in runs])
    return WorkerTrace(
        tuple(layers),
        1,
        len(positions),
        (3 * len(runs), 3 * len(runs)),
        lambda: np.array(runs, np.int64),
        lambda start, end: tuple(ids[positions[start:end]] for ids in truth),
        read_steps=None if steps is None else lambda start, end: np.array(steps[start:end], np.int64),
    )


def source(number: int, *workers: WorkerTrace, **fields: Any) -> Source:
    """A trace of these workers."""
    return Source(request(number, **fields), workers, workers)
