"""Two real vLLM servers under one name: a conflict that names both, until one of them is ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from devkit.tiny_moe import ensure_checkpoint
from devkit.vllm_server import MODEL_NAME, VllmOptions, VllmServer
from tests.e2e.cluster import SETTLE_SECONDS, WORKER, Service
from tests.e2e.preloaded import quick_server

pytestmark = pytest.mark.e2e

PROMPT = list(range(10, 30))
GENERATED = 4
TOKENS = len(PROMPT) + GENERATED - 1
"""Computed by a request: the last token is never fed back."""
STALE_S = 3.0


@dataclass
class Two:
    """Both servers, their service, and how many requests each was sent."""

    service: Service
    servers: list[VllmServer]
    requests: int = 0

    def complete(self) -> None:
        """One request to each server that is left."""
        body = {"model": MODEL_NAME, "prompt": PROMPT, "max_tokens": GENERATED, "ignore_eos": True}
        for server in self.servers:
            answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
            assert answer.status_code == 200, answer.text
            self.requests += 1

    def worker(self) -> dict[str, Any]:
        [deployment] = self.service.get("/v1/ranks")["deployments"]
        [rank] = deployment["dp_ranks"]
        [worker] = rank["producers"]
        return {**worker, "tokens": rank["tokens"], "conflict": deployment["conflict"]}

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The worker once it is as wanted, with requests meanwhile."""
        return self._until(wanted, self.complete)

    def settled(self) -> dict[str, Any]:
        """The worker once each token that was computed is counted."""
        return self._until(lambda worker: worker["tokens"] == self.requests * TOKENS, lambda: time.sleep(0.1))

    def _until(
        self, wanted: Callable[[dict[str, Any]], bool], meanwhile: Callable[[], None]
    ) -> dict[str, Any]:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not wanted(worker := self.worker()):
            assert time.monotonic() < deadline, worker
            meanwhile()
        return worker


@pytest.fixture
def two(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Two]:
    folder = tmp_path_factory.mktemp("two")
    monkeypatch.setenv("MOESCOPE_STALE_AFTER_S", str(STALE_S))
    monkeypatch.setenv("MOESCOPE_MIN_TOKENS", "1")
    model = ensure_checkpoint(folder / "model")
    with ExitStack() as stack:
        service = stack.enter_context(Service(folder / "service.log"))
        env = {
            "MOESCOPE_ENDPOINT": service.url,
            "MOESCOPE_INTERVAL": "0.2",
            "MOESCOPE_SERVER": "one-name",
        }
        options = VllmOptions(model=model, worker_class=WORKER, prefix_caching=False, env=env)
        servers = [quick_server(options, folder / f"{name}.log") for name in ("first", "second")]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(VllmServer.__enter__, servers))
        for server in servers:
            stack.push(server.__exit__)
        yield Two(service, servers)


def test_both_are_named_and_the_one_that_is_left_is_right(two: Two) -> None:
    found = two.until(lambda worker: worker["state"] == "conflict")
    assert len({life["pid"] for life in found["lives"]}) == 2
    assert all(str(life["pid"]) in found["conflict"] for life in found["lives"])
    assert "MOESCOPE_SERVER" in found["conflict"]
    balance = two.service.get("/v1/balance")
    assert balance["conflict"] == found["conflict"]
    assert {layer["over_experts"]["measures"] for layer in balance["layers"]} == {None}
    assert two.service.get("/v1/stragglers")["straggler_cost"] is None
    two.settled()  # each token of both, once

    ended = two.servers.pop()
    ended.stop()
    left = two.until(lambda worker: worker["conflict"] is None)
    assert left["state"] == "counting"
    two.settled()
    assert {life["pid"] for life in found["lives"]} > {left["pid"]}
    time.sleep(1)  # a window after the conflict
    two.complete()
    two.settled()
    balance = two.service.get("/v1/balance", start="-1s")
    assert balance["conflict"] is None
