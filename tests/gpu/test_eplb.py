"""EPLB on two GPUs: logical experts counted exactly; placements by version, as vLLM's own state has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from tests.gpu.accounts import by_layer
from tests.gpu.deployments import CHILD, DP2, EP, TP2
from tests.gpu.runs import Runs
from tests.gpu.scenario import DEFAULT, Scenario, needed


def balancer(use_async: bool, redundant: int = 4) -> dict[str, Any]:
    """Two more experts on each rank, or none, moved about every 24 passes; EPLB notes the loads of each."""
    config = {
        "window_size": 48,
        "step_interval": 24,
        "num_redundant_experts": redundant,
        "use_async": use_async,
    }
    return EP | DEFAULT | {"enable_eplb": True, "eplb_config": config}


SCENARIOS: dict[str, Scenario] = {
    "EPLB, DP=2, async, V2": Scenario(DP2 | balancer(True), "V2"),
    "EPLB, DP=2, at once, V2": Scenario(DP2 | balancer(False), "V2"),
    "EPLB, TP=2, async, V2": Scenario(TP2 | balancer(True), "V2"),
    "EPLB, TP=2, at once, no redundant experts, V2": Scenario(TP2 | balancer(False, 0), "V2"),
    "EPLB, DP=2, async, no redundant experts, V2": Scenario(DP2 | balancer(True, 0), "V2"),
    "EPLB, TP=2, at once, V1": Scenario(TP2 | balancer(False), "V1"),
    "EPLB, DP=2, async, V1": Scenario(DP2 | balancer(True), "V1"),
    "EPLB, DP=2, at once, V1": Scenario(DP2 | balancer(False), "V1"),
}


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, SCENARIOS)
    worker = "tests.gpu.eplb_worker.EplbWorker"
    return Runs(tmp_path_factory.mktemp("eplb"), wanted, SCENARIOS, CHILD, worker=worker)


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_token_is_counted_once_by_logical_expert(runs: Runs, name: str) -> None:
    run = runs[name]
    assert len(run["workers"]) == 2
    for worker in run["workers"]:
        assert worker["state"] == ["counting", ""]
        assert worker["uncovered"] == []
        assert worker["layers"] == [[layer, 60, 4] for layer in range(4)]
    for dp, computed in enumerate(run["computed"]):
        assert by_layer(run["workers"], dp, "rows") == dict.fromkeys(range(4), computed)
        slots = {layer: sum(counts) for layer, counts in by_layer(run["workers"], dp, "counts").items()}
        assert slots == dict.fromkeys(range(4), 4 * computed)


@pytest.mark.parametrize("name", SCENARIOS)
def test_frames_carry_the_settled_placements_in_their_order(runs: Runs, name: str) -> None:
    run = runs[name]
    by_version: dict[int, Any] = {}
    for worker in run["workers"]:
        dp, tp = worker["ranks"]["dp"], worker["ranks"]["tp"]
        notes = [note for note in run["noted"] if (note["dp"], note["tp"]) == (dp, tp) and "map" in note]
        settled = [note["map"] for note in notes if not note["moving"]]
        order = [settled.index(table) for _, table in worker["placements"]]
        assert order == sorted(order)
        assert order[0] == 0
        versions = [version for version, _ in worker["placements"]]
        assert versions == sorted(set(versions))
        print(f"{name}: versions {versions} of {len(settled)} settled maps; {len(notes)} maps in all")
        assert len(versions) > 1
        for version, table in worker["placements"]:
            assert by_version.setdefault(version, table) == table


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_step_has_the_loads_that_vllms_own_mapping_made(name: str, runs: Runs) -> None:
    """EPLB notes the slots of a step by physical expert, in each step whose loads it keeps.

    Its kernel takes the first rows of the router's tensor for this DP rank's. With naive dispatch that holds
    for DP rank 0 only; the rows of the others come later in it.
    """
    run = runs[name]
    compared = 0
    for worker in run["workers"]:
        dp, tp = worker["ranks"]["dp"], worker["ranks"]["tp"]
        assert "steps" not in worker["unavailable"]
        loads = {int(step): load for step, load in worker["loads"].items()}
        total = np.sum([*loads.values()], axis=0) if loads else np.zeros((4, 2))
        assert total.astype(int).tolist() == worker["ep_slots"]
        assert total.sum() == sum(map(sum, worker["counts"]))
        if (dp, tp) != (0, 0):
            continue
        noted = [note for note in run["noted"] if (note["dp"], note["tp"]) == (0, 0) and "step" in note]
        told = {note["step"]: note["loads"] for note in noted if np.any(note["loads"])}
        assert told == {step: loads[step] for step in told}
        compared += len(told)
        assert {step: load for step, load in loads.items() if step not in told} == {}
    print(f"{name}: {compared} steps compared")
    assert compared > 48
