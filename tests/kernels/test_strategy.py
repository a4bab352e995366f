"""One kernel a step with the kernels that it launches, whole steps against the torch reference.

How often it launches depends on the memory that kept ids may take; what it counts does not.
"""

from __future__ import annotations

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


def run(strategy: str, kept_ids_bytes: int, ranks: Ranks, rows: int) -> list[list[int]]:
    """Counts, loads of each step and traced rows of the same steps."""
    rng = np.random.default_rng(5)
    ep_ranks = rng.integers(0, 4, (len(LAYERS), 128), dtype=np.int32)
    ring = LoadRing(ep_ranks, 4, 0, DEVICE)
    buffers = CountBuffers(LAYERS, DEVICE, 2 * ROWS, ring)
    buffers.traced = staging = TraceStaging(LAYERS, 2 * ROWS, DEVICE, 1 << 16)
    capturer = RoutingCapturer(buffers, ranks, lambda: StepRows(None, None, ROWS))
    capturer._strategy = (
        TorchPerLayer(buffers) if strategy == "reference" else KernelPerStep(buffers, kept_ids_bytes)
    )
    results = []
    for number, (tokens, decode) in enumerate(STEPS):
        staging.begin(np.arange(0, tokens, 3), tokens)
        capturer.begin_step(tokens, decode)
        capturer.set_phases(rng.permutation(np.arange(tokens) < decode).astype(np.uint8))
        for ordinal, layer in enumerate(LAYERS):
            capturer.record(ordinal, make_ids(rows, layer, torch.int32, 100 * number + ordinal))
        capturer.end_step()
        results.append(staging.rows[: -(-tokens // 3)].cpu().flatten().tolist())
        for ordinal, layer in enumerate(LAYERS):  # a dummy step
            capturer.record(ordinal, make_ids(rows, layer, torch.int32, ordinal))
    assert capturer.disabled_reason is None
    assert capturer.totals.phases_known
    loads = torch.zeros_like(ring.loads)
    ring.copy_since(0, loads)
    return [*results, buffers.flat.tolist(), loads[: ring.computed].flatten().tolist()]


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
    """Counts, loads of each step and traced rows, of steps of which every other one is split."""
    rng = np.random.default_rng(5)
    ring = LoadRing(rng.integers(0, 4, (len(LAYERS), 128), dtype=np.int32), 4, 0, DEVICE, microbatches=2)
    buffers = CountBuffers(LAYERS, DEVICE, ROWS, ring, 2)
    buffers.traced = staging = TraceStaging(LAYERS, ROWS, DEVICE, 1 << 16)
    part = WHOLE
    capturer = RoutingCapturer(buffers, Ranks(), lambda: StepRows(None, None, len(ids), part))
    capturer._strategy = (
        TorchPerLayer(buffers) if strategy == "reference" else KernelPerStep(buffers, kept_ids_bytes)
    )
    results = []
    for number, (tokens, decode) in enumerate(STEPS):
        staging.begin(np.arange(0, tokens, 3), tokens)
        capturer.begin_step(tokens, decode)
        capturer.set_phases(rng.permutation(np.arange(tokens) < decode).astype(np.uint8))
        half = ROWS // 2
        for microbatch, ordinals in TURNS if number % 2 == 0 else [(0, range(len(LAYERS)))]:
            part = Microbatch(microbatch, microbatch * half, microbatch == 1) if number % 2 == 0 else WHOLE
            for ordinal in ordinals:
                if ordinal < num_layers:
                    ids = make_ids(ROWS, LAYERS[ordinal], torch.int32, 100 * number + ordinal)
                    ids = ids if part == WHOLE else ids[part.first_token :][:half].clone()
                    capturer.record(ordinal, ids)
        capturer.end_step()
        results.append(staging.rows[: -(-tokens // 3)].cpu().flatten().tolist())
    assert capturer.disabled_reason is None
    loads = torch.zeros_like(ring.loads)
    ring.copy_since(0, loads)
    assert (loads[: ring.computed].sum(dim=(2, 3)) > 0).tolist() == [
        [True, True],
        [True, False],
        [True, True],
        [True, False],
    ]
    return [*results, buffers.flat.tolist(), loads[: ring.computed].flatten().tolist()]


@pytest.mark.parametrize("kept", [0, 2 * IDS_BYTES, 100 * IDS_BYTES])
@pytest.mark.parametrize("num_layers", [5, 4], ids=["all", "the last doesn't route"])
def test_microbatches_in_turns_are_counted_as_by_the_reference(
    kept: int, num_layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert run_split("kernels", kept, num_layers) == run_split("reference", 0, num_layers)
