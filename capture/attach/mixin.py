"""What is put in front of vLLM's worker class: it tells the capturer when a step begins and ends.

A mixin of its own, so that it fits every worker class. vLLM forbids that a class named by
``--worker-extension-cls`` has an attribute that the worker class has too: all names here that are not vLLM's
own begin with ``_moescope``, and the session is an attribute of the worker, not of its class.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from moescope.capture.attach.weights import watched_ways
from moescope.capture.off.report import OffReport, last_word, off_report
from moescope.capture.seam.identity import guess_identity
from moescope.capture.seam.platform import why_device_unknown, why_unknown
from moescope.capture.seam.ray import why_settings_are_lost
from moescope.capture.seam.versions import moescope_version, vllm_version, why_untested
from moescope.capture.settings.environment import CaptureSettings, SettingsError

_import_error: Exception | None = None
try:
    from moescope.capture.session import CaptureSession
except Exception as error:  # noqa: BLE001 - a dependency may be missing: the server serves on
    _import_error = error

logger = logging.getLogger("vllm.moescope")


class UnknownWorkerError(Exception):
    """The worker or its device is none that steps can be counted on; the message says which it is."""


class ReportingWorker:
    """In front of a worker class: opens capture when the model is loaded, and says so when that fails.

    Attributes:
        _capture: the session, or None where capture is off, which `_moescope_off` reports then.
    """

    _capture: CaptureSession | None
    _moescope_off: OffReport | None
    _moescope_why_not: str | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, then bind: before profiling, so that the memory of the counts is profiled too."""
        self._moescope_close()
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._moescope_open()

    def shutdown(self, *args: Any, **kwargs: Any) -> Any:
        """Send what is left, within two seconds (three with traces), then shut down."""
        self._moescope_close()
        return super().shutdown(*args, **kwargs)  # type: ignore[misc]

    def _moescope_open(self) -> None:
        """Start the capturer. Whatever is broken, the log and the service hear of it, and vLLM serves on."""
        settings = CaptureSettings()
        try:
            _log_versions()
            settings, wrong = CaptureSettings.read(os.environ)
            self._capture = self._moescope_session(settings, wrong)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            reason = f"{type(error).__name__}: {error}"
            logger.error("moescope: capture is off, the server serves on: %s", reason)
            self._moescope_report(reason, settings)

    def _moescope_report(self, reason: str, settings: CaptureSettings) -> None:
        try:
            self._moescope_off = off_report(self._moescope_identity(settings), reason, settings)
            self._moescope_off.start()
        except Exception as error:  # noqa: BLE001 - as above
            logger.error("moescope: nothing is reported: %r", error)

    def _moescope_session(self, settings: CaptureSettings, wrong: list[str]) -> CaptureSession:
        """A session, if nothing speaks against it; what does is raised."""
        worker: Any = self
        lost = why_settings_are_lost(worker.vllm_config, os.environ)
        if lost is not None:
            logger.warning("moescope: %s", lost)
        if _import_error is not None:
            raise _import_error
        if wrong:
            raise SettingsError("; ".join(wrong))
        unknown = self._moescope_why_not or why_device_unknown(worker)
        if unknown is not None:
            raise UnknownWorkerError(unknown)
        session = CaptureSession(
            worker.get_model(), worker.vllm_config, worker.device, settings, worker.model_runner
        )
        session.before_raise(lambda reason: last_word(self._moescope_identity(settings), reason, settings))
        return session

    def _moescope_identity(self, settings: CaptureSettings) -> dict[str, str | int]:
        return guess_identity(self, settings)

    def _moescope_close(self) -> None:
        for part in ("_capture", "_moescope_off"):
            opened = self.__dict__.get(part)
            if opened is not None:
                opened.close()
        self._capture = self._moescope_off = None


class CapturingWorker(ReportingWorker):
    """In front of a worker class whose steps are known: what each of them computes is announced."""

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        """Warm up with the callbacks in place, so that captured graphs contain them; then count."""
        if self._capture is not None:
            self._capture.warm_up_begins()
        result = super().compile_or_warm_up_model(*args, **kwargs)  # type: ignore[misc]
        if self._capture is not None:
            self._capture.serving_begins()
        return result

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a step, and tell the capturer when it begins and ends: routing calls count only in between."""
        capture = self._capture
        if capture is None:
            return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        runner: Any = self
        capture.step_begins(scheduler_output, runner.model_runner)
        try:
            output = super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]
        finally:
            capture.step_ends()
        if capture.hears_returned:
            capture.step_returned(output)
        return output

    def sample_tokens(self, *args: Any, **kwargs: Any) -> Any:
        """Sample a step's tokens, and show the capturer what came of it; it waits for nothing."""
        output = super().sample_tokens(*args, **kwargs)  # type: ignore[misc]
        capture = self._capture
        if capture is not None:
            if capture.hears_sampled:
                capture.step_sampled(output)
            if capture.hears_returned:
                capture.step_returned(output)
        return output

    def elastic_ep_execute(self, *args: Any, **kwargs: Any) -> Any:
        """Let vLLM prepare or commit other numbers of DP and EP ranks, and tell them from then on."""
        try:
            return super().elastic_ep_execute(*args, **kwargs)  # type: ignore[misc]
        finally:
            if self._capture is not None:
                self._capture.sizes_may_differ()

    def handle_ft_command(self, *args: Any, **kwargs: Any) -> Any:
        """Let vLLM go on after a step that failed on some rank."""
        if self._capture is not None:
            self._capture.steps_differ(
                "vLLM went on after a step that failed, which some ranks may have numbered"
            )
        return super().handle_ft_command(*args, **kwargs)  # type: ignore[misc]

    def execute_dummy_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Run a dummy step, which computes no token of any request."""
        if self._capture is not None:
            self._capture.idle_step_begins()
        result = super().execute_dummy_batch(*args, **kwargs)  # type: ignore[misc]
        if self._capture is not None:
            self._capture.idle_step()
        return result


def _log_versions() -> None:
    """The first line of all, before anything can fail that isn't vLLM's."""
    try:
        versions = moescope_version() or "(not installed)", vllm_version()
        logger.info("moescope %s in a worker of vLLM %s", *versions)
        untested = why_untested()
        if untested is not None:
            logger.warning("moescope: %s", untested)
    except Exception as error:  # noqa: BLE001 - whoever needs the version says so
        logger.warning("moescope in a worker of an unknown version of vLLM: %r", error)


def extended(worker_class: type[Any]) -> type[Any]:
    """The worker class with capture in front; one that has it already is returned as it is.

    The class itself stays as it is. Its bases are also direct bases of the result, since vLLM looks among
    those for a class that ``--worker-extension-cls`` names.
    """
    if issubclass(worker_class, ReportingWorker):
        return worker_class
    why_not = why_unknown(worker_class)
    front = CapturingWorker if why_not is None else ReportingWorker
    bases = (front, worker_class, *(base for base in worker_class.__bases__ if base is not object))
    # By its metaclass, which may not be `type`.
    metaclass: Any = type(worker_class)
    ways = {} if why_not else watched_ways(worker_class)
    made: type[Any] = metaclass(
        f"Routing{worker_class.__name__}",
        bases,
        {"__module__": __name__, "__doc__": worker_class.__doc__, "_moescope_why_not": why_not, **ways},
    )
    return made
