"""The capturer of one worker: from a router's callback to counts on the device."""

from __future__ import annotations

import contextlib
import itertools
import logging
import weakref
from collections.abc import Callable

import torch

from moescope.capture.counting import CountBuffers
from moescope.capture.layout import Ranks, RowSpan, locate_rows
from moescope.capture.settings import OnError
from moescope.capture.strategies import ReferencesUnsafeError, choose_strategy, fallback
from moescope.capture.vllm_seam import StepRows

logger = logging.getLogger("vllm.moescope")


class RoutingCapturer:
    """Counts the slots of every covered layer, for the tokens of this worker's DP rank.

    `begin_step` and `end_step` bracket a step that computes tokens of requests; routing calls outside of one
    (profiling, warm-up, graph capture, dummy steps) are recorded with zero valid tokens and so count nothing,
    but their layouts are checked: an unknown one shows at start-up, before traffic.

    Attributes:
        buffers: the counts.
        tokens, steps: of this DP rank so far, steps that computed no token left out.
        idle_steps: dummy steps, run because another DP rank had work.
        disabled_reason: why capture has stopped for good, or None.
    """

    def __init__(
        self,
        buffers: CountBuffers,
        ranks: Ranks,
        step_rows: Callable[[], StepRows],
        on_error: OnError = OnError.RAISE,
    ) -> None:
        self.buffers = buffers
        self.tokens = 0
        self.steps = 0
        self.idle_steps = 0
        self.disabled_reason: str | None = None
        self._ranks = ranks
        self._step_rows = step_rows
        self._on_error = on_error
        self._strategy = choose_strategy(buffers)
        self._fallback = fallback(self._strategy, buffers)
        self._in_step = False
        self._handle = next(_handles)
        _capturers[self._handle] = self

    @property
    def strategy(self) -> str:
        """How routing calls become counts: the name of a `Strategy`."""
        return self._strategy.name

    def begin_step(self, num_tokens: int) -> None:
        """A step with this many true tokens begins; the value reaches the device in the stream's order."""
        if num_tokens > 0 and self.disabled_reason is None:
            self._in_step = True
            self._strategy.begin_step()
            self.buffers.num_valid.fill_(num_tokens)

    def end_step(self, num_tokens: int) -> None:
        """The step's forward pass is enqueued: what follows counts nothing until the next step."""
        self._in_step = False
        if num_tokens > 0 and self.disabled_reason is None:
            self._strategy.end_step()
            self.buffers.num_valid.zero_()
            self.tokens += num_tokens
            self.steps += 1

    def idle_step(self) -> None:
        """A dummy step was run."""
        self.idle_steps += 1

    def record(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        """Count a routing call: logical expert ids, any integer dtype [n, top_k], of one layer.

        Raises:
            AssertionError: the batch fits no known row layout, and the settings say so.
        """
        if torch.compiler.is_dynamo_compiling():
            # A traced callback would become part of the graph once and lose its Python side; an opaque op
            # stays in it and calls back into `_record_eager` each time. The graph uses the ids' memory again.
            torch.ops.moescope.record_routing(topk_ids, self.buffers.flat, self._handle, ordinal)
        else:
            self._record_eager(ordinal, topk_ids, self.buffers.flat, traced=False)

    def disable(self, reason: str) -> None:
        """Stop counting for good: graphs that were captured go on running, with zero valid tokens."""
        if self.disabled_reason is None:
            self.disabled_reason = reason
            with contextlib.suppress(Exception):  # on a device that has failed this does too
                self.buffers.num_valid.zero_()
            logger.error("moescope: capture is off for good, the server serves on: %s", reason)

    def _record_eager(self, ordinal: int, topk_ids: torch.Tensor, flat: torch.Tensor, traced: bool) -> None:
        if self.disabled_reason is not None:
            return
        try:
            span = self._locate(topk_ids.shape[0])
        except AssertionError as error:
            if self._on_error is OnError.RAISE:
                raise
            self.disable(str(error))
            return
        try:
            self._count(ordinal, topk_ids, span, flat, traced)
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self.disable(f"counting failed in layer {self.buffers.layers[ordinal].layer}: {error!r}")

    def _count(
        self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor, traced: bool
    ) -> None:
        if traced:
            self._fall_back("routing calls are traced into a compiled graph")
        try:
            self._strategy.record(ordinal, topk_ids, span, flat)
        except ReferencesUnsafeError as error:
            # It shows in the first pass, which vLLM runs before it serves; in a step that counts, the ids of
            # earlier layers are gone.
            if self._in_step:
                raise
            self._fall_back(str(error))
            self._strategy.record(ordinal, topk_ids, span, flat)

    def _fall_back(self, reason: str) -> None:
        """Keep no ids beyond a routing call from now on."""
        if self._strategy.name != self._fallback.name:
            logger.info("moescope: %s instead of %s: %s", self._fallback.name, self._strategy.name, reason)
            self._strategy.end_step()
            self._strategy = self._fallback

    def _locate(self, num_rows: int) -> RowSpan:
        rows = self._step_rows()
        return locate_rows(num_rows, self._ranks, rows.tokens_across_dp, rows.shard_sizes)


# An op's arguments are tensors and numbers only, so a traced callback names its capturer by a handle.
_handles = itertools.count()
_capturers: weakref.WeakValueDictionary[int, RoutingCapturer] = weakref.WeakValueDictionary()


@torch.library.custom_op("moescope::record_routing", mutates_args=("flat",))
def _record_routing(topk_ids: torch.Tensor, flat: torch.Tensor, handle: int, ordinal: int) -> None:
    """`RoutingCapturer.record` as an op that `torch.compile` doesn't look into.

    `flat` may be a copy that is written back after the op, so the op adds to it and not to the buffers.
    """
    capturer = _capturers.get(handle)
    if capturer is not None:
        capturer._record_eager(ordinal, topk_ids, flat, traced=True)
