"""Exact counts of real vLLM deployments on two GPUs: data, expert, tensor and pipeline parallelism."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from tests.gpu.accounts import by_layer
from tests.gpu.deployments import CHILD, GRAPHS, IN_DP, PASS_WORKER, PP2, SCENARIOS, WITH_EP, has
from tests.gpu.runs import Runs
from tests.gpu.scenario import needed

FULL, PIECEWISE = 2, 1
"""Values of vLLM's `CUDAGraphMode`."""


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, SCENARIOS)
    return Runs(tmp_path_factory.mktemp("deployments"), wanted, SCENARIOS, CHILD, worker=PASS_WORKER)


def passes(run: dict[str, Any], dp: int, pp: int = 0, tp: int = 0) -> dict[int, dict[str, Any]]:
    """What a worker noted of each forward pass of a step that capture counts or skips as dummy."""
    return {
        note["step"]: note
        for note in run["noted"]
        if (note["dp"], note["pp"], note["tp"]) == (dp, pp, tp) and note.get("step", -1) >= 0
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_dp_rank_counts_its_own_tokens_once_in_each_layer(runs: Runs, name: str) -> None:
    run, config = runs[name], SCENARIOS[name].config
    layers = range(config.get("first_k_dense_replace", 0), config["num_hidden_layers"])
    top_k = config["num_experts_per_tok"]
    assert len(run["workers"]) == 2
    assert all(tokens > 500 for tokens in run["computed"])
    for worker in run["workers"]:
        dp = worker["ranks"]["dp"]
        assert worker["state"] == ["counting", ""]
        assert worker["strategy"] == "kernel-per-step"
        assert worker["uncovered"] == []
        assert worker["tokens"] == run["computed"][dp]
        assert worker["decode_tokens"] == run["decode"][dp]
    for dp, (computed, decode) in enumerate(zip(run["computed"], run["decode"], strict=True)):
        assert by_layer(run["workers"], dp, "rows") == dict.fromkeys(layers, computed)
        assert by_layer(run["workers"], dp, "decode_rows") == dict.fromkeys(layers, decode)
        slots = {layer: sum(counts) for layer, counts in by_layer(run["workers"], dp, "counts").items()}
        assert slots == dict.fromkeys(layers, computed * top_k)


@pytest.mark.parametrize("name", has(PP2))
def test_each_pipeline_stage_has_its_own_layers(runs: Runs, name: str) -> None:
    stages = sorted(runs[name]["workers"], key=lambda worker: worker["ranks"]["pp"])
    assert [[layer for layer, _, _ in stage["layers"]] for stage in stages] == [[0, 1], [2, 3]]
    assert stages[0]["steps"] == stages[1]["steps"]


@pytest.mark.parametrize("name", WITH_EP)
def test_loads_of_all_steps_are_the_counts(runs: Runs, name: str) -> None:
    run = runs[name]
    for worker in run["workers"]:
        assert worker["ep_size"] == 2
        assert worker["drops"]["steps_lost"] == 0
        assert len(worker["loads"]) == worker["steps"][0]
        assert np.sum(list(worker["loads"].values()), axis=0).tolist() == worker["placed"]


@pytest.mark.parametrize("name", IN_DP)
def test_a_steps_number_is_the_same_on_all_dp_ranks(runs: Runs, name: str) -> None:
    run = runs[name]
    notes = [passes(run, dp) for dp in (0, 1)]
    assert notes[0].keys() == notes[1].keys()
    assert len(notes[0]) > 50
    for step in notes[0]:  # in each pass the ranks agree on their sizes
        assert notes[0][step]["across"] == notes[1][step]["across"]
        assert notes[0][step]["mode"] == notes[1][step]["mode"]
    assert len({sum(worker["steps"][:1] + worker["steps"][3:]) for worker in run["workers"]}) == 1


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_steps_tokens_are_those_that_the_scheduler_scheduled(runs: Runs, name: str) -> None:
    run = runs[name]
    loads: dict[int, Counter[int]] = {}
    for worker in run["workers"]:
        ranks = worker["ranks"]
        noted = passes(run, ranks["dp"], ranks["pp"], ranks["tp"])
        scheduled = {step: note["tokens"] for step, note in noted.items() if note["tokens"]}
        assert worker["steps"][0] == len(scheduled)
        assert worker["tokens"] == sum(scheduled.values())
        if worker["loads"] is not None:
            slots = {int(step): sum(of_layers[0]) for step, of_layers in worker["loads"].items()}
            loads.setdefault(ranks["dp"], Counter()).update(slots)
    assert bool(loads) == (name in WITH_EP)
    for dp, slots in loads.items():
        top_k = SCENARIOS[name].config["num_experts_per_tok"]
        scheduled = {step: note["tokens"] for step, note in passes(run, dp).items() if note["tokens"]}
        assert slots == {step: tokens * top_k for step, tokens in scheduled.items()}


@pytest.mark.parametrize("name", [name for name in GRAPHS if name in IN_DP or SCENARIOS[name].runner == "V2"])
def test_full_and_piecewise_graphs_were_replayed(runs: Runs, name: str) -> None:
    modes = Counter(note["mode"] for note in passes(runs[name], 0).values())
    print(f"{name}: modes {dict(modes)}")
    assert {FULL, PIECEWISE} <= modes.keys()


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_row_layout_is_one_of_its_parallelism(runs: Runs, name: str) -> None:
    found = sorted({note["layout"] for note in runs[name]["noted"] if "layout" in note})
    print(f"{name}: row layouts {found}")
    assert found
    assert set(found) <= ({"all_dp", "local"} if name in IN_DP else {"single_dp"})
