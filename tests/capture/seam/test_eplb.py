"""Placements under EPLB, read from vLLM's own state, by version; also while experts move layer by layer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm.distributed.eplb.eplb_state import (
    EplbModelState,
    EplbState,
    _commit_eplb_maps_for_layer,
    compute_logical_maps,
)

from moescope.capture.counting.reference import CountBuffers
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.seam.eplb import EplbWatch, MovingPlacement, PlacementMap, watch_eplb
from moescope.capture.step.totals import Totals
from moescope.capture.wire import MoeLayer, unpack_ids

FIRST = torch.tensor([[0, 1, 2, 3, 0, 1]] * 3)
SECOND = torch.tensor([[0, 2, 1, 3, 2, 2], [3, 1, 2, 0, 3, 1], [1, 0, 3, 2, 0, 0]])
LAYERS = [MoeLayer(2, 4, 1), MoeLayer(5, 4, 1)]


class Balancer:
    """vLLM's `EplbState` with one model of three MoE layers, of which capture covers the last two."""

    def __init__(self, is_async: bool) -> None:
        self.modules = [SimpleNamespace(layer_id=layer) for layer in (1, 2, 5)]
        logical, count = compute_logical_maps(FIRST, 4)
        model: Any = EplbModelState.__new__(EplbModelState)
        model.physical_to_logical_map = FIRST.clone()
        model.logical_to_physical_map = torch.nn.functional.pad(logical, (0, 4), value=-1)
        model.logical_replica_count = count
        model.model = SimpleNamespace(moe_layers=self.modules, num_moe_layers=3)
        model.rebalanced = False
        draft = SimpleNamespace(model=SimpleNamespace(moe_layers=[SimpleNamespace(layer_id=2)]))
        self.model = model
        self.state: Any = EplbState.__new__(EplbState)
        self.state.model_states = {"draft": draft, "target": model}
        self.state.is_async = is_async
        self.state.expert_rearrangement_step = 7
        self.state.expert_rearrangement_step_interval = 10
        self.runner = SimpleNamespace(eplb_state=self.state)
        self.losses: list[str] = []
        self.watch = EplbWatch(self.runner, self.modules[1:], self.losses.append)

    def passes(self, number: int) -> None:
        """Run so many passes; EPLB rearranges after none of them."""
        for _ in range(number):
            self.watch.look()
            self.state.expert_rearrangement_step += 1


def test_rows_are_those_of_the_covered_layers_in_the_target_model() -> None:
    balancer = Balancer(is_async=False)
    assert balancer.watch.rows == [1, 2]
    assert balancer.watch.map is balancer.model.physical_to_logical_map
    with pytest.raises(LookupError):
        EplbWatch(balancer.runner, [SimpleNamespace(layer_id=1)], balancer.losses.append)


def test_the_version_rises_with_each_rearrangement() -> None:
    balancer = Balancer(is_async=False)
    balancer.passes(2)
    assert not balancer.watch.moves_after_this_pass()
    assert balancer.watch.version == 0
    balancer.watch.look()
    assert balancer.watch.moves_after_this_pass()
    balancer.state.expert_rearrangement_step = 0  # as `EplbState.step` does before it moves experts
    assert balancer.watch.version == 1
    balancer.passes(9)
    assert balancer.watch.version == 1
    balancer.watch.look()
    balancer.state.expert_rearrangement_step = 0
    balancer.passes(1)
    assert balancer.watch.version == 2


def test_while_experts_move_layer_by_layer_the_settled_placement_holds() -> None:
    balancer = Balancer(is_async=True)
    moving = MovingPlacement(LAYERS, balancer.watch.rows, 2)
    buffers = CountBuffers(LAYERS, torch.device("cpu"))
    source = SimpleNamespace(totals=Totals(), disabled_reason=None)
    taker = SnapshotTaker(buffers.flat, source, 0.0, eplb=balancer.watch)

    def version() -> int:
        balancer.passes(1)
        taker.step_begins()
        taker.step_ends()
        snapshot = taker.collect()
        assert snapshot is not None
        if snapshot.placement is not None:
            moving.update(snapshot.placement)
        assert moving.placement is not None
        return moving.placement.version

    assert version() == 0
    balancer.state.expert_rearrangement_step = 0
    balancer.model.rebalanced = True
    assert not balancer.watch.moves_after_this_pass()
    for layer in range(3):
        _commit_eplb_maps_for_layer(balancer.model, SECOND[layer], layer)
        assert version() == 0
    balancer.model.rebalanced = False
    assert version() == 1
    assert moving.placement is not None
    tables = [moving.placement.tables[index] for index in moving.placement.table_of_layer]
    assert [unpack_ids(table.physical_to_logical).tolist() for table in tables] == SECOND[1:].tolist()
    assert [unpack_ids(table.physical_to_ep_rank).tolist() for table in tables] == [[0, 0, 0, 1, 1, 1]] * 2


def test_a_map_that_stays_keeps_its_version_and_its_table_is_shared() -> None:
    moving = MovingPlacement(LAYERS, [1, 2], 2)
    moving.update(PlacementMap(0, FIRST.numpy()))
    moving.update(PlacementMap(3, FIRST.numpy()))
    assert moving.placement is not None
    assert moving.placement.version == 0
    assert moving.placement.table_of_layer == [0, 0]


@pytest.mark.parametrize(
    "wrong", [[[0, 1, 2, 2, 0, 1]] * 3, [[0, 1, 2, 3, 0]] * 3, [[0, 1, 2, 3, -1, -1]] * 3]
)
def test_a_map_that_is_none_of_these_experts_is_no_placement(
    wrong: list[list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    moving = MovingPlacement(LAYERS, [1, 2], 2)
    moving.update(PlacementMap(0, FIRST.numpy()))
    moving.update(PlacementMap(1, np.array(wrong)))
    assert moving.placement is None
    assert "not understood" in caplog.text


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"enable_eplb": False}, None),
        ({"enable_elastic_ep": True}, "number of EP ranks"),
        ({"enable_eplb": True, "broken": True}, "expert_rearrangement_step_interval"),
    ],
)
def test_without_a_balancer_that_can_be_followed_there_is_no_watch_but_a_reason(
    changes: dict[str, bool], reason: str | None
) -> None:
    balancer = Balancer(is_async=False)
    if changes.pop("broken", False):
        del balancer.state.expert_rearrangement_step_interval
    parallel = SimpleNamespace(**({"enable_eplb": True, "enable_elastic_ep": False} | changes))
    config = SimpleNamespace(parallel_config=parallel)
    lost: list[str] = []
    assert watch_eplb(balancer.runner, balancer.modules, config, lost.append) is None
    assert [reason in said for said in lost if reason] == ([True] if reason else lost)


@pytest.mark.parametrize("gone", ["expert_rearrangement_step", "model_states"])
def test_a_balancer_that_can_no_longer_be_read_costs_the_placement_only(gone: str) -> None:
    balancer = Balancer(is_async=False)
    balancer.passes(2)
    delattr(balancer.state, gone)
    for _ in range(3):
        balancer.watch.look()
        balancer.watch.moves_after_this_pass()
        assert balancer.watch.version is None
    assert len(balancer.losses) == 1
    assert gone in balancer.losses[0]
