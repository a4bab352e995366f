"""Prefill and decode, and the loads of single steps, of a real vLLM with DP=2 EP=2: exact, in lockstep."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moescope.capture.wire import unpack_counts
from tests.e2e.cluster import SETTLE_SECONDS, Cluster, prompts
from tests.e2e.reading import forward_passes, last_frames
from tests.step_loads import placed_counts, step_loads

pytestmark = pytest.mark.e2e


def test_phases_are_what_vllm_says_it_computed(cluster: Cluster) -> None:
    cluster.assert_exact()
    before, said_before = last_frames(cluster), cluster.vllm_metrics()
    cluster.complete_all(prompts(20, stride=11))
    cluster.assert_exact()
    frames, said = last_frames(cluster), cluster.vllm_metrics()
    mixed = 0
    for dp_rank, frame in frames.items():
        was = before[dp_rank]

        def rise(name: str, dp_rank: int = dp_rank) -> int:
            return int(said[name][dp_rank] - said_before[name][dp_rank])

        # The first token that a request generates comes out of its prefill; the last is never fed back.
        decode = rise("vllm:generation_tokens_total") - rise("vllm:request_success_total")
        prefill = rise("vllm:prompt_tokens_total") - rise("vllm:prompt_tokens_cached_total")
        assert frame.decode_tokens - was.decode_tokens == decode > 0
        assert frame.tokens - was.tokens == decode + prefill
        mixed += frame.mixed_steps - was.mixed_steps
        assert unpack_counts(frame.decode_rows).tolist() == [frame.decode_tokens] * 4
        slots = [frame.decode_tokens * layer.top_k for layer in frame.layers]
        ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
        parts = np.split(unpack_counts(frame.decode_counts), ends)
        assert [int(part.sum()) for part in parts] == slots
    assert mixed > 0


def test_the_loads_of_all_steps_are_the_counts(cluster: Cluster) -> None:
    cluster.complete_all(prompts(12))
    cluster.assert_exact()
    deadline = time.monotonic() + SETTLE_SECONDS
    while len({forward_passes(frame) for frame in last_frames(cluster).values()}) > 1:
        assert time.monotonic() < deadline, "the ranks' numbers of forward passes stay different"
        time.sleep(0.1)  # the last dummy steps
    for dp_rank, frame in last_frames(cluster).items():
        loads = step_loads(cluster.relay.frames, dp_rank)
        assert len(loads) == frame.steps
        assert np.sum(list(loads.values()), axis=0).tolist() == placed_counts(frame)
        assert frame.step_loads is not None
        assert frame.step_loads.end == forward_passes(frame)
