"""A worker that splits steps into microbatches on CUDA, whose ranks exchange tokens by all-gather.

vLLM 0.33 has this on ROCm only, though its code is common: on CUDA its configuration asks for DeepEP or
NIXL, which need their own builds, and its kernels refuse to hand over elsewhere. So the deployment is
configured with one of those, which this worker leaves aside, and the kernels are told that they may.
"""

from __future__ import annotations

from typing import Any, Final

from tests.gpu.pass_worker import PassWorker

CONFIGURED: Final = "deepep_low_latency"
"""What vLLM must be configured with, so that it accepts ``--enable-dbo``."""


class DboWorker(PassWorker):
    """Notes of each pass, besides what `PassWorker` notes, whether vLLM splits it."""

    def init_device(self, *args: Any, **kwargs: Any) -> Any:
        from vllm.model_executor.layers.fused_moe.prepare_finalize import naive_dp_ep

        naive_dp_ep.MoEPrepareAndFinalizeNaiveDPEPModular.supports_dbo = lambda _: True
        self.vllm_config.parallel_config.all2all_backend = "allgather_reducescatter"
        return super().init_device(*args, **kwargs)
