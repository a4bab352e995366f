"""The choice of a `Strategy` by the device, and the one that needs nothing but torch."""

from __future__ import annotations

import logging

import torch

from moescope.capture.counting.reference import CountBuffers, count_rows
from moescope.capture.counting.staging import copy_traced_rows
from moescope.capture.counting.strategy import Strategy
from moescope.capture.seam.rows import RowSpan

logger = logging.getLogger("vllm.moescope")


class TorchPerLayer:
    """The reference: torch operations in each routing call. What CPUs use."""

    name = "torch-per-layer"

    def __init__(self, buffers: CountBuffers) -> None:
        self._buffers = buffers

    @property
    def num_bytes(self) -> int:
        """0: nothing is held."""
        return 0

    def begin_step(self) -> None:
        """Empty the step's place in the ring of loads."""
        if self._buffers.ring is not None:
            self._buffers.ring.zero()

    def record(self, ordinal: int, topk_ids: torch.Tensor, span: RowSpan, flat: torch.Tensor) -> None:
        """See `Strategy.record`."""
        count_rows(self._buffers, ordinal, topk_ids, span, flat)
        if self._buffers.traced is not None:
            copy_traced_rows(topk_ids, span, self._buffers.step_word, self._buffers.traced, ordinal)

    def end_step(self) -> None:
        """Nothing is kept between routing calls."""


def choose_strategy(buffers: CountBuffers, kept_ids_bytes: int) -> tuple[Strategy, Strategy]:
    """The strategy for these buffers, and the one for where ids can't be kept until the end of the step.

    One kernel a step and one kernel a layer, on a GPU that Triton serves; elsewhere `TorchPerLayer` is both.

    Args:
        buffers: where to count.
        kept_ids_bytes: see `KernelPerStep`.
    """
    torch_only = TorchPerLayer(buffers)
    if buffers.flat.device.type != "cuda" or not buffers.layers:
        return torch_only, torch_only
    try:
        # Not at the top: the kernels need Triton, which some machines with a GPU lack, and all without one.
        from moescope.capture.counting.per_step import KernelPerLayer, KernelPerStep
    except ImportError as error:
        logger.warning("moescope: no Triton (%s), counting with torch operations, which costs more", error)
        return torch_only, torch_only
    return KernelPerStep(buffers, kept_ids_bytes), KernelPerLayer(buffers)
