"""What is read of vLLM's forward context, through vLLM's own function that sets it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.compilation.breakable_cudagraph import BreakableCUDAGraphCapture
from vllm.config import CUDAGraphMode, ParallelConfig, VllmConfig
from vllm.forward_context import BatchDescriptor, set_forward_context

from moescope.capture.seam.forward import capture_breaks, step_rows
from moescope.capture.seam.rows import StepRows


@pytest.fixture(scope="module")
def config() -> VllmConfig:
    return VllmConfig(parallel_config=ParallelConfig(tensor_parallel_size=2, enable_expert_parallel=True))


def slots(*sizes: int) -> dict[str, torch.Tensor]:
    return {f"layer.{index}": torch.zeros(size, dtype=torch.int64) for index, size in enumerate(sizes)}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_tokens": 6, "batch_descriptor": BatchDescriptor(num_tokens=8)}, 8),
        ({"num_tokens": 6, "batch_descriptor": BatchDescriptor(num_tokens=8), "slot_mapping": slots(5)}, 8),
        ({"num_tokens": 6, "cudagraph_runtime_mode": CUDAGraphMode.PIECEWISE}, 6),
        ({"num_tokens": 6, "slot_mapping": slots(6, 6)}, 6),
        ({"slot_mapping": slots(6, 6)}, 6),
        ({"slot_mapping": slots(6, 5)}, None),
        ({"slot_mapping": [slots(6), slots(6)]}, None),  # micro-batches
        ({}, None),
    ],
)
def test_the_size_of_a_step(config: VllmConfig, given: dict[str, Any], expected: int | None) -> None:
    with set_forward_context(None, config, **given):
        assert step_rows() == StepRows(None, None, expected)


def test_a_mask_of_padding_rows_that_a_model_replaced_is_no_size(config: VllmConfig) -> None:
    """Models that shard rows put their shard's mask in its place."""
    with set_forward_context(None, config, is_padding=torch.zeros(3, dtype=torch.bool)):
        assert step_rows().num_tokens is None


def test_a_capture_that_vllm_may_interrupt(config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    piecewise, full = (
        {"num_tokens": 4, "cudagraph_runtime_mode": mode}
        for mode in (CUDAGraphMode.PIECEWISE, CUDAGraphMode.FULL)
    )
    with set_forward_context(None, config, **piecewise):
        assert not capture_breaks()
    monkeypatch.setattr(BreakableCUDAGraphCapture._tls, "active", object(), raising=False)
    assert capture_breaks()
    with set_forward_context(None, config, **piecewise):
        assert capture_breaks()
    with set_forward_context(None, config, **full):
        assert not capture_breaks()
