"""Exact counts of real vLLM deployments on two GPUs: data, expert and tensor parallelism, CUDA graphs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from tests.gpu.deployments import GRAPHS, IN_DP, SCENARIOS, Runs


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("deployments"))


def passes(run: dict[str, Any], dp: int, tp: int = 0) -> dict[int, dict[str, Any]]:
    """What a worker noted of each forward pass of a step that capture counts or skips as dummy."""
    return {
        note["step"]: note
        for note in run["noted"]
        if (note["dp"], note["tp"]) == (dp, tp) and note.get("step", -1) >= 0
    }


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_dp_rank_counts_its_own_tokens_once_in_each_layer(runs: Runs, name: str) -> None:
    run = runs[name]
    assert len(run["workers"]) == 2
    assert all(tokens > 500 for tokens in run["computed"])
    for dp, computed in enumerate(run["computed"]):
        workers = [worker for worker in run["workers"] if worker["ranks"][0] == dp]
        for worker in workers:
            assert worker["state"] == ["counting", ""]
            assert worker["strategy"] == "kernel-per-step"
            assert worker["uncovered"] == []
            assert worker["tokens"] == computed
            assert worker["decode_tokens"] == run["decode"][dp]
        rows = np.sum([worker["rows"] for worker in workers], axis=0)
        assert rows.tolist() == [computed] * 4
        decode_rows = np.sum([worker["decode_rows"] for worker in workers], axis=0)
        assert decode_rows.tolist() == [run["decode"][dp]] * 4
        counts = np.sum([worker["counts"] for worker in workers], axis=0)
        assert counts.sum(axis=1).tolist() == [computed * top_k for _, _, top_k in workers[0]["layers"]]


@pytest.mark.parametrize("name", SCENARIOS)
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
def test_each_steps_load_is_what_the_scheduler_scheduled(runs: Runs, name: str) -> None:
    run = runs[name]
    by_dp: dict[int, Counter[int]] = {}
    for worker in run["workers"]:
        sums = {int(step): sum(loads[0]) for step, loads in worker["loads"].items()}
        by_dp.setdefault(worker["ranks"][0], Counter()).update(sums)
    for dp, loads in by_dp.items():
        scheduled = {step: note["tokens"] for step, note in passes(run, dp).items() if note["tokens"]}
        assert {step: load // 4 for step, load in loads.items()} == scheduled


@pytest.mark.parametrize("name", GRAPHS)
def test_full_and_piecewise_graphs_were_replayed(runs: Runs, name: str) -> None:
    modes = Counter(note.get("mode") for note in passes(runs[name], 0).values())
    print(f"{name}: modes {dict(modes)}, layouts {layouts(runs[name])}")
    if "DP" in name:
        assert {1, 2} <= modes.keys()  # piecewise and full


def layouts(run: dict[str, Any]) -> list[str]:
    """The row layouts that callbacks met."""
    return sorted({note["layout"] for note in run["noted"] if "layout" in note})


@pytest.mark.parametrize("name", IN_DP)
def test_the_row_layout_is_one_of_data_parallelism(runs: Runs, name: str) -> None:
    found = layouts(runs[name])
    print(f"{name}: {found}")
    assert set(found) <= {"all_dp", "local"}
    assert found
