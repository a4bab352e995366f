"""The worker class to extend: the part of the seam that must work whatever else of moescope doesn't.

It imports nothing but vLLM, so that a broken dependency of the capturer can't keep a server from starting.
"""

from __future__ import annotations

from typing import Any


def platform_worker() -> type[Any]:
    """The worker class that vLLM itself would use on this platform."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker  # type: ignore[no-any-return]
    if current_platform.is_xpu():
        from vllm.v1.worker.xpu_worker import XPUWorker

        return XPUWorker  # type: ignore[no-any-return]
    from vllm.v1.worker.gpu_worker import Worker

    return Worker  # type: ignore[no-any-return]
