"""The capturer of one worker: from a router's callback to counts on the device."""

from __future__ import annotations

import contextlib
import itertools
import logging
import weakref
from collections.abc import Callable

import numpy as np
import torch

from moescope.capture.counting.pinned_ring import PinnedRing
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.strategies import choose_strategy
from moescope.capture.counting.strategy import ReferencesUnsafeError
from moescope.capture.counting.word_writer import choose_writer
from moescope.capture.seam.rows import WHOLE, Ranks, RowSpan, StepRows, rows_of_call
from moescope.capture.settings.environment import DEFAULT_KEPT_IDS_MIB, OnError
from moescope.capture.step.first_word import first_word_of
from moescope.capture.step.phases import UInt8Array
from moescope.capture.step.totals import StepTokens, Totals
from moescope.capture.step.word import PLACE_SHIFT, Phase, pack_step

logger = logging.getLogger("vllm.moescope")


class RoutingCapturer:
    """Counts the slots of every covered layer, for the tokens of this worker's DP rank.

    `begin_step` and `end_step` bracket a step that computes tokens of requests; routing calls outside of one
    (profiling, warm-up, graph capture, dummy steps) are recorded with zero valid tokens and so count nothing,
    but their layouts are checked: an unknown one shows at start-up, before traffic. Routing calls come from
    one thread at a time: the steps', or those of a step's microbatches in turns.

    Attributes:
        buffers: the counts.
        totals: tokens and steps of this DP rank so far.
        disabled_reason: why capture has stopped for good, or None.
        has_served: whether vLLM has begun to serve, as whoever owns the capturer says.
        ranks: this worker's; may be replaced between steps.
        awaits_phases: whether the step under way has tokens of both phases, and `set_phases` was not called
            for it.
        owes: whether `raise_owed` will raise.
        before_raise: called with the message before the AssertionError of an unknown row layout is raised.

    Args:
        ranks: this worker's.
        step_rows: tells the sizes of the step under way, or of the microbatch; called in each routing call.
        on_error: what an unknown row layout does.
        kept_ids_bytes: the most that ids which are kept for a later launch may take on the device.
    """

    def __init__(
        self,
        buffers: CountBuffers,
        ranks: Ranks,
        step_rows: Callable[[], StepRows],
        on_error: OnError = OnError.RAISE_AT_START,
        kept_ids_bytes: int = DEFAULT_KEPT_IDS_MIB << 20,
    ) -> None:
        self.buffers = buffers
        self.totals = Totals()
        self.disabled_reason: str | None = None
        self.has_served = False
        self.before_raise: Callable[[str], None] = lambda _: None
        self.ranks = ranks
        self._step_rows = step_rows
        self._on_error = on_error
        self._strategy, self._fallback = choose_strategy(buffers, kept_ids_bytes)
        self._word = choose_writer(buffers.step_word)
        self._phases = PinnedRing(buffers.phases)
        self._step: StepTokens | None = None
        self._place = 0
        self._known = first_word_of(StepTokens(0, 0))
        self.awaits_phases = self.owes = False
        self._owed: AssertionError | None = None
        self._handle = next(_handles)
        _capturers[self._handle] = self

    @property
    def strategy(self) -> str:
        """How routing calls become counts: the name of a `Strategy`."""
        return self._strategy.name

    @property
    def strategy_bytes(self) -> int:
        """Device memory that the strategy holds besides the counts."""
        return self._strategy.num_bytes

    @property
    def word_writer(self) -> str:
        """How the step's word reaches the device: the name of a `WordWriter`."""
        return self._word.name

    def begin_step(self, num_tokens: int, decode_tokens: int = 0) -> None:
        """A step begins. What the device must know of it reaches the device in the order of the stream.

        A step with tokens of both phases needs `set_phases` as well, before its forward pass is enqueued.

        Args:
            num_tokens: true tokens of the step.
            decode_tokens: how many of them are decode tokens.
        """
        self.begin_step_of(StepTokens(num_tokens, decode_tokens))

    def begin_step_of(self, step: StepTokens) -> None:
        """See `begin_step`. A steady batch has the same object in each step, whose word is known."""
        if step.tokens == 0 or self.disabled_reason is not None:
            return
        self._step, ring = step, self.buffers.ring
        if ring is not None:
            self._place = ring.begin_step(self.totals.forward_passes)
        self._strategy.begin_step()
        if step is not self._known.step:
            self._known = first_word_of(step)
        _, word, self.awaits_phases = self._known
        self._word.write(word | self._place << PLACE_SHIFT)

    def set_phases(self, phases: UInt8Array) -> None:
        """Tell the phases of the step under way; nothing to do in a step that doesn't await them.

        Args:
            phases: `Phase` of each true token, in the order of the batch's rows: uint8 [tokens].

        Raises:
            ValueError: they are not as many as the step's tokens, or the step has more than it may.
        """
        step = self._step
        if step is None or not self.awaits_phases or self.disabled_reason is not None:
            return
        if len(phases) != step.tokens or int(np.count_nonzero(phases)) != step.decode:
            raise ValueError(f"{len(phases)} phases, {np.count_nonzero(phases)} of decode, for {step}")
        if len(phases) > self.buffers.phases.numel():
            most = self.buffers.phases.numel()
            raise ValueError(f"a step of {len(phases)} tokens, where {most} are the most")
        self._phases.buffer()[: len(phases)] = phases
        self._phases.upload(len(phases))
        self._word.write(pack_step(step.tokens, Phase.MIXED, self._place))
        self.awaits_phases = False

    def end_step(self) -> None:
        """The step's forward pass is enqueued: routing calls count nothing until the next step."""
        step, self._step = self._step, None
        counts = step is not None and self.disabled_reason is None
        if counts:
            self._strategy.end_step()
        if step is not None:
            # Also where counting ended within the step: in another thread `disable` fills the word in another
            # stream, which may be before the step's own word is written.
            self._word.write(0)
            if counts:
                self.totals = self.totals.with_step(step, phases_known=not self.awaits_phases)
        self.awaits_phases = False

    def raise_owed(self) -> None:
        """Raise the error of an unknown row layout that a microbatch's thread met; counting has ended then.

        In that thread vLLM would take it for nothing, and wait for the thread's turn to end for ever.

        Raises:
            AssertionError: see above.
        """
        error, self._owed, self.owes = self._owed, None, False
        if error is not None:
            self.before_raise(str(error))
            raise error

    def idle_step(self) -> None:
        """A dummy step was run."""
        self.totals = self.totals._replace(idle_steps=self.totals.idle_steps + 1)

    def record(self, ordinal: int, topk_ids: torch.Tensor) -> None:
        """Count a routing call: logical expert ids, any integer dtype [n, top_k], of one layer.

        Raises:
            AssertionError: the batch fits no known row layout, and the settings say so.
        """
        if torch.compiler.is_dynamo_compiling():
            # A callback that Dynamo traces becomes part of the graph: its Python code runs once, while it is
            # traced. An opaque op stays in the graph and calls `_record_eager` each time the graph runs.
            torch.ops.moescope.record_routing(topk_ids, self.buffers.flat, self._handle, ordinal)
        else:
            self._record_eager(ordinal, topk_ids, self.buffers.flat, traced=False)

    def keep_no_references(self, reason: str) -> None:
        """From now on count each layer within its routing call; `reason` is for the log. Not in a step."""
        self._fall_back(reason)

    def disable(self, reason: str) -> None:
        """Stop counting for good: graphs that were captured go on running, with zero valid tokens."""
        if self.disabled_reason is None:
            self.disabled_reason = reason
            # By a fill: any thread may come here, also while it captures a graph, which then counts nothing.
            with contextlib.suppress(Exception):  # a device that has failed refuses this too
                self.buffers.step_word.zero_()
            logger.error("moescope: capture is off for good, the server serves on: %s", reason)

    def _record_eager(self, ordinal: int, topk_ids: torch.Tensor, flat: torch.Tensor, traced: bool) -> None:
        if self.disabled_reason is not None:
            return
        span = self._locate(topk_ids)
        if span is None:
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
            # The first pass shows it, which vLLM runs before it serves. In a step that counts it would be too
            # late: the ids of earlier layers are overwritten.
            if self._step is not None:
                raise
            self._fall_back(str(error))
            self._strategy.record(ordinal, topk_ids, span, flat)

    def _fall_back(self, reason: str) -> None:
        """From now on keep no ids beyond a routing call; `reason` is for the log."""
        if self._strategy.name != self._fallback.name:
            logger.info("moescope: %s instead of %s: %s", self._fallback.name, self._strategy.name, reason)
            self._strategy.end_step()
            self._strategy = self._fallback

    @property
    def _raises(self) -> bool:
        """Whether an unknown row layout stops the server now."""
        at_start = self._on_error is OnError.RAISE_AT_START and not self.has_served
        return at_start or self._on_error is OnError.RAISE

    def _locate(self, topk_ids: torch.Tensor) -> RowSpan | None:
        """This worker's rows, or None when capture has just ended.

        Raises:
            AssertionError: the batch fits no known row layout, and the settings say so; in a microbatch not
                at once (`raise_owed`). Nothing else raises.
        """
        try:
            num_rows, rows = topk_ids.shape[0], self._step_rows()
        except Exception as error:  # noqa: BLE001 - an observer must not harm the server
            self.disable(f"the sizes of the step are not known: {error!r}")
            return None
        try:
            tokens = None if self._step is None else self._step.tokens
            # Asked for only where it matters: this runs in each routing call of an eager step.
            sized = rows.num_tokens is not None or rows.tokens_across_dp is not None
            capturing = not sized and self.buffers.flat.is_cuda and torch.cuda.is_current_stream_capturing()
            return rows_of_call(num_rows, self.ranks, rows, tokens, capturing)
        except AssertionError as error:
            if self._raises and rows.microbatch != WHOLE:
                self._owed, self.owes = error, True
            elif self._raises:
                self.disabled_reason = str(error)  # frames say so, should any go out
                self.before_raise(self.disabled_reason)
                raise
            self.disable(str(error))
        except Exception as error:  # noqa: BLE001 - as above
            self.disable(f"the rows of a step can't be told: {error!r}")
        return None


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
