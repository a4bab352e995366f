"""A real vLLM that a test runs in a process of its own: what it is, and which of them the tests need."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import pytest

from devkit.gpu_models import qwen3_moe
from devkit.vllm_features import routed_experts_need_v2

Runner = Literal["V1", "V2", ""]

VOCABULARY = 8192
QWEN = qwen3_moe(
    layers=4, hidden=512, experts=60, top_k=4, expert_width=128, heads=8, kv_heads=2, vocabulary=VOCABULARY
)
SIZES = [1, 2, 4, 8, 16, 32, 64]
REQUESTS: dict[str, int] = {"long": 37, "short": 40, "longest": 900, "vocabulary": VOCABULARY}
LLM = {
    "max_model_len": 2048,
    "max_num_batched_tokens": 512,
    "max_num_seqs": 24,
    "enable_prefix_caching": False,
    "kv_cache_memory_bytes": 1 << 30,
    "gpu_memory_utilization": 0.06,
}
RUNNERS: tuple[Runner, ...] = ("V2", "V1")
V2_IS_DEFAULT = routed_experts_need_v2()
MAIN: Runner = "V2" if V2_IS_DEFAULT else "V1"


class Scenario(NamedTuple):
    """One vLLM with dummy weights.

    Attributes:
        llm: its arguments, beside those of `LLM`.
        runner: its model runner; vLLM's choice, if empty.
        env: variables of its environment.
        config: of its model.
        draft: config of its draft model.
        draft_method: how vLLM uses it.
        capture: whether moescope counts.
        requests: arguments of `vllm_child.make_requests`.
        turns: how often each conversation goes on; see `vllm_child.converse`.
        stops: whether all requests are made once more, to end by a stop token; see `vllm_child.cut_short`.
        ep_ranks: how many EP ranks are pretended, on one GPU.
        lacking: why the installed vLLM can't run it; empty if it can.
    """

    llm: dict[str, Any]
    runner: Runner = ""
    env: Mapping[str, str] = {}
    config: dict[str, Any] = QWEN
    draft: dict[str, Any] | None = None
    draft_method: str = "draft_model"
    capture: bool = True
    requests: dict[str, int] = REQUESTS
    turns: int = 1
    stops: bool = False
    ep_ranks: int = 0
    lacking: str = ""

    @property
    def gpus(self) -> int:
        """How many it uses."""
        sizes = ("data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size")
        return math.prod(self.llm.get(size, 1) for size in sizes)

    @property
    def environment(self) -> dict[str, str]:
        """What its process needs beside our own environment."""
        found = dict(self.env)
        if self.runner:
            found["VLLM_USE_V2_MODEL_RUNNER"] = str(int(self.runner == "V2"))
        if importlib.util.find_spec("flashinfer") is None:
            found["VLLM_USE_FLASHINFER_SAMPLER"] = "0"
        return found


def graphs(mode: str) -> dict[str, Any]:
    """The options of an engine with CUDA graphs in this mode."""
    return {"compilation_config": {"cudagraph_mode": mode, "cudagraph_capture_sizes": SIZES}}


DEFAULT = graphs("FULL_AND_PIECEWISE")


def of(item: pytest.Item) -> dict[str, Scenario]:
    """The scenarios that a test names in its parameters."""
    known: Mapping[str, Scenario] = getattr(getattr(item, "module", None), "SCENARIOS", {})
    callspec = getattr(item, "callspec", None)
    values = [] if callspec is None else callspec.params.values()
    return {value: known[value] for value in values if isinstance(value, str) and value in known}


def needed(items: Iterable[pytest.Item], scenarios: Mapping[str, Scenario]) -> dict[str, Scenario]:
    """Those of the scenarios that tests name and that can run, in their order."""
    named = {name for item in items for name in of(item)}
    return {name: one for name, one in scenarios.items() if name in named and not one.lacking}


def is_wanted(mine: Mapping[str, Scenario], runner: str | None, names: Sequence[str]) -> bool:
    """Whether a test of these scenarios runs.

    Args:
        runner: that of all of them, where they name one.
        names: one of them must be among these, unless these are none.
    """
    fits = runner is None or all(one.runner in ("", runner) for one in mine.values())
    return fits and (not names or any(name in names for name in mine))
