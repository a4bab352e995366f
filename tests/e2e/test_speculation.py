"""Speculative decoding: a trace has the request's own tokens once each, and none of a rejected draft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from devkit.vllm_server import MODEL_NAME
from moescope.capture.wire.traces import decode_part
from tests.e2e.cluster import DP2_EP2, Cluster
from tests.e2e.traces import all_traces, npz, settled

pytestmark = pytest.mark.e2e

NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}


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


def complete(
    cluster: Cluster,
    name: str,
    prompt: str | list[int],
    max_tokens: int,
    rank: int | None = None,
    **more: Any,
) -> list[Any]:
    """A greedy completion's choices, with the ids of their prompt and tokens; none of it is in the cache.

    Args:
        rank: the DP rank that computes it; None: as vLLM chooses.
        more: what else the request says.
    """
    body = {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    response = httpx.post(
        f"{cluster.vllm.url}/v1/completions",
        json=body | {"return_token_ids": True, "cache_salt": name} | more,
        headers={"X-Request-Id": name} | ({} if rank is None else {"X-data-parallel-rank": str(rank)}),
        timeout=300,
    )
    assert response.status_code == 200, response.text
    return list(response.json()["choices"])


@dataclass(frozen=True)
class Drafted:
    """A choice of a request; the name of its trace, if that is another; how much of it a prefix cache had."""

    name: str
    choice: dict[str, Any]
    key: str = ""
    cached: int = 0


def truths(cluster: Cluster, *drafted: Drafted) -> list[np.ndarray]:
    """The experts of the same tokens, computed as prompts, of which nothing is drafted; sorted.

    One prompt after the other; after the last one it is waited until all is told.
    """
    for one in drafted:
        tokens = [*one.choice["prompt_token_ids"], *one.choice["token_ids"]]
        complete(cluster, f"truth-{one.name}", tokens, 1)
    settled(cluster)
    return [np.sort(npz(cluster, f"truth-{one.name}")["routed_experts"]) for one in drafted]


def assert_as_undrafted(cluster: Cluster, *drafted: Drafted) -> None:
    """A request's trace has all its tokens but the last, which is never fed back, each with its experts."""
    for one, truth in zip(drafted, truths(cluster, *drafted), strict=True):
        expected = truth[one.cached : -1]
        trace = npz(cluster, one.key or one.name)
        assert trace["times_computed"].tolist() == [0] * one.cached + [1] * len(expected)
        np.testing.assert_array_equal(np.sort(trace["routed_experts"][one.cached :]), expected)


def cached_of(cluster: Cluster, request_id: str) -> int:
    """Leading positions that a prefix cache had: samples of one prompt may share blocks."""
    [found] = [trace for trace in all_traces(cluster) if trace["request_id"] == request_id]
    return int(found["cached_tokens"])


def drafts(cluster: Cluster) -> tuple[int, int]:
    """Accepted and rejected drafts, as the service has them."""
    ranks = cluster.service.get("/v1/ranks")["deployments"][0]["dp_ranks"]
    return sum(r["drafts"]["accepted"] for r in ranks), sum(r["drafts"]["rejected"] for r in ranks)


def test_tokens_less_rejected_drafts_are_those_that_the_answers_need(drafting: Cluster) -> None:
    for n in range(6):
        complete(drafting, f"counted-{n}", f"{n} " + "one two three " * (n + 2), 40)
    reported = drafting.settled_when_idle()
    settled(drafting)
    accepted, rejected = drafts(drafting)
    assert accepted > 0
    assert rejected > 0
    assert sum(reported.values()) - rejected == sum(drafting.computed_tokens().values())
    proposed = sum(drafting.vllm_metrics()["vllm:spec_decode_num_draft_tokens_total"].values())
    assert accepted + rejected == proposed
    metrics = httpx.get(f"{drafting.service.url}/metrics", timeout=60).text
    lines = [line for line in metrics.splitlines() if line.startswith("moescope_draft_tokens_total{")]
    assert sum(float(line.rsplit(" ", 1)[1]) for line in lines) == proposed
    parts = [decode_part(body) for body in drafting.relay.trace_bodies]
    assert sum(part.rejected_drafts for part in parts if part.part == 0) == rejected


def test_traces_are_those_of_the_same_tokens_without_drafts(drafting: Cluster) -> None:
    drafted = []
    for n in range(3):
        name = f"plain-{n}"
        [choice] = complete(drafting, name, f"{n} " + "one two three " * (9 * n + 2), 40)
        drafted.append(Drafted(name, choice))
    assert_as_undrafted(drafting, *drafted)


def test_a_prompt_whose_last_token_is_padded_with_drafts(drafting: Cluster) -> None:
    """All but one token of it are in the prefix cache; vLLM adds drafts that it rejects."""
    prompt = "x" * 32 + "y"
    for name in ("padded-1", "padded-2"):
        [choice] = complete(drafting, name, prompt, 8, rank=1, cache_salt="the same")
    assert_as_undrafted(drafting, Drafted("padded-2", choice, cached=32))


def test_a_stop_token_within_accepted_drafts_ends_the_trace(drafting: Cluster) -> None:
    prompt = "four five four five " * 3
    [whole] = complete(drafting, "whole", prompt, 40)
    tokens = whole["token_ids"]
    drafted = []
    for stop in sorted(set(tokens))[:6]:
        [choice] = complete(drafting, f"stop-{stop}", prompt, 40, stop_token_ids=[stop])
        assert choice["token_ids"] == tokens[: tokens.index(stop) + 1]
        drafted.append(Drafted(f"stop-{stop}", choice))
    assert_as_undrafted(drafting, *drafted)


def test_several_samples_and_structured_outputs(drafting: Cluster) -> None:
    answers = complete(drafting, "many", "six seven " * 4, 30, n=3, temperature=1.0, seed=7)
    [shaped] = complete(
        drafting, "shaped", "a" * 40, 30, structured_outputs={"regex": "(ab|ac){15}"}, temperature=1.0
    )
    settled(drafting)
    names = [trace["request_id"] for trace in all_traces(drafting) if "cmpl-many-0" in trace["request_id"]]
    ids = {int(name.split("_", 1)[0]): name for name in names}
    drafted = [Drafted("shaped", shaped)]
    for choice in answers:
        key = ids[choice["index"]]
        drafted.append(Drafted(f"many-{choice['index']}", choice, key, cached_of(drafting, key)))
    assert_as_undrafted(drafting, *drafted)


def test_an_aborted_request_has_no_rejected_draft_at_its_end(drafting: Cluster) -> None:
    with httpx.stream(
        "POST",
        f"{drafting.vllm.url}/v1/completions",
        json={
            "model": MODEL_NAME,
            "prompt": "abort " * 5,
            "max_tokens": 400,
            "temperature": 0,
            "stream": True,
        },
        headers={"X-Request-Id": "gone"},
        timeout=300,
    ) as response:
        for number, _ in enumerate(response.iter_lines()):
            if number > 20:
                break
    [whole] = complete(drafting, "not-gone", "abort " * 5, 400)
    [expected] = truths(drafting, Drafted("not-gone", whole))
    gone = npz(drafting, "gone")
    assert len("abort " * 5) < len(gone["routed_experts"]) < len(expected)
    np.testing.assert_array_equal(np.sort(gone["routed_experts"]), expected[: len(gone["routed_experts"])])


def test_preempted_requests_have_their_last_computation(drafting: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(complete, drafting, f"long-{n}", f"{n} " + "long " * 20, 200) for n in range(8)]
        answers = [one.result()[0] for one in asked]
    assert sum(drafting.vllm_metrics()["vllm:num_preemptions_total"].values()) > 0, "nothing was preempted"
    drafted = [Drafted(f"long-{n}", choice) for n, choice in enumerate(answers)]
    for one, truth in zip(drafted, truths(drafting, *drafted), strict=True):
        expected, trace = truth[:-1], npz(drafting, one.name)
        assert len(trace["routed_experts"]) == len(expected)
        assert trace["times_computed"].min() >= 1
        np.testing.assert_array_equal(np.sort(trace["routed_experts"]), expected)
    for account in settled(drafting):
        assert account["captured"] == account["delivered"] > 0, account
