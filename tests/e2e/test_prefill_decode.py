"""Two real vLLM servers, one of which prefills and one decodes: their roles, their phases, their pool."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from devkit.tiny_moe import ensure_checkpoint
from devkit.vllm_server import MODEL_NAME, VllmOptions, VllmServer
from tests.e2e.cluster import SETTLE_SECONDS, WORKER, Service
from tests.e2e.preloaded import quick_server
from tests.e2e.traces import check_client

pytestmark = pytest.mark.e2e

BLOCK = 32  # tokens; the connector loads whole blocks
PROMPTS = 5
GENERATED = 6


@dataclass
class Pair:
    """A prefill instance, a decode instance that loads what it computed, and their service."""

    service: Service
    prefill: VllmServer
    decode: VllmServer
    kv: Path

    def forget(self) -> None:
        """Remove all KV caches that were saved: both instances save theirs, and load what is there."""
        shutil.rmtree(self.kv, ignore_errors=True)
        self.kv.mkdir()

    def complete(
        self, server: VllmServer, prompt: list[int], max_tokens: int, request_id: str | None = None
    ) -> None:
        body = {
            "model": MODEL_NAME,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
        }
        headers = {} if request_id is None else {"X-Request-Id": request_id}
        response = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=300)
        assert response.status_code == 200, response.text

    def routing(self, request_id: str, traces: int) -> dict[str, Any]:
        """The joined routing of a request once that many traces of it have come, or time is up."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            found = self.service.get("/v1/traces", request_id=request_id)["traces"]
            if len(found) == traces or time.monotonic() > deadline:
                assert len(found) == traces, found
                answer: dict[str, Any] = self.service.get(f"/v1/requests/{request_id}/routing")
                return answer
            time.sleep(0.1)

    def settled(self, expected: dict[str, dict[str, int]]) -> dict[str, Any]:
        """The pool once its deployments' tokens by phase are what is expected, or when time is up."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            response = httpx.get(f"{self.service.url}/v1/pools/pd", timeout=60)
            answer: dict[str, Any] = response.json()
            found = {item["role"]: item["phases"] for item in answer.get("deployments", [])}
            if found == expected or time.monotonic() > deadline:
                assert found == expected, answer
                return answer
            time.sleep(0.1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both start side by side. No prefix cache, so that all that isn't computed was loaded."""
    folder = tmp_path_factory.mktemp("pd")
    model = ensure_checkpoint(folder / "model")
    with ExitStack() as stack:
        service = stack.enter_context(Service(folder / "service.log", store=folder / "store"))

        def start(role: str) -> VllmServer:
            transfer = {
                "kv_connector": "WholeBlockConnector",
                "kv_connector_module_path": "tests.e2e.whole_block_connector",
                "kv_role": role,
                "kv_connector_extra_config": {"shared_storage_path": str(folder / "kv")},
            }
            options = VllmOptions(
                model=model,
                worker_class=WORKER,
                prefix_caching=False,
                block_size=BLOCK,
                extra_args=("--kv-transfer-config", json.dumps(transfer)),
                env={
                    "MOESCOPE_ENDPOINT": service.url,
                    "MOESCOPE_INTERVAL": "0.1",
                    "MOESCOPE_SERVER": role,
                    "MOESCOPE_POOL": "pd",
                    "MOESCOPE_TRACE_RATE": "1",
                    "PYTHONPATH": str(Path(__file__).parents[2]),
                },
            )
            return quick_server(options, folder / f"{role}.log")

        with ThreadPoolExecutor(2) as pool:
            servers = list(pool.map(lambda role: start(role).__enter__(), ["kv_producer", "kv_consumer"]))
        for server in servers:
            stack.push(server.__exit__)
        yield Pair(service, *servers, folder / "kv")


def test_the_last_prompt_token_that_is_computed_again_is_of_decode(pair: Pair) -> None:
    prompts = [[1 + n] * (2 * BLOCK + 1) for n in range(PROMPTS)]
    for prompt in prompts:
        pair.complete(pair.prefill, prompt, 1)
    tokens = PROMPTS * len(prompts[0])
    prefilled = {"prefill": tokens, "decode": 0}
    nothing = {"prefill": 0, "decode": 0}
    pair.settled({"prefill": prefilled, "decode": nothing})
    for prompt in prompts:
        pair.complete(pair.decode, prompt, GENERATED)
    # Two blocks are loaded. The last prompt token is computed again, then each generated one but the last.
    decoded = {"prefill": 0, "decode": PROMPTS * GENERATED}
    answer = pair.settled({"prefill": prefilled, "decode": decoded})
    assert answer["phases"] == {"prefill": tokens, "decode": PROMPTS * GENERATED}
    assert {item["server"] for item in answer["deployments"]} == {"kv_producer", "kv_consumer"}
    assert {item["state"] for item in answer["deployments"]} == {"counting"}
    assert len(answer["layers"]) > 1
    for layer in answer["layers"]:
        assert (layer["prefill_tokens"], layer["decode_tokens"]) == (tokens, PROMPTS * GENERATED)
        assert 0 <= layer["divergence"] <= 1


def test_a_prompt_that_the_decode_instance_computes_itself_is_prefill(pair: Pair) -> None:
    def phases() -> dict[str, dict[str, int]]:
        found = httpx.get(f"{pair.service.url}/v1/pools/pd", timeout=60).json()["deployments"]
        return {item["role"]: item["phases"] for item in found}

    before = phases()
    pair.complete(pair.decode, [99] * 21, GENERATED)  # nobody computed it before
    decode = before["decode"]
    expected = {"prefill": decode["prefill"] + 21, "decode": decode["decode"] + GENERATED - 1}
    pair.settled({**before, "decode": expected})


def test_the_joined_routing_is_that_of_one_server(pair: Pair) -> None:
    """First one instance computes the request alone, then both share it: the connector loads two blocks."""
    prompt = [(7 * n) % 90 + 5 for n in range(2 * BLOCK + 1)]
    pair.complete(pair.decode, prompt, GENERATED, "alone")
    pair.forget()
    pair.complete(pair.prefill, prompt, 1, "shared")
    pair.complete(pair.decode, prompt, GENERATED, "shared")
    alone, shared = pair.routing("alone", 1), pair.routing("shared", 2)
    positions = len(prompt) + GENERATED - 1
    assert [(item["kind"], item["role"], item["positions"]) for item in shared["parts"]] == [
        ("main", "decode", [[2 * BLOCK, positions]]),
        ("same_id", "prefill", [[0, 2 * BLOCK]]),
    ]
    assert shared["missing"] == alone["missing"] == []
    assert [item["server"] for item in alone["parts"]] == ["kv_consumer"]
    assert len(shared["routed_experts"]) == positions
    assert np.min(shared["routed_experts"]) >= 0
    np.testing.assert_array_equal(shared["routed_experts"], alone["routed_experts"])
    assert shared["layers"] == alone["layers"] == [1, 2, 3, 4]
    check_client(pair.service.url, {"alone": alone, "shared": shared})
    # The decode instance alone has what it computed, and the answer says why the rest isn't there.
    decoded = pair.service.get("/v1/requests/shared/routing", server="kv_consumer")
    assert [(item["first"], item["end"]) for item in decoded["missing"]] == [(0, 2 * BLOCK)]
    assert decoded["missing"][0]["why"] in ("kv_transfer", "not_told")
    np.testing.assert_array_equal(
        decoded["routed_experts"][2 * BLOCK :], alone["routed_experts"][2 * BLOCK :]
    )
    assert np.max(decoded["routed_experts"][: 2 * BLOCK]) == -1
