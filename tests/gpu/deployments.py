"""Deployments on two GPUs, and their processes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from devkit.gpu_models import write_model
from devkit.processes import ProcessGroup
from tests.gpu.engines import DEFAULT, LLM, QWEN, REQUESTS, V1, V2

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
