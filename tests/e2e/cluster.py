"""A real vLLM server with capture, the service it streams to, and vLLM's own account of computed tokens."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from prometheus_client.parser import text_string_to_metric_families

from devkit.processes import ProcessGroup, free_port
from devkit.root_cause import explain
from devkit.tiny_moe import ensure_checkpoint
from devkit.vllm_server import MODEL_NAME, VllmOptions, VllmServer
from tests.e2e.preloaded import quick_server
from tests.e2e.relay import Relay

WORKER = "moescope.capture.worker.RoutingWorker"
DP2_EP2 = {"data_parallel_size": 2, "expert_parallel": True, "max_num_batched_tokens": 64}
SETTLE_SECONDS = 90.0
"""Far more than the 15 s that a worker waits at most after a failure, for a machine with much else to do."""


@dataclass(frozen=True)
class Request:
    """A completion to ask for; `prompt` is text, one token a byte."""

    prompt: str
    max_tokens: int


class Service:
    """`moescope serve` as an operator starts it, in a process of its own."""

    def __init__(self, log: Path, port: int = 0, store: Path | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = log
        self._store = ["--no-store"] if store is None else ["--store", str(store)]
        self._group: ProcessGroup | None = None

    def __enter__(self) -> Self:
        moescope = Path(sys.executable).with_name("moescope")
        command = [str(moescope), "serve", "--port", str(self.port), *self._store]
        self._group = ProcessGroup(command, self._log, os.environ)
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"{self.url}/readyz", timeout=60).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            if self._group.exit_code() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(explain(self._log, "the service did not start"))
            time.sleep(0.05)

    def __exit__(self, *args: object) -> None:
        self.kill()

    def kill(self) -> None:
        """End it."""
        if self._group is not None:
            self._group.stop()
            self._group = None

    def get(self, path: str, **params: Any) -> Any:
        """A JSON answer."""
        response = httpx.get(f"{self.url}{path}", params=params, timeout=60)
        assert response.status_code == 200, response.text
        return response.json()


class Cluster:
    """vLLM, a relay and the service; one start serves many tests."""

    def __init__(
        self, folder: Path, options: Mapping[str, Any], capture: bool = True, store: Path | None = None
    ) -> None:
        self._folder = folder
        self._store = store
        self._options = dict(options)
        self._capture = capture
        self._stack = ExitStack()
        self._offset: dict[int, int] = {}
        self.relay: Relay
        self.service: Service
        self.vllm: VllmServer

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.service = stack.enter_context(Service(self._folder / "service.log", store=self._store))
            self.relay = stack.enter_context(Relay(self.service.port))
            env = {
                "MOESCOPE_ENDPOINT": self.relay.url,
                "MOESCOPE_INTERVAL": "0.1",
                "MOESCOPE_SERVER": "e2e",
            }
            worker = {"worker_class": WORKER if self._capture else None}
            options = VllmOptions(
                model=ensure_checkpoint(self._folder / "model"),
                **(worker | self._options | {"env": env | self._options.get("env", {})}),
            )
            self.vllm = stack.enter_context(quick_server(options, self._folder / "vllm.log"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *args: object) -> None:
        self._stack.close()

    def restart_service(self) -> None:
        """Kill the service and start another, which knows nothing but its store, on another port."""
        self.service.kill()
        self.service = self._stack.enter_context(Service(self._folder / "service.log", store=self._store))
        self.relay.target_port = self.service.port

    def complete(self, request: Request) -> list[int]:
        """One greedy completion's token ids."""
        response = httpx.post(
            f"{self.vllm.url}/v1/completions",
            json={
                "model": MODEL_NAME,
                "prompt": request.prompt,
                "max_tokens": request.max_tokens,
                "temperature": 0,
                "seed": 1,
                "return_token_ids": True,
            },
            timeout=300,
        )
        assert response.status_code == 200, response.text
        choice = response.json()["choices"][0]
        assert len(choice["token_ids"]) == request.max_tokens
        return list(choice["token_ids"])

    def complete_all(self, requests: list[Request], concurrency: int = 8) -> list[list[int]]:
        """Completions side by side, in the order of the requests."""
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(self.complete, requests))

    def computed_tokens(self) -> dict[int, int]:
        """Tokens each engine computed, from vLLM's own metrics.

        Prompt tokens that no cache had, and every generated token but each request's last, which is never
        fed back. Preemptions would compute tokens twice, so there must be none.
        """
        metrics = self.vllm_metrics()
        assert not any(metrics["vllm:num_preemptions_total"].values())
        return {
            engine: self._offset.get(engine, 0)
            + int(
                metrics["vllm:prompt_tokens_total"][engine]
                - metrics["vllm:prompt_tokens_cached_total"][engine]
                + metrics["vllm:generation_tokens_total"][engine]
                - metrics["vllm:request_success_total"][engine]
            )
            for engine in metrics["vllm:prompt_tokens_total"]
        }

    def vllm_metrics(self) -> dict[str, dict[int, float]]:
        """vLLM's counters by name and engine, summed over other labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.vllm.url}/metrics", timeout=60).text)
        values: dict[str, dict[int, float]] = {}
        for family in families:
            for sample in family.samples:
                if "engine" in sample.labels:
                    by_engine = values.setdefault(sample.name, {})
                    engine = int(sample.labels["engine"])
                    by_engine[engine] = by_engine.get(engine, 0.0) + sample.value
        return values

    def reported_tokens(self) -> dict[int, int]:
        """Tokens by DP rank, as the service has them: nothing yet of ranks it has not heard of."""
        deployments = self.service.get("/v1/ranks")["deployments"]
        assert len(deployments) <= 1
        return {rank["dp_rank"]: rank["tokens"] for found in deployments for rank in found["dp_ranks"]}

    def settled(self, expected: dict[int, int]) -> dict[int, int]:
        """The service's tokens once they equal what is expected, or as they are when time is up."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (reported := self.reported_tokens()) != expected and time.monotonic() < deadline:
            time.sleep(0.05)
        return reported

    def layers(self, dp_rank: int) -> dict[int, dict[str, Any]]:
        """The histogram of one DP rank, by layer."""
        histogram = self.service.get("/v1/histogram", dp_rank=dp_rank)
        return {layer["layer"]: layer for layer in histogram["layers"]}

    def settled_when_idle(self) -> dict[int, int]:
        """The service's tokens once no request runs, all workers told the same passes, and no more come."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while any(self.vllm_metrics()["vllm:num_requests_running"].values()):
            assert time.monotonic() < deadline, "a request still runs"
            time.sleep(0.1)
        reported: dict[int, int] = {}
        while (latest := self.reported_tokens()) != reported or len(self._passes()) > 1:
            assert time.monotonic() < deadline, (latest, self._passes())
            reported = latest
            time.sleep(1.0)
        return reported

    def _passes(self) -> set[int]:
        """Forward passes, dummy ones included, by the workers' latest frames."""
        latest = {frame.producer.key: frame for frame in self.relay.frames}
        return {frame.steps + frame.idle_steps for frame in latest.values()}

    def rebase(self) -> None:
        """Take the service's tokens for true from here on: vLLM doesn't count those of aborted requests."""
        self._offset = {}
        computed = self.computed_tokens()
        self._offset = {rank: tokens - computed[rank] for rank, tokens in self.reported_tokens().items()}

    def assert_exact(self) -> None:
        """For each DP rank and each layer, slots are vLLM's own computed tokens x top-k. Exactly."""
        expected = self.computed_tokens()
        assert self.settled(expected) == expected
        self.assert_conserved(expected)

    def assert_conserved(self, tokens_by_rank: dict[int, int]) -> None:
        """For each DP rank and each layer, slots are tokens x top-k, once its workers have delivered."""
        deadline = time.monotonic() + SETTLE_SECONDS
        for dp_rank, tokens in tokens_by_rank.items():
            layers = self.layers(dp_rank)
            while {layer["tokens"] for layer in layers.values()} != {tokens} and time.monotonic() < deadline:
                time.sleep(0.05)
                layers = self.layers(dp_rank)
            assert sorted(layers) == [1, 2, 3, 4]  # layer 0 is dense
            for layer in layers.values():
                assert layer["tokens"] == tokens
                assert sum(layer["counts"]) == layer["slots"] == tokens * layer["top_k"]


def prompts(number: int, stride: int = 7) -> list[Request]:
    """Prompts and completions of unequal lengths, no two with a common beginning."""
    return [
        Request(f"{index:03d} " + "lorem ipsum " * (1 + index), 3 + index * stride % 29)
        for index in range(number)
    ]
