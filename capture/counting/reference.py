"""Slots per (layer, phase, logical expert) on the device, and the torch reference that counts them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.counting.staging import TraceStaging
from moescope.capture.seam.rows import RowSpan
from moescope.capture.step.word import MAX_TOKENS, PHASE_MASK, PHASE_SHIFT, PLACE_SHIFT, Phase
from moescope.capture.wire import MoeLayer


class CountBuffers:
    """The cumulative counts of one worker, in one device buffer, so that one copy takes a snapshot.

    Attributes:
        layers: the counted layers; layers may have different numbers of experts, `max_experts` at most.
        num_counts: S, the counts of one phase: the sum of ``num_experts`` over the layers.
        starts: where each layer's counts of prefill start in `flat`.
        ep_size: R, the number of EP ranks that slots are counted by; 0 without a ring.
        ep_slots_start: where the slots by EP rank start in `flat`.
        flat: int64 [2 S + 2 L + 2 L R], L the number of layers and R that of EP ranks, or 0 without a ring.
            First the slots of each (layer, logical expert) in prefill, layer by layer, then those in decode;
            then the tokens counted in each layer in prefill, then those in decode; then the slots that went
            to each EP rank in each layer in prefill, then those in decode.
        step_word: int64 [1], the step under way (see `step.word`); 0 outside of steps, so that profiling,
            warm-up, graph capture and the dummy steps of idle DP ranks count nothing.
        phases: uint8 [max_tokens], `Phase` of each token of the DP rank's step; read in mixed steps only.
        ring: the loads of single steps by EP rank, or None.
        microbatches: how many parts vLLM may split a step into; 1: it splits none.
        traced: where the rows of traced requests are copied to, or None; set before the first routing call.
    """

    def __init__(
        self,
        layers: Sequence[MoeLayer],
        device: torch.device,
        max_tokens: int = 0,
        ring: LoadRing | None = None,
        microbatches: int = 1,
    ) -> None:
        self.layers = tuple(layers)
        self.num_counts = sum(layer.num_experts for layer in self.layers)
        self.max_experts = max((layer.num_experts for layer in self.layers), default=0)
        self.ep_size = 0 if ring is None else ring.ep_size
        self.ep_slots_start = 2 * (self.num_counts + len(self.layers))
        size = self.ep_slots_start + 2 * len(self.layers) * self.ep_size
        self.flat = torch.zeros(size, dtype=torch.int64, device=device)
        self.step_word = torch.zeros(1, dtype=torch.int64, device=device)
        self.phases = torch.zeros(max(1, max_tokens), dtype=torch.uint8, device=device)
        self.ring = ring
        self.microbatches = microbatches
        self.traced: TraceStaging | None = None
        ends = list(itertools.accumulate(layer.num_experts for layer in self.layers))
        self.starts = tuple(end - layer.num_experts for end, layer in zip(ends, self.layers, strict=True))

    def counts_of(self, ordinal: int, phase: Phase | None = None) -> torch.Tensor:
        """Slots per logical expert of ``layers[ordinal]``, of both phases or of one: int64 [num_experts]."""
        both = self.flat[: 2 * self.num_counts].view(2, -1)
        mine = both.narrow(1, self.starts[ordinal], self.layers[ordinal].num_experts)
        return mine.sum(0) if phase is None else mine[phase]

    def rows_of(self, ordinal: int, phase: Phase | None = None) -> torch.Tensor:
        """Tokens counted in ``layers[ordinal]``, of both phases or of one: int64 scalar."""
        mine = self.flat[2 * self.num_counts : self.ep_slots_start].view(2, -1)[:, ordinal]
        return mine.sum() if phase is None else mine[phase]

    def ep_slots_of(self, ordinal: int, phase: Phase | None = None) -> torch.Tensor:
        """Slots by EP rank of ``layers[ordinal]``, of both or one: int64 [R]; none without a ring."""
        mine = self.flat[self.ep_slots_start :].view(2, len(self.layers), self.ep_size)[:, ordinal]
        return mine.sum(0) if phase is None else mine[phase]


def count_rows(
    buffers: CountBuffers, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor
) -> None:
    """Add a layer's slots to its counts: the reference that every faster kernel must equal.

    It reads no value of the device on the host: it neither synchronises nor breaks the capture of a CUDA
    graph.

    Args:
        buffers: what says how many tokens are true, of which phase they are, and where loads go.
        ordinal: the layer's, in ``buffers.layers``.
        topk_ids: logical expert ids, any integer dtype [n, top_k]; negative ids are masked slots, and ids
            beyond the layer's experts are no slots either.
        span: this worker's rows; rows at or beyond the step's true number of tokens are padding.
        flat: added to in place, laid out as ``buffers.flat``.

    Raises:
        ValueError: the ids have no rows and columns.
    """
    if topk_ids.dim() != 2:
        raise ValueError(f"top-k ids must be [n, top_k], got shape {tuple(topk_ids.shape)}")
    if span.count == 0:
        return
    num_experts, word = buffers.layers[ordinal].num_experts, buffers.step_word
    ids = topk_ids[span.start : span.start + span.count].to(torch.int64)
    tokens = torch.arange(span.first_token, span.first_token + span.count, device=ids.device)
    valid = tokens < (word & MAX_TOKENS)
    phase = (word >> PHASE_SHIFT) & PHASE_MASK
    of_tokens = buffers.phases[tokens.clamp(max=buffers.phases.numel() - 1)]
    decode = torch.where(phase == Phase.MIXED, of_tokens, phase)

    slots = (valid.unsqueeze(1) & (ids >= 0) & (ids < num_experts)).flatten()
    experts = ids.clamp(0, num_experts - 1)
    at = experts + (decode * buffers.num_counts + buffers.starts[ordinal]).unsqueeze(1)
    flat.scatter_add_(0, at.flatten(), slots.to(torch.int64))
    rows_at = decode * len(buffers.layers) + (2 * buffers.num_counts + ordinal)
    flat.scatter_add_(0, rows_at, valid.to(torch.int64))
    if buffers.ring is not None:
        rows = torch.arange(span.start, span.start + span.count, device=ids.device)
        ranks, placed = buffers.ring.ranks_of(ordinal, experts, rows)
        on_ranks = slots & placed.flatten()
        buffers.ring.add(ordinal, ranks.flatten(), on_ranks, word >> PLACE_SHIFT, span.microbatch)
        at = (decode * len(buffers.layers) + ordinal) * buffers.ep_size + buffers.ep_slots_start
        flat.scatter_add_(0, (at.unsqueeze(1) + ranks).flatten(), on_ranks.to(torch.int64))
