"""The daemon thread that encodes and sends closed traces; it never holds up the step's path."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from moescope.capture.delivery.backoff import Backoff
from moescope.capture.delivery.transport import DeliveryError, Transport
from moescope.capture.protocol import MAX_NAME
from moescope.capture.threads.throttled_log import ThrottledLog
from moescope.capture.tracing.assembly import TraceAssembly
from moescope.capture.tracing.buffer import Trace, cut
from moescope.capture.wire import Int64Array, MoeLayer, Producer
from moescope.capture.wire.traces import TRACE_MAJOR, TRACE_MINOR, TracePart, encode_part

logger = logging.getLogger("vllm.moescope")

Versions = Callable[[Int64Array], Int64Array]
"""Tells the version of the weights that was in use in each of some steps."""

TICK = 0.1
PART_BYTES = 8 << 20
LEAST_PART_BYTES = 16 << 10
REFUSALS = frozenset({"400", "409", "413", "415", "422"})
"""Answers that sending again won't change."""


class TraceSender:
    """Sends closed traces in order, each until it is delivered or refused.

    Args:
        assembly: where traces come from. It holds the traces that wait; the sender holds one at most.
        layers: the covered layers, in the capturer's order.
        producer, epoch: as in the worker's frames.
        transport: where to.
        backoff: when to try again.
        versions: see `WeightsWatch.versions`.
    """

    def __init__(
        self,
        assembly: TraceAssembly,
        layers: Sequence[MoeLayer],
        producer: Producer,
        epoch: int,
        transport: Transport,
        backoff: Backoff | None = None,
        versions: Versions = np.zeros_like,
    ) -> None:
        self._assembly = assembly
        self._versions = versions
        self._layers = layers
        self._producer = producer
        self._epoch = epoch
        self._transport = transport
        self._log = ThrottledLog(logger)
        self._parts: list[bytes] = []
        self._parts_sent = 0  # of the trace that is sent now
        self._part_bytes = PART_BYTES
        self._delivered = 0
        self._dropped: Counter[str] = Counter()
        self._backoff = backoff or Backoff()
        self._retry_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="moescope-traces", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Send what is left, and wait for that no longer than `timeout` seconds."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def accounts(self) -> dict[str, int]:
        """Traces ``captured``, ``delivered`` and ``dropped_<reason>`` so far; the rest are in flight."""
        # Read before what the assembly has captured: then these numbers are never ahead of it.
        delivered, refused = self._delivered, dict(self._dropped)
        dropped = dict(self._assembly.dropped)
        captured = self._assembly.captured
        for reason, number in refused.items():
            dropped[reason] = dropped.get(reason, 0) + number
        reasons = {f"dropped_{reason}": number for reason, number in sorted(dropped.items())}
        return {"captured": captured, "delivered": delivered, **reasons}

    def tick(self) -> None:
        """Send the closed traces, as far as the service takes them."""
        while self._assembly.closed and time.monotonic() >= self._retry_at:
            trace = self._assembly.closed[0]
            try:
                self._parts = self._parts or list(
                    encode_trace(
                        trace,
                        self._layers,
                        self._producer,
                        self._epoch,
                        part_bytes=self._part_bytes,
                        versions=self._versions,
                    )
                )
                self._send()
            except DeliveryError as error:
                if error.kind == "413" and self._cut_smaller(error):
                    continue
                if error.kind not in REFUSALS:
                    self._put_off(error)
                    return
                self._drop("refused", error)
            except Exception as error:  # noqa: BLE001 - the thread must outlive whatever happens to a trace
                self._drop("fault", error)
            else:
                self._delivered += 1
            self._parts = []
            self._parts_sent = 0
            self._assembly.closed.popleft()
            self._assembly.sent += trace.nbytes

    def _run(self) -> None:
        while not self._stopping.wait(TICK):
            self.tick()
        self._retry_at = 0.0
        self.tick()
        self._transport.close()

    def _send(self) -> None:
        """Send the parts of the trace that were not delivered yet."""
        while self._parts:
            self._transport.post(self._parts[0])
            self._backoff.succeeded()
            self._parts.pop(0)
            self._parts_sent += 1

    def _cut_smaller(self, error: DeliveryError) -> bool:
        """Cut this trace and those to come into smaller parts, as something on the way takes none so large.

        False: they can't be much smaller, or some parts of this trace have arrived, which said how many there
        are: it is lost then, and those to come are not.
        """
        if self._part_bytes <= LEAST_PART_BYTES:
            return False
        self._part_bytes = max(LEAST_PART_BYTES, min(self._part_bytes, len(self._parts[0])) // 2)
        self._log.log(
            "smaller",
            logging.WARNING,
            f"moescope: traces go in parts of {self._part_bytes} bytes now: {error}",
        )
        if self._parts_sent:
            return False
        self._parts = []
        return True

    def _drop(self, reason: str, error: Exception) -> None:
        self._dropped[reason] += 1
        self._log.log(reason, logging.WARNING, f"moescope: a trace is dropped: {error}")

    def _put_off(self, error: DeliveryError) -> None:
        self._retry_at = time.monotonic() + self._backoff.failed()
        self._log.log(error.kind, logging.WARNING, f"moescope: traces wait: {error}")


def encode_trace(
    trace: Trace,
    layers: Sequence[MoeLayer],
    producer: Producer,
    epoch: int,
    part_bytes: int = PART_BYTES,
    versions: Versions = np.zeros_like,
) -> Iterator[bytes]:
    """The encoded parts of a closed trace: of about `part_bytes` at most, each of one version of weights."""
    experts, steps = np.concatenate(trace.chunks), _steps(trace)
    tokens = max(1, part_bytes // (experts.shape[1] * experts.itemsize))
    of_tokens = versions(steps)
    starts = _starts(of_tokens, tokens)
    columns = list(itertools.accumulate((layer.top_k for layer in layers), initial=0))
    for part, (start, end) in enumerate(itertools.pairwise([*starts, len(experts)])):
        rows = experts[start:end].astype(f"<u{experts.itemsize}", copy=False)
        yield encode_part(
            TracePart(
                wire=(TRACE_MAJOR, TRACE_MINOR),
                producer=producer,
                epoch=epoch,
                trace=trace.number,
                part=part,
                parts=len(starts),
                request_id=trace.request_id[:MAX_NAME],
                client_ids=[name[:MAX_NAME] for name in trace.client_ids],
                outcome="cut_off" if trace.outcome == "cut_off" else "ended",
                prompt_tokens=trace.prompt_tokens,
                cached_tokens=trace.cached_tokens,
                preemptions=trace.preemptions,
                rejected_drafts=trace.rejected,
                accepted_drafts=trace.accepted,
                lora=trace.lora,
                finish_reason=trace.finish_reason,
                taken_over=trace.taken_over,
                started_at_ns=trace.started_at_ns,
                ended_at_ns=trace.ended_at_ns,
                layers=list(layers),
                steps=steps[start:end].tobytes(),
                runs=cut(trace.runs, start, end),
                id_bytes=2 if experts.itemsize == 2 else 1,
                experts=[rows[:, a:b].tobytes() for a, b in itertools.pairwise(columns)],
                weights_version=int(of_tokens[start]),
                started_step=trace.started_step,
                computed_tokens=trace.computed,
            )
        )


def _steps(trace: Trace) -> Int64Array:
    """The step of each token of a trace, as `TracePart.steps` has them: int64 [T], little-endian."""
    numbers, tokens = zip(*trace.steps, strict=True)
    return np.repeat(np.array(numbers, "<i8"), tokens)


def _starts(versions: Int64Array, most: int) -> list[int]:
    """Where the parts of a trace begin: at each change of version, and after `most` tokens at the latest."""
    edges = [0, *(np.flatnonzero(np.diff(versions)) + 1).tolist(), len(versions)]
    return [at for start, end in itertools.pairwise(edges) for at in range(start, end, most)]
