"""EPLB on two GPUs: logical experts counted exactly; placements by version, as vLLM's own state has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from tests.gpu.deployments import DP2, TP2, Runs
from tests.gpu.engines import DEFAULT, V1, V2


def balancer(use_async: bool) -> dict[str, Any]:
    """Two more experts on each rank, moved about every 24 passes."""
    config = {"window_size": 16, "step_interval": 24, "num_redundant_experts": 4, "use_async": use_async}
    return {"enable_eplb": True, "eplb_config": config}


SCENARIOS: dict[str, dict[str, Any]] = {
    "DP=2, at once": {"llm": DP2 | DEFAULT | balancer(False), "env": V1},
    "DP=2, async": {"llm": DP2 | DEFAULT | balancer(True), "env": V1},
    "TP=2, async, runner V2": {"llm": TP2 | DEFAULT | balancer(True), "env": V2},
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder: Path = tmp_path_factory.mktemp("eplb")
    return Runs(folder, SCENARIOS, "tests.gpu.eplb_child", "tests.gpu.eplb_worker.EplbWorker")


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_token_is_counted_once_by_logical_expert(runs: Runs, name: str) -> None:
    run = runs[name]
    assert len(run["workers"]) == 2
    for dp, computed in enumerate(run["computed"]):
        workers = [worker for worker in run["workers"] if worker["ranks"][0] == dp]
        for worker in workers:
            assert worker["state"] == ["counting", ""]
            assert worker["uncovered"] == []
            assert worker["layers"] == [[layer, 60, 4] for layer in range(4)]
        rows = np.sum([worker["rows"] for worker in workers], axis=0)
        assert rows.tolist() == [computed] * 4
        counts = np.sum([worker["counts"] for worker in workers], axis=0)
        assert counts.sum(axis=1).tolist() == [4 * computed] * 4


@pytest.mark.parametrize("name", SCENARIOS)
def test_frames_carry_the_settled_placements_in_their_order(runs: Runs, name: str) -> None:
    run = runs[name]
    by_version: dict[int, Any] = {}
    for worker in run["workers"]:
        dp, tp, _ = worker["ranks"]
        notes = [note for note in run["noted"] if (note["dp"], note["tp"]) == (dp, tp)]
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
