"""How a step's routing calls become counts: chosen by the device, and visible in every frame."""

from __future__ import annotations

import logging
from typing import Protocol

import torch

from moescope.capture.counting.reference import CountBuffers, count_rows
from moescope.capture.counting.staging import copy_traced_rows
from moescope.capture.seam.rows import RowSpan

logger = logging.getLogger("vllm.moescope")


class Strategy(Protocol):
    """Adds the slots of routing calls to the counts, during the call or at the latest when the step ends."""

    name: str

    def begin_step(self) -> None:
        """A step that computes tokens is about to be enqueued; the ring of loads knows its slot."""

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """Take a routing call: integer ids [n, top_k] of the layer at `ordinal`, of which `span` is ours.

        `flat` is what to add to: `CountBuffers.flat`, or what a compiled graph has in its place.
        """

    def end_step(self) -> None:
        """The step is enqueued; `CountBuffers.step_word` is still set."""


class ReferencesUnsafeError(RuntimeError):
    """Ids can't be kept until the end of the step: somebody writes to them again before."""


class TorchPerLayer:
    """The reference: torch operations in each routing call. What CPUs use."""

    name = "torch-per-layer"

    def __init__(self, buffers: CountBuffers) -> None:
        self._buffers = buffers

    def begin_step(self) -> None:
        """Empty the step's slot."""
        if self._buffers.ring is not None:
            self._buffers.ring.zero()

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """See `Strategy.record`."""
        count_rows(self._buffers, ordinal, topk_ids, span, flat)
        if self._buffers.traced is not None:
            copy_traced_rows(topk_ids, span, self._buffers.step_word, self._buffers.traced, ordinal)

    def end_step(self) -> None:
        """Nothing is kept between routing calls."""


def choose_strategy(buffers: CountBuffers) -> Strategy:
    """One kernel a step on a GPU that Triton serves, else the torch reference."""
    if buffers.flat.device.type != "cuda" or not buffers.layers:
        return TorchPerLayer(buffers)
    try:
        from moescope.capture.counting.per_step import KernelPerStep
    except ImportError as error:
        logger.warning("moescope: no Triton (%s), counting with torch operations, which costs more", error)
        return TorchPerLayer(buffers)
    return KernelPerStep(buffers)


def fallback(strategy: Strategy, buffers: CountBuffers) -> Strategy:
    """What counts where ids can't be kept until the end of the step."""
    if buffers.flat.device.type != "cuda" or isinstance(strategy, TorchPerLayer):
        return TorchPerLayer(buffers)
    from moescope.capture.counting.per_step import KernelPerLayer

    return KernelPerLayer(buffers)
