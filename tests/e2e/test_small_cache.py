"""No prefix cache, and too few cache blocks for many requests: all is computed, some of it more than once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cluster import DP2_EP2, Cluster, Request
from tests.e2e.traces import all_traces, assert_sums, npz

pytestmark = pytest.mark.e2e

GENERATED = 200  # tokens: with the prompt, ten blocks a request


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2 with 16 blocks of 32 tokens a rank, and one that vLLM keeps; every request is traced."""
    folder: Path = tmp_path_factory.mktemp("small")
    options = {
        **DP2_EP2,
        "prefix_caching": False,
        "max_model_len": 480,
        "env": {"MOESCOPE_TRACE_RATE": "1"},
        "extra_args": ("--num-gpu-blocks-override", "17"),
    }
    with Cluster(folder, options, store=folder / "store") as running:
        yield running


def test_without_prefix_caching(small: Cluster) -> None:
    """Three requests of four blocks at a time, for which there is room on one rank, too."""
    small.complete_all([Request("the same prompt " * 6, 4)] * 8, concurrency=3)
    small.assert_exact()
    assert not any(small.vllm_metrics()["vllm:prompt_tokens_cached_total"].values())


def test_preempted_requests(small: Cluster) -> None:
    """What is preempted is computed again, and its trace says so."""
    before = {trace["request_id"] for trace in all_traces(small)}
    small.complete_all([Request(f"{n} " + "long " * 20, GENERATED) for n in range(8)])
    preemptions = sum(small.vllm_metrics()["vllm:num_preemptions_total"].values())
    assert preemptions > 0, "nothing was preempted"
    assert_sums(small, recomputed=True)
    traces = [trace for trace in all_traces(small) if trace["request_id"] not in before]
    assert len(traces) == 8
    assert sum(trace["preemptions"] for trace in traces) == preemptions
    for trace in traces:
        times = npz(small, trace["request_id"])["times_computed"]
        assert times.min() >= 1
        assert int(times.max()) == 1 + trace["preemptions"]
        assert int(times.sum()) == trace["tokens"]
        assert len(times) == trace["prompt_tokens"] + GENERATED - 1
