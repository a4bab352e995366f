"""The scenarios of one engine on one GPU, and their processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from devkit.gpu_models import deepseek_v2, qwen3_moe, write_model

AT_ONCE = 10
TIMEOUT = 420
VOCABULARY = 8192
QWEN = qwen3_moe(
    layers=4, hidden=512, experts=60, top_k=4, expert_width=128, heads=8, kv_heads=2, vocabulary=VOCABULARY
)
DRAFT = QWEN | {"num_hidden_layers": 2, "num_experts": 16, "num_experts_per_tok": 2}
DEEPSEEK = deepseek_v2(layers=4, hidden=512, expert_width=128, vocabulary=VOCABULARY)
SIZES = [1, 2, 4, 8, 16, 32, 64]
REQUESTS = {"long": 37, "short": 40, "longest": 900, "vocabulary": VOCABULARY}
LLM = {
    "max_model_len": 2048,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 24,
    "enable_prefix_caching": False,
    "kv_cache_memory_bytes": 1 << 30,
    "gpu_memory_utilization": 0.06,
}


def graphs(mode: str) -> dict[str, Any]:
    """The options of an engine with CUDA graphs in this mode."""
    return {"compilation_config": {"cudagraph_mode": mode, "cudagraph_capture_sizes": SIZES}}


# The 48 layers of Qwen3-30B-A3B, narrow, with the sizes of graphs and steps that vLLM chooses by itself.
TALL = qwen3_moe(hidden=256, expert_width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY)
TALL_LLM = {"max_model_len": 8192, "max_num_batched_tokens": 8192, "max_num_seqs": 256}
FEW = {"long": 4, "short": 0, "longest": 4000, "vocabulary": VOCABULARY}
DEFAULT = graphs("FULL_AND_PIECEWISE")
V1, V2 = {"VLLM_USE_V2_MODEL_RUNNER": "0"}, {"VLLM_USE_V2_MODEL_RUNNER": "1"}
RATE = "MOESCOPE_TRACE_RATE"
TRACED, A_THIRD = {RATE: "1"}, {RATE: "0.3"}
# vLLM 0.32 and later return routed experts with runner V2 only, and only with a prefix cache. No request hits
# the cache: the prompts are random, and no two begin alike.
ROUTED_BY_V2 = importlib.util.find_spec("vllm.config.aux_output") is not None
ROUTED_LLM: dict[str, Any] = {"enable_return_routed_experts": True, "enable_prefix_caching": ROUTED_BY_V2}
ROUTED_ENV = V2 if ROUTED_BY_V2 else V1
SCENARIOS: dict[str, dict[str, Any]] = {
    "default": {"llm": DEFAULT, "env": V1, "ep_ranks": 8},
    "capture off": {"llm": DEFAULT, "env": V1, "capture": False},
    "with vLLM's routed experts": {"llm": DEFAULT | ROUTED_LLM, "env": ROUTED_ENV | TRACED},
    "piecewise": {"llm": graphs("PIECEWISE"), "env": V1 | TRACED},
    "full": {"llm": graphs("FULL"), "env": V1 | A_THIRD},
    "eager": {"llm": {"enforce_eager": True} | ROUTED_LLM, "env": ROUTED_ENV | TRACED},
    "preemption": {
        "llm": DEFAULT | {"num_gpu_blocks_override": 80, "max_model_len": 1024},
        "env": V1 | TRACED,
        "ep_ranks": 6,
    },
    "runner V2": {"llm": DEFAULT, "env": V2, "ep_ranks": 60},
    "runner V2 traced": {"llm": DEFAULT, "env": V2 | TRACED},
    "runner V2 off": {"llm": DEFAULT, "env": V2, "capture": False},
    "DeepSeek": {"llm": DEFAULT, "config": DEEPSEEK, "ep_ranks": 3},
    "engine in its own process": {"llm": DEFAULT, "env": {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}},
    "draft model": {"llm": graphs("PIECEWISE"), "env": V1, "draft": DRAFT},
    "48 layers": {"llm": TALL_LLM, "env": V1, "config": TALL, "requests": FEW, "ep_ranks": 8},
    "48 layers off": {"llm": TALL_LLM, "env": V1, "config": TALL, "requests": FEW, "capture": False},
}
COUNTED = [name for name, scenario in SCENARIOS.items() if scenario.get("capture", True)]


class Runs:
    """The scenarios' processes and what came of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._results: dict[str, dict[str, Any] | str] = {}
        gate = threading.Semaphore(AT_ONCE)
        threads = [
            threading.Thread(target=self._run, args=(name, index, gate))
            for index, name in enumerate(SCENARIOS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, name: str, index: int, gate: threading.Semaphore) -> None:
        folder = self._folder / str(index)
        with gate:
            try:
                self._results[name] = self._child(name, folder)
            except Exception as error:  # noqa: BLE001 - shown by every test of the scenario
                log = folder / "log"
                self._results[name] = f"{error}\n{log.read_text()[-6000:] if log.exists() else ''}"

    def _child(self, name: str, folder: Path) -> dict[str, Any]:
        scenario = SCENARIOS[name]
        model = write_model(folder, scenario.get("config", QWEN))
        llm = LLM | scenario["llm"] | {"model": str(model)}
        if "draft" in scenario:
            draft = write_model(folder / "draft", scenario["draft"])
            llm["speculative_config"] = {
                "model": str(draft),
                "method": "draft_model",
                "num_speculative_tokens": 2,
                "draft_load_config": {"load_format": "dummy"},
            }
        spec = {
            "llm": llm,
            "capture": scenario.get("capture", True),
            "requests": scenario.get("requests", REQUESTS),
            "ep_ranks": scenario.get("ep_ranks", 0),
        }
        spec["experts"] = scenario.get("config", QWEN).get("num_experts")
        spec_path, result = folder / "spec.json", folder / "result.json"
        spec_path.write_text(json.dumps(spec))
        environment = os.environ | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"} | scenario.get("env", {})
        if importlib.util.find_spec("flashinfer") is None:
            environment["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
        command = [sys.executable, "-m", "tests.gpu.vllm_child", str(spec_path), str(result)]
        with (folder / "log").open("w") as log:
            subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=TIMEOUT, check=True)
        return dict(json.loads(result.read_text()))

    def __getitem__(self, name: str) -> dict[str, Any]:
        result = self._results[name]
        if isinstance(result, str):
            pytest.fail(f"{name}: {result}", pytrace=False)
        return result
