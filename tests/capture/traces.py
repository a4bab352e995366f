"""Steps for tests of tracing, as vLLM's scheduler and routers would make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from moescope.capture.counting.staging import TraceStaging, copy_traced_rows
from moescope.capture.seam.block_tables import StepBlocks
from moescope.capture.seam.ends import NO_END, RequestEnd
from moescope.capture.seam.outcomes import StepOutcome
from moescope.capture.seam.requests import NewRequest, RowsOf, StepRequests
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.settings.sampling import TraceSampling
from moescope.capture.step.batch import order_requests
from moescope.capture.tracing.assembly import TraceAssembly
from moescope.capture.tracing.buffer import Trace
from moescope.capture.tracing.tracer import Tracer
from moescope.capture.wire import MoeLayer

LAYERS = [MoeLayer(1, 16, 2), MoeLayer(3, 16, 3)]


class Driver:
    """A tracer and the steps that drive it."""

    def __init__(
        self,
        layers: Sequence[MoeLayer] = LAYERS,
        sampling: TraceSampling = TraceSampling(rate=1.0),  # noqa: B008 - frozen
        max_bytes: int = 1 << 20,
        staging_bytes: int = 1 << 12,
        sharded: bool = False,
        drafting: bool = False,
        cut: bool = True,
    ) -> None:
        self.layers = list(layers)
        self.positions = torch.full((64,), -7)
        positions = (lambda: self.positions) if drafting else None
        self.staging = TraceStaging(layers, 64, torch.device("cpu"), staging_bytes, positions)
        self.assembly = TraceAssembly(self.staging, sharded, drafting, cut)
        self.tracer = Tracer(sampling, self.staging, self.assembly, max_bytes)
        self.steps = 0
        self._seen: set[str] = set()

    def step(
        self,
        tokens: Mapping[str, tuple[int, int]],
        finished: Sequence[str] = (),
        resumed: Sequence[str] = (),
        order: Sequence[str] | None = None,
        opted_in: Sequence[str] = (),
        padding: int = 0,
        layers: Sequence[int] | None = None,
        span: RowSpan | None = None,
        ordered: bool = True,
        proceed: bool = True,
        drafts: Mapping[str, int] | None = None,
        outcome: StepOutcome | None = None,
        ahead: int = 0,
        end: RequestEnd = NO_END,
        prompt: int = 4,
        again: Sequence[str] = (),
        lora: str = "",
        blocks: StepBlocks | None = None,
    ) -> list[torch.Tensor]:
        """Run a step of requests with (first position, tokens); returns the ids of each layer's call.

        Args:
            drafts: how many of the tokens are of drafts.
            outcome: tells what the step samples.
            ahead: by how much the scheduler overrates the first positions.
            end: of the requests that are new.
            prompt: tokens of their prompts.
            again: requests that are new once more.
            lora: the adapter of the requests that are new.
            blocks: what the step changes in the tables of blocks.
        """
        new = [
            NewRequest(name, prompt, first, name in opted_in, end, lora)
            for name, (first, _) in tokens.items()
            if name not in self._seen or name in again
        ]
        self._seen |= set(tokens)
        step = StepRequests(
            finished=finished,
            new=new,
            resumed=frozenset(resumed),
            num_tokens={name: count for name, (_, count) in tokens.items()},
            rows=lambda: RowsOf({name: first + ahead for name, (first, _) in tokens.items()}, drafts or {}),
        )
        self.tracer.begin_step(step, blocks)
        if ordered:
            names = list(tokens) if order is None else order
            self.tracer.take_order(order_requests(names, step.num_tokens), self.steps)
        rows = [np.arange(first, first + count) for first, count in map(tokens.__getitem__, order or tokens)]
        valid = sum(map(len, rows))
        self.positions[:valid] = torch.from_numpy(np.concatenate([np.zeros(0, np.int64), *rows]))
        total = valid + padding
        whole = RowSpan(Layout.SINGLE_DP, 0, total, 0)
        calls = [
            torch.from_numpy(
                np.random.default_rng(total + i).integers(0, layer.num_experts, (total, layer.top_k))
            )
            for i, layer in enumerate(self.layers)
        ]
        for ordinal in range(len(self.layers)) if layers is None else layers:
            self.route(ordinal, calls[ordinal], span or whole, valid)
        self.tracer.end_step(outcome)
        self.steps += 1
        if proceed:
            self.assembly.proceed()
        return calls

    def route(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, valid: int) -> None:
        """A layer's routing call in a step of `valid` true tokens."""
        copy_traced_rows(topk_ids, span, torch.tensor([valid]), self.staging, ordinal)

    def closed(self) -> dict[str, Trace]:
        """The closed traces by request."""
        return {trace.request_id: trace for trace in self.assembly.closed}

    def assert_accounts(self, captured: int, closed: int, open_: int, **dropped: int) -> None:
        """Check the accounts: captured = dropped + open + closed, each as given."""
        assert (self.assembly.captured, dict(self.assembly.dropped)) == (captured, dropped)
        assert len(self.assembly.closed) == closed
        assert captured == closed + open_ + sum(dropped.values())


def side_by_side(calls: list[torch.Tensor], rows: slice) -> np.ndarray:
    """The ids that the layers' calls had for these rows: [rows, sum of top_k]."""
    return torch.cat([call[rows] for call in calls], dim=1).numpy()
