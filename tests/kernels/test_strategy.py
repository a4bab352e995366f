"""One kernel a step with the kernels that it launches, whole steps against the torch reference.

How often it launches depends on the memory that kept ids may take; what it counts does not.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.kernels.device import DEVICE, INTERPRETED  # skips first, where kernels can't run

# isort: split
from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.load_ring import LoadRing
from moescope.capture.counting.per_step import KernelPerStep
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.staging import TraceStaging
from moescope.capture.counting.strategies import TorchPerLayer
from moescope.capture.seam.rows import WHOLE, Microbatch, Ranks, StepRows
from moescope.capture.wire import MoeLayer
from tests.kernels.bench import make_ids

LAYERS = [MoeLayer(3 * index, experts, 4) for index, experts in enumerate([60, 16, 128, 7, 60])]
ROWS = 40
IDS_BYTES = ROWS * 4 * 4
STEPS = [(40, 0), (33, 33), (31, 8), (1, 1)]
"""Tokens of each step, and how many of them are decode tokens."""


class Run:
    """The same steps with one strategy: the torch reference or the kernels.

    Attributes:
        rows: how many the forward pass under way has.
        part: of the step, which that pass is.
        results: the traced rows of each step.
    """

    def __init__(
        self,
        strategy: str,
        kept_ids_bytes: int,
        max_tokens: int,
        ranks: Ranks,
        microbatches: int = 1,
    ) -> None:
        self._rng = np.random.default_rng(5)
        ep_ranks = self._rng.integers(0, 4, (len(LAYERS), 128), dtype=np.int32)
        self.ring = LoadRing(ep_ranks, 4, 0, DEVICE, microbatches=microbatches)
        self._buffers = CountBuffers(LAYERS, DEVICE, max_tokens, self.ring, microbatches)
        self._buffers.traced = self._staging = TraceStaging(LAYERS, max_tokens, DEVICE, 1 << 16)
        self.rows, self.part = ROWS, WHOLE
        self.capturer = RoutingCapturer(
            self._buffers, ranks, lambda: StepRows(None, None, self.rows, self.part)
        )
        self.capturer._strategy = (
            TorchPerLayer(self._buffers)
            if strategy == "reference"
            else KernelPerStep(self._buffers, kept_ids_bytes)
        )
        self.results: list[list[int]] = []

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """One of `STEPS` is under way."""
        tokens, decode = STEPS[number]
        self._staging.begin(np.arange(0, tokens, 3), tokens)
        self.capturer.begin_step(tokens, decode)
        self.capturer.set_phases(self._rng.permutation(np.arange(tokens) < decode).astype(np.uint8))
        yield
        self.capturer.end_step()
        self.results.append(self._staging.rows[: -(-tokens // 3)].cpu().flatten().tolist())

    def loads(self) -> torch.Tensor:
        """Those of the steps: int32 [steps, microbatches, layers, EP ranks]."""
        loads = torch.zeros_like(self.ring.loads)
        self.ring.copy_since(0, loads)
        return loads[: self.ring.computed]

    def counted(self) -> list[list[int]]:
        """Traced rows of each step, counts, and loads of each step."""
        assert self.capturer.disabled_reason is None
        return [*self.results, self._buffers.flat.tolist(), self.loads().flatten().tolist()]


def run(strategy: str, kept_ids_bytes: int, ranks: Ranks, rows: int) -> list[list[int]]:
    """What is counted of steps, each of which a dummy step follows."""
    made = Run(strategy, kept_ids_bytes, 2 * ROWS, ranks)
    for number in range(len(STEPS)):
        with made.step(number):
            for ordinal, layer in enumerate(LAYERS):
                made.capturer.record(ordinal, make_ids(rows, layer, torch.int32, 100 * number + ordinal))
        for ordinal, layer in enumerate(LAYERS):
            made.capturer.record(ordinal, make_ids(rows, layer, torch.int32, ordinal))
    assert made.capturer.totals.phases_known
    return made.counted()


@pytest.mark.parametrize(
    ("ranks", "rows"),
    [
        (Ranks(), ROWS),
        (Ranks(0, 1, 0, 2), ROWS // 2),
        (Ranks(0, 1, 1, 2), ROWS // 2),
        (Ranks(0, 1, 1, 2), ROWS),
    ],
    ids=["whole", "first shard", "second shard", "whole, counted by another rank"],
)
@pytest.mark.parametrize("kept", [0, 2 * IDS_BYTES] + [100 * IDS_BYTES] * (not INTERPRETED))
def test_all_that_is_counted_is_that_of_the_reference(
    kept: int, ranks: Ranks, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:  # torch without CUDA refuses to say
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    expected = run("reference", 0, ranks, rows)
    assert run("kernels", kept, ranks, rows) == expected
    assert (sum(expected[-2]) > 0) == (rows < ROWS or ranks.tp_rank == 0)


TURNS = [(0, (0, 1)), (1, (0, 1)), (0, (2, 3)), (1, (2,)), (0, (4,)), (1, (3, 4))]
"""In which order two microbatches route, and which layers in each turn."""


def run_split(strategy: str, kept_ids_bytes: int, num_layers: int) -> list[list[int]]:
    """What is counted of steps of which every other one is split."""
    made, half = Run(strategy, kept_ids_bytes, ROWS, Ranks(), microbatches=2), ROWS // 2
    for number in range(len(STEPS)):
        is_split = number % 2 == 0
        made.rows = half if is_split else ROWS
        with made.step(number):
            for microbatch, ordinals in TURNS if is_split else [(0, range(num_layers))]:
                made.part = Microbatch(microbatch, microbatch * half, microbatch == 1) if is_split else WHOLE
                for ordinal in filter(range(num_layers).__contains__, ordinals):
                    ids = make_ids(ROWS, LAYERS[ordinal], torch.int32, 100 * number + ordinal)
                    ids = ids[made.part.first_token :][:half].clone() if is_split else ids
                    made.capturer.record(ordinal, ids)
    has = (made.loads().sum(dim=(2, 3)) > 0).tolist()
    assert has == [[True, True], [True, False], [True, True], [True, False]]
    return made.counted()


@pytest.mark.parametrize("kept", [0, 2 * IDS_BYTES, 100 * IDS_BYTES])
@pytest.mark.parametrize("num_layers", [5, 4], ids=["all", "the last doesn't route"])
def test_microbatches_in_turns_are_counted_as_by_the_reference(
    kept: int, num_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert run_split("kernels", kept, num_layers) == run_split("reference", 0, num_layers)
