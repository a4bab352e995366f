"""Network faults between capture and service: how long hooks take, what is counted, who comes back when.

Most senders reach the service through a proxy that fails. A few reach it directly, at the same time and on
the same cores. What a fault costs is the ratio of the times of the two.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
import torch

from devkit.soak.gate import Options, Outcome
from devkit.soak.proxy import DisorderlyRelay, TcpProxy
from devkit.soak.serving import Serving, percentile, serving
from devkit.soak.worker_side import STEP_S, WorkerSide
from moescope.capture.delivery.backoff import FIRST

SENDERS: Final = 16
UNHARMED: Final = 4
INTERVAL_S: Final = 0.25
TIMEOUT_S: Final = 5.0
HOOKS_P99_MS: Final = 1.0
HERD_S: Final = 0.25
HERD: Final = 4
# Sixteen that fail together and wait up to 4 s each are more than this within 250 ms once in 60 times.
SHORT_HERD: Final = 5
SHORT_CUT_S: Final = 6.0
SLOWER: Final = 10


@dataclass
class Network:
    """Workers, a service, and what is between them.

    Attributes:
        harmed: workers behind the proxy.
        unharmed: workers that reach the service directly.
    """

    service: Serving
    proxy: TcpProxy
    relay: DisorderlyRelay
    harmed: list[WorkerSide]
    unharmed: list[WorkerSide]

    @property
    def workers(self) -> list[WorkerSide]:
        """In the order of their DP ranks."""
        return [*self.harmed, *self.unharmed]

    def settle(self, since: float, limit: float = 60.0) -> None:
        """Wait until every worker has delivered a frame that it began to send after this moment."""
        until = time.monotonic() + limit
        waiting = self.workers
        while waiting := [worker for worker in waiting if not _delivered(worker, since)]:
            assert time.monotonic() < until, f"{len(waiting)} senders have not come back in {limit:g} s"
            time.sleep(0.02)


def _delivered(worker: WorkerSide, since: float) -> bool:
    return any(post.began >= since and not post.failure for post in worker.posts[-20:])


@contextmanager
def network(
    folder: Path,
    senders: int,
    unharmed: int,
    interval: float,
    timeout: float,
    seed: int = 0,
    first_wait: float = FIRST,
) -> Iterator[Network]:
    """Everything started, and every worker known to the service."""
    ranks = senders + unharmed
    with ExitStack() as stack:
        service = stack.enter_context(serving(folder))
        port = urlsplit(service.url).port
        assert port is not None
        relay = stack.enter_context(DisorderlyRelay(port))
        proxy = stack.enter_context(TcpProxy(relay.port, seed))
        urls = [proxy.url] * senders + [service.url] * unharmed
        workers = [
            WorkerSide(url, rank, ranks, interval, timeout, first_wait) for rank, url in enumerate(urls)
        ]
        made = Network(service, proxy, relay, workers[:senders], workers[senders:])
        for worker in workers:
            worker.start()
        try:
            made.settle(0.0)
            yield made
        finally:
            for worker in workers:
                worker.stop_steps()
            for worker in workers:
                worker.stop_sender()


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, and for how long."""

    name: str
    seconds: float
    begins: Callable[[Network], None] = lambda _: None
    ends: Callable[[Network], None] = lambda _: None


@dataclass
class Passed:
    """What was measured while a fault lasted.

    Attributes:
        hooks, unharmed_hooks: seconds of each step's hooks, of workers behind the proxy and of the others.
        failed: attempts to deliver that failed, until all had come back.
        returns: when each worker behind the proxy first tried again, seconds after the fault's end.
        settled: seconds from the fault's end until all workers had delivered.
    """

    name: str
    hooks: list[float] = field(default_factory=list)
    unharmed_hooks: list[float] = field(default_factory=list)
    failed: int = 0
    returns: list[float] = field(default_factory=list)
    settled: float = 0.0

    def row(self) -> str:
        """The times in words: of workers behind the proxy, with those of the others in brackets."""
        p50, p99 = (
            f"{percentile(self.hooks, share) * 1e3:.0f} us "
            f"({percentile(self.hooks, share) / percentile(self.unharmed_hooks, share):.1f} x)"
            for share in (50, 99)
        )
        longest, other = max(self.hooks) * 1e3, max(self.unharmed_hooks) * 1e3
        return (
            f"{self.name}: p50 {p50}, p99 {p99}, longest {longest:.0f} ({other:.0f}) ms of {len(self.hooks)} "
            f"steps, {self.failed} sends failed"
        )


def undergo(made: Network, fault: Fault) -> Passed:
    """Let a fault happen, and wait until it is overcome."""
    passed = Passed(fault.name)
    before = [(len(worker.hooks), len(worker.posts)) for worker in made.workers]
    fault.begins(made)
    time.sleep(fault.seconds)
    for worker, (steps, _) in zip(made.workers, before, strict=True):
        (passed.hooks if worker in made.harmed else passed.unharmed_hooks).extend(worker.hooks[steps:])
    fault.ends(made)
    ended = time.monotonic()
    made.settle(ended)
    passed.settled = time.monotonic() - ended
    for worker, (_, posts) in zip(made.workers, before, strict=True):
        passed.failed += sum(bool(post.failure) for post in worker.posts[posts:])
    for worker in made.harmed:
        passed.returns.append(next(post.began - ended for post in worker.posts if post.began >= ended))
    return passed


def crowd(times: list[float], seconds: float = HERD_S) -> int:
    """The largest number of these moments that lie within some seconds of each other."""
    return max(sum(first <= other < first + seconds for other in times) for first in times)


def check_counts(made: Network) -> str:
    """Stop everything, then compare: totals with what was counted, drops with what was seen from outside.

    Returns: the counters, in words.

    Raises:
        AssertionError: they differ.
    """
    for worker in made.workers:
        worker.stop_steps()
    for worker in made.workers:
        worker.stop_sender()
    answer: dict[str, Any] = httpx.get(f"{made.service.url}/v1/ranks", timeout=30).json()
    (deployment,) = answer["deployments"]
    drops: Counter[str] = Counter()
    for rank, worker in zip(deployment["dp_ranks"], made.workers, strict=True):
        (producer,) = rank["producers"]
        assert rank["tokens"] == worker.tokens, (rank["dp_rank"], rank["tokens"], worker.tokens)
        assert producer["restarts"] == 0
        assert producer["drops"] == worker.drops_seen(), (producer["drops"], worker.drops_seen())
        drops.update(producer["drops"])
    layers = httpx.get(f"{made.service.url}/v1/histogram", timeout=30).json()["layers"]
    counted = torch.stack([worker.counts for worker in made.workers]).sum(0)
    assert [layer["counts"] for layer in layers] == counted.tolist()
    failures: Counter[str] = Counter()
    for worker in made.workers:
        failures.update(worker.failures())
    refused = failures.pop("ConnectionRefusedError", 0)
    injuries = made.proxy.injuries
    late = failures.pop("TimeoutError", 0) - injuries["silent"]
    assert late >= 0, (late, injuries)
    again = sum(worker.sent_again for worker in made.workers)
    assert again + failures.total() == injuries["reset"] + injuries["refused"], (again, failures, injuries)
    assert drops["sends_failed"] == injuries.total() - again + refused + late
    tokens = sum(worker.tokens for worker in made.workers)
    return (
        f"{tokens} tokens and every expert's slots equal; {drops['sends_failed']} sends failed = "
        f"{injuries.total()} that the proxy harmed - {again} sent again at once "
        f"+ {refused} refused connections + {late} late answers; "
        f"{drops['snapshots_put_off']} snapshots put off, {drops['snapshots_superseded']} superseded"
    )


def resets(seconds: float, share: float) -> Fault:
    """A share of the pieces, of either direction, break their connection."""

    def breaking(made: Network, so_many: float) -> None:
        made.proxy.reset_share = so_many

    return Fault("resets", seconds, lambda made: breaking(made, share), lambda made: breaking(made, 0.0))


def disorder(seconds: float) -> Fault:
    """Frames are doubled and reordered."""

    def disordering(made: Network, whether: bool) -> None:
        made.relay.disorder = whether

    return Fault(
        "doubled and reordered",
        seconds,
        lambda made: disordering(made, True),
        lambda made: disordering(made, False),
    )


def partition(seconds: float) -> Fault:
    """Nothing passes, and nothing says so."""
    name = f"partition of {seconds:g} s"
    return Fault(name, seconds, lambda made: made.proxy.partition(), lambda made: made.proxy.heal())


def refusal(seconds: float) -> Fault:
    """Connections are reset, and nobody listens."""
    return Fault("refused", seconds, lambda made: made.proxy.refuse(), lambda made: made.proxy.accept())


def slowness(seconds: float, interval: float) -> Fault:
    """A frame takes ten times as long as it takes until the next is due."""

    def slow(made: Network) -> None:
        made.proxy.rate = made.harmed[0].posts[-1].size / (SLOWER * interval)

    def fast(made: Network) -> None:
        made.proxy.rate = 0.0

    return Fault(f"{SLOWER} x slow", seconds, slow, fast)


def faults(options: Options) -> Outcome:
    """Everything that can go wrong between capture and service, one after the other."""
    logging.getLogger("vllm.moescope").setLevel(logging.ERROR)
    short = 6.0 if options.quick else 8.0
    plan = (
        Fault("healthy", short),
        partition(SHORT_CUT_S),
        *([] if options.quick else [partition(60.0)]),
        refusal(short),
        slowness(short, INTERVAL_S),
        resets(short, 0.1),
        disorder(short),
    )
    with network(options.folder, SENDERS, UNHARMED, INTERVAL_S, TIMEOUT_S) as made:
        passed = []
        for fault in plan:
            passed.append(undergo(made, fault))
            print(f"   {passed[-1].row()}", flush=True)
        counted = check_counts(made)
        results = ", ".join(f"{number} {name}" for name, number in sorted(made.relay.results.items()))
    ways = list(
        zip(passed[1:], (SHORT_HERD, HERD) if options.quick else (SHORT_HERD, HERD, HERD), strict=False)
    )
    slowest = max(percentile(one.hooks, 99) for one in passed)
    return Outcome(
        slowest <= HOOKS_P99_MS and all(crowd(one.returns) <= most for one, most in ways),
        f"{SENDERS} senders at {1 / STEP_S:.0f} steps/s, against {UNHARMED} beside them without a proxy: "
        f"{'; '.join(one.row() for one in passed)}. {counted}. Frames behind the proxy: {results}. "
        f"Tried again within any {HERD_S * 1e3:.0f} ms: "
        + ", ".join(
            f"at most {crowd(one.returns)} of {SENDERS} after {one.name}, the last after "
            f"{max(one.returns):.1f} s"
            for one, _ in ways
        ),
    )
