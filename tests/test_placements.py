"""Placements as the service predicts them, against the installed vLLM: by load, linear, and round-robin."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from vllm.distributed.eplb.policy.default import DefaultEplbPolicy
from vllm.model_executor.layers.fused_moe.expert_map_manager import determine_expert_map

from moescope.service.advice.distinct import place_distinct
from moescope.service.advice.eplb import place
from moescope.service.advice.placements import linear, round_robin
from tests.vllm_cases import VLLM_CASES

_LARGE = np.random.default_rng(0).pareto(1.5, (6, 256)).astype(np.float32).tolist()
_LARGE_CASES = [(_LARGE, (288, 8, 4, 32)), (_LARGE, (320, 1, 1, 64)), (_LARGE, (256, 8, 8, 32))]


def _rank_loads(logical: np.ndarray, loads: np.ndarray, ranks: int) -> np.ndarray:
    """What each rank carries, of each layer sorted; P / ranks copies a rank."""
    copies = np.stack([np.bincount(row, minlength=loads.shape[1]) for row in logical])
    per_copy = np.take_along_axis(loads / copies, logical, axis=1)
    return np.sort(per_copy.reshape(len(loads), ranks, -1).sum(axis=2), axis=1)


@pytest.mark.parametrize(("given_loads", "numbers"), [*VLLM_CASES, *_LARGE_CASES])
def test_ranks_carry_what_they_would_in_vllm(
    given_loads: list[list[float]], numbers: tuple[int, int, int, int]
) -> None:
    loads = np.asarray(given_loads, dtype=np.float32)
    theirs = DefaultEplbPolicy.rebalance_experts(torch.from_numpy(loads), *numbers).numpy()
    ours = place(loads, *numbers)
    # Copies of one expert carry alike, and which of two equals comes first is chance in vLLM's sort.
    ranks = numbers[-1]
    assert _rank_loads(ours, loads, ranks) == pytest.approx(_rank_loads(theirs, loads, ranks), rel=1e-5)


@pytest.mark.parametrize(("given_loads", "numbers"), [*VLLM_CASES, *_LARGE_CASES])
def test_our_own_placement_is_as_balanced_as_vllms_and_has_no_doubles(
    given_loads: list[list[float]], numbers: tuple[int, int, int, int]
) -> None:
    loads, ranks = np.asarray(given_loads, dtype=np.float32), numbers[-1]
    theirs = DefaultEplbPolicy.rebalance_experts(torch.from_numpy(loads), *numbers).numpy()
    ours = place_distinct(loads, *numbers)
    # Of few experts on two ranks only doubles can even out odd loads; see tests of place_distinct.
    most = 1.1 if loads.shape[1] < 8 else 1.01
    assert (_rank_loads(ours, loads, ranks)[:, -1] <= most * _rank_loads(theirs, loads, ranks)[:, -1]).all()
    room = numbers[0] // ranks
    if room <= loads.shape[1] // (numbers[2] if numbers[1] % numbers[2] == 0 else 1):
        assert all(len(set(rank)) == room for row in ours for rank in row.reshape(ranks, room).tolist())


@pytest.mark.parametrize(("experts", "ranks"), [(8, 2), (10, 4), (60, 8), (3, 4), (5, 1), (256, 3)])
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
