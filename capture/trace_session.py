"""The tracing of one worker, put together from its parts. A fault in it ends tracing, never counting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch

from moescope.capture.counting.staging import TraceStaging
from moescope.capture.delivery.transport import HttpTransport
from moescope.capture.seam.requests import read_requests
from moescope.capture.settings.environment import CaptureSettings
from moescope.capture.step.batch import BatchRequests
from moescope.capture.tracing.assembly import TraceAssembly
from moescope.capture.tracing.sender import TraceSender
from moescope.capture.tracing.tracer import Tracer
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
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        producer: Producer,
        epoch: int,
        settings: CaptureSettings,
        max_tokens: int,
        device: torch.device,
    ) -> None:
        self.staging = TraceStaging(layers, max_tokens, device)
        self._assembly = TraceAssembly(self.staging, sharded=producer.tp_size > 1)
        self._tracer = Tracer(settings.traces, self.staging, self._assembly, settings.trace_bytes)
        transport = HttpTransport(
            settings.endpoint,
            settings.token,
            path=TRACES_PATH,
            content_type=TRACE_CONTENT_TYPE,
            access=settings.access,
        )
        self._sender = TraceSender(self._assembly, layers, producer, epoch, transport)
        self._started = False
        self._failed = False
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

    def begin_step(self, scheduler_output: Any) -> None:
        """A step is about to run, or a call that only says which requests are done."""
        self._guarded(lambda: self._tracer.begin_step(read_requests(scheduler_output)))

    def take_order(self, batch: BatchRequests, number: int) -> None:
        """See `Tracer.take_order`."""
        self._guarded(lambda: self._tracer.take_order(batch, number))

    def end_step(self) -> None:
        """The step is enqueued."""
        self._guarded(self._tracer.end_step)

    def give_up(self) -> None:
        """The order of batches is no longer known: end tracing for good."""
        if not self._failed:
            self._failed = True
            self._tracer.give_up()

    def stop(self) -> None:
        """Cut off open traces and send what is left, within a second."""
        self._guarded(self._tracer.close_all)
        if self._started:
            self._assembly.stop(STOP_SECONDS / 2)
            self._sender.stop(STOP_SECONDS / 2)

    def accounts(self) -> dict[str, int]:
        """How many traces were captured, delivered and dropped (see `TraceSender.accounts`)."""
        return self._sender.accounts()

    def _guarded(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as error:  # an observer must not harm the server
            self.give_up()
            logger.exception("moescope: tracing is off for good, counting goes on: %r", error)
