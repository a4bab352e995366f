"""Which experts the same tokens take together, from traces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.capture.wire.traces import ExpertArray

_CHUNK = 4096  # tokens counted at once


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts of a layer.

    Attributes:
        first, second: logical experts, ``first < second``.
        tokens: tokens that took both.
        lift: ``tokens * total / (tokens of first * tokens of second)``: 1 if they were independent.
    """

    first: int
    second: int
    tokens: int
    lift: float


def count_together(experts: Iterable[ExpertArray], num_experts: int) -> tuple[Int64Array, int]:
    """Count, over all tokens, the pairs of experts that each took.

    Args:
        experts: arrays [T, top_k] of one layer; ids that are no experts are left out.
        num_experts: E.

    Returns:
        int64 [E, E], symmetric, whose diagonal is the tokens that took each expert; and the number of tokens.
    """
    counts = np.zeros((num_experts, num_experts), np.int64)
    tokens = 0
    for ids in experts:
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK].astype(np.int64)
            row, column = np.nonzero(chunk < num_experts)
            # float32 holds the sums of a chunk exactly, and its matrix product is fast.
            taken = np.zeros((len(chunk), num_experts), np.float32)
            taken[row, chunk[row, column]] = 1
            counts += (taken.T @ taken).astype(np.int64)
            tokens += len(chunk)
    return counts, tokens


def strongest(counts: Int64Array, tokens: int, number: int, min_tokens: int) -> list[Pair]:
    """The pairs of the highest lift among those that at least ``min_tokens`` tokens took, highest first."""
    first, second = np.triu_indices(len(counts), k=1)
    together = counts[first, second]
    enough = together >= max(1, min_tokens)
    first, second, together = first[enough], second[enough], together[enough]
    alone = np.diagonal(counts).astype(np.float64)
    lift = together * tokens / (alone[first] * alone[second])
    order = np.lexsort((second, first, -lift))[:number]
    return [Pair(int(first[i]), int(second[i]), int(together[i]), float(lift[i])) for i in order.tolist()]
