"""Counts of slots per (layer, logical expert) on the device, and the torch reference that adds to them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from moescope.capture.layout import RowSpan
from moescope.capture.trace_staging import TraceStaging
from moescope.capture.wire import MoeLayer


class CountBuffers:
    """The cumulative counts of one worker, in one device buffer, so that one copy takes a snapshot.

    Attributes:
        layers: the counted layers; layers may have different numbers of experts.
        flat: int64 [S + L], S the sum of ``num_experts`` over the layers and L their number: first the slots
            of each (layer, logical expert), layer by layer, then the tokens counted in each layer.
        num_valid: int64 [1], the true number of tokens of the step under way; 0 outside of steps, so that
            profiling, warm-up, graph capture and the dummy steps of idle DP ranks count nothing.
        traced: where the rows of traced requests are copied to, or None; set before the first routing call.
    """

    def __init__(self, layers: Sequence[MoeLayer], device: torch.device) -> None:
        self.layers = tuple(layers)
        self.num_slots = sum(layer.num_experts for layer in self.layers)
        self.flat = torch.zeros(self.num_slots + len(self.layers), dtype=torch.int64, device=device)
        self.num_valid = torch.zeros(1, dtype=torch.int64, device=device)
        self.traced: TraceStaging | None = None
        ends = list(itertools.accumulate(layer.num_experts for layer in self.layers))
        self._starts = [end - layer.num_experts for end, layer in zip(ends, self.layers, strict=True)]

    def counts_of(self, ordinal: int, flat: torch.Tensor | None = None) -> torch.Tensor:
        """Slots per logical expert of ``layers[ordinal]``: int64 [num_experts], a view of `flat`."""
        flat = self.flat if flat is None else flat
        return flat.narrow(0, self._starts[ordinal], self.layers[ordinal].num_experts)

    def rows_of(self, ordinal: int, flat: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens counted in ``layers[ordinal]``: int64 [1], a view of `flat`."""
        flat = self.flat if flat is None else flat
        return flat.narrow(0, self.num_slots + ordinal, 1)


def count_rows(
    topk_ids: torch.Tensor,
    span: RowSpan,
    num_valid: torch.Tensor,
    counts: torch.Tensor,
    rows: torch.Tensor,
) -> None:
    """Add a layer's slots to its counts: the reference that every faster kernel must equal.

    Reads no device value on the host, so that it neither synchronises nor breaks a CUDA graph's capture.

    Args:
        topk_ids: logical expert ids, any integer dtype [n, top_k]; negative ids are masked slots, and ids
            beyond the layer's experts are no slots either.
        span: this worker's rows.
        num_valid: int64 [1], the step's true number of tokens; rows at or beyond it are padding.
        counts: int64 [num_experts], added to in place.
        rows: int64 [1], added to in place: the tokens that were not padding.

    Raises:
        ValueError: the ids have no rows and columns.
    """
    if topk_ids.dim() != 2:
        raise ValueError(f"top-k ids must be [n, top_k], got shape {tuple(topk_ids.shape)}")
    if span.count == 0:
        return
    ids = topk_ids[span.start : span.start + span.count].to(torch.int64)
    tokens = torch.arange(span.first_token, span.first_token + span.count, device=ids.device)
    valid = tokens < num_valid
    slots = valid.unsqueeze(1) & (ids >= 0) & (ids < counts.numel())
    counts.scatter_add_(0, ids.clamp(0, counts.numel() - 1).flatten(), slots.flatten().to(torch.int64))
    rows.add_(valid.sum())
