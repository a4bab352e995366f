"""What the installed vLLM has, told without importing it."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def vllm_has(module: str) -> bool:
    """Whether the installed vLLM has a module or a package, such as ``v1/worker/gpu``."""
    vllm = importlib.util.find_spec("vllm")
    folders = [] if vllm is None else vllm.submodule_search_locations or []
    names = (f"{module}.py", module)
    return any((Path(folder) / name).exists() for folder in folders for name in names)


def routed_experts_need_v2() -> bool:
    """Whether only runner V2, vLLM's default then, returns routed experts, and only with a prefix cache."""
    return vllm_has("config/aux_output")
