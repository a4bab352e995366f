"""What a session's parts do in each step of vLLM's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.model_session import ModelSession
from moescope.capture.frames.placed_loads import PlacedLoads
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.seam.requests import changes_requests
from moescope.capture.seam.weights import WeightsWatch
from moescope.capture.step.batch import BatchRequests, BatchWatch
from moescope.capture.step.drafts import DraftTally
from moescope.capture.step.known_phases import KnownPhases
from moescope.capture.trace_session import TraceSession


class StepPath(ABC):
    """The step's path of a session, which makes the parts: whoever opens one has `CaptureSession`.

    The thread that enqueues the steps makes all calls. Each costs the server, so a steady step, in which no
    request comes or goes, makes few calls, and as many whatever its batch (`benchmarks.host_share`).

    Attributes:
        capturer: counts.
        hears_sampled: whether `step_sampled` has anything to do, in the step that began last.
        hears_returned: whether `step_returned` has anything to do.
    """

    capturer: RoutingCapturer
    hears_sampled = hears_returned = False
    _model: ModelSession
    _weights: WeightsWatch
    _taker: SnapshotTaker
    _placed: PlacedLoads
    _phases: KnownPhases
    _watch: BatchWatch
    _drafts: DraftTally | None
    _traces: TraceSession | None = None
    _outcome: StepOutcome | None = None
    _serving = _warming_up = _asked = _watched = False

    @abstractmethod
    def serving_begins(self) -> None:
        """Warm-up is over: count from now on, and send."""

    def step_begins(self, scheduler_output: Any, model_runner: Any) -> None:
        """A step is about to be enqueued; the scheduler's output says what it computes and what is done."""
        if not self._serving:
            if self._warming_up:
                return
            self.serving_begins()  # this worker class warms up without `compile_or_warm_up_model`
        self._asked = True
        changes = changes_requests(scheduler_output)
        try:
            self._taker.steps_begun += 1
            if self._placed.follows:
                self._placed.step_begins()
            phases = self._phases
            step = phases.steady
            if changes or step is None or step.tokens != scheduler_output.total_num_scheduled_tokens:
                step = phases.begin_step(scheduler_output)
            if step.tokens:
                model, weights = self._model, self._weights
                if weights.touched or weights.awaits_step or model.looks_left():  # `model.step_begins`
                    model.renew()
                self.capturer.begin_step_of(step)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fault(error)
        if self._drafts is not None:
            self._begin_drafts(self._drafts, scheduler_output)
        traces, wanted = self._traces, self.capturer.awaits_phases
        if traces is not None:
            if changes or not traces.is_quiet:
                traces.begin_step(scheduler_output, model_runner)
                wanted = wanted or traces.awaits_order
                self.hears_sampled = self._drafts is not None or not traces.is_quiet
            elif traces.follows_blocks:
                traces.quiet_step(scheduler_output, model_runner)
        if wanted:
            self._watched = True
            self._watch.step_begins(scheduler_output, model_runner)

    def step_ends(self) -> None:
        """The step is enqueued."""
        if not self._serving:
            return
        if self._watched:
            self._watched = False
            self._watch.step_ends()
        capturer, placed, traces = self.capturer, self._placed, self._traces
        try:
            capturer.end_step()
            if placed.eplb is not None and placed.move_after_this_pass():
                self._taker.flush()
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fault(error)
        try:
            self._taker.step_ends()  # after a fault too: snapshots go on, and tell of it
        except Exception as error:  # noqa: BLE001 - as above
            self._fault(error)
        if traces is not None and not traces.is_quiet:
            traces.end_step(self._outcome)
        if capturer.owes:
            capturer.raise_owed()

    def step_returned(self, output: Any) -> None:
        """`output` is what the worker returns to the scheduler, of a step or of its sampling."""
        if self._traces is not None:
            self._traces.step_returned(output)

    def step_sampled(self, output: Any) -> None:
        """The step has been sampled, or its sampling is enqueued; `output` is what vLLM's runner returned."""
        if self._drafts is not None:
            self._drafts.sampled(output)
        if self._traces is not None:
            self._traces.step_sampled(output)

    def idle_step_begins(self) -> None:
        """A dummy step is about to run."""
        if self._serving:
            self._guarded(self._model.step_begins)

    def idle_step(self) -> None:
        """A dummy step was run because another DP rank has work.

        Raises:
            AssertionError: a microbatch of it had an unknown row layout, and the settings say so.
        """
        if self._serving:
            self._guarded(self._idle)
            self.capturer.raise_owed()

    def _begin_drafts(self, drafts: DraftTally, scheduler_output: Any) -> None:
        self._outcome = None
        try:
            self._outcome = drafts.begin_step(scheduler_output)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fault(error)

    def _ordered(self, batch: BatchRequests) -> None:
        """The order of the batch's rows is known, and its forward pass is not enqueued yet."""
        if self.capturer.awaits_phases:
            self._phases.tell(batch, self.capturer.set_phases)
        if self._traces is not None:
            self._traces.take_order(batch, self.capturer.totals.forward_passes)

    def _watch_failed(self, reason: str) -> None:
        self._phases.give_up(reason)
        if self._traces is not None:
            self._traces.give_up(reason)

    def _idle(self) -> None:
        self._taker.step_begins()
        self._weights.step_begins()
        self.capturer.idle_step()
        self._placed.idle_step()
        self._taker.step_ends()

    def _guarded(self, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._fault(error)

    def _fault(self, error: Exception) -> None:
        self.capturer.disable(f"internal fault: {error!r}")
