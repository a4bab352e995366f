"""As much of vLLM's configuration as the seam reads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any


def config(speculative: Any = None, model: Any = None, v2: bool = False, **changes: Any) -> Any:
    """A configuration whose parallel part differs from the usual by ``changes``; perhaps with a model's."""
    fields = {
        "ubatch_size": 0,
        "prefill_context_parallel_size": 1,
        "enable_expert_parallel": True,
        "enable_eplb": False,
    }
    parallel = SimpleNamespace(**(fields | changes))
    return SimpleNamespace(
        parallel_config=parallel,
        speculative_config=speculative,
        use_v2_model_runner=v2,
        **({"model_config": model} if model else {}),
    )
