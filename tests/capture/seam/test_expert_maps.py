"""vLLM's maps of experts: found where its routers read them, followed, and by a rule that is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.distributed.eplb.eplb_state import (
    EplbLayerState,
    EplbModelState,
    _commit_eplb_maps,
    _commit_eplb_maps_for_layer,
    compute_logical_maps,
)
from vllm.model_executor.layers.fused_moe.router import base_router

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.device_maps import DeviceMaps
from moescope.capture.counting.load_ring import ring_by_maps
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.expert_maps import ExpertMaps
from moescope.capture.seam.replica_rule import ReplicaRule, find_rule
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.wire import MoeLayer

CPU = torch.device("cpu")
EXPERTS, TOP_K, LAYERS, EP_SIZE, LOCAL_ROWS = 6, 2, 3, 2, 9


def by_row(topk_ids: torch.Tensor, **maps: torch.Tensor) -> torch.Tensor:
    """Row by row in plain Python, what vLLM's kernel does on GPUs."""
    found = topk_ids.clone()
    for row, column in np.ndindex(*topk_ids.shape):
        expert = int(topk_ids[row, column])
        copy = row * 2654435769 % 2**32 % max(1, int(maps["logical_replica_count"][expert]))
        found[row, column] = maps["logical_to_physical_map"][expert, copy]
    return found


def by_flat_slot(topk_ids: torch.Tensor, **maps: torch.Tensor) -> torch.Tensor:
    """As vLLM did it before 0.20, with torch operations."""
    ids = topk_ids.long()
    copy = torch.arange(ids.numel()).reshape(ids.shape) % maps["logical_replica_count"][ids]
    return maps["logical_to_physical_map"][ids, copy].to(topk_ids.dtype)


class Model:
    """vLLM's own state of EPLB for a few layers, and a capturer that counts by its maps."""

    def __init__(self, redundant: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("moescope.capture.seam.replica_rule._ROWS", 60)
        monkeypatch.setattr("moescope.capture.seam.replica_rule._function", lambda: by_row)
        self.physical = EXPERTS + redundant
        first = torch.tensor([[i % EXPERTS for i in range(self.physical)]] * LAYERS)
        logical, copies = compute_logical_maps(first, EXPERTS)
        self.state: Any = EplbModelState.__new__(EplbModelState)
        self.state.physical_to_logical_map = first.clone()
        self.state.logical_to_physical_map = torch.nn.functional.pad(logical, (0, 7), value=-1)
        self.state.logical_replica_count = copies
        self.modules = [SimpleNamespace(eplb_state=EplbLayerState()) for _ in range(LAYERS)]
        self.set_states()
        self.maps = ExpertMaps(self.modules, lambda: self.physical, EP_SIZE, CPU)
        self.device_maps = DeviceMaps(self.maps, CPU)
        layers = [MoeLayer(2 * i, EXPERTS, TOP_K) for i in range(LAYERS)]
        self.ring = ring_by_maps(self.device_maps, EP_SIZE, CPU)
        self.buffers = CountBuffers(layers, CPU, 64, self.ring)
        # The second of two DP ranks whose rows all of them have: its rows begin in the middle of the tensor.
        self.capturer = RoutingCapturer(self.buffers, Ranks(1, 2), lambda: StepRows([5, LOCAL_ROWS], None))
        self.steps: list[list[list[int]]] = []

    def set_states(self) -> None:
        """As vLLM's models do it."""
        state = self.state
        for i, module in enumerate(self.modules):
            module.eplb_state.set_layer_state(
                i,
                torch.zeros(LAYERS, self.physical),
                state.logical_to_physical_map,
                state.logical_replica_count,
            )

    def step(self, tokens: int, decode: int, rng: np.random.Generator) -> None:
        """A step, and the loads that vLLM's mapping of it makes."""
        self.device_maps.follow()
        self.capturer.begin_step(tokens, decode)
        if self.capturer.awaits_phases:
            self.capturer.set_phases((np.arange(tokens) < decode).astype(np.uint8))
        loads = []
        for ordinal, module in enumerate(self.modules):
            ids = torch.from_numpy(rng.integers(0, EXPERTS, (5 + LOCAL_ROWS, TOP_K)))
            self.capturer.record(ordinal, ids)
            physical = by_row(
                ids,
                logical_to_physical_map=module.eplb_state.logical_to_physical_map,
                logical_replica_count=module.eplb_state.logical_replica_count,
            )[5 : 5 + tokens]
            loads.append(np.bincount(physical.flatten() // (self.physical // EP_SIZE), minlength=2).tolist())
        self.capturer.end_step()
        self.steps.append(loads)

    def check(self) -> None:
        """Loads of each step, and their sums, are those of vLLM's mapping."""
        found = torch.zeros_like(self.ring.loads)
        self.ring.copy_since(0, found)
        assert found[: len(self.steps), 0].tolist() == self.steps
        by_rank = [self.buffers.ep_slots_of(i).tolist() for i in range(LAYERS)]
        assert by_rank == np.sum(self.steps, axis=0).tolist()


def arrangement(rng: np.random.Generator, physical: int) -> list[int]:
    more = rng.integers(0, EXPERTS, physical - EXPERTS)
    return list(map(int, rng.permutation([*range(EXPERTS), *more])))


@settings(max_examples=40, deadline=None)
@given(
    redundant=st.sampled_from([0, 2, 8]),
    plan=st.lists(st.sampled_from(["step", "all layers move", "a layer moves"]), min_size=3, max_size=12),
    seed=st.integers(0, 2**32 - 1),
)
def test_steps_are_by_the_maps_that_vllm_committed_before_them(
    redundant: int, plan: list[str], seed: int
) -> None:
    """At once, as EPLB does it, or layer by layer between passes, as asynchronous EPLB does."""
    rng = np.random.default_rng(seed)
    with pytest.MonkeyPatch.context() as monkeypatch:
        model = Model(redundant, monkeypatch)
    assert model.maps.rule is (ReplicaRule.ROW_HASH if redundant else ReplicaRule.ONE_COPY)
    for what in [*plan, "step"]:
        if what == "step":
            tokens = int(rng.integers(1, LOCAL_ROWS + 1))
            model.step(tokens, int(rng.integers(0, tokens + 1)), rng)
        elif what == "all layers move":
            new = [arrangement(rng, model.physical) for _ in range(LAYERS)]
            _commit_eplb_maps(model.state, torch.tensor(new))
        else:
            new_map = torch.tensor(arrangement(rng, model.physical))
            _commit_eplb_maps_for_layer(model.state, new_map, int(rng.integers(0, LAYERS)))
    assert not model.maps.replaced()
    model.check()


def test_maps_that_vllm_replaces_are_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, model = np.random.default_rng(0), Model(2, monkeypatch)
    model.step(5, 2, rng)
    table = model.device_maps.table.tolist()
    moved = torch.tensor([arrangement(rng, model.physical) for _ in range(LAYERS)])
    logical, copies = compute_logical_maps(moved, EXPERTS)
    model.state.logical_to_physical_map, model.state.logical_replica_count = logical, copies
    model.set_states()
    assert model.maps.replaced()
    model.step(6, 6, rng)
    assert not model.maps.replaced()
    assert model.device_maps.table.tolist() != table
    assert model.device_maps.table[:, 2].tolist() == [logical.shape[2]] * LAYERS
    model.check()


def another_stride(state: Any) -> None:
    """The same address and shape."""
    old = state.logical_to_physical_map
    state.logical_to_physical_map = old.as_strided(old.shape, (old.stride(0) - 1, 1))


def another_width(state: Any) -> None:
    """The same address and stride."""
    state.logical_to_physical_map = state.logical_to_physical_map[:, :-1]


def another_place(state: Any) -> None:
    state.logical_to_physical_map = state.logical_to_physical_map.clone()


def other_copies(state: Any) -> None:
    state.logical_replica_count = state.logical_replica_count.clone()


@pytest.mark.parametrize("change", [another_stride, another_width, another_place, other_copies])
@pytest.mark.parametrize("layer", range(LAYERS))
def test_any_layer_that_is_replaced_shows_at_once(
    change: Any, layer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(2, monkeypatch)
    assert not model.maps.replaced()
    state = model.modules[layer].eplb_state
    change(state)
    assert model.maps.replaced()
    model.device_maps.follow()
    assert not model.maps.replaced()
    physical = state.logical_to_physical_map
    assert model.device_maps.table[layer].tolist() == [
        physical.data_ptr(),
        state.logical_replica_count.data_ptr(),
        physical.stride(0),
        4,
    ]


def test_what_no_object_shows_is_seen_in_the_turn_of_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(2, monkeypatch)
    model.modules[1].eplb_state.logical_to_physical_map.set_(
        model.state.logical_to_physical_map[1].clone()
    )  # in place
    assert any(model.maps.replaced() for _ in range(LAYERS))
    model.device_maps.follow()
    model.modules[1].eplb_state = SimpleNamespace(
        logical_to_physical_map=model.state.logical_to_physical_map[1],
        logical_replica_count=model.state.logical_replica_count[1],
    )
    assert any(model.maps.replaced() for _ in range(LAYERS))
    model.device_maps.follow()
    assert not any(model.maps.replaced() for _ in range(LAYERS))


def test_other_views_of_the_same_maps_are_no_change(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(2, monkeypatch)
    table = model.device_maps.table.tolist()
    model.set_states()
    assert not any(model.maps.replaced() for _ in range(2 * LAYERS))
    assert model.device_maps.table.tolist() == table


def test_maps_of_other_numbers_of_experts_are_refused_and_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model(0, monkeypatch)
    layers, table = list(model.maps.layers), model.device_maps.table.tolist()
    another_place(model.modules[1].eplb_state)
    model.physical += 2  # redundant experts, where there were none: another rule
    with pytest.raises(LookupError, match="there are 8 physical experts, and were 6"):
        model.device_maps.follow()
    model.physical -= 2
    state = model.modules[1].eplb_state
    state.logical_to_physical_map = state.logical_to_physical_map[:-1].clone()
    state.logical_replica_count = state.logical_replica_count[:-1].clone()
    with pytest.raises(LookupError, match="covered layer 1 has 5 logical experts, and had 6"):
        model.device_maps.follow()
    assert model.maps.layers == layers
    assert model.device_maps.table.tolist() == table


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: setattr(state, "logical_replica_count", None), "has no map of EPLB"),
        (
            lambda state: setattr(state, "logical_replica_count", state.logical_replica_count.int()),
            "torch.int32",
        ),
        (
            lambda state: setattr(state, "logical_to_physical_map", state.logical_to_physical_map[:-1]),
            r"\(5, 9\)",
        ),
        (
            lambda state: setattr(state, "logical_to_physical_map", state.logical_to_physical_map[:, ::2]),
            "doesn't know",
        ),
    ],
)
def test_maps_that_are_not_as_they_were_are_refused(
    change: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model(2, monkeypatch)
    change(model.modules[1].eplb_state)
    with pytest.raises(LookupError, match=message):
        ExpertMaps(model.modules, lambda: model.physical, EP_SIZE, CPU)
    with pytest.raises(LookupError, match="9 physical experts on 2 EP ranks"):
        ExpertMaps(model.modules, lambda: 9, EP_SIZE, CPU)


def test_the_rule_is_what_vllms_own_function_does() -> None:
    assert find_rule(CPU, by_flat_slot) is ReplicaRule.FLAT_SLOT

    def by_column(topk_ids: torch.Tensor, **maps: torch.Tensor) -> torch.Tensor:
        ids = topk_ids.long()
        copy = torch.arange(ids.shape[1]).expand_as(ids) % maps["logical_replica_count"][ids]
        return maps["logical_to_physical_map"][ids, copy]

    for unknown in (by_column, lambda topk_ids, **_: topk_ids, lambda topk_ids, **_: topk_ids[:1]):
        with pytest.raises(LookupError, match="a rule that moescope doesn't know"):
            find_rule(CPU, unknown)


def test_vllm_on_a_cpu_maps_nothing_so_its_rule_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of the installed vLLM gives logical experts back there."""
    monkeypatch.setattr("moescope.capture.seam.replica_rule._ROWS", 60)
    current = base_router.eplb_map_to_physical_and_record  # the devkit's, if another test has loaded that
    original = getattr(current, "__wrapped__", current)
    with pytest.raises(LookupError, match="a rule that moescope doesn't know"):
        find_rule(CPU, original)
