"""moescope's part of a vLLM worker, without vLLM: real snapshots, frames and sender; a thread makes steps."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch

from moescope.capture.delivery.backoff import FIRST, Backoff
from moescope.capture.delivery.transport import DeliveryError, HttpTransport
from moescope.capture.frames.builder import FrameBuilder
from moescope.capture.frames.sender import FrameSender
from moescope.capture.frames.snapshot import Snapshot
from moescope.capture.frames.taker import SnapshotTaker
from moescope.capture.step.totals import StepTokens, Totals
from moescope.capture.wire import Frame, MoeLayer, Producer

LAYERS: Final = 16
EXPERTS: Final = 64
TOP_K: Final = 2
TOKENS_A_STEP: Final = 8
STEP_S: Final = 0.02


class _Taker(SnapshotTaker):
    collected = 0

    def collect(self) -> Snapshot | None:
        snapshot = super().collect()
        self.collected += snapshot is not None
        return snapshot


class _Builder(FrameBuilder):
    def __init__(self, producer: Producer, layers: list[MoeLayer]) -> None:
        super().__init__(producer, time.time_ns(), layers, [], None)
        self.arrived: set[int] = set()
        self._under_way = 0

    def build(self, snapshot: Snapshot, drops: Mapping[str, int], ended: bool = False) -> Frame:
        self._under_way = snapshot.captured_at_ns
        return super().build(snapshot, drops, ended)

    def delivered(self) -> None:
        self.arrived.add(self._under_way)
        super().delivered()


@dataclass(frozen=True, slots=True)
class Post:
    """An attempt to deliver a frame; ``failure`` is empty if it arrived."""

    began: float
    failure: str
    size: int


class _Transport(HttpTransport):
    def __init__(self, endpoint: str, timeout: float) -> None:
        super().__init__(endpoint, None, timeout)
        self.posts: list[Post] = []
        self.exchanges = 0

    def _exchange(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        self.exchanges += 1
        return super()._exchange(body)

    def post(self, body: bytes) -> None:
        began, failure = time.monotonic(), ""
        try:
            super().post(body)
        except DeliveryError as error:
            failure = error.kind
            raise
        finally:
            self.posts.append(Post(began, failure, len(body)))


@dataclass
class _Source:
    totals: Totals
    disabled_reason: str | None = None


class WorkerSide:
    """Steps of decode that count ``TOKENS_A_STEP`` tokens each, and the sender beside them.

    Attributes:
        posts: the attempts to deliver a frame so far.
        hooks: seconds that `step_begins` and `step_ends` took together, of each step.
        steps: how many were made so far.

    ``first_wait`` is the limit of the wait after a first failure, seconds.
    """

    def __init__(
        self, endpoint: str, rank: int, ranks: int, interval: float, timeout: float, first_wait: float = FIRST
    ) -> None:
        layers = [MoeLayer(1 + layer, EXPERTS, TOP_K) for layer in range(LAYERS)]
        self._share = _share(rank)
        self._flat = torch.zeros_like(self._share)
        self._source = _Source(Totals())
        self._taker = _Taker(self._flat, self._source, interval)
        self._builder = _Builder(
            Producer(server="soak", model="soak/moe", dp_rank=rank, dp_size=ranks), layers
        )
        self._transport = _Transport(endpoint, timeout)
        self._sender = FrameSender(
            self._taker, self._builder, self._transport, interval, backoff=Backoff(first_wait)
        )
        self._phase = rank / ranks
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.hooks: list[float] = []

    @property
    def posts(self) -> list[Post]:
        """A copy of the attempts so far."""
        return list(self._transport.posts)

    @property
    def sent_again(self) -> int:
        """Posts that were sent again at once over a new connection, because the old one had ended."""
        return self._transport.exchanges - len(self._transport.posts)

    @property
    def tokens(self) -> int:
        """Tokens counted so far."""
        return self._source.totals.tokens

    @property
    def counts(self) -> torch.Tensor:
        """Slots of each layer's experts so far: int64 [layers, experts]."""
        return self._flat[: 2 * LAYERS * EXPERTS].view(2, LAYERS, EXPERTS).sum(0)

    def start(self) -> None:
        """Start the steps and the sender."""
        self._sender.start()
        self._thread.start()

    def stop_steps(self) -> None:
        """End the steps; the sender goes on."""
        self._stop.set()
        self._thread.join()

    def stop_sender(self) -> None:
        """End the sender, which sends what is left."""
        self._sender.stop(timeout=10)

    def drops_seen(self) -> dict[str, int]:
        """The drops that a frame should report, judged by what was seen from outside of the sender."""
        return {
            "sends_failed": sum(bool(post.failure) for post in self.posts),
            "snapshots_put_off": self._taker.put_off,
            "snapshots_superseded": self._taker.collected - len(self._builder.arrived),
        }

    def failures(self) -> Counter[str]:
        """Failed attempts by their kind."""
        return Counter(post.failure for post in self.posts if post.failure)

    def _run(self) -> None:
        due = time.monotonic() + self._phase * STEP_S
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            due = max(due + STEP_S, time.monotonic())
            began = time.perf_counter()
            self._taker.step_begins()
            begun = time.perf_counter()
            self._flat += self._share
            self._source.totals = self._source.totals.with_step(StepTokens(TOKENS_A_STEP, TOKENS_A_STEP))
            ends = time.perf_counter()
            self._taker.step_ends()
            self.hooks.append(time.perf_counter() - ends + begun - began)


def _share(rank: int) -> torch.Tensor:
    """What a step adds: int64, laid out as `CountBuffers.flat`; every rank chooses other experts."""
    counts = torch.zeros(2, LAYERS, EXPERTS, dtype=torch.int64)
    chosen = torch.Generator().manual_seed(rank)
    for layer in range(LAYERS):
        experts = torch.randint(EXPERTS, (TOKENS_A_STEP * TOP_K,), generator=chosen)
        counts[1, layer].scatter_add_(0, experts, torch.ones_like(experts))
    rows = torch.zeros(2, LAYERS, dtype=torch.int64)
    rows[1] = TOKENS_A_STEP
    return torch.cat([counts.flatten(), rows.flatten()])
