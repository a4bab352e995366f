"""Routing traces of requests that were never made, and what /v1/coactivation should say of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from moescope.capture.wire.schema import MoeLayer, Producer
from moescope.capture.wire.traces import TRACE_MAJOR, TRACE_MINOR, Run, TracePart
from tests.oracle.layout import Layer
from tests.oracle.traffic import BEGIN_S


@dataclass(frozen=True)
class Trace:
    """The experts of a request's tokens: layer index to a tuple of experts for each token."""

    number: int
    experts: dict[int, list[tuple[int, ...]]]


def make_traces(seed: int, layers: Sequence[Layer], count: int) -> list[Trace]:
    """Traces of up to 40 tokens; some experts are taken together more often than by chance."""
    rng = random.Random(f"traces {seed}")
    traces = []
    for number in range(1, count + 1):
        tokens = rng.randint(1, 40)
        experts = {layer.index: [_chosen(rng, layer) for _ in range(tokens)] for layer in layers}
        traces.append(Trace(number, experts))
    return traces


def _chosen(rng: random.Random, layer: Layer) -> tuple[int, ...]:
    if rng.random() < 0.4:
        return tuple(range(layer.top_k))
    return tuple(rng.sample(range(layer.experts), layer.top_k))


def part_of(trace: Trace, layers: Sequence[Layer]) -> TracePart:
    """The trace as the wire has it, in one part."""
    tokens = len(trace.experts[layers[0].index])
    return TracePart(
        wire=(TRACE_MAJOR, TRACE_MINOR),
        producer=Producer(server="traced", model="model", dp_rank=0, dp_size=1),
        epoch=BEGIN_S * 10**9,
        trace=trace.number,
        part=0,
        parts=1,
        request_id=f"request-{trace.number}",
        client_ids=[],
        outcome="ended",
        prompt_tokens=1,
        cached_tokens=0,
        preemptions=0,
        started_at_ns=BEGIN_S * 10**9,
        ended_at_ns=(BEGIN_S + 1) * 10**9,
        layers=[MoeLayer(layer.index, layer.experts, layer.top_k) for layer in layers],
        runs=[Run(0, tokens)],
        id_bytes=1,
        experts=[bytes(e for token in trace.experts[layer.index] for e in token) for layer in layers],
    )


def coactivation(
    layer: Layer, traces: Sequence[Trace], newest: int, pairs: int, least: int
) -> dict[str, Any]:
    """Over the newest traces; of ``pairs`` only the lifts, as equals have no order."""
    counted = traces[-newest:]
    tokens = [token for trace in counted for token in trace.experts[layer.index]]
    counts = [[0] * layer.experts for _ in range(layer.experts)]
    for token in tokens:
        for first in token:
            for second in token:
                counts[first][second] += 1
    lifts = {
        (a, b): Fraction(counts[a][b] * len(tokens), counts[a][a] * counts[b][b])
        for a in range(layer.experts)
        for b in range(a + 1, layer.experts)
        if counts[a][b] >= max(least, 1)
    }
    return {
        "layer": layer.index,
        "num_experts": layer.experts,
        "traces": len(counted),
        "truncated": len(traces) > newest,
        "tokens": len(tokens),
        "counts": counts,
        "lifts": sorted(lifts.values(), reverse=True)[:pairs],
        "by_pair": lifts,
    }
