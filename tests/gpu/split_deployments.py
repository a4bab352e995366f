"""The scenarios of deployments on two GPUs that split steps into microbatches."""

from __future__ import annotations

import inspect
from typing import Any

from tests.gpu.dbo_worker import CONFIGURED
from tests.gpu.deployments import DP2, EP
from tests.gpu.scenario import Runner, Scenario, graphs

OPTIONS: dict[str, Any] = {
    "enable_dbo": True,
    "all2all_backend": CONFIGURED,
    "dbo_decode_token_threshold": 4,
    "dbo_prefill_token_threshold": 32,
}


def hands_over() -> bool:
    """Whether the kernels of all-gather have vLLM's code for handing over to the next microbatch."""
    from vllm.model_executor.layers.fused_moe.prepare_finalize import naive_dp_ep

    return "supports_dbo" in inspect.getsource(naive_dp_ep)


# As `python -m tests.gpu.dbo_alone` shows of vLLM 0.33.0.
WAITS = "vLLM 0.33 stops without moescope too: a compiled step's microbatches wait for each other"
REFUSES = "vLLM 0.33 stops without moescope too: FlashAttention refuses what runner V1 gives a microbatch"


def scenario(runner: Runner, llm: dict[str, Any], broken: str = "") -> Scenario:
    from vllm.version import __version__

    if not hands_over():
        broken = "this vLLM has no microbatches with all-gather"
    elif not __version__.startswith("0.33."):
        broken = ""
    return Scenario(DP2 | EP | OPTIONS | llm, runner, lacking=broken)


# vLLM captures microbatches in full graphs only.
IN_GRAPHS, EAGER = graphs("FULL_DECODE_ONLY"), {"enforce_eager": True}
SCENARIOS: dict[str, Scenario] = {
    "DBO, V2": scenario("V2", IN_GRAPHS, WAITS),
    "DBO, eager, V2": scenario("V2", EAGER),
    "DBO, V1": scenario("V1", IN_GRAPHS, REFUSES),
    "DBO, eager, V1": scenario("V1", EAGER, REFUSES),
}
