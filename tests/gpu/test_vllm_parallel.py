"""Exact counts of real vLLM deployments on two GPUs: data, expert and tensor parallelism, CUDA graphs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

if torch.cuda.device_count() < 2:
    pytest.skip("needs two CUDA GPUs", allow_module_level=True)
pytest.importorskip("vllm", reason="needs vLLM for CUDA")

from devkit.gpu_models import write_model
from devkit.processes import ProcessGroup
from tests.gpu.test_vllm import DEFAULT, LLM, QWEN, REQUESTS, V1, V2

TIMEOUT = 300
DP2 = {"data_parallel_size": 2, "enable_expert_parallel": True}
TP2 = {"tensor_parallel_size": 2, "enable_expert_parallel": True}
SCENARIOS: dict[str, dict[str, Any]] = {
    "DP=2 EP=2": {"llm": DP2 | DEFAULT, "env": V1},
    "DP=2 EP=2, runner V2": {"llm": DP2 | DEFAULT, "env": V2},
    "DP=2 EP=2, eager": {"llm": DP2 | {"enforce_eager": True}, "env": V1},
    "TP=2 EP=2": {"llm": TP2 | DEFAULT, "env": V1},
}
GRAPHS = [name for name in SCENARIOS if "eager" not in name]
IN_DP = [name for name in SCENARIOS if "DP" in name]


class Runs:
    """The deployments, all at once, and what came of them."""

    def __init__(
        self,
        folder: Path,
        scenarios: dict[str, dict[str, Any]] = SCENARIOS,
        child: str = "tests.gpu.parallel_child",
        worker: str = "tests.gpu.pass_worker.PassWorker",
    ) -> None:
        self._folder = folder
        self._scenarios, self._child, self._worker = scenarios, child, worker
        self._results: dict[str, dict[str, Any] | str] = {}
        threads = [
            threading.Thread(target=self._run, args=(name, index)) for index, name in enumerate(scenarios)
        ]
        for thread in threads:
            thread.start()
            time.sleep(2)  # each looks for free ports
        for thread in threads:
            thread.join()

    def _run(self, name: str, index: int) -> None:
        scenario, folder = self._scenarios[name], self._folder / str(index)
        spec = {
            "llm": LLM | scenario["llm"] | {"model": str(write_model(folder, QWEN))},
            "requests": REQUESTS,
            "worker": self._worker,
        }
        (folder / "spec.json").write_text(json.dumps(spec))
        environment = os.environ | scenario["env"] | {"PASS_FOLDER": str(folder)}
        if importlib.util.find_spec("flashinfer") is None:
            environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
        files = [str(folder / "spec.json"), str(folder / "result.json")]
        command = [sys.executable, "-m", self._child, *files]
        group = ProcessGroup(command, folder / "log", environment)
        try:
            deadline = time.monotonic() + TIMEOUT
            while (code := group.exit_code()) is None and time.monotonic() < deadline:
                time.sleep(0.2)
        finally:
            group.stop()
        if code == 0:
            self._results[name] = json.loads((folder / "result.json").read_text())
        else:
            self._results[name] = f"status {code}\n{(folder / 'log').read_text()[-6000:]}"

    def __getitem__(self, name: str) -> dict[str, Any]:
        result = self._results[name]
        if isinstance(result, str):
            pytest.fail(f"{name}: {result}", pytrace=False)
        return result


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
