"""One release of vLLM in one layout, run without and with capture, and what is compared."""

from __future__ import annotations

import datetime
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from devkit.matrix.environment import ROOT, Environment
from devkit.matrix.record import Record
from devkit.processes import ProcessGroup, free_port
from devkit.root_cause import explain
from devkit.vllm_server import MODEL_NAME, VllmOptions, VllmServer, VllmStartError

WORKER: Final = "moescope.capture.worker.RoutingWorker"
REQUESTS: Final = 12
SECONDS: Final = 120.0
"""Far more than the 15 s that a worker waits at most after a failure, for a machine with much else to do."""

Say = Callable[[str], None]


class FellShortError(AssertionError):
    """A check that found something else than it should; the message says what."""


@dataclass(frozen=True)
class Layout:
    """How many ranks, and on which releases."""

    name: str
    options: Mapping[str, Any]
    ranks: int
    since: tuple[int, int]


LAYOUTS: Final = (
    Layout("one rank", {}, 1, (0, 20)),
    Layout("DP=2 EP=2", {"data_parallel_size": 2, "expert_parallel": True}, 2, (0, 30)),
)
RAN: Final = f"{REQUESTS} requests side by side, each traced, in steps of 64 tokens at most"


def layouts_of(version: str) -> list[Layout]:
    """Those that this release can run on CPUs."""
    series = tuple(int(part) for part in version.split(".")[:2])
    return [layout for layout in LAYOUTS if series >= layout.since]


def run(environment: Environment, layout: Layout, model: Path, folder: Path, say: Say) -> Record:
    """Run it; whatever goes wrong is in the record.

    Args:
        model: the checkpoint.
        folder: for logs and the store; created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checks: dict[str, str] = {}
    failed: list[str] = []
    unavailable: dict[str, str] = {}
    try:
        with ExitStack() as stack:
            url = stack.enter_context(_service(folder))
            env = {
                "MOESCOPE_ENDPOINT": url,
                "MOESCOPE_INTERVAL": "0.2",
                "MOESCOPE_SERVER": "matrix",
                "MOESCOPE_TRACE_RATE": "1",
            }
            alone = _vllm(environment, layout, model, folder / "vllm-alone.log")
            server = _vllm(environment, layout, model, folder / "vllm.log", env, WORKER)
            say("starting vLLM alone and vLLM with capture")
            _start(stack, [alone, server])
            checks["starts"] = f"in {server.started_after:.0f} s, {alone.started_after:.0f} s alone"
            say("sending requests")
            expected, found = _complete(alone), _complete(server)
            tokens = vllm_tokens(server.url)
            say("comparing")
            deployment = _settled(url, tokens)
            unavailable = _unavailable(deployment)
            comparisons: dict[str, Callable[[], str]] = {
                "counts": partial(_counts, url, deployment, tokens),
                "phases": partial(_phases, deployment, tokens),
                "traces": partial(_traces, url, tokens),
                "texts": partial(_texts, found, expected),
            }
            for name, check in comparisons.items():
                try:
                    checks[name] = check()
                except FellShortError as error:
                    checks[name] = str(error)
                    failed.append(name)
        if layout.ranks == 1:
            checks["monolithic kernels"] = _kernels(environment)
    except (VllmStartError, FellShortError, httpx.HTTPError) as error:
        name = "counts" if "starts" in checks else "starts"
        checks[name] = " ".join(str(error).split())[:300]
        failed.append(name)
    if "WRONG" in checks.get("monolithic kernels", ""):
        failed.append("monolithic kernels")
    return Record(
        version=environment.version,
        layout=layout.name,
        on=f"CPU, torch {environment.torch}",
        ran=RAN,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        checks=checks,
        failed=tuple(failed),
        unavailable=unavailable,
    )


def _vllm(
    environment: Environment,
    layout: Layout,
    model: Path,
    log: Path,
    env: Mapping[str, str] | None = None,
    worker: str | None = None,
) -> VllmServer:
    options = VllmOptions(
        model=model,
        worker_class=worker,
        prefix_caching=False,
        max_num_batched_tokens=64,
        python=environment.python,
        env=env or {},
        **layout.options,
    )
    return VllmServer(options, log=log, start_timeout=600)


def _start(stack: ExitStack, servers: Sequence[VllmServer]) -> None:
    """Start them side by side, since the import of vLLM keeps one core busy; the stack stops them."""
    for server in servers:
        stack.callback(server.stop)
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(VllmServer.start, servers))


class _service:  # noqa: N801 - used as a function
    """`moescope serve` of this environment, with a store; gives its address."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        moescope = str(Path(sys.executable).with_name("moescope"))
        command = [moescope, "serve", "--port", str(port), "--store", str(folder / "store")]
        self._log = folder / "service.log"
        self._group = ProcessGroup(command, self._log, os.environ)

    def __enter__(self) -> str:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if httpx.get(f"{self._url}/readyz", timeout=10).status_code == 200:
                    return self._url
            except httpx.TransportError:
                pass
            if self._group.exit_code() is not None or time.monotonic() > deadline:
                self._group.stop()
                raise FellShortError(explain(self._log, "the service did not start"))
            time.sleep(0.1)

    def __exit__(self, *_: object) -> None:
        self._group.stop()


def _complete(server: VllmServer) -> list[list[int]]:
    """Greedy completions of unequal lengths, side by side; their token ids, in the order of the requests."""

    def one(index: int) -> list[int]:
        answer = httpx.post(
            f"{server.url}/v1/completions",
            json={
                "model": MODEL_NAME,
                "prompt": f"{index:03d} " + "lorem ipsum " * (1 + index),
                "max_tokens": 3 + index * 7 % 29,
                "temperature": 0,
                "seed": 1,
                "return_token_ids": True,
            },
            timeout=SECONDS,
        )
        if answer.status_code != 200:
            raise FellShortError(f"vLLM answered {answer.status_code}: {answer.text}")
        return list(answer.json()["choices"][0]["token_ids"])

    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(one, range(REQUESTS)))


@dataclass(frozen=True)
class Computed:
    """Tokens that one engine computed, by vLLM's own counters."""

    prefill: int
    decode: int

    @property
    def tokens(self) -> int:
        """Of both phases."""
        return self.prefill + self.decode


def vllm_tokens(url: str) -> dict[int, Computed]:
    """What each engine computed: prompt tokens, and generated tokens but each request's last."""
    text = httpx.get(f"{url}/metrics", timeout=60).text
    sums: dict[tuple[str, int], float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "engine" in sample.labels:
                key = sample.name, int(sample.labels["engine"])
                sums[key] = sums.get(key, 0.0) + sample.value
    engines = sorted({engine for name, engine in sums if name == "vllm:prompt_tokens_total"})
    return {
        engine: Computed(
            int(sums["vllm:prompt_tokens_total", engine]),
            int(sums["vllm:generation_tokens_total", engine] - sums["vllm:request_success_total", engine]),
        )
        for engine in engines
    }


def _settled(url: str, tokens: Mapping[int, Computed]) -> dict[str, Any]:
    """The deployment, once it has all tokens and all traces, or as it is when time is up."""
    deadline = time.monotonic() + SECONDS
    while True:
        found = httpx.get(f"{url}/v1/ranks", timeout=60).json()["deployments"]
        ranks = {rank["dp_rank"]: rank for one in found for rank in one["dp_ranks"]}
        workers = [worker for rank in ranks.values() for worker in rank["producers"]]
        whole = {number: rank["tokens"] for number, rank in ranks.items()}
        in_flight = [worker["traces"]["in_flight"] for worker in workers if worker["traces"]]
        settled = whole == {number: one.tokens for number, one in tokens.items()} and not any(in_flight)
        if (found and settled) or time.monotonic() > deadline:
            if not found:
                raise FellShortError("no worker has reported to the service")
            return dict(found[0])
        time.sleep(0.2)


def _unavailable(deployment: Mapping[str, Any]) -> dict[str, str]:
    workers = [worker for rank in deployment["dp_ranks"] for worker in rank["producers"]]
    return {part: reason for worker in workers for part, reason in worker.get("unavailable", {}).items()}


def _counts(url: str, deployment: Mapping[str, Any], tokens: Mapping[int, Computed]) -> str:
    for rank in deployment["dp_ranks"]:
        for worker in rank["producers"]:
            if worker["uncovered"] or worker["state"] != "counting":
                raise FellShortError(f"{worker['state']} {worker['state_reason']} {worker['uncovered'][:1]}")
    for number, computed in tokens.items():
        if computed.tokens == 0:
            raise FellShortError(f"DP rank {number} got no request")
        layers = httpx.get(f"{url}/v1/histogram", params={"dp_rank": number}, timeout=60).json()["layers"]
        if sorted(layer["layer"] for layer in layers) != [1, 2, 3, 4]:  # layer 0 is dense
            raise FellShortError(f"DP rank {number} has layers {[layer['layer'] for layer in layers]}")
        for layer in layers:
            found = layer["tokens"], layer["slots"], sum(layer["counts"])
            if found != (computed.tokens, *[computed.tokens * layer["top_k"]] * 2):
                raise FellShortError(f"layer {layer['layer']}: {found[0]} for {computed.tokens} tokens")
    return f"exact: {' + '.join(str(one.tokens) for one in tokens.values())} tokens in each of 4 layers"


def _phases(deployment: Mapping[str, Any], tokens: Mapping[int, Computed]) -> str:
    mixed = 0
    for rank in deployment["dp_ranks"]:
        phases, computed = rank["phases"], tokens[rank["dp_rank"]]
        if phases is None:
            raise FellShortError("not known")
        found = Computed(phases["prefill_tokens"], phases["decode_tokens"])
        if found != computed:
            raise FellShortError(f"{found} for {computed}")
        mixed += phases["mixed_steps"]
    prefill = sum(computed.prefill for computed in tokens.values())
    decode = sum(computed.decode for computed in tokens.values())
    return f"exact: {prefill} prefill, {decode} decode, {mixed} mixed steps"


def _traces(url: str, tokens: Mapping[int, Computed]) -> str:
    listed = httpx.get(f"{url}/v1/traces", params={"limit": 100}, timeout=60).json()["traces"]
    if len(listed) != REQUESTS:
        raise FellShortError(f"{len(listed)} traces of {REQUESTS} requests")
    sums: dict[int, Any] = {}
    for trace in listed:
        answer = httpx.get(f"{url}/v1/traces/{trace['request_id']}.npz", timeout=60)
        if answer.status_code != 200:
            raise FellShortError(f"a trace is answered with {answer.status_code}")
        arrays = np.load(io.BytesIO(answer.content))
        for i, layer in enumerate(arrays["layers"].tolist()):
            ids = arrays["routed_experts"][:, i].reshape(-1)
            counts = np.bincount(ids[ids >= 0], minlength=int(arrays["num_experts"][i]))
            sums[layer] = sums.get(layer, 0) + counts
    truth: dict[int, Any] = {}
    for number in tokens:
        histogram = httpx.get(f"{url}/v1/histogram", params={"dp_rank": number}, timeout=60).json()
        for layer in histogram["layers"]:
            truth[layer["layer"]] = truth.get(layer["layer"], 0) + np.array(layer["counts"])
    if sums.keys() != truth.keys() or any((sums[layer] != truth[layer]).any() for layer in truth):
        raise FellShortError("the traces' ids don't sum up to the counts")
    return f"{len(listed)}, which sum up to the counts"


def _texts(found: list[list[int]], expected: list[list[int]]) -> str:
    if found != expected:
        differ = sum(one != other for one, other in zip(found, expected, strict=True))
        raise FellShortError(f"{differ} of {len(expected)} differ")
    return "equal"


def _kernels(environment: Environment) -> str:
    """What becomes of monolithic kernels (see `kernel_probe`)."""
    done = subprocess.run(
        [str(environment.python), "-m", "devkit.matrix.kernel_probe"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS * 5,
    )
    said = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode:
        return f"WRONG: {(done.stderr.strip().splitlines() or ['it ended'])[-1][:200]}"
    return "not covered, with the reason" if said.startswith("not covered: monolithic kernel") else said
