"""The engine of the tests that run vLLM within their own process, on CPUs."""

from __future__ import annotations

from typing import Any, Final

SMALL_ENGINE: Final[dict[str, Any]] = {
    "enforce_eager": True,
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 64,
    "kv_cache_memory_bytes": 16 << 20,
    "distributed_executor_backend": "uni",
    "enable_prefix_caching": False,
    "seed": 0,
}
"""Arguments of `vllm.LLM`."""
