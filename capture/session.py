"""The capture of one worker, put together from its parts: survey, counts, binding, snapshots, sender."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.model_session import ModelSession
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.placed_loads import PlacedLoads
from moescope.capture.frames.sender import FrameSender
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.frames.unavailable import Unavailable
from moescope.capture.seam.coverage_log import log_coverage
from moescope.capture.seam.deployment import name_deployment
from moescope.capture.seam.features import microbatches
from moescope.capture.seam.microbatches import rows_reader
from moescope.capture.seam.ranks import read_producer, read_ranks, resized
from moescope.capture.seam.runner import UNASKED, holds_requests
from moescope.capture.seam.survey import survey_model
from moescope.capture.seam.versions import vllm_version
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.step.batch import BatchWatch
from moescope.capture.step.drafts import open_tally
from moescope.capture.step.known_phases import KnownPhases
from moescope.capture.step.live_requests import Drafts
from moescope.capture.step.phases import PhaseTracker
from moescope.capture.step_path import StepPath
from moescope.capture.trace_session import TraceSession, open_traces, why_no_traces

logger = logging.getLogger("vllm.moescope")


class CaptureSession(StepPath):
    """Capture in one worker, from the loaded model to its shutdown.

    What this vLLM lacks of what phases, traces, placement and loads of steps need costs only these.
    All that vLLM's step calls here is guarded: a fault turns capture off and is logged, and vLLM serves on.
    The exception is the AssertionError of an unknown row layout, which a router's callback raises, or, of a
    microbatch, what ends the step or begins to serve.
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
        self._unavailable = unavailable = Unavailable()
        layers = [layer.spec for layer in survey.routed]
        producer, epoch = read_producer(vllm_config, settings), time.time_ns()
        parts = microbatches(vllm_config.parallel_config) if survey.routed else 1
        self._placed = placed = PlacedLoads(
            survey, producer, vllm_config, device, unavailable, model_runner, parts
        )
        most_tokens = vllm_config.scheduler_config.max_num_batched_tokens
        buffers = CountBuffers(layers, device, most_tokens, placed.ring, parts)
        self.capturer = RoutingCapturer(
            buffers, read_ranks(vllm_config), rows_reader(parts), settings.on_error, settings.kept_ids_bytes
        )
        self._model = ModelSession(
            model, survey, self.capturer, vllm_config.model_config, device, self._weights_changed
        )
        self._weights = weights = self._model.weights
        self._taker = SnapshotTaker(
            buffers.flat,
            self.capturer,
            settings.interval,
            ring=placed.ring_of_steps,
            history=placed.history,
            eplb=placed.eplb,
            weights=lambda: weights.now,
        )
        self._phases = KnownPhases(
            PhaseTracker(decodes_only=producer.role == "decode"), partial(unavailable.note, "phases")
        )
        self._traces: TraceSession | None = None
        self._watch = BatchWatch(vllm_config, self._ordered, self._watch_failed)
        reason = self._watch.reason or why_no_traces(vllm_config, device, self.capturer.strategy)
        no_traces, versions = partial(unavailable.note, "traces"), weights.versions
        self._traces = open_traces(
            layers, producer, epoch, settings, vllm_config, device, reason, no_traces, versions, model_runner
        )
        self._drafts = open_tally(vllm_config, partial(unavailable.note, "drafts"))
        with_device = (self._taker, self._drafts, self._traces)
        self._pausing = [part for part in with_device if part is not None]
        self.hears_sampled = self._drafts is not None
        if self._traces is not None:
            buffers.traced = self._traces.staging
            self.hears_returned = self._traces.hears_returned
        self._builder = FrameBuilder(
            producer=producer,
            epoch=epoch,
            layers=layers,
            uncovered=survey.uncovered,
            placement=survey.placement,
            strategy=lambda: self.capturer.strategy,
            traces=dict if self._traces is None else self._traces.accounts,
            history=placed.history,
            moving=placed.moving(layers),
            unavailable=unavailable.reasons,
            absent=survey.absent,
            absent_unnamed=survey.absent_unnamed,
            decoder_layers=survey.decoder_layers,
            drafts=lambda: Drafts() if self._drafts is None else self._drafts.so_far,
        )
        self._sender = FrameSender(
            self._taker,
            self._builder,
            HttpTransport(settings.endpoint, settings.token, access=settings.access),
            settings.interval,
            look=self._look,
        )
        self._runner, self._vllm_config = model_runner, vllm_config
        self._started = False
        try:
            self._model.bind()
        except Exception:
            self._model.close()  # no router may go on calling a capturer that nobody reads
            raise
        log_coverage(survey, settings, name_deployment(vllm_config, settings))
        unavailable.announce(vllm_version())

    def before_raise(self, unheard: Callable[[str], None]) -> None:
        """Have this called with the reason before an unknown layout stops a worker that sends no frame yet.

        Later the frames say it: the next one, or the last one while the worker shuts down.
        """
        self.capturer.before_raise = lambda reason: None if self._started else unheard(reason)

    def warm_up_begins(self) -> None:
        """Take back the callback slots that vLLM took after the load; its callbacks are called as well."""
        self._serving, self._warming_up = False, True
        for part in self._pausing:
            part.pause()
        self._guarded(self._model.rebind)

    def serving_begins(self) -> None:
        """Warm-up is over: count from now on, and send."""
        self.capturer.raise_owed()
        for part in self._pausing:
            part.resume()
        # Requests of earlier steps, before capture was opened, say nothing of steps to come.
        self._asked = self._asked or holds_requests(self._runner)
        self._serving, self._warming_up = True, False
        if not self._started:
            self._started = self.capturer.has_served = True
            self._guarded(self._sender.start)
            if self._traces is not None:
                self._traces.start()

    def sizes_may_differ(self) -> None:
        """Tell the numbers of DP and EP ranks anew: vLLM may have changed them, in between two steps."""
        try:
            producer = resized(self._builder.producer, self._vllm_config)
            ranks = read_ranks(self._vllm_config)
        except LookupError as error:
            self.capturer.disable(str(error))
        except Exception as error:  # noqa: BLE001 - a worker that is removed has no groups any more
            logger.info("moescope: vLLM tells no numbers of ranks any more: %r", error)
        else:
            if producer != self._builder.producer:
                logger.info("moescope: %d DP and %d EP ranks from now on", producer.dp_size, producer.ep_size)
            self._placed.resized(producer.ep_size)
            self._builder.producer, self.capturer.ranks = producer, ranks
            self._guarded(self._model.rebind)

    @contextmanager
    def weights_may_change(
        self, way: str, arguments: tuple[Any, ...], named: Mapping[str, Any]
    ) -> Iterator[None]:
        """Surround a call of one of `seam.weights.WAYS`; no step runs meanwhile."""
        self._model.weights.before()
        try:
            yield
        finally:
            self._guarded(lambda: self._model.weights.after(way, arguments, named))

    def steps_differ(self, reason: str) -> None:
        """From now on a step may have another number on each rank: loads of single steps are told no more."""
        self._unavailable.note("steps", reason)

    def close(self) -> None:
        """Give the callback slots back and send what is left, within two seconds (three with traces)."""
        self._serving = False
        self._guarded(self._watch.close)
        self._guarded(self._model.close)
        if self._drafts is not None:
            self._drafts.close()
        if self._traces is not None:
            self._traces.stop()
        self._guarded(self._sender.stop)

    def _look(self) -> None:
        """What the sender's thread does at each tick, besides sending."""
        self._look_for_unasked_steps()
        if self._drafts is not None:
            self._drafts.read()

    def _look_for_unasked_steps(self) -> None:
        """Turn capture off where steps run that this worker isn't asked for; the sender's thread looks.

        The requests of a step are in the runner only after `step_begins`, so `_asked` is read after them.
        """
        if self._serving and not self._asked and holds_requests(self._runner) and not self._asked:
            self.capturer.disable(UNASKED)

    def _weights_changed(self) -> None:
        """Have a frame that has all counts of the former weights, and says that others follow."""
        self._guarded(self._taker.mark)
