"""A worker that splits steps into microbatches on CUDA, whose ranks exchange tokens by all-gather.

vLLM 0.33 has this on ROCm only, though its code is common: on CUDA its configuration asks for DeepEP or
NIXL, which need their own builds, and its kernels refuse to hand over elsewhere. So the deployment is
configured with one of those, which this worker leaves aside, and the kernels are told that they may.
"""

from __future__ import annotations

import faulthandler
from typing import Any, Final

from vllm.v1.worker.gpu_worker import Worker

from tests.gpu.pass_worker import PassWorker

CONFIGURED: Final = "deepep_low_latency"
"""What vLLM must be configured with, so that it accepts ``--enable-dbo``."""
SHOWN_AFTER_S: Final = 100
"""When a worker without capture shows where each of its threads is, from its start."""


def allow_all_gather(vllm_config: Any) -> None:
    """Have this process' kernels of all-gather hand over to the next microbatch."""
    from vllm.model_executor.layers.fused_moe.prepare_finalize import naive_dp_ep

    naive_dp_ep.MoEPrepareAndFinalizeNaiveDPEPModular.supports_dbo = lambda _: True
    vllm_config.parallel_config.all2all_backend = "allgather_reducescatter"


class DboWorker(PassWorker):
    """Notes of each pass, besides what `PassWorker` notes, whether vLLM splits it."""

    def init_device(self, *args: Any, **kwargs: Any) -> Any:
        allow_all_gather(self.vllm_config)
        return super().init_device(*args, **kwargs)


class DboWorkerAlone(Worker):  # type: ignore[misc]
    """The same without capture."""

    def init_device(self, *args: Any, **kwargs: Any) -> Any:
        allow_all_gather(self.vllm_config)
        faulthandler.dump_traceback_later(SHOWN_AFTER_S)
        return super().init_device(*args, **kwargs)
