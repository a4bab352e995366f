"""The tracing of one worker, put together from its parts. A fault in it ends tracing, never counting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from moescope.capture.counting.staging import TraceStaging
from moescope.capture.counting.strategies import TorchPerLayer
from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.seam.block_tables import BlockReader, StepBlocks, received_kv
from moescope.capture.seam.ends import NO_LIMITS, ReadLimits, limits_of
from moescope.capture.seam.outcomes import StepOutcome, positions_of
from moescope.capture.seam.requests import changes_requests, read_requests, why_not_traceable
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.step.batch import BatchRequests
from moescope.capture.tracing.assembly import TraceAssembly
from moescope.capture.tracing.sender import TraceSender, Versions
from moescope.capture.tracing.tracer import Tracer
from moescope.capture.tracing.witness import Witness
from moescope.capture.wire import TRACES_PATH, MoeLayer, Producer
from moescope.capture.wire.traces import TRACE_CONTENT_TYPE

logger = logging.getLogger("vllm.moescope")

STOP_SECONDS = 1.0


class TraceSession:
    """Tracing in one worker.

    Args:
        layers: the covered layers, in the capturer's order.
        producer, epoch: as in the worker's frames.
        settings: which requests are traced, in how much memory, and where traces go.
        max_tokens: no step of this worker's DP rank has more.
        device: where the counting kernels run.
        failed: called once, with the reason, if tracing ends by a fault.
        versions: see `WeightsWatch.versions`.
        positions: tells the model's own positions, where tokens are drafted (see `TraceStaging`).
        blocks: tells whose positions are in which blocks of the KV cache; None: nobody asks for that.
        limits: tells the limits of the server's requests.

    Attributes:
        is_quiet: whether no request was traced when the step that began last did. If so, a step in which no
            request comes, goes or goes on after a preemption needs only `quiet_step`, and only where
            `follows_blocks`: neither `begin_step`, nor `end_step`, nor `step_sampled`.
        follows_blocks: whether it is told who computed cached prefixes, and steps may change that.
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        producer: Producer,
        epoch: int,
        settings: CaptureSettings,
        max_tokens: int,
        device: torch.device,
        failed: Callable[[str], None],
        versions: Versions,
        positions: Callable[[], torch.Tensor] | None = None,
        blocks: BlockReader | None = None,
        limits: ReadLimits = lambda: NO_LIMITS,
    ) -> None:
        self._blocks = blocks
        self.follows_blocks = blocks is not None and blocks.looks
        self.staging = TraceStaging(layers, max_tokens, device, positions=positions)
        self._limits, drafting = limits, positions is not None
        self._assembly = TraceAssembly(
            self.staging, sharded=producer.tp_size > 1, drafting=drafting, cut=producer.pp_size == 1
        )
        samples = producer.pp_rank == producer.pp_size - 1
        self._witness = Witness(self._assembly) if samples and not drafting else None
        self._tracer = Tracer(settings.traces, self.staging, self._assembly, settings.trace_bytes)
        transport = HttpTransport(
            settings.endpoint,
            settings.token,
            path=TRACES_PATH,
            content_type=TRACE_CONTENT_TYPE,
            access=settings.access,
        )
        self._sender = TraceSender(self._assembly, layers, producer, epoch, transport, versions=versions)
        self.is_quiet = True
        self._started = False
        self._failed = False
        self._on_failure = failed
        logger.warning(
            "moescope: tracing the routing of %g of all requests%s; handle traces like prompts",
            settings.traces.rate,
            " and of those that ask for it" if settings.traces.opt_in else "",
        )

    def start(self) -> None:
        """Start the threads that assemble and send traces; further calls do nothing."""
        if not self._started:
            self._started = True
            self._guarded(self._assembly.start)
            self._guarded(self._sender.start)

    def pause(self) -> None:
        """CUDA graphs may be captured until `resume`."""
        self._assembly.pause()

    def resume(self) -> None:
        """No graph is captured any more."""
        self._assembly.resume()

    @property
    def awaits_order(self) -> bool:
        """Whether the step under way computes tokens of traced requests, so that its order is wanted."""
        return self._tracer.has_step and not self._failed

    def begin_step(self, scheduler_output: Any, model_runner: Any = None) -> None:
        """A step is about to run, or a call that only says which requests are done."""
        self._guarded(lambda: self._begin_step(scheduler_output, model_runner))
        self.is_quiet = self._failed or self._tracer.is_idle

    def quiet_step(self, scheduler_output: Any, model_runner: Any) -> None:
        """A step is about to run in which no request comes or goes; see `is_quiet`."""
        blocks = self._blocks
        if blocks is None or self._failed:
            return
        try:
            handed_on = blocks.hand_on(scheduler_output, model_runner)
            if handed_on is not None:
                self._tracer.hand_on(handed_on)
                return
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self._lose_blocks(error)
            return
        self.begin_step(scheduler_output, model_runner)

    @property
    def hears_returned(self) -> bool:
        """Whether `step_returned` has anything to do."""
        return self._blocks is not None and self._blocks.has_connector

    def step_returned(self, output: Any) -> None:
        """The worker returns this; the scheduler learns from it which requests need not wait any more."""
        if self.hears_returned:
            self._guarded(lambda: self._tracer.kv_received() if received_kv(output) else None)

    def take_order(self, batch: BatchRequests, number: int) -> None:
        """See `Tracer.take_order`."""
        self._guarded(lambda: self._tracer.take_order(batch, number))

    def end_step(self, outcome: StepOutcome | None = None) -> None:
        """The step is enqueued; see `Tracer.end_step`."""
        if self._witness is not None:
            outcome = self._witness.outcome
        if not self._tracer.is_idle:
            self._guarded(lambda: self._tracer.end_step(outcome))

    def step_sampled(self, output: Any) -> None:
        """The step has been sampled; `output` is what vLLM's runner returned."""
        if self._witness is not None:
            self._witness.sampled(output)

    def give_up(self, reason: str) -> None:
        """End tracing for good, for example because the order of batches is no longer known."""
        if not self._failed:
            self._failed = True
            self._tracer.give_up()
            self._on_failure(reason)

    def stop(self) -> None:
        """Cut off open traces and send what is left, within a second."""
        if self._witness is not None:
            self._witness.forsake()
        self._guarded(self._tracer.close_all)
        if self._started:
            self._assembly.stop(STOP_SECONDS / 2)
            self._sender.stop(STOP_SECONDS / 2)

    def accounts(self) -> dict[str, int]:
        """How many traces were captured, delivered and dropped (see `TraceSender.accounts`)."""
        return self._sender.accounts()

    def _begin_step(self, scheduler_output: Any, model_runner: Any) -> None:
        if self._witness is not None:
            self._witness.forsake()
        blocks = self._read_blocks(scheduler_output, model_runner)
        if blocks is None and self._tracer.is_idle and not changes_requests(scheduler_output):
            return
        self._tracer.begin_step(read_requests(scheduler_output, self._limits()), blocks)
        if self._witness is not None and self._tracer.has_step:
            self._witness.begin_step(scheduler_output)

    def _read_blocks(self, scheduler_output: Any, model_runner: Any) -> StepBlocks | None:
        """A fault ends this, and nothing else: traces then no longer say who computed cached prefixes."""
        if self._blocks is None:
            return None
        try:
            return self._blocks.read(scheduler_output, model_runner)
        except Exception as error:  # noqa: BLE001 - traces are worth having without it
            self._lose_blocks(error)
            return None

    def _lose_blocks(self, error: Exception) -> None:
        self._blocks, self.follows_blocks = None, False
        logger.error("moescope: traces don't say who computed cached prefixes any more: %r", error)

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # an observer must not harm the server
            logger.exception("moescope: tracing has failed")
            self.give_up(f"internal fault: {error!r}")


def why_no_traces(vllm_config: Any, device: torch.device, strategy: str) -> str | None:
    """Why this server's requests can't be traced, or None; `strategy` is the capturer's."""
    if device.type == "cuda" and strategy == TorchPerLayer.name:
        return "routing traces need Triton on a GPU"
    return why_not_traceable(vllm_config, device.type)


def open_traces(
    layers: Sequence[MoeLayer],
    producer: Producer,
    epoch: int,
    settings: CaptureSettings,
    vllm_config: Any,
    device: torch.device,
    reason: str | None,
    failed: Callable[[str], None],
    versions: Versions,
    model_runner: Any = None,
) -> TraceSession | None:
    """Tracing, if the settings ask for it and this server's requests can be traced; else None.

    Args:
        layers, producer, epoch, settings, device, versions: see `TraceSession`.
        reason: why the requests can't be traced, or None.
        failed: called once, with the reason, if the settings ask for traces and there are none, or no more.
        model_runner: knows the positions of rows where tokens are drafted.
    """
    if not settings.traces.any or not layers:
        return None
    if reason is not None:
        failed(reason)
        return None
    max_tokens = int(vllm_config.scheduler_config.max_num_batched_tokens)
    positions = None
    try:
        if vllm_config.speculative_config is not None:
            positions_of(model_runner)
            positions = partial(positions_of, model_runner)
        return TraceSession(
            layers,
            producer,
            epoch,
            settings,
            max_tokens,
            device,
            failed,
            versions,
            positions,
            BlockReader(vllm_config),
            limits_of(vllm_config),
        )
    except LookupError as error:
        failed(f"routing traces with speculative decoding: {error}")
        return None
    except Exception as error:  # noqa: BLE001 - counts don't need it
        failed(f"tracing could not start: {error!r}")
        return None
