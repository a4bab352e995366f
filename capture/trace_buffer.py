"""Traces in the worker's memory: what each holds, and how much all together may."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from moescope.capture.trace_wire import NO_EXPERT, ExpertArray, Run
from moescope.capture.wire import MoeLayer


@dataclass(slots=True)
class Trace:
    """A request's trace while it grows.

    Attributes:
        number: 1, 2, ... within the epoch.
        chunks: one array [n, sum of top_k] a step, in the order of computing; the layers side by side.
        runs: (first position, tokens) of the chunks, joined where they are consecutive.
    """

    number: int
    request_id: str
    client_ids: list[str]
    prompt_tokens: int
    cached_tokens: int
    preemptions: int = 0
    started_at_ns: int = field(default_factory=time.time_ns)
    ended_at_ns: int = 0
    outcome: str = "ended"
    nbytes: int = 0
    chunks: list[ExpertArray] = field(default_factory=list)
    runs: list[tuple[int, int]] = field(default_factory=list)

    def add(self, positions: Sequence[tuple[int, int]], experts: ExpertArray) -> None:
        """Add a step's tokens: their positions as runs, and their experts [n, sum of top_k]."""
        self.chunks.append(experts)
        for first, count in positions:
            if self.runs and sum(self.runs[-1]) == first:
                self.runs[-1] = (self.runs[-1][0], self.runs[-1][1] + count)
            else:
                self.runs.append((first, count))

    def close(self, outcome: str) -> None:
        """No step will add to it any more."""
        self.outcome = outcome
        self.ended_at_ns = time.time_ns()


def compact(columns: Sequence[np.ndarray], layers: Sequence[MoeLayer]) -> ExpertArray:
    """The ids of some tokens in all layers, side by side, in as few bytes as hold them.

    Args:
        columns: for each layer integer ids [n, top_k]; those out of the layer's range are masked slots.
        layers: the layers.

    Returns:
        uint8 [n, sum of top_k] if all experts are below 256 and none is masked, else uint16, where a masked
        slot is `NO_EXPERT`.
    """
    masked = [(ids < 0) | (ids >= layer.num_experts) for ids, layer in zip(columns, layers, strict=True)]
    if max(layer.num_experts for layer in layers) <= 256 and not any(bool(mask.any()) for mask in masked):
        return np.concatenate([ids.astype(np.uint8) for ids in columns], axis=1)
    return np.concatenate(
        [np.where(mask, NO_EXPERT, ids).astype(np.uint16) for ids, mask in zip(columns, masked, strict=True)],
        axis=1,
    )


def cut(runs: Sequence[tuple[int, int]], start: int, end: int) -> list[Run]:
    """The runs of tokens ``start .. end`` of a trace, in the order of computing."""
    found: list[Run] = []
    at = 0
    for first, count in runs:
        low, high = max(start, at), min(end, at + count)
        if low < high:
            found.append(Run(first + low - at, high - low))
        at += count
    return found
