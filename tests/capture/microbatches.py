"""Steps that vLLM's own code splits into microbatches, in threads of its own, on a CPU.

What stands in for CUDA: setting a stream sets none, a thread selects no device, and no multiprocessors are
set aside. Slices, metadata, forward contexts, threads and their turns are vLLM's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode, ParallelConfig, VllmConfig
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.utils import torch_utils
from vllm.v1.worker.gpu.ubatch_utils import UBatchRunner, UBatchState
from vllm.v1.worker.gpu_ubatch_wrapper import UBatchWrapper
from vllm.v1.worker.ubatch_utils import maybe_create_ubatch_slices
from vllm.v1.worker.ubatching import dbo_yield

Model = Callable[[torch.Tensor], Any]
"""Takes the indices of the rows of a forward pass, among those of its step."""


def stand_in_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """See above."""
    monkeypatch.setattr(torch_utils, "prev_set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", torch_utils.current_stream)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)


def microbatched(dp_size: int, dp_rank: int, parts: int) -> VllmConfig:
    """vLLM's own configuration of a worker that splits steps."""
    parallel = ParallelConfig(
        data_parallel_size=dp_size,
        data_parallel_rank=dp_rank,
        ubatch_size=parts,
        enable_expert_parallel=True,
        all2all_backend="deepep_low_latency",
    )
    return VllmConfig(parallel_config=parallel)


def run_v1(config: VllmConfig, padded: int, true: int, model: Model) -> None:
    """A step of runner V1 with `true` tokens, padded to `padded` rows on all DP ranks and split."""
    parallel = config.parallel_config
    _, slices = maybe_create_ubatch_slices(True, np.array([true]), padded, 1, parallel.num_ubatches)
    wrapper: Any = UBatchWrapper.__new__(UBatchWrapper)
    wrapper.runnable = lambda **inputs: _computed(model, inputs["input_ids"])
    wrapper.vllm_config, wrapper.device = config, torch.device("cpu")
    wrapper.comm_stream, wrapper.sm_control = torch_utils.current_stream(), nullcontext()
    wrapper.ready_barrier = threading.Barrier(parallel.num_ubatches + 1)
    wrapper.cudagraphs = {}
    with set_forward_context(
        None,
        config,
        num_tokens=padded,
        num_tokens_across_dp=torch.full((parallel.data_parallel_size,), padded, dtype=torch.int32),
        cudagraph_runtime_mode=CUDAGraphMode.NONE,
        batch_descriptor=BatchDescriptor(num_tokens=padded),
        ubatch_slices=slices,
    ):
        rows = torch.arange(padded)
        found = wrapper(input_ids=rows, positions=rows, intermediate_tensors=None, inputs_embeds=None)
    assert found.tolist() == list(range(padded))


def run_v2(config: VllmConfig, padded: int, true: int, model: Model) -> None:
    """The same of runner V2."""
    parallel = config.parallel_config
    _, slices = maybe_create_ubatch_slices(True, np.array([true]), padded, 1, parallel.num_ubatches)
    assert slices is not None
    runner: Any = UBatchRunner.__new__(UBatchRunner)
    runner.vllm_config, runner.parallel_config = config, parallel
    runner.num_ubatches, runner.device = parallel.num_ubatches, torch.device("cpu")
    runner.comm_stream, runner.sm_control = torch_utils.current_stream(), nullcontext()
    runner.ready_barrier = threading.Barrier(parallel.num_ubatches + 1)
    nothing: list[Any] = [None] * len(slices)
    contexts = runner._make_forward_contexts(slices, nothing, nothing, nothing)
    rows = torch.arange(padded)
    found = runner.run(
        lambda **inputs: _computed(model, inputs["input_ids"]),
        {"input_ids": rows, "positions": rows},
        UBatchState(slices, contexts),
    )
    assert found.tolist() == list(range(padded))


def _computed(model: Model, rows: torch.Tensor) -> torch.Tensor:
    model(rows)
    return rows


def hand_over() -> None:
    """What vLLM's kernels do where the ranks exchange their tokens: the next microbatch goes on."""
    dbo_yield()
