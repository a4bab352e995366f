"""What capture allocates for DeepSeek-V3's shape: bounded, and hardly more for larger steps."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch

from benchmarks.capture_memory import LAYERS, MIB, Allocations, kept_ids, measure
from benchmarks.host_share import one_rank
from moescope.capture.counting.reference import CountBuffers

SMALL, LARGE = 8192, 65536


@pytest.fixture(scope="module")
def sizes() -> dict[int, dict[str, Any]]:
    """Without EP ranks; the ring of loads has a bound of its own (`LoadRing`)."""
    with one_rank():
        return {tokens: measure(tokens, {"MOESCOPE_TRACE_OPT_IN": "1"}) for tokens in (SMALL, LARGE)}


def test_the_device_and_pinned_memory_stay_small_with_traces_on(sizes: dict[int, dict[str, Any]]) -> None:
    for found in sizes.values():
        assert 17 * MIB < found["device"] < 24 * MIB
        assert 17 * MIB < found["pinned"] < 24 * MIB
        assert found["host"] < MIB


def test_a_token_more_in_a_step_costs_a_few_bytes(sizes: dict[int, dict[str, Any]]) -> None:
    """A phase and an entry of the row map on the device; four of each in pinned memory."""
    more = LARGE - SMALL
    assert sizes[LARGE]["device"] - sizes[SMALL]["device"] == more * 5
    assert sizes[LARGE]["pinned"] - sizes[SMALL]["pinned"] == more * 4 * 5


def test_ids_are_kept_up_to_the_bound_and_one_layer_beyond() -> None:
    layer = LARGE * 8 * 4
    assert kept_ids(LARGE, 32 * MIB) == 32 * MIB + layer
    assert kept_ids(SMALL, 32 * MIB) == len(LAYERS) * SMALL * 8 * 4


def test_memory_is_counted_once_while_it_lives_whatever_shares_it() -> None:
    with mock.patch.object(torch.cuda, "Event"), Allocations() as allocations:
        buffers = CountBuffers(LAYERS[:1], torch.device("meta"), 16)
        shared = buffers.flat.view(2, -1)[0]
        pinned = torch.zeros(5, dtype=torch.int64, pin_memory=True)
        gone = torch.zeros(1000)
        size = gone.nbytes
        assert sum(allocations.alive()["host"].values()) == size
        del gone
    expected = buffers.flat.nbytes + buffers.step_word.nbytes + buffers.phases.nbytes
    found = allocations.alive()
    assert found["device"] == {"counting.reference": expected}
    assert sum(found["pinned"].values()) == pinned.nbytes
    assert not found["host"]
    del shared
