"""Which experts the same tokens take together, from traces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.capture.wire import Int64Array
from moescope.capture.wire.traces import ExpertArray
from moescope.service.wanted import check_wanted

MAX_EXPERTS: Final = 2048
"""Experts of a layer whose pairs can be counted, at most; 384 is the most of any model of today."""
_PAIRS: Final = 1 << 19  # counted at once: 4 MiB an array


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

    It counts pair by pair in the caller's thread: a product of matrices would do more work for a few experts
    of many, in as many threads as the machine has cores for each caller.

    Args:
        experts: arrays [T, top_k] of one layer; ids that are no experts are left out, and an expert counts
            once for a token.
        num_experts: E, `MAX_EXPERTS` at most: the counts take 8 * E * E bytes, 32 MiB.

    Returns:
        int64 [E, E], symmetric, whose diagonal is the tokens that took each expert; and the number of tokens.

    Raises:
        UnwantedError: nobody waits for it any more.
    """
    counts = np.zeros(num_experts * num_experts, np.int64)
    tokens = 0
    for ids in experts:
        at_once = max(1, _PAIRS // max(1, ids.shape[1] ** 2))
        for start in range(0, len(ids), at_once):
            check_wanted()
            taken = np.sort(ids[start : start + at_once].astype(np.int64), axis=1)
            known = taken < num_experts
            known[:, 1:] &= taken[:, 1:] != taken[:, :-1]
            pairs = taken[:, :, np.newaxis] * num_experts + taken[:, np.newaxis, :]
            both = known[:, :, np.newaxis] & known[:, np.newaxis, :]
            counts += np.bincount(pairs[both], minlength=len(counts))
            tokens += len(taken)
    return counts.reshape(num_experts, num_experts), tokens


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
