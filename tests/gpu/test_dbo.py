"""Deployments on two GPUs that split steps into microbatches: exact counts, and loads of each microbatch."""

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
from tests.gpu.deployments import CHILD
from tests.gpu.runs import Runs
from tests.gpu.scenario import QWEN, needed
from tests.gpu.split_deployments import SCENARIOS

FULL = 2
"""As vLLM's `CUDAGraphMode`."""
PARTS = 2


@pytest.fixture(scope="session")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    wanted = needed(request.session.items, SCENARIOS)
    worker = "tests.gpu.dbo_worker.DboWorker"
    return Runs(tmp_path_factory.mktemp("dbo"), wanted, SCENARIOS, CHILD, worker=worker)


def steps_of(run: dict[str, Any], dp: int) -> dict[int, dict[str, Any]]:
    """What a worker noted of each step that computed tokens."""
    return {note["step"]: note for note in run["noted"] if note["dp"] == dp and note.get("tokens")}


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_token_is_counted_once(runs: Runs, name: str) -> None:
    run, top_k = runs[name], QWEN["num_experts_per_tok"]
    for worker in run["workers"]:
        assert worker["state"] == ["counting", ""]
        assert worker["uncovered"] == []
        assert worker["strategy"] == "kernel-per-step"
    for dp, (computed, decode) in enumerate(zip(run["computed"], run["decode"], strict=True)):
        assert by_layer(run["workers"], dp, "rows") == dict.fromkeys(range(4), computed)
        assert by_layer(run["workers"], dp, "decode_rows") == dict.fromkeys(range(4), decode)
        slots = {layer: sum(counts) for layer, counts in by_layer(run["workers"], dp, "counts").items()}
        assert slots == dict.fromkeys(range(4), computed * top_k)


@pytest.mark.parametrize("name", SCENARIOS)
def test_steps_are_split_and_others_are_not(runs: Runs, name: str) -> None:
    run = runs[name]
    kinds = Counter((note["split"], note["mode"] == FULL) for note in steps_of(run, 0).values())
    print(f"{name}: steps by (split, full graph) {dict(kinds)}")
    assert kinds[True, False] > 5
    assert kinds[False, False] + kinds[False, True] > 5
    if "eager" not in name:
        assert kinds[True, True] > 5


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_microbatch_has_the_loads_of_its_own_tokens(runs: Runs, name: str) -> None:
    run, top_k = runs[name], QWEN["num_experts_per_tok"]
    for worker in run["workers"]:
        dp = worker["ranks"]["dp"]
        noted = steps_of(run, dp)
        assert {int(step) for step in worker["parts"]} == noted.keys()
        for step, parts in worker["parts"].items():
            note = noted[int(step)]
            expected = [note["tokens"]]
            if note["split"]:
                half = note["across"][dp] // PARTS
                expected = [min(half, note["tokens"]), max(0, note["tokens"] - half)]
            assert [np.sum(loads, axis=1).tolist() for loads in parts.values()] == [
                [tokens * top_k] * 4 for tokens in expected if tokens
            ]
        assert np.sum(list(worker["loads"].values()), axis=0).tolist() == worker["placed"]
