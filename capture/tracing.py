"""Traces of sampled requests, on the step's path: from routing calls to closed traces.

Invariants:
- captured = delivered + dropped + in flight, in traces, at any time (:meth:`Tracer.accounts`).
- A trace has every row that this worker's router had of its request, in the order of computing, or it is
  dropped as a whole and counted.
- The step's path takes no lock: traces go to the sender through a deque, and each counter has one writer.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence

import numpy as np
import torch

from moescope.capture.batch_layout import BatchLayout
from moescope.capture.layout import RowSpan
from moescope.capture.throttled_log import ThrottledLog
from moescope.capture.trace_buffer import Trace, compact
from moescope.capture.trace_sampling import TraceSampling
from moescope.capture.vllm_requests import StepRequests, client_ids
from moescope.capture.wire import MoeLayer

logger = logging.getLogger("vllm.moescope")

_OVERHEAD = 256  # bytes that a chunk takes besides its ids, about


class _Rows:
    """The rows of a step that belong to traced requests.

    Attributes:
        tokens: int64 [n], their indices among the step's tokens, rising.
        owners: (request id, first position, tokens) of consecutive stretches of them.
    """

    def __init__(self, layout: BatchLayout, traced: Callable[[str], bool]) -> None:
        self.owners: list[tuple[str, int, int]] = []
        stretches: list[np.ndarray] = [np.zeros(0, np.int64)]
        ends = np.cumsum(layout.num_tokens)
        for i, request_id in enumerate(layout.request_ids):
            if traced(request_id):
                count = int(layout.num_tokens[i])
                self.owners.append((request_id, int(layout.first_positions[i]), count))
                stretches.append(np.arange(ends[i] - count, ends[i]))
        self.tokens = np.concatenate(stretches)


class Tracer:
    """Traces the requests that `sampling` wants.

    Args:
        layers: the covered layers, as `RoutingCapturer` numbers them.
        sampling: which requests.
        max_bytes: of all traces together, those that wait to be sent included.
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        sampling: TraceSampling,
        max_bytes: int,
    ) -> None:
        self.layers = tuple(layers)
        self.closed: deque[Trace] = deque()
        self.released = 0
        """Bytes of traces that the sender is done with; only the sender writes it."""
        self._sampling = sampling
        self._max_bytes = max_bytes
        self._held = 0
        self._numbers = itertools.count(1)
        self._waiting: dict[str, Trace] = {}  # chosen, no row of this worker yet
        self._open: dict[str, Trace] = {}
        self._captured = 0
        self._dropped: Counter[str] = Counter()
        self._step: StepRequests | None = None
        self._rows: _Rows | None = None
        self._columns: dict[int, np.ndarray] = {}
        self._selected: np.ndarray | None = None
        self._fault: str | None = None
        self._log = ThrottledLog(logger)

    def accounts(self) -> tuple[int, dict[str, int], int]:
        """Traces captured, dropped here by reason, and open."""
        dropped = dict(self._dropped)  # first: it only lags behind
        return self._captured, dropped, len(self._open)

    def begin_step(self, step: StepRequests) -> None:
        """A step is about to run, or a call that only says which requests are done."""
        self._forget_step()
        for request_id in step.finished:
            self._waiting.pop(request_id, None)
            self._close(request_id, "ended")
        for new in step.new:
            known = self._open.get(new.request_id) or self._waiting.get(new.request_id)
            if known is not None:
                known.preemptions += 1
                continue
            names = client_ids(new.request_id)
            if self._sampling.wants(names[0], new.opted_in):
                self._waiting[new.request_id] = Trace(
                    0, new.request_id, names, new.prompt_tokens, new.first_position
                )
        for request_id in step.resumed:
            if request_id in self._open:
                self._open[request_id].preemptions += 1
        if any(name in self._open or name in self._waiting for name in step.num_tokens):
            self._step = step

    def lay_out(self, layout: BatchLayout) -> None:
        """The step's batch is laid out, and its forward pass is not enqueued yet."""
        if self._step is not None:
            self._rows = _Rows(layout, lambda name: name in self._open or name in self._waiting)

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan) -> None:
        """Take the traced requests' rows of a routing call: integer ids [n, top_k]; `span` is ours."""
        if self._step is None or self._fault is not None:
            return
        try:
            self._record(ordinal, topk_ids, span)
        except Exception as error:  # noqa: BLE001 - counting goes on whatever happens to a trace
            self._fault = f"fault:{type(error).__name__}"
            self._log.log("trace", logging.ERROR, f"moescope: a step's traces are dropped: {error!r}")

    def end_step(self) -> None:
        """The step has run: its rows go into the traces of their requests."""
        step, rows = self._step, self._rows
        if step is None:
            return
        if self._fault is None and len(self._columns) != len(self.layers):
            self._fault = "layer_missing"
        if self._fault is not None:
            for request_id in step.num_tokens:
                self._drop(request_id, self._fault)
        elif rows is not None and self._selected is not None and self._selected.size:
            columns = [self._columns[ordinal] for ordinal in range(len(self.layers))]
            self._share_out(rows, self._selected, compact(columns, self.layers))
        self._forget_step()

    def close_all(self) -> None:
        """The worker is shut down: what is open is cut off."""
        self._waiting.clear()
        for request_id in list(self._open):
            self._close(request_id, "cut_off")

    def give_up(self) -> None:
        """Tracing has failed: what is open is dropped."""
        self._forget_step()
        for request_id in list(self._open):
            self._drop(request_id, "fault")
        self._waiting.clear()

    def _record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan) -> None:
        if self._rows is None:
            self._fault = "layout_unknown"
            return
        mine = self._rows.tokens
        mine = mine[(mine >= span.first_token) & (mine < span.first_token + span.count)]
        if self._selected is not None and not np.array_equal(mine, self._selected):
            raise ValueError("the layers of a step have different rows")
        if ordinal in self._columns:
            raise ValueError(f"layer {self.layers[ordinal].layer} ran twice in a step")
        self._selected = mine
        wanted = torch.from_numpy(mine - span.first_token + span.start)
        self._columns[ordinal] = topk_ids[wanted].numpy()

    def _share_out(self, rows: _Rows, selected: np.ndarray, experts: np.ndarray) -> None:
        """Give each request its tokens; `selected` are those of `rows` that this worker has."""
        at = 0
        for request_id, first, count in rows.owners:
            tokens = rows.tokens[at : at + count]
            low, high = np.searchsorted(selected, (tokens[0], tokens[-1] + 1))
            at += count
            if low == high:
                continue
            position = first + int(selected[low] - tokens[0])
            # A copy: a view would keep the whole step's array alive.
            self._add(request_id, position, np.ascontiguousarray(experts[low:high]).copy())

    def _add(self, request_id: str, position: int, experts: np.ndarray) -> None:
        trace = self._open.get(request_id)
        if trace is None:
            trace = self._open[request_id] = self._waiting.pop(request_id)
            trace.number = next(self._numbers)
            self._captured += 1
        nbytes = experts.nbytes + _OVERHEAD
        if self._held - self.released + nbytes > self._max_bytes:
            self._drop(request_id, "buffer_full")
            return
        self._held += nbytes
        trace.nbytes += nbytes
        trace.add([(position, len(experts))], experts)

    def _drop(self, request_id: str, reason: str) -> None:
        """Give up a trace as a whole."""
        if self._waiting.pop(request_id, None) is not None:
            self._captured += 1
            self._dropped[reason] += 1
        trace = self._open.pop(request_id, None)
        if trace is not None:
            self._held -= trace.nbytes
            self._dropped[reason] += 1

    def _close(self, request_id: str, outcome: str) -> None:
        trace = self._open.pop(request_id, None)
        if trace is not None:
            trace.close(outcome)
            self.closed.append(trace)

    def _forget_step(self) -> None:
        self._step = self._rows = self._selected = self._fault = None
        self._columns = {}
