"""Straggler cost and phases in the service, fed by a real vLLM with DP=2 EP=2: what raw frames say."""

from __future__ import annotations

import time

import numpy as np
import pytest

from moescope.capture.wire import Int64Array, unpack_counts
from tests.e2e.cluster import Cluster, prompts
from tests.e2e.reading import forward_passes, last_frames
from tests.e2e.stragglers import assert_rise, settled_stragglers, sums_of
from tests.step_loads import step_loads

pytestmark = pytest.mark.e2e


def test_straggler_cost_is_what_the_raw_frames_say(cluster: Cluster) -> None:
    cluster.complete_all(prompts(4))
    before = settled_stragglers(cluster)
    first, start = forward_passes(last_frames(cluster)[0]), time.time()
    cluster.complete_all(prompts(16, stride=5))
    after = settled_stragglers(cluster)
    end = forward_passes(last_frames(cluster)[0])
    loads: dict[int, Int64Array] = {}
    for dp_rank in (0, 1):
        for step, load in step_loads(cluster.relay.frames, dp_rank).items():
            if step >= first:
                loads[step] = loads[step] + load if step in loads else load
    [stage], [was] = after["stages"], before["stages"]
    assert stage["joined"] - was["joined"] == end - first >= len(loads) > 20
    assert stage["incomplete"] + stage["pending"] == was["incomplete"] + was["pending"]
    assert_rise(after, before, loads)
    assert after["reason"] is None
    # In a window of these steps alone: routers are skewed, and small steps differ, which sums average out.
    most, mean, _ = sums_of(loads)
    sums = np.sum(list(loads.values()), axis=0)
    window = cluster.service.get("/v1/stragglers", start=start)
    assert window["stages"][0]["joined"] == end - first
    assert window["straggler_cost"] == pytest.approx(1 - sum(mean) / sum(most))
    share = 1 - sums.mean(axis=1).sum() / sums.max(axis=1).sum()
    assert window["windowed_straggler_share"] == pytest.approx(share)
    assert 0 < share < window["straggler_cost"]


def test_phases_of_the_service_are_those_of_the_frames(cluster: Cluster) -> None:
    cluster.complete_all(prompts(8))
    cluster.assert_exact()
    frames = last_frames(cluster)
    (deployment,) = cluster.service.get("/v1/ranks")["deployments"]
    for rank in deployment["dp_ranks"]:
        frame = frames[rank["dp_rank"]]
        assert rank["phases"] == {
            "prefill_tokens": frame.tokens - frame.decode_tokens,
            "decode_tokens": frame.decode_tokens,
            "prefill_steps": frame.steps - frame.decode_steps - frame.mixed_steps,
            "decode_steps": frame.decode_steps,
            "mixed_steps": frame.mixed_steps,
        }
        ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
        decode = [part.tolist() for part in np.split(unpack_counts(frame.decode_counts), ends)]
        histogram = cluster.service.get("/v1/histogram", dp_rank=rank["dp_rank"], phase="decode")
        assert [layer["counts"] for layer in histogram["layers"]] == decode
        prefill = cluster.service.get("/v1/histogram", dp_rank=rank["dp_rank"], phase="prefill")
        whole = [part.tolist() for part in np.split(unpack_counts(frame.counts), ends)]
        assert np.add(decode, [layer["counts"] for layer in prefill["layers"]]).tolist() == whole
        assert prefill["tokens"] == frame.tokens - frame.decode_tokens
