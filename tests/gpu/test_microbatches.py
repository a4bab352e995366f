"""Microbatches on one GPU, split, run and captured by vLLM's own code: counts, phases, loads and traced rows.

vLLM splits steps only where several DP ranks agree, so no engine of one GPU does. Here its wrapper (runner
V1) and its runner of microbatches (V2, in the versions that have it) run a toy model: with their threads,
their streams and their CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA GPU", allow_module_level=True)

from devkit.vllm_features import vllm_has

if not vllm_has("v1/worker/gpu_ubatch_wrapper"):
    pytest.skip("needs vLLM for CUDA", allow_module_level=True)

from vllm.forward_context import set_forward_context

from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.staging import TraceStaging
from moescope.capture.seam.microbatches import rows_reader
from moescope.capture.seam.rows import Ranks
from moescope.capture.wire import MoeLayer
from tests.capture.microbatches import SplitV1, SplitV2, hand_over, microbatched
from tests.gpu.passes import captured
from tests.gpu.toy import CUDA, Toy

SPLITS = {"V1": SplitV1} | ({"V2": SplitV2} if vllm_has("v1/worker/gpu/ubatch_utils") else {})


@pytest.fixture(autouse=True)
def stream() -> Iterator[None]:
    """Steps run in a stream that can be captured, as vLLM's do."""
    with torch.cuda.stream(torch.cuda.Stream(CUDA)):
        yield
    torch.cuda.synchronize()


class Worker(Toy):
    """A toy model of DP rank 0 of two, whose steps vLLM splits in two or leaves whole.

    Args:
        split: which of vLLM's runners splits.
        in_turns: whether a microbatch hands over in each layer; else one runs after the other.
    """

    def __init__(self, split: str, in_turns: bool = True, **options: Any) -> None:
        super().__init__(microbatches=2, **options)
        self.buffers.traced = self.staging = TraceStaging(self.layers, 512, CUDA, 1 << 20)
        kept = options.get("kept_ids_bytes", 32 << 20)
        self.capturer = RoutingCapturer(self.buffers, Ranks(0, 2), rows_reader(2), kept_ids_bytes=kept)
        self.config = microbatched(2, 0, 2)
        self.split = SPLITS[split](self.config, self.run_rows, CUDA)
        self._in_turns = in_turns

    def run_rows(self, rows: torch.Tensor) -> None:
        """The forward pass of these rows of the input."""
        for ordinal, layer in enumerate(self.layers):
            logits = self.input[rows] @ self.weights[ordinal]
            self.capturer.record(ordinal, logits.topk(layer.top_k, dim=-1).indices.to(torch.int32))
            for _ in range(4):  # a real model uses freed memory again
                torch.full((len(rows), layer.top_k), 1, dtype=torch.int32, device=CUDA)
            if self._in_turns:
                hand_over(on_gpu=True)

    def run_whole(self, rows: torch.Tensor) -> None:
        """A pass that isn't split."""
        sizes = torch.full((2,), len(rows), dtype=torch.int32)
        before, self._in_turns = self._in_turns, False
        with set_forward_context(None, self.config, num_tokens=len(rows), num_tokens_across_dp=sizes):
            self.run_rows(rows)
        self._in_turns = before

    def step(self, padded: int, true: int, how: str) -> None:
        """A step, every third row of which is traced; `how`: "eager", "graph" or "whole", not split."""
        self.new_input()
        self.begin(true)
        tokens = np.arange(0, true, 3)
        self.staging.begin(tokens, true)
        if how == "whole":
            self.run_whole(torch.arange(padded, device=CUDA))
        else:
            self.split.step(padded, true, in_graph=how == "graph")
        staged = self.staging.collect(len(tokens))
        self.capturer.end_step()
        self.expect(true, half=None if how == "whole" else padded // 2)
        torch.cuda.synchronize()
        expected = [self.route(ordinal, true)[::3].cpu().numpy() for ordinal in range(len(self.layers))]
        np.testing.assert_array_equal(staged.view(), np.concatenate(expected, axis=1))
        staged.done = True


@pytest.mark.parametrize("in_turns", [True, False], ids=["in turns", "one by one"])
@pytest.mark.parametrize("split", SPLITS)
def test_eager_steps_split_and_whole(split: str, in_turns: bool) -> None:
    worker = Worker(split, in_turns)
    worker.split.step(512, 512)  # warm-up counts nothing
    for padded, true in ((8, 8), (300, 299), (7, 5), (64, 31), (2, 1)):
        worker.step(padded, true, "eager")
        worker.split.step(padded, true)  # a dummy step
        worker.step(padded, true, "whole")
    worker.check()
    assert worker.capturer.strategy == "kernel-per-step"


@pytest.mark.parametrize("in_turns", [True, False], ids=["in turns", "one by one"])
@pytest.mark.parametrize("split", SPLITS)
def test_graphs_of_split_steps_mixed_with_eager_and_whole_ones(split: str, in_turns: bool) -> None:
    worker = Worker(split, in_turns)
    whole = torch.arange(16, device=CUDA)
    worker.run_whole(whole)
    graph = captured(lambda: worker.run_whole(whole))
    for padded in (64, 32, 9):
        worker.split.step(padded, padded)  # as vLLM does before each capture
        worker.split.step(padded, padded, in_graph=True)
    for padded, true in [(64, 64), (32, 20), (64, 33), (9, 9), (64, 32), (32, 1), (9, 7)] * 2:
        worker.step(padded, true, "graph")
        worker.split.step(padded, true, in_graph=True)  # a dummy step
        worker.step(40, 37, "eager")
        worker.step(24, 24, "whole")
        worker.new_input()
        worker.begin(11)
        graph.replay()
        worker.capturer.end_step()
        worker.expect(11)
    worker.check()


@pytest.mark.parametrize("split", SPLITS)
def test_bounded_ids_are_launched_early_in_each_microbatch(split: str) -> None:
    layers = [MoeLayer(index, 60, 4) for index in range(8)]
    worker = Worker(split, layers=layers, kept_ids_bytes=3 * 32 * 4 * 4)
    worker.split.step(64, 64)
    worker.split.step(64, 64, in_graph=True)
    for true in (64, 40, 7):
        worker.step(64, true, "graph")
        worker.step(64, true, "eager")
    worker.check()


@pytest.mark.parametrize("split", SPLITS)
def test_the_host_never_waits(split: str, no_sync: None) -> None:
    """Neither in a split step nor in a replay: any operation that waits raises in this test."""
    torch.cuda.set_sync_debug_mode("default")
    worker = Worker(split)
    worker.split.step(32, 32)
    worker.split.step(32, 32, in_graph=True)
    for in_graph in (True, False):
        worker.new_input()
        torch.cuda.synchronize()
        worker.begin(30)
        torch.cuda.set_sync_debug_mode("error")
        worker.split.step(32, 30, in_graph=in_graph)
        worker.capturer.end_step()
        torch.cuda.set_sync_debug_mode("default")
        worker.expect(30, half=16)
    worker.check()
