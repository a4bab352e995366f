"""The scenarios of deployments on two GPUs."""

from __future__ import annotations

import sys
from typing import Any

from devkit.gpu_models import deepseek_v2
from tests.gpu.scenario import DEFAULT, MAIN, REQUESTS, VOCABULARY, Runner, Scenario

CHILD = [sys.executable, "-m", "tests.gpu.parallel_child"]
PASS_WORKER = "tests.gpu.pass_worker.PassWorker"
EP = {"enable_expert_parallel": True}
DP2, TP2, PP2 = ({f"{kind}_parallel_size": 2} for kind in ("data", "tensor", "pipeline"))
# DeepSeek's widths, few layers, block FP8: the kernels of a DeepSeek-V3 deployment.
DEEPSEEK_FP8 = deepseek_v2(layers=4, vocabulary=VOCABULARY) | {
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }
}
# DeepGEMM compiles its kernels for the sizes that come, not for all that may come.
COMPILE_LATE = {"VLLM_DEEP_GEMM_WARMUP": "skip"}
OF_EACH_RUNNER: dict[str, Scenario] = {
    "DP=2 EP=2": Scenario(DP2 | EP | DEFAULT),
    "DP=2 EP=2, eager": Scenario(DP2 | EP | {"enforce_eager": True}),
    "TP=2 EP=2": Scenario(TP2 | EP | DEFAULT),
    "PP=2": Scenario(PP2 | DEFAULT),
    "DeepSeek, block FP8, DP=2 EP=2": Scenario(DP2 | EP | DEFAULT, env=COMPILE_LATE, config=DEEPSEEK_FP8),
}


def on(runner: Runner, scenarios: dict[str, Scenario]) -> dict[str, Scenario]:
    """The scenarios with a runner. V1 schedules pipeline stages synchronously only, since vLLM 0.33."""
    found: dict[str, Scenario] = {}
    for name, scenario in scenarios.items():
        synchronous: dict[str, Any] = (
            {"async_scheduling": False} if runner == "V1" and PP2.items() <= scenario.llm.items() else {}
        )
        found[f"{name}, {runner}"] = scenario._replace(llm=scenario.llm | synchronous, runner=runner)
    return found


SCENARIOS: dict[str, Scenario] = {
    **on("V2", OF_EACH_RUNNER),
    **on(MAIN, {"DP=2": Scenario(DP2 | DEFAULT), "TP=2": Scenario(TP2 | DEFAULT)}),
    **on("V1", OF_EACH_RUNNER),
}
PAIR: dict[str, Scenario] = {
    "first of two, DP=2 EP=2": Scenario(DP2 | EP | DEFAULT | {"served_model_name": "pair"}, MAIN),
    "second of two, TP=2 EP=2": Scenario(
        TP2 | EP | DEFAULT | {"served_model_name": "pair"}, MAIN, requests=REQUESTS | {"short": 30, "seed": 1}
    ),
}


def has(option: dict[str, Any], scenarios: dict[str, Scenario] = SCENARIOS) -> list[str]:
    """The names of the scenarios that have an option."""
    return [name for name, scenario in scenarios.items() if option.items() <= scenario.llm.items()]


IN_DP, WITH_EP = has(DP2), has(EP)
GRAPHS = [name for name in SCENARIOS if name not in has({"enforce_eager": True})]
