"""The worker class for ``vllm serve --worker-cls moescope.capture.worker.RoutingWorker``."""

from __future__ import annotations

import logging
import os
from typing import Any

from moescope.capture.seam.platform import platform_worker

_import_error: Exception | None = None
try:
    from moescope.capture.session import CaptureSession, open_session
except Exception as error:  # noqa: BLE001 - a dependency may be missing: the server serves on
    _import_error = error

logger = logging.getLogger("vllm.moescope")


class RoutingWorker(platform_worker()):  # type: ignore[misc]
    """The platform's own worker, which also counts which experts every token of every layer went to.

    Settings come from ``MOESCOPE_*`` variables (see `CaptureSettings`). Only methods that vLLM documents for
    workers are extended; nothing is patched. Without the service the server runs on, unharmed.
    """

    _capture: CaptureSession | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then bind: before profiling, so that the memory of the counts is profiled too."""
        super().load_model(*args, **kwargs)
        self._capture = self._open_capture()

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        """Warm up with the callbacks in place, so that captured graphs contain them; then count."""
        if self._capture is not None:
            self._capture.warm_up_begins()
        result = super().compile_or_warm_up_model(*args, **kwargs)
        if self._capture is not None:
            self._capture.serving_begins()
        return result

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a step, and tell the capturer when it begins and ends: routing calls count only in between."""
        capture = self._capture
        if capture is None:
            return super().execute_model(scheduler_output, *args, **kwargs)
        capture.step_begins(scheduler_output, self.model_runner)
        try:
            return super().execute_model(scheduler_output, *args, **kwargs)
        finally:
            capture.step_ends()

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Run a dummy step, which computes no token of any request."""
        result = super().execute_dummy_batch(*args, **kwargs)
        if self._capture is not None:
            self._capture.idle_step()
        return result

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is left, within two seconds (three with traces), then shut down."""
        if self._capture is not None:
            self._capture.close()
        return super().shutdown(*args, **kwargs)

    def _open_capture(self) -> CaptureSession | None:
        """Start the capturer. Whatever is broken, one line in the log says so and the server serves on."""
        try:
            if _import_error is not None:
                raise _import_error
            return open_session(
                self.get_model(), self.vllm_config, self.device, os.environ, self.model_runner
            )
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            logger.error("moescope: capture is off, the server serves on: %r", error)
            return None
