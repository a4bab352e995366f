"""After N completions, each layer's counts on each DP rank are vLLM's computed tokens x top-k. Exactly."""

from __future__ import annotations

import time

import httpx
import pytest

from devkit.vllm_server import MODEL_NAME
from tests.e2e.cluster import SETTLE_SECONDS, Cluster, Request, prompts
from tests.e2e.reading import generated_tokens, ranks

pytestmark = pytest.mark.e2e


def test_nothing_was_counted_before_the_first_request(cluster: Cluster) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS
    while set(cluster.reported_tokens()) != {0, 1}:
        assert time.monotonic() < deadline, "a DP rank has sent nothing"
        time.sleep(0.05)
    first = {frame.producer.dp_rank: frame for frame in reversed(cluster.relay.frames)}
    for frame in first.values():
        assert (frame.tokens, frame.steps) == (0, 0)
        assert not any(frame.counts)
        assert [layer.layer for layer in frame.layers] == [1, 2, 3, 4]
        assert (frame.uncovered, frame.absent, frame.absent_unnamed) == ([], [], "")


def test_one_request_leaves_the_other_rank_idle(cluster: Cluster) -> None:
    before = {rank["dp_rank"]: rank["idle_steps"] for rank in ranks(cluster)}
    cluster.complete(Request("all alone", 12))
    cluster.assert_exact()
    after = {rank["dp_rank"]: rank["idle_steps"] for rank in ranks(cluster)}
    assert sum(after.values()) > sum(before.values())


def test_concurrent_requests_of_unequal_length(cluster: Cluster) -> None:
    cluster.complete_all(prompts(24))
    cluster.assert_exact()
    assert all(tokens > 0 for tokens in cluster.computed_tokens().values())


def test_chunked_prefill(cluster: Cluster) -> None:
    steps = sum(rank["steps"] for rank in ranks(cluster))
    cluster.complete(Request("x" * 700, 1))  # 700 tokens at 64 a step
    cluster.assert_exact()
    assert sum(rank["steps"] for rank in ranks(cluster)) - steps >= 11


def test_prefix_cache_hits_are_not_computed(cluster: Cluster) -> None:
    shared = "the same beginning " * 20
    for ending in range(4):
        cluster.complete(Request(f"{shared}{ending}", 2))
    cluster.assert_exact()
    cached = cluster.vllm_metrics()["vllm:prompt_tokens_cached_total"]
    assert sum(cached.values()) > 300


def test_an_aborted_request(cluster: Cluster) -> None:
    """A step may be under way when it is aborted, so its tokens have bounds; the layers stay exact."""
    cluster.assert_exact()
    prompt = "abort me " * 10
    before, generated_before = sum(cluster.reported_tokens().values()), generated_tokens(cluster)
    with httpx.stream(
        "POST",
        f"{cluster.vllm.url}/v1/completions",
        json={"model": MODEL_NAME, "prompt": prompt, "max_tokens": 1500, "temperature": 0, "stream": True},
        timeout=300,
    ) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number > 20:
                break
    after = cluster.settled_when_idle()
    generated = generated_tokens(cluster) - generated_before
    assert 10 <= generated < 1500
    assert 0 <= sum(after.values()) - before - (len(prompt) + generated - 1) <= 2
    cluster.assert_conserved(after)
    cluster.rebase()
    cluster.complete_all(prompts(4))
    cluster.assert_exact()
