"""Speculative decoding: a trace has the request's own tokens once each, and none of a rejected draft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from devkit.vllm_server import MODEL_NAME
from tests.e2e.cluster import DP2_EP2, Cluster
from tests.e2e.reading import last_frames
from tests.e2e.traces import npz, settled

pytestmark = pytest.mark.e2e

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
PROMPTS = [f"{n} " + "one two three " * (n + 2) for n in range(6)]


@pytest.fixture(scope="module")
def drafting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """DP=2 EP=2 that drafts by n-grams, with a prefix cache of 17 blocks; every request is traced."""
    folder: Path = tmp_path_factory.mktemp("drafting")
    options = {
        **DP2_EP2,
        "max_model_len": 480,
        "env": {"MOESCOPE_TRACE_RATE": "1"},
        "extra_args": ("--num-gpu-blocks-override", "17", "--speculative-config", json.dumps(NGRAM)),
    }
    with Cluster(folder, options, store=folder / "store") as running:
        yield running


def complete(cluster: Cluster, name: str, prompt: str | list[int], max_tokens: int, **more: Any) -> list[Any]:
    """A greedy completion's choices, with the ids of their prompt and tokens; nothing of it was cached."""
    response = httpx.post(
        f"{cluster.vllm.url}/v1/completions",
        json={
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "temperature": 0,
            "return_token_ids": True,
            "cache_salt": name,
            **more,
        },
        headers={"X-Request-Id": name},
        timeout=300,
    )
    assert response.status_code == 200, response.text
    return list(response.json()["choices"])


def assert_as_undrafted(cluster: Cluster, name: str, choice: dict[str, Any]) -> None:
    """The same tokens, computed as a prompt, of which nothing is drafted, take the same experts."""
    tokens = [*choice["prompt_token_ids"], *choice["token_ids"]]
    complete(cluster, f"truth-{name}", tokens, 1)
    settled(cluster)
    trace, truth = npz(cluster, name), npz(cluster, f"truth-{name}")
    assert len(trace["routed_experts"]) == len(tokens) - 1  # the last token is never fed back
    assert set(trace["times_computed"].tolist()) == {1}
    mine, theirs = np.sort(trace["routed_experts"]), np.sort(truth["routed_experts"])
    np.testing.assert_array_equal(mine, theirs[: len(tokens) - 1])


def test_traces_are_those_of_the_same_tokens_without_drafts(drafting: Cluster) -> None:
    for number, prompt in enumerate(PROMPTS):
        [choice] = complete(drafting, f"plain-{number}", prompt, 40)
        assert_as_undrafted(drafting, f"plain-{number}", choice)
    frames = last_frames(drafting)
    assert sum(frame.accepted_drafts for frame in frames) > 0, "no draft was accepted"
    assert sum(frame.rejected_drafts for frame in frames) > 0, "no draft was rejected"
