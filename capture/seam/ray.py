"""What becomes of the capturer's variables where Ray starts vLLM's workers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moescope.capture.settings.attachment import set_here


def why_settings_are_lost(vllm_config: Any, environment: Mapping[str, str]) -> str | None:
    """A warning that Ray started this worker without any of our variables, or None."""
    parallel = vllm_config.parallel_config
    through = (parallel.distributed_executor_backend, getattr(parallel, "data_parallel_backend", None))
    if "ray" not in map(str, through) or set_here(environment):
        return None
    return (
        "Ray started this worker without any MOESCOPE_ variable, so all settings are the defaults. Set "
        "VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY=MOESCOPE where vLLM is started; MOESCOPE=1 does it by itself"
    )
