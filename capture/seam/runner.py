"""What vLLM's model runner shows of the requests that it is at work on."""

from __future__ import annotations

from typing import Any, Final

UNASKED: Final = (
    "vLLM runs steps without asking its worker (worker.execute_model), so none of them can be counted. Ray's "
    "old executor does that: set VLLM_USE_RAY_V2_EXECUTOR_BACKEND=1, or use the mp executor"
)
"""Why a worker can't count whose runner has requests, while vLLM never asks it for a step."""


def holds_requests(model_runner: Any) -> bool:
    """Whether requests are in the runner's state; False where that can't be told.

    A step puts them there, and nothing else: no profiling, no warm-up, no dummy step. Runner V1 keeps them in
    ``requests``, V2 in ``req_states.req_id_to_index`` (vLLM 0.20 to 0.33). Any thread may ask.
    """
    held = getattr(model_runner, "requests", None)
    if held is None:
        held = getattr(getattr(model_runner, "req_states", None), "req_id_to_index", None)
    return bool(held)
