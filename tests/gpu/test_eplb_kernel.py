"""Loads by vLLM's own maps in CUDA graphs, where the maps are rewritten between replays.

vLLM's kernel says the truth. The graph has vLLM's mapping kernel and ours, as a served model's pass has.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from vllm.distributed.eplb.eplb_state import (
    _commit_eplb_maps,
    _commit_eplb_maps_for_layer,
    compute_logical_maps,
)
from vllm.model_executor.layers.fused_moe.router.base_router import eplb_map_to_physical_and_record

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.device_maps import DeviceMaps
from moescope.capture.counting.load_ring import ring_by_maps
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.expert_maps import ExpertMaps
from moescope.capture.seam.replica_rule import ReplicaRule, find_rule
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.wire import MoeLayer
from tests.gpu.passes import captured
from tests.gpu.toy import CUDA

EXPERTS, TOP_K, LAYERS, EP_SIZE = 128, 8, 4, 8
BEFORE = 40
"""Rows of another DP rank, which come before ours in the router's tensor."""


class Balanced:
    """A model whose layers route at random, vLLM's own EPLB state, and a capturer of the second DP rank."""

    def __init__(self, redundant: int, rows: int) -> None:
        self.physical, self.rows = EXPERTS + redundant, rows
        self._rng = np.random.default_rng(redundant)
        first = torch.tensor([[i % EXPERTS for i in range(self.physical)]] * LAYERS)
        logical, copies = compute_logical_maps(first, EXPERTS)
        state: Any = SimpleNamespace()
        state.physical_to_logical_map = first.to(CUDA)
        state.physical_to_logical_map_buffer = state.physical_to_logical_map
        state.logical_to_physical_map = torch.nn.functional.pad(logical, (0, 40), value=-1).to(CUDA)
        state.logical_replica_count = copies.to(CUDA)
        self.state = state
        self.noted = torch.zeros(LAYERS, self.physical, dtype=torch.int32, device=CUDA)
        self.modules = [
            SimpleNamespace(
                eplb_state=SimpleNamespace(
                    logical_to_physical_map=state.logical_to_physical_map[i],
                    logical_replica_count=state.logical_replica_count[i],
                )
            )
            for i in range(LAYERS)
        ]
        self.maps = DeviceMaps(ExpertMaps(self.modules, lambda: self.physical, EP_SIZE, CUDA), CUDA)
        self.ring = ring_by_maps(self.maps, EP_SIZE, CUDA)
        self.buffers = CountBuffers(
            [MoeLayer(i, EXPERTS, TOP_K) for i in range(LAYERS)], CUDA, 512, self.ring
        )
        self.capturer = RoutingCapturer(self.buffers, Ranks(1, 2), lambda: StepRows([BEFORE, rows], None))
        self.ids = torch.zeros(LAYERS, BEFORE + rows, TOP_K, dtype=torch.int32, device=CUDA)
        self.physical_ids = torch.zeros_like(self.ids)
        self.record = torch.ones((), dtype=torch.bool, device=CUDA)

    def forward(self) -> None:
        """A pass: each layer's router tells the capturer, and then maps its experts."""
        for i, module in enumerate(self.modules):
            ids = self.ids[i].clone()
            self.capturer.record(i, ids)
            mapped = eplb_map_to_physical_and_record(
                topk_ids=ids,
                expert_load_view=self.noted[i],
                logical_to_physical_map=module.eplb_state.logical_to_physical_map,
                logical_replica_count=module.eplb_state.logical_replica_count,
                record_enabled=self.record,
            )
            self.physical_ids[i].copy_(mapped)

    def arrangement(self) -> list[int]:
        more = self._rng.integers(0, EXPERTS, self.physical - EXPERTS)
        return list(map(int, self._rng.permutation([*range(EXPERTS), *more])))

    def step(self, run: Any, tokens: int, decode: int) -> list[list[int]]:
        """A step; the slots by layer and EP rank that vLLM's kernel made of it."""
        self.ids.copy_(torch.from_numpy(self._rng.integers(0, EXPERTS, self.ids.shape)))
        self.maps.follow()
        self.capturer.begin_step(tokens, decode)
        if self.capturer.awaits_phases:
            self.capturer.set_phases((np.arange(tokens) < decode).astype(np.uint8))
        run()
        self.capturer.end_step()
        mine = self.physical_ids[:, BEFORE : BEFORE + tokens].flatten(1).cpu().numpy()
        per_rank = self.physical // EP_SIZE
        return [np.bincount(layer // per_rank, minlength=EP_SIZE).tolist() for layer in mine]


def test_vllms_rule_on_this_gpu_is_known() -> None:
    assert find_rule(CUDA) is ReplicaRule.ROW_HASH


@pytest.mark.parametrize("redundant", [0, 8, 32])
@pytest.mark.parametrize("in_graph", [True, False])
def test_maps_that_move_between_replays(redundant: int, in_graph: bool) -> None:
    model = Balanced(redundant, 256)
    model.forward()
    model.forward()
    run = captured(model.forward).replay if in_graph else model.forward
    rng, truth = np.random.default_rng(1), []
    for repeat in range(40):
        tokens = int(rng.integers(1, 257))
        truth.append(model.step(run, tokens, int(rng.integers(0, tokens + 1))))
        if repeat % 4 == 1:
            new = torch.tensor([model.arrangement() for _ in range(LAYERS)])
            _commit_eplb_maps(model.state, new)
        elif repeat % 4 == 3:
            _commit_eplb_maps_for_layer(model.state, torch.tensor(model.arrangement()), repeat % LAYERS)
    assert model.capturer.disabled_reason is None
    found = torch.zeros_like(model.ring.loads)
    model.ring.copy_since(0, found)
    assert found[: len(truth), 0].tolist() == truth
    by_rank = [model.buffers.ep_slots_of(i).tolist() for i in range(LAYERS)]
    assert by_rank == np.sum(truth, axis=0).tolist()
