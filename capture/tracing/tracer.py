"""Traces of sampled requests, on the step's path: which rows of a step are copied, and for which requests.

Invariants:
- captured = delivered + dropped + in flight, in traces, at any time (`TraceSender.accounts`).
- A trace has every row of its request that this worker's routers had, in the order of computing; else it is
  dropped as a whole and counted. Rows of draft tokens that were rejected are no rows of the request.
- The step's path takes no lock: it tells `TraceAssembly` what happens through a deque, and each counter has
  one writer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Final

import numpy as np

from moescope.capture.counting.staging import TraceStaging
from moescope.capture.seam.block_tables import BlocksHandedOn, StepBlocks
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.seam.requests import NewRequest, RowsOf, StepRequests, client_ids
from moescope.capture.settings.sampling import TraceSampling
from moescope.capture.step.batch import BatchRequests
from moescope.capture.tracing.assembly import Again, Arrival, Ending, Owner, TraceAssembly
from moescope.capture.tracing.buffer import Trace
from moescope.capture.tracing.origins import BlocksOfStep, BlocksReceived

MAX_EVENTS: Final = 4096
"""With so many events that wait, changes of the tables of blocks are left out."""
MAX_BLOCKS: Final = 1 << 20
"""So are they where all that wait would have more numbers of blocks, about 36 bytes each."""
_OVERHEAD = 256
"""Bytes that a chunk takes besides its ids, about."""


class Tracer:
    """Traces the requests that `sampling` wants.

    Args:
        sampling: which requests.
        staging: where their rows are copied to.
        assembly: is told what happens.
        max_bytes: memory for all traces together, those that wait to be sent included.
    """

    def __init__(
        self, sampling: TraceSampling, staging: TraceStaging, assembly: TraceAssembly, max_bytes: int
    ) -> None:
        self._sampling = sampling
        self._staging = staging
        self._assembly = assembly
        self._max_bytes = max_bytes
        id_bytes = 1 if max(layer.num_experts for layer in staging.layers) <= 256 else 2
        self._token_bytes = staging.width * id_bytes
        self._held = 0
        self._open: dict[str, Trace] = {}
        self._step: StepRequests | None = None
        self._rows = RowsOf({})
        self._owners: list[Owner] = []
        self._number = 0
        self._told_prompts: dict[str, int] = {}  # of open traces whose input is streamed
        self._behind = False
        self._told = 0

    def begin_step(self, step: StepRequests, blocks: StepBlocks | None = None) -> None:
        """A step is about to run, or a call that only says which requests are done.

        Args:
            step: its requests.
            blocks: what its scheduling changed in the tables of blocks, if anything.
        """
        self._step = None
        for request_id in step.finished:
            self._end(request_id)
        for new in step.new:
            known = self._open.get(new.request_id)
            if known is not None:
                self._again(known, new)
                continue
            names = client_ids(new.request_id)
            if self._sampling.wants(names[0], new.opted_in):
                self._open[new.request_id] = Trace(
                    new.request_id,
                    names,
                    new.prompt_tokens,
                    new.first_position,
                    end=new.end,
                    lora=new.lora,
                )
        for request_id in step.resumed:
            if request_id in self._open:
                self._resume(self._open[request_id])
        if blocks is not None:
            self._follow(blocks)
        if self._open and self._computes_traced(step.num_tokens):
            self._step, self._rows = step, step.rows()

    def _computes_traced(self, tokens: Mapping[str, int]) -> bool:
        """Whether any request of a step is traced; it looks at the fewer of both."""
        if len(self._open) < len(tokens):
            return any(name in tokens for name in self._open)
        return any(name in self._open for name in tokens)

    @property
    def is_idle(self) -> bool:
        """Whether no request is traced, so that a step which changes no request needs nothing."""
        return not (self._open or self._owners or self._step)

    @property
    def has_step(self) -> bool:
        """Whether the step that began last computes tokens of traced requests, and its order isn't known."""
        return self._step is not None

    def take_order(self, batch: BatchRequests, number: int) -> None:
        """The order of the batch's rows is known, and its forward pass is not enqueued yet.

        Args:
            batch: the requests of the step that began last.
            number: of the step.
        """
        step, self._step = self._step, None
        if step is None:
            return
        room, chosen = self._staging.room(), []
        ends = np.cumsum(batch.num_tokens)
        total = int(ends[-1])
        for i, request_id in enumerate(batch.request_ids):
            trace = self._open.get(request_id)
            if trace is None:
                continue
            count = int(batch.num_tokens[i])
            if not self._admit(trace, count, room if total <= self._staging.max_tokens else 0):
                continue
            room -= count
            chosen.append(np.arange(ends[i] - count, ends[i]))
            first, drafts = self._rows.first_positions[request_id], self._rows.drafts.get(request_id, 0)
            self._owners.append(Owner(trace, first, count, drafts))
        if chosen:
            self._number = number
            self._staging.begin(np.concatenate(chosen), total)

    def end_step(self, outcome: StepOutcome | None = None) -> None:
        """The step is enqueued: its traced rows leave the device, and later rows belong to no request.

        Args:
            outcome: will tell what the step samples; None: that can't be told.
        """
        owners, self._owners = self._owners, []
        if owners:
            staged = self._staging.collect(sum(owner.rows for owner in owners))
            self._assembly.events.append(Arrival(staged, self._number, owners, outcome))
        step, self._step = self._step, None
        if step is not None:
            for request_id in step.num_tokens:
                self._end(request_id, "layout_unknown")

    def kv_received(self) -> None:
        """A KV connector filled blocks for requests that wait."""
        if len(self._assembly.events) >= MAX_EVENTS:
            self._behind = True
        else:
            self._assembly.events.append(BlocksReceived())

    def close_all(self) -> None:
        """The worker is shut down: open traces are cut off."""
        for request_id in list(self._open):
            self._open[request_id].outcome = "cut_off"
            self._end(request_id)

    def give_up(self) -> None:
        """Tracing has failed: open traces are dropped."""
        self._step, self._owners = None, []
        with contextlib.suppress(Exception):  # a device that has failed refuses this too
            self._staging.clear()
        for request_id in list(self._open):
            self._end(request_id, "fault")

    def hand_on(self, blocks: BlocksHandedOn) -> None:
        """Have the assembly look which blocks were appended, in a step in which no request came or went.

        Where it is far behind it begins anew, but not before requests come or go: until then all that it
        would learn is of requests that it doesn't know any more.
        """
        if self._behind:
            return
        assembly, size = self._assembly, len(blocks.names)
        events = assembly.events
        if len(events) >= MAX_EVENTS or self._told - assembly.followed + size > MAX_BLOCKS:
            self._behind = True
            return
        events.append(blocks)
        self._told += size

    def _again(self, trace: Trace, new: NewRequest) -> None:
        """A request is new once more: runner V2 forgets preempted ones, and streamed input grows a prompt.

        The rows of steps before may still be on their way, so the assembly is told in its turn.
        """
        told = self._told_prompts.get(trace.request_id, trace.prompt_tokens)
        if new.prompt_tokens == told:
            self._resume(trace)
        else:
            self._told_prompts[trace.request_id] = new.prompt_tokens
            self._assembly.events.append(Again(trace, new))

    def _resume(self, trace: Trace) -> None:
        trace.preemptions += 1
        self._assembly.events.append(Again(trace))

    def _follow(self, blocks: StepBlocks) -> None:
        """Have the assembly follow the tables of blocks; where it is far behind, it begins anew later."""
        size = sum(len(table.blocks) for table in blocks.tables)
        size += sum(len(added) for _, added in blocks.appended)
        waiting = self._told - self._assembly.followed
        if len(self._assembly.events) >= MAX_EVENTS or waiting + size > MAX_BLOCKS:
            self._behind = True
            return
        names = (table.request_id for table in blocks.tables)
        traces = {name: self._open[name] for name in names if name in self._open}
        self._assembly.events.append(BlocksOfStep(blocks, traces, self._behind, size))
        self._told += size
        self._behind = False

    def _admit(self, trace: Trace, count: int, room: int) -> bool:
        """Set memory aside for a trace's rows of a step, or drop it."""
        nbytes = count * self._token_bytes + _OVERHEAD
        if trace.broken:
            self._end(trace.request_id)
        elif self._held - self._assembly.released - self._assembly.sent + nbytes > self._max_bytes:
            self._end(trace.request_id, "buffer_full")
        elif count > room:
            self._end(trace.request_id, "staging_full")
        else:
            self._held += nbytes
            trace.nbytes += nbytes
            return True
        return False

    def _end(self, request_id: str, reason: str | None = None) -> None:
        """Close a trace, or give it up as a whole if there is a `reason`."""
        trace = self._open.pop(request_id, None)
        self._told_prompts.pop(request_id, None)
        if trace is not None:
            trace.dropped = trace.dropped or reason is not None
            trace.close()
            self._assembly.events.append(Ending(trace, reason))
