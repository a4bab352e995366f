"""The scenarios of one engine on one GPU."""

from __future__ import annotations

import sys
from typing import Any

from devkit.gpu_models import deepseek_v2, qwen3_moe
from devkit.vllm_features import vllm_has
from tests.gpu.scenario import (
    DEFAULT,
    MAIN,
    QWEN,
    RUNNERS,
    V2_IS_DEFAULT,
    VOCABULARY,
    Runner,
    Scenario,
    graphs,
)

CHILD = [sys.executable, "-m", "tests.gpu.vllm_child"]
DRAFT = QWEN | {"num_hidden_layers": 2, "num_experts": 16, "num_experts_per_tok": 2}
DEEPSEEK = deepseek_v2(layers=4, hidden=512, expert_width=128, vocabulary=VOCABULARY)
# The 48 layers of Qwen3-30B-A3B, narrow, with the sizes of graphs and steps that vLLM chooses by itself.
TALL = qwen3_moe(hidden=256, expert_width=64, heads=2, kv_heads=1, vocabulary=VOCABULARY)
TALL_LLM = {"max_model_len": 8192, "max_num_batched_tokens": 8192, "max_num_seqs": 256}
FEW = {"long": 4, "short": 0, "longest": 4000, "vocabulary": VOCABULARY}
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
RATE = "MOESCOPE_TRACE_RATE"
TRACED, A_THIRD = IN_PROCESS | {RATE: "1"}, IN_PROCESS | {RATE: "0.3"}
ROUTED: Runner = MAIN
"""The runner that returns vLLM's own routed experts; V2 does so only with a prefix cache."""
CACHED: dict[str, Any] = {"enable_prefix_caching": V2_IS_DEFAULT}
"""A prefix cache where routed experts need it. No request hits it: no two prompts begin alike."""
ROUTED_LLM = {"enable_return_routed_experts": True} | CACHED
DRAFTS_IN_V2 = vllm_has("v1/worker/gpu/spec_decode/standalone_ar")


def of_runner(runner: Runner) -> dict[str, Scenario]:
    """What is run with each runner."""
    few_blocks = {"num_gpu_blocks_override": 80, "max_model_len": 1024}
    eager = {"enforce_eager": True} | (ROUTED_LLM if runner == ROUTED else {})
    drafts = runner == "V1" or DRAFTS_IN_V2
    lacking = "" if drafts else "runner V2 of this vLLM has no draft models"
    # V2's drafts of a full step have more rows than vLLM profiled: 0.33 dies of its "Workspace is locked".
    piecewise = graphs("PIECEWISE")
    drafting = piecewise | ({"max_num_batched_tokens": 8192} if runner == "V2" else {})
    # Two sizes of the kernel's table of EP ranks.
    graphed = Scenario(DEFAULT, runner, IN_PROCESS, ep_ranks=60 if runner == "V2" else 8)
    scenarios = {
        "graphs": graphed,
        "capture off": Scenario(DEFAULT, runner, IN_PROCESS, capture=False),
        "traced": Scenario(DEFAULT, runner, TRACED),
        "piecewise": Scenario(piecewise, runner, TRACED),
        "full": Scenario(graphs("FULL"), runner, A_THIRD),
        "eager": Scenario(eager, runner, TRACED),
        "preemption": Scenario(DEFAULT | few_blocks, runner, TRACED, ep_ranks=6),
        "draft model": Scenario(drafting, runner, IN_PROCESS, draft=DRAFT, lacking=lacking),
    }
    return {f"{name}, {runner}": scenario for name, scenario in scenarios.items()}


# What takes longest begins first.
SCENARIOS: dict[str, Scenario] = {
    "48 layers": Scenario(TALL_LLM, MAIN, IN_PROCESS, TALL, requests=FEW, ep_ranks=8),
    "48 layers, capture off": Scenario(TALL_LLM, MAIN, IN_PROCESS, TALL, requests=FEW, capture=False),
    "vLLM's routed experts": Scenario(DEFAULT | ROUTED_LLM, ROUTED, TRACED),
    "the same cache": Scenario(DEFAULT | CACHED, ROUTED, IN_PROCESS),
    "DeepSeek": Scenario(DEFAULT, config=DEEPSEEK, env=IN_PROCESS, ep_ranks=3),
    "engine in its own process": Scenario(DEFAULT, env={"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}),
    **{name: scenario for runner in RUNNERS for name, scenario in of_runner(runner).items()},
}
COUNTED = [name for name, scenario in SCENARIOS.items() if scenario.capture]
