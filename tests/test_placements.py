"""Placements as the service predicts them, against the installed vLLM: by load, linear, and round-robin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vllm.distributed.eplb.policy.default import DefaultEplbPolicy
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

from moescope.service.advice.eplb import place
from moescope.service.advice.placements import linear, round_robin

# The inputs of vLLM's own tests of its policy: loads, physical experts, groups, nodes, ranks.
_VLLM_CASES = [
    (
        [
            [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
            [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
        ],
        (16, 4, 2, 8),
    ),
    ([[10, 20, 30, 40]], (4, 1, 1, 1)),
    ([[50] * 8], (8, 2, 2, 4)),
    ([[1000, 1, 1, 1, 1, 1, 1, 1]], (12, 2, 2, 4)),
    ([[10, 20, 30, 40, 50, 60], [60, 50, 40, 30, 20, 10], [25] * 6], (8, 2, 2, 4)),
    ([[10, 20, 30, 40]], (8, 3, 2, 4)),
    ([[100, 50, 200, 75, 150, 25, 300, 80]], (12, 4, 2, 4)),
    ([[10, 20, 30, 40, 50, 60]], (8, 3, 2, 4)),
    ([[10, 20, 30, 40]], (6, 2, 1, 2)),
    ([[50, 100, 75, 120, 90, 60, 80, 110, 40, 70, 95, 85, 65, 55, 45, 35]], (24, 8, 4, 8)),
    ([[200, 150, 100, 50, 25, 12], [12, 25, 50, 100, 150, 200]], (10, 3, 1, 2)),
]


_LARGE = np.random.default_rng(0).pareto(1.5, (6, 256)).astype(np.float32).tolist()
_LARGE_CASES = [(_LARGE, (288, 8, 4, 32)), (_LARGE, (320, 1, 1, 64)), (_LARGE, (256, 8, 8, 32))]


def _rank_loads(logical: np.ndarray, loads: np.ndarray, ranks: int) -> np.ndarray:
    """What each rank carries, of each layer sorted; P / ranks copies a rank."""
    copies = np.stack([np.bincount(row, minlength=loads.shape[1]) for row in logical])
    per_copy = np.take_along_axis(loads / copies, logical, axis=1)
    return np.sort(per_copy.reshape(len(loads), ranks, -1).sum(axis=2), axis=1)


@pytest.mark.parametrize(("given_loads", "numbers"), [*_VLLM_CASES, *_LARGE_CASES])
def test_ranks_carry_what_they_would_in_vllm(
    given_loads: list[list[float]], numbers: tuple[int, int, int, int]
) -> None:
    loads = np.asarray(given_loads, dtype=np.float32)
    theirs = DefaultEplbPolicy.rebalance_experts(torch.from_numpy(loads), *numbers).numpy()
    ours = place(loads, *numbers)
    # Copies of one expert carry alike, and which of two equals comes first is chance in vLLM's sort.
    ranks = numbers[-1]
    assert _rank_loads(ours, loads, ranks) == pytest.approx(_rank_loads(theirs, loads, ranks), rel=1e-5)


@pytest.mark.parametrize(("experts", "ranks"), [(8, 2), (10, 4), (60, 8), (3, 4), (5, 1)])
def test_linear_and_round_robin_are_vllms_expert_map(experts: int, ranks: int) -> None:
    for name, placed in (
        ("linear", linear(1, experts, ranks)),
        ("round_robin", round_robin(1, experts, ranks)),
    ):
        for rank in range(ranks):
            count, expert_map, _ = determine_expert_map(ranks, rank, experts, name)
            mine = placed.logical[0][placed.rank[0] == rank]
            assert len(mine) == count
            if expert_map is not None:
                assert mine.tolist() == np.flatnonzero(expert_map.numpy() >= 0).tolist()
