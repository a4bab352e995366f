"""Slots by EP rank with vLLM's maps: kernels and reference agree, and with what vLLM's own mapping does."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.kernels.device import (
    DEVICE,
    INTERPRETED,
)  # skips first, where there is neither a GPU nor the interpreter

# isort: split
from moescope.capture.seam import replica_rule
from moescope.capture.seam.replica_rule import ReplicaRule, find_rule
from moescope.capture.step.word import Phase
from tests.kernels.bench import MODELS, Bench, make_ids, span
from tests.kernels.vllm_mapping import vllm_mapping

REPLICATED = [ReplicaRule.ROW_HASH, ReplicaRule.FLAT_SLOT]


def by_hand(bench: Bench, ordinal: int, ids: torch.Tensor, first: int, count: int) -> list[int]:
    """Slots by EP rank of a layer, slot by slot in plain Python."""
    assert bench.maps is not None
    assert bench.step.ring is not None
    assert bench.step.ring.maps is not None
    rule, placed = bench.step.ring.maps.rule, bench.maps.physical_to_logical[ordinal].tolist()
    found = [0] * bench.maps.ep_size
    for row, column in itertools.product(range(count), range(ids.shape[1])):
        expert = int(ids[first + row, column])
        if not 0 <= expert < bench.layers[ordinal].num_experts:
            continue
        copies = [place for place, logical in enumerate(placed) if logical == expert]
        at = (first + row) * 2654435769 % 2**32
        if rule is ReplicaRule.FLAT_SLOT:
            at = (first + row) * ids.shape[1] + column
        found[copies[at % len(copies)] // bench.maps.per_rank] += 1
    return found


@pytest.mark.parametrize("rule", REPLICATED)
@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("ep_size", [2, 5])
def test_the_copy_of_each_slot_is_that_of_the_rule(rule: ReplicaRule, phase: Phase, ep_size: int) -> None:
    bench = Bench([(16, 2), (60, 4)], 60, phase, ep_size, rule=rule, redundant=30)
    expected = np.zeros((2, ep_size), np.int64)
    for repeat in range(3):
        ids = {i: make_ids(110, layer, torch.int32, 9 * repeat + i) for i, layer in enumerate(bench.layers)}
        first = 17 * repeat
        bench.count(ids, {i: span(70, start=first) for i in ids})
        for i in ids:
            expected[i] += by_hand(bench, i, ids[i].cpu(), first, 60)
        bench.maps.move()  # type: ignore[union-attr] - experts move between steps
    bench.check()
    assert [bench.step.ep_slots_of(i).tolist() for i in range(2)] == expected.tolist()


@pytest.mark.parametrize("rule", ReplicaRule)
@pytest.mark.parametrize("name", ["qwen3-30b", "kimi-k2", "more experts than bins"])
@pytest.mark.parametrize("phase", [Phase.DECODE, Phase.MIXED])
def test_any_shape_by_any_rule(rule: ReplicaRule, name: str, phase: Phase) -> None:
    shape = MODELS[name][:1] * 2
    ep_size = 8 if phase is Phase.MIXED else 70
    redundant = 0 if rule is ReplicaRule.ONE_COPY else 24
    if rule is ReplicaRule.ONE_COPY and shape[0][0] % ep_size:
        ep_size = 4
    bench = Bench(shape, 300, phase, ep_size, rule=rule, redundant=redundant)
    for repeat in range(2):
        ids = {i: make_ids(333, layer, torch.int32, 7 * repeat + i) for i, layer in enumerate(bench.layers)}
        bench.count(ids, {i: span(320, start=13) for i in ids})
        bench.maps.move()  # type: ignore[union-attr]
    bench.check()
    assert int(bench.step.ep_slots_of(1).sum()) == int(bench.step.counts_of(1).sum())


@pytest.mark.parametrize("rule", REPLICATED)
def test_more_ep_ranks_than_a_histogram_has_bins(rule: ReplicaRule) -> None:
    bench = Bench([(60, 4)], 50, Phase.MIXED, ep_size=2500, rule=rule)
    ids = {0: make_ids(60, bench.layers[0], torch.int32, 1)}
    bench.count(ids, {0: span(60)})
    bench.check()
    assert bench.step.ep_slots_of(0).tolist() == by_hand(bench, 0, ids[0].cpu(), 0, 50)


@pytest.mark.parametrize("rule", REPLICATED)
def test_rows_far_into_the_tensor_of_many_dp_ranks(rule: ReplicaRule) -> None:
    """Rows of which another 2**20 come before: the hash goes through its 32 bits many times."""
    bench = Bench([(16, 8)], 40, Phase.DECODE, 4, rule=rule, redundant=16)
    first = 1 << 20
    ids = torch.zeros(first + 50, 8, dtype=torch.int8, device=DEVICE)
    ids[first:] = make_ids(50, bench.layers[0], torch.int8, 3)
    bench.count({0: ids}, {0: span(50, start=first)})
    bench.check()
    assert bench.step.ep_slots_of(0).tolist() == by_hand(bench, 0, ids.cpu(), first, 40)


@pytest.mark.parametrize("rule", ReplicaRule)
def test_a_map_that_names_no_rank_counts_nowhere_and_writes_nothing(rule: ReplicaRule) -> None:
    bench = Bench([(16, 2)], 40, Phase.MIXED, 4, rule=rule, redundant=0)
    assert bench.maps is not None
    state = bench.maps.modules[0].eplb_state
    state.logical_to_physical_map[3] = -1
    state.logical_to_physical_map[4] = 10**6
    ids = {0: make_ids(40, bench.layers[0], torch.int32, 3)}
    bench.count(ids, {0: span(40)})
    expected, counts = bench.reference.flat.tolist(), bench.step.counts_of(0)
    assert bench.step.flat.tolist() == bench.layer.flat.tolist() == expected
    lost = int(counts[3] + counts[4])
    assert lost > 0
    assert int(bench.step.ep_slots_of(0).sum()) == int(counts.sum()) - lost


def by_vllm(bench: Bench, ordinal: int, ids: torch.Tensor, mapping: Any) -> torch.Tensor:
    """The physical expert of each slot, as vLLM's own kernel maps the whole of the router's tensor."""
    assert bench.maps is not None
    state = bench.maps.modules[ordinal].eplb_state
    return torch.as_tensor(
        mapping(
            topk_ids=ids,
            expert_load_view=torch.zeros(4096, dtype=torch.int32, device=DEVICE),
            logical_to_physical_map=state.logical_to_physical_map,
            logical_replica_count=state.logical_replica_count,
            record_enabled=torch.ones((), dtype=torch.bool, device=DEVICE),
        )
    )


def test_slots_go_where_vllms_own_mapping_sends_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Random maps, numbers of copies, rows and spans, and experts that move between the steps."""
    pytest.importorskip("vllm")
    if INTERPRETED:  # which takes seconds for a thousand rows
        monkeypatch.setattr(replica_rule, "_ROWS", 300)
    mapping = vllm_mapping(tmp_path)
    rng = np.random.default_rng(4)
    assert find_rule(DEVICE, mapping) is ReplicaRule.ROW_HASH
    for repeat in range(3 if INTERPRETED else 60):
        ep_size, experts = int(rng.integers(2, 9)), int(rng.integers(4, 60))
        bench = Bench(
            [(experts, 4), (experts, 2)],
            int(rng.integers(1, 200)),
            Phase(repeat % 3),
            ep_size,
            rule=ReplicaRule.ROW_HASH,
            redundant=int(rng.integers(1, 40)),
        )
        assert bench.maps is not None
        truth = np.zeros((2, ep_size), np.int64)
        for step in range(2):
            rows, first = int(rng.integers(1, 200)), int(rng.integers(0, 100))
            ids = {
                i: make_ids(first + rows + 5, layer, torch.int32, 7 * step + i)
                for i, layer in enumerate(bench.layers)
            }
            for i, tensor in ids.items():
                physical = by_vllm(bench, i, tensor, mapping)[first : first + min(rows, bench.num_valid)]
                chosen = physical[physical >= 0].cpu().numpy() // bench.maps.per_rank
                truth[i] += np.bincount(chosen, minlength=ep_size)
            bench.count(ids, {i: span(rows, start=first) for i in ids})
            bench.maps.move()
        bench.check()
        assert [bench.step.ep_slots_of(i).tolist() for i in range(2)] == truth.tolist()
