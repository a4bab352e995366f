"""The worker class to extend: the part of the seam that must work whatever else of moescope doesn't.

It imports nothing but vLLM, so that a broken dependency of the capturer can't keep a server from starting.
"""

from __future__ import annotations

from typing import Any, Final

_GPU_WORKER: Final = ("vllm.v1.worker.gpu_worker", "Worker")
"""Module and name of the class that vLLM's workers for CUDA, ROCm, CPUs and XPUs are or extend."""
_DEVICES: Final = ("cuda", "cpu")
"""Types of the devices that the counting is made for; torch calls ROCm's ``cuda`` too."""


def platform_worker() -> type[Any]:
    """The worker class that vLLM itself would use on this platform.

    Raises:
        RuntimeError: the platform doesn't tell its worker class.
    """
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        from vllm.v1.worker.cpu_worker import CPUWorker

        return CPUWorker  # type: ignore[no-any-return]
    if current_platform.is_xpu():
        from vllm.v1.worker.xpu_worker import XPUWorker

        return XPUWorker  # type: ignore[no-any-return]
    if current_platform.is_cuda_alike():
        from vllm.v1.worker.gpu_worker import Worker

        return Worker  # type: ignore[no-any-return]
    return _told_by(current_platform)


def _told_by(platform: Any) -> type[Any]:
    """The worker class of a platform that isn't vLLM's own: it writes the name into each config."""
    from vllm.config import VllmConfig
    from vllm.utils.import_utils import resolve_obj_by_qualname

    try:
        name = VllmConfig().parallel_config.worker_cls
        found = resolve_obj_by_qualname(name)
    except Exception as error:
        raise RuntimeError(
            f"moescope: {type(platform).__name__}, vLLM's platform here, doesn't tell its worker class: "
            f"{error!r}. Leave --worker-cls out and set MOESCOPE=1: moescope then extends whatever worker "
            f"vLLM has."
        ) from error
    return found  # type: ignore[no-any-return]


def is_worker(found: Any) -> bool:
    """Whether something that vLLM resolved by name is a worker class, not an extension of one."""
    return isinstance(found, type) and all(
        callable(getattr(found, name, None)) for name in ("init_device", "load_model", "execute_model")
    )


def why_unknown(worker_class: type[Any]) -> str | None:
    """Why this worker's steps can't be counted, or None for a class of vLLM's own, or one that extends it."""
    if any((base.__module__, base.__name__) == _GPU_WORKER for base in worker_class.__mro__):
        return None
    return (
        f"vLLM's worker here is {worker_class.__module__}.{worker_class.__qualname__}, which doesn't extend "
        f"{'.'.join(_GPU_WORKER)}: moescope doesn't know how its steps run"
    )


def why_device_unknown(worker: Any) -> str | None:
    """Why counts can't live on the worker's device, or None."""
    kind = getattr(worker.device, "type", worker.device)
    return None if kind in _DEVICES else f"moescope counts on {' and '.join(_DEVICES)} devices, not on {kind}"
