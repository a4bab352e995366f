"""The worker class for ``vllm serve --worker-cls moescope.capture.worker.RoutingWorker``."""

from __future__ import annotations

from moescope.capture.attach.mixin import extended
from moescope.capture.seam.platform import platform_worker


class RoutingWorker(extended(platform_worker())):  # type: ignore[misc]
    """The platform's own worker, which also counts which experts every token of every layer went to.

    Settings come from ``MOESCOPE_*`` variables (see `CaptureSettings`). Only methods that vLLM documents for
    workers are extended, and no class is patched; of the loaded model its ``load_weights`` is watched (see
    `seam.weights`). Without the service the server runs on, unharmed.
    """
