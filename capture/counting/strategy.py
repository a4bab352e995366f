"""What every way of turning a step's routing calls into counts has in common."""

from __future__ import annotations

from typing import Protocol

import torch

from moescope.capture.seam.rows import RowSpan


class Strategy(Protocol):
    """Adds the slots of routing calls to the counts, during the call or at the latest when the step ends.

    Attributes:
        name: said in every frame, such as ``kernel-per-step``.
    """

    name: str

    @property
    def num_bytes(self) -> int:
        """Device memory that the strategy holds besides the counts."""

    def begin_step(self) -> None:
        """A step that computes tokens is about to be enqueued; the ring of loads knows its place."""

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """Take a routing call.

        Args:
            ordinal: of the layer, in ``CountBuffers.layers``.
            topk_ids: logical expert ids, any integer dtype [n, top_k].
            span: the rows of `topk_ids` that this worker counts.
            flat: what to add to: `CountBuffers.flat`, or what a compiled graph has in its place.
        """

    def end_step(self) -> None:
        """The step is enqueued; `CountBuffers.step_word` is still set."""


class ReferencesUnsafeError(RuntimeError):
    """Ids can't be kept until the end of the step: somebody writes to their memory before."""
