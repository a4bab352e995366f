"""Steps that vLLM's own code splits into microbatches, in threads of its own, on a CPU or a GPU.

Slices, metadata, forward contexts, threads and their turns are vLLM's. What stands in for CUDA on a CPU:
setting a stream sets none, a thread selects no device, and no multiprocessors are set aside.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import BatchDescriptor, set_forward_context
from vllm.utils import torch_utils
from vllm.v1.worker.gpu_ubatch_wrapper import UBatchWrapper
from vllm.v1.worker.ubatch_utils import maybe_create_ubatch_slices
from vllm.v1.worker.ubatching import (
    dbo_switch_to_compute_sync,
    dbo_yield,
    dbo_yield_and_switch_from_compute_to_comm,
)

CPU = torch.device("cpu")
Model = Callable[[torch.Tensor], Any]
"""Takes the indices of the rows of a forward pass, among those of its step."""


def stand_in_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """See above."""
    monkeypatch.setattr(torch_utils, "prev_set_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", torch_utils.current_stream)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda _: None)


def microbatched(dp_size: int, dp_rank: int, parts: int) -> VllmConfig:
    """vLLM's own configuration of a worker that splits steps.

    What it is made with is checked against the kernels that are installed, so it gets its sizes afterwards.
    """
    config = VllmConfig()
    parallel = config.parallel_config
    parallel.data_parallel_size, parallel.data_parallel_rank = dp_size, dp_rank
    parallel.ubatch_size = parts
    return config


class SplitV1:
    """Splits steps as runner V1 does. A size whose graph was captured is replayed.

    Args:
        config: see `microbatched`.
        model: what each microbatch runs.
        device: where.
    """

    def __init__(self, config: VllmConfig, model: Model, device: torch.device = CPU) -> None:
        wrapper: Any = UBatchWrapper.__new__(UBatchWrapper)
        wrapper.runnable = lambda **inputs: _computed(model, inputs["input_ids"])
        wrapper.vllm_config, wrapper.device = config, device
        wrapper.comm_stream, wrapper.sm_control = _stream(device), nullcontext()
        wrapper.ready_barrier = threading.Barrier(config.parallel_config.num_ubatches + 1)
        wrapper.cudagraphs, wrapper.cudagraph_wrapper = {}, None
        self._wrapper, self._config, self._device = wrapper, config, device

    def step(self, padded: int, true: int, *, in_graph: bool = False) -> Any:
        """A step with `true` tokens, padded to `padded` rows on all DP ranks.

        Args:
            in_graph: whether it is replayed as a CUDA graph, which the first step of its size captures.

        Returns:
            The rows that the microbatches had, as vLLM put them together; not of a graph.
        """
        parallel = self._config.parallel_config
        with set_forward_context(
            None,
            self._config,
            num_tokens=padded,
            num_tokens_across_dp=torch.full((parallel.data_parallel_size,), padded, dtype=torch.int32),
            cudagraph_runtime_mode=CUDAGraphMode.FULL if in_graph else CUDAGraphMode.NONE,
            batch_descriptor=BatchDescriptor(num_tokens=padded),
            ubatch_slices=_slices(self._config, padded, true),
        ):
            rows = torch.arange(padded, device=self._device)
            return self._wrapper(
                input_ids=rows, positions=rows, intermediate_tensors=None, inputs_embeds=None
            )


class SplitV2:
    """Splits steps as runner V2 does; arguments as of `SplitV1`."""

    def __init__(self, config: VllmConfig, model: Model, device: torch.device = CPU) -> None:
        from vllm.v1.worker.gpu.ubatch_utils import UBatchRunner  # since vLLM 0.31 or so

        runner: Any = UBatchRunner.__new__(UBatchRunner)
        runner.vllm_config, runner.parallel_config = config, config.parallel_config
        runner.num_ubatches, runner.device = config.parallel_config.num_ubatches, device
        runner.comm_stream, runner.capture_stream = _stream(device), _stream(device)
        runner.sm_control, runner._pending_finish = nullcontext(), None
        runner.ready_barrier = threading.Barrier(runner.num_ubatches + 1)
        self._runner, self._config, self._device, self._model = runner, config, device, model
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, torch.Tensor]] = {}

    def step(self, padded: int, true: int, *, in_graph: bool = False) -> Any:
        """See `SplitV1.step`."""
        if in_graph and padded in self._graphs:
            self._graphs[padded][0].replay()
            return None
        rows = torch.arange(padded, device=self._device)
        finish = self._begin(rows, true, for_capture=in_graph)
        if not in_graph:
            return finish()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._runner.capture_stream):
            finish()
        self._graphs[padded] = graph, rows
        return None

    def _begin(self, rows: torch.Tensor, true: int, for_capture: bool) -> Callable[[], torch.Tensor]:
        from vllm.v1.worker.gpu.ubatch_utils import UBatchState

        slices = _slices(self._config, len(rows), true)
        nothing: list[Any] = [None] * len(slices)
        contexts = self._runner._make_forward_contexts(slices, nothing, nothing, nothing)
        found: Callable[[], torch.Tensor] = self._runner.begin_capturable_run(
            lambda **inputs: _computed(self._model, inputs["input_ids"]),
            {"input_ids": rows, "positions": rows},
            UBatchState(slices, contexts),
            for_capture=for_capture,
        )
        return found


def hand_over(on_gpu: bool = False) -> None:
    """What vLLM's kernels do where the ranks exchange their tokens: the next microbatch goes on.

    Args:
        on_gpu: exchange in another stream meanwhile, for which the microbatch waits when it goes on.
    """
    if not on_gpu:
        dbo_yield()
        return
    dbo_yield_and_switch_from_compute_to_comm()
    torch.zeros(16, device="cuda").add_(1)
    dbo_switch_to_compute_sync()


def _slices(config: VllmConfig, padded: int, true: int) -> Any:
    parts = config.parallel_config.num_ubatches
    return maybe_create_ubatch_slices(True, np.array([true]), padded, 1, parts)[1]


def _stream(device: torch.device) -> Any:
    return torch_utils.current_stream() if device == CPU else torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _computed(model: Model, rows: torch.Tensor) -> torch.Tensor:
    model(rows)
    return rows
