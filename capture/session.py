"""The capture of one worker, put together from its parts: survey, counts, binding, snapshots, sender."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.load_ring import LoadRing, ring_for
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.strategies import TorchPerLayer
from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.sender import FrameSender
from moescope.capture.frames.step_history import StepHistory
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.seam.binding import RouterBinding
from moescope.capture.seam.eplb import MovingPlacement, watch_eplb
from moescope.capture.seam.forward import step_rows
from moescope.capture.seam.ranks import read_producer, read_ranks, steps_compare
from moescope.capture.seam.requests import why_not_traceable
from moescope.capture.seam.survey import MoeSurvey, survey_model
from moescope.capture.seam.versions import why_untested
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.step.batch import BatchRequests, BatchWatch
from moescope.capture.step.phases import PhaseTracker
from moescope.capture.trace_session import TraceSession
from moescope.capture.wire import MoeLayer, Producer

logger = logging.getLogger("vllm.moescope")


class CaptureSession:
    """Capture in one worker, from the loaded model to its shutdown.

    All that vLLM's step calls here is guarded: a fault turns capture off and is logged, and vLLM serves on.
    The exception is the AssertionError of an unknown row layout, which a router's callback raises.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        vllm_config: Any,
        device: torch.device,
        settings: CaptureSettings,
        model_runner: Any = None,
    ):
        survey = survey_model(model, vllm_config, leave_fast_kernels=settings.leave_fast_kernels)
        layers = [layer.spec for layer in survey.routed]
        producer, epoch = read_producer(vllm_config, settings.server), time.time_ns()
        ring = _open_ring(survey, producer, vllm_config, device)
        buffers = CountBuffers(layers, device, vllm_config.scheduler_config.max_num_batched_tokens, ring)
        self.capturer = RoutingCapturer(
            buffers, read_ranks(vllm_config), step_rows, settings.on_error, settings.kept_ids_bytes
        )
        self._binding = RouterBinding(survey.routed, self.capturer)
        history = None if ring is None else StepHistory(ring.version)
        self._eplb = watch_eplb(model_runner, [layer.module for layer in survey.routed], vllm_config)
        self._taker = SnapshotTaker(
            buffers.flat, self.capturer, settings.interval, ring=ring, history=history, eplb=self._eplb
        )
        self._phases = PhaseTracker()
        self._traces = _open_traces(
            layers, producer, epoch, settings, vllm_config, device, self.capturer.strategy
        )
        if self._traces is not None:
            buffers.traced = self._traces.staging
        builder = FrameBuilder(
            producer=producer,
            epoch=epoch,
            layers=layers,
            uncovered=survey.uncovered,
            placement=survey.placement,
            strategy=lambda: self.capturer.strategy,
            traces=dict if self._traces is None else self._traces.accounts,
            history=history,
            moving=None if self._eplb is None else MovingPlacement(layers, self._eplb.rows, producer.ep_size),
            absent=survey.absent,
            absent_unnamed=survey.absent_unnamed,
        )
        self._sender = FrameSender(
            self._taker,
            builder,
            HttpTransport(settings.endpoint, settings.token, access=settings.access),
            settings.interval,
        )
        self._watch = BatchWatch(vllm_config, self._ordered, self._watch_failed)
        self._serving = False
        self._started = False
        try:
            self._binding.bind()
        except Exception:
            self._binding.unbind()  # no router may go on calling a capturer that nobody reads
            raise
        _log_coverage(survey, settings)

    def warm_up_begins(self) -> None:
        """Take back the callback slots that vLLM took after the load; its callbacks are called as well."""
        self._serving = False
        self._taker.pause()
        if self._traces is not None:
            self._traces.pause()
        self._guarded(self._binding.bind)

    def serving_begins(self) -> None:
        """Warm-up is over: count from now on, and send."""
        self._taker.resume()
        if self._traces is not None:
            self._traces.resume()
        self._serving = True
        if not self._started:
            self._started = True
            self._guarded(self._sender.start)
            if self._traces is not None:
                self._traces.start()

    def step_begins(self, scheduler_output: Any, model_runner: Any) -> None:
        """A step is about to be enqueued; the scheduler's output says what it computes and what is done."""
        if self._serving:
            self._guarded(lambda: self._begin(scheduler_output))
            if self._traces is not None:
                self._traces.begin_step(scheduler_output)
            if self._traces is not None or self.capturer.awaits_phases:
                self._watch.step_begins(scheduler_output, model_runner)

    def step_ends(self) -> None:
        """The step is enqueued."""
        if self._serving:
            self._watch.step_ends()
            self._guarded(self._end)
            self._guarded(self._taker.step_ends)  # after a fault too: snapshots go on, and tell of it
            if self._traces is not None:
                self._traces.end_step()

    def idle_step(self) -> None:
        """A dummy step was run because another DP rank has work."""
        if self._serving:
            self._guarded(self._idle)

    def close(self) -> None:
        """Give the callback slots back and send what is left, within two seconds (three with traces)."""
        self._serving = False
        self._guarded(self._watch.close)
        self._guarded(self._binding.unbind)
        if self._traces is not None:
            self._traces.stop()
        self._guarded(self._sender.stop)

    def _begin(self, scheduler_output: Any) -> None:
        self._taker.step_begins()
        if self._eplb is not None:
            self._eplb.look()
        self.capturer.begin_step(*self._phases.begin_step(scheduler_output))

    def _ordered(self, batch: BatchRequests) -> None:
        """The order of the batch's rows is known, and its forward pass is not enqueued yet."""
        if self.capturer.awaits_phases:
            self._guarded(lambda: self.capturer.set_phases(self._phases.of_tokens(batch)))
        if self._traces is not None:
            self._traces.take_order(batch, self.capturer.totals.forward_passes)

    def _watch_failed(self) -> None:
        if self._traces is not None:
            self._traces.give_up()

    def _end(self) -> None:
        self.capturer.end_step()
        if self._eplb is not None and self._eplb.moves_after_this_pass():
            self._taker.flush()

    def _idle(self) -> None:
        self._taker.step_begins()
        self.capturer.idle_step()
        if self._eplb is not None:
            self._eplb.look()
        self._taker.step_ends()

    def _guarded(self, action: Any) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self.capturer.disable(f"internal fault: {error!r}")


def _open_ring(
    survey: MoeSurvey, producer: Producer, vllm_config: Any, device: torch.device
) -> LoadRing | None:
    """A ring of loads, if a step has the same number on all DP ranks and experts are not moved."""
    if not steps_compare(vllm_config):
        return None
    return ring_for([layer.spec for layer in survey.routed], survey.placement, producer.ep_size, device)


def _open_traces(
    layers: list[MoeLayer],
    producer: Producer,
    epoch: int,
    settings: CaptureSettings,
    vllm_config: Any,
    device: torch.device,
    strategy: str,
) -> TraceSession | None:
    """Tracing, if the settings ask for it and this server's requests can be traced; else None."""
    if not settings.traces.any or not layers:
        return None
    reason = why_not_traceable(vllm_config, device.type)
    if device.type == "cuda" and strategy == TorchPerLayer.name:
        reason = "routing traces need Triton on a GPU"
    if reason is not None:
        logger.warning("moescope: %s", reason)
        return None
    max_tokens = int(vllm_config.scheduler_config.max_num_batched_tokens)
    return TraceSession(layers, producer, epoch, settings, max_tokens, device)


def open_session(
    model: torch.nn.Module,
    vllm_config: Any,
    device: torch.device,
    environment: Mapping[str, str],
    model_runner: Any = None,
) -> CaptureSession | None:
    """Start capture for a loaded model; on any fault log it and return None, so that vLLM serves on."""
    try:
        settings = CaptureSettings.from_environment(environment)
        return CaptureSession(model, vllm_config, device, settings, model_runner)
    except Exception as error:  # noqa: BLE001 - an observer must not harm the server
        logger.error("moescope: capture is off, the server serves on: %s: %s", type(error).__name__, error)
        return None


def _log_coverage(survey: MoeSurvey, settings: CaptureSettings) -> None:
    untested = why_untested()
    if untested is not None:
        logger.warning("moescope: %s", untested)
    logger.info(
        "moescope: counting %d MoE layers for %r, sending to %s every %g s",
        len(survey.routed),
        settings.server,
        settings.endpoint,
        settings.interval,
    )
    for layer in survey.uncovered:
        logger.warning("moescope: layer %d is not covered: %s", layer.layer, layer.reason)
    for layer in survey.absent:
        logger.error("moescope: layer %d is absent: %s", layer.layer, layer.reason)
    if survey.absent_unnamed:
        logger.error("moescope: MoE layers are absent: %s", survey.absent_unnamed)
    if survey.why_no_placement is not None:
        logger.warning("moescope: %s", survey.why_no_placement)
    if survey.slower is not None:
        logger.warning(
            "moescope: decode is slower than without capture: %s; MOESCOPE_LEAVE_FAST_KERNELS=1 leaves these "
            "layers alone",
            survey.slower,
        )
