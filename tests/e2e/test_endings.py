"""How traced requests of a real vLLM ended; nothing is told that isn't sure."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from devkit.vllm_server import MODEL_NAME
from moescope.capture.wire.traces import TracePart, decode_part
from tests.e2e.cluster import Cluster
from tests.e2e.traces import settled

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def ending(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One rank with 17 blocks of 32 tokens; every request is traced."""
    folder: Path = tmp_path_factory.mktemp("ending")
    options = {
        "max_model_len": 480,
        "max_num_batched_tokens": 64,
        "prefix_caching": False,
        "env": {"MOESCOPE_TRACE_RATE": "1"},
        "extra_args": ("--num-gpu-blocks-override", "17"),
    }
    with Cluster(folder, options, store=folder / "store") as running:
        yield running


def body(prompt: str, max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0} | more


def complete(cluster: Cluster, name: str, prompt: str, max_tokens: int, **more: Any) -> list[dict[str, Any]]:
    """The choices of a completion whose X-Request-Id is `name`."""
    response = httpx.post(
        f"{cluster.vllm.url}/v1/completions",
        json=body(prompt, max_tokens, return_token_ids=True, **more),
        headers={"X-Request-Id": name},
        timeout=300,
    )
    assert response.status_code == 200, response.text
    return list(response.json()["choices"])


def parts_of(cluster: Cluster, name: str) -> list[TracePart]:
    """What the worker has sent of the requests of a name."""
    settled(cluster)
    parts = [decode_part(data) for data in cluster.relay.trace_bodies]
    found = [part for part in parts if name in part.client_ids]
    assert found, name
    return found


def reason(cluster: Cluster, name: str) -> str:
    [part] = parts_of(cluster, name)
    return part.finish_reason


def test_the_reasons_that_clients_are_told(ending: Cluster) -> None:
    [plain] = complete(ending, "length", "how does it end", 12)
    stop = plain["token_ids"][6]
    [stopped] = complete(ending, "stop", "how does it end", 12, stop_token_ids=[stop])
    for name, choice in (("length", plain), ("stop", stopped)):
        [part] = parts_of(ending, name)
        assert (part.finish_reason, part.lora) == (choice["finish_reason"], "")
        assert part.finish_reason == name
        listed = ending.service.get("/v1/traces", request_id=name)["traces"]
        assert [item["finish_reason"] for item in listed] == [name]
        # The last token that was sampled is never fed back.
        assert part.tokens == part.prompt_tokens + len(choice["token_ids"]) - 1


def test_as_long_as_the_model_takes(ending: Cluster) -> None:
    [choice] = complete(ending, "full", "x" * 470, 10)
    assert choice["finish_reason"] == reason(ending, "full") == "length"


def test_a_stop_string_is_never_called_an_abort(ending: Cluster) -> None:
    """vLLM's front end finds it, and the engine only hears that the request is aborted."""
    [plain] = complete(ending, "before", "a stop string", 12)
    [choice] = complete(ending, "string", "a stop string", 12, stop=[plain["text"][5:7]])
    assert choice["finish_reason"] == "stop"
    assert reason(ending, "string") == ""
    # It matches in the last token that the request may have: the client is told another reason than the
    # engine's.
    complete(ending, "both", "a stop string", 7, stop=[plain["text"][5:7]])
    assert reason(ending, "both") == ""


def test_a_pattern_that_repeats(ending: Cluster) -> None:
    pattern = {"max_pattern_size": 1, "min_pattern_size": 1, "min_count": 3}
    more = {"repetition_detection": pattern, "logit_bias": {"65": 100}}
    [choice] = complete(ending, "pattern", "again", 12, **more)
    assert len(choice["token_ids"]) == 3
    assert reason(ending, "pattern") == choice["finish_reason"] == "repetition"


def test_a_client_that_goes_away(ending: Cluster) -> None:
    for name, more in (("gone", {}), ("gone-with-strings", {"stop": ["never said"]})):
        with httpx.stream(
            "POST",
            f"{ending.vllm.url}/v1/completions",
            json=body("abort", 400, stream=True, **more),
            headers={"X-Request-Id": name},
            timeout=300,
        ) as response:
            for number, _ in enumerate(response.iter_lines()):
                if number > 20:
                    break
    [gone] = parts_of(ending, "gone")
    assert (gone.finish_reason, gone.outcome) == ("abort", "ended")
    assert reason(ending, "gone-with-strings") == ""


def test_each_sample_has_its_own_reason(ending: Cluster) -> None:
    """Two samples of one request, of which one meets a stop token that the other doesn't."""
    more = {"n": 2, "temperature": 1.0, "seed": 3}
    first, second = complete(ending, "samples", "two of them", 12, **more)
    stop = next(token for token in first["token_ids"] if token not in second["token_ids"])
    choices = complete(ending, "samples-2", "two of them", 12, stop_token_ids=[stop], **more)
    assert {choice["finish_reason"] for choice in choices} == {"stop", "length"}
    told = {part.request_id.partition("_")[0]: part for part in parts_of(ending, "samples-2")}
    for choice in choices:
        part = told[str(choice["index"])]
        assert part.finish_reason == choice["finish_reason"]
        assert part.tokens == part.prompt_tokens + len(choice["token_ids"]) - 1


def test_preempted_requests_end_as_others(ending: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: complete(ending, f"long-{n}", f"{n} " + "long " * 20, 150), range(8)))
    parts = [part for n in range(8) for part in parts_of(ending, f"long-{n}")]
    assert sum(part.preemptions for part in parts) > 0, "nothing was preempted"
    assert {part.finish_reason for part in parts} == {"length"}
