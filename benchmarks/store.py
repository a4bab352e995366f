"""The embedded store under load: traces in while a reader queries, then the queries alone.

    python -m benchmarks.store --tokens 1000000

Routing is synthetic: in each layer a skewed preference for experts, distinct top-k by Gumbel noise.

First comes the workers' part, which is timed apart. Requests of equal length grow a token a step side by
side, as in decode; when they end, they are encoded. Then comes the service's part. `--senders` workers send
one part after the other, each when its last one is acknowledged. The service's own writing thread decodes,
checks and stores the parts, while a reader asks. HTTP is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np

from moescope.capture.tracing.buffer import Trace
from moescope.capture.tracing.sender import encode_trace
from moescope.capture.wire import MoeLayer, Producer
from moescope.capture.wire.traces import decode_part
from moescope.service.store.limits import Retention
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.writer import StoreWriter

WHO = Producer(server="bench", model="bench", dp_rank=0, dp_size=1)


def routing(tokens: int, layers: list[MoeLayer], rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Experts uint8 [tokens, layers x top_k], and their zeroth-order entropy as a share of a byte each."""
    columns, bits = [], []
    for layer in layers:
        preference = rng.normal(0, 1, layer.num_experts).astype(np.float32)
        chunks = []
        for start in range(0, tokens, 50_000):
            n = min(50_000, tokens - start)
            noise = preference - np.log(rng.standard_exponential((n, layer.num_experts), np.float32) + 1e-30)
            best = np.argpartition(-noise, layer.top_k, axis=1)[:, : layer.top_k]
            chunks.append(best.astype(np.uint8))
        ids = np.concatenate(chunks)
        share = np.bincount(ids.reshape(-1), minlength=layer.num_experts) / ids.size
        bits.append(-(share[share > 0] * np.log2(share[share > 0])).sum())
        columns.append(ids)
    return np.concatenate(columns, axis=1), float(np.mean(bits)) / 8


def arriving(experts: np.ndarray, requests: int, at_once: int) -> Iterator[Trace]:
    """Traces in the order of their ends: `at_once` requests grow a token a step, then the next."""
    length = len(experts) // requests
    for first in range(0, requests, at_once):
        group = range(first, min(first + at_once, requests))
        traces = [
            Trace(f"cmpl-r{n}-0-{n:08x}", [f"cmpl-r{n}", f"r{n}"], length, 0, number=n + 1) for n in group
        ]
        for step in range(length):
            for n, trace in zip(group, traces, strict=True):
                row = n * length + step
                trace.add(step, experts[row : row + 1].copy(), step)
        for trace in traces:
            trace.close()
            yield trace


class Reader(threading.Thread):
    """Asks for random requests and expert hits until it is stopped; notes seconds."""

    def __init__(self, store: SqliteStore, requests: int, layers: list[MoeLayer], pause_s: float) -> None:
        super().__init__()
        self.by_id: list[float] = []
        self.by_expert: list[float] = []
        self.cpu_s = 0.0
        self.stopping = threading.Event()
        self._store = store
        self._requests = requests
        self._layers = layers
        self._pause_s = pause_s

    def run(self) -> None:
        """Ask until stopped."""
        rng = np.random.default_rng(1)
        while not self.stopping.wait(self._pause_s):
            self.ask(rng)
        self.cpu_s = time.thread_time()

    def ask(self, rng: np.random.Generator) -> None:
        """One question of each kind."""
        began = time.perf_counter()
        found = self._store.traced_requests(TraceQuery(name=f"r{rng.integers(self._requests)}", limit=2))
        if found:
            for worker in self._store.traces(found[0].number, None):
                _ = worker.positions, worker.experts
            self.by_id.append(time.perf_counter() - began)
        layer = self._layers[rng.integers(len(self._layers))]
        began = time.perf_counter()
        query = TraceQuery(layer=layer.layer, expert=int(rng.integers(layer.num_experts)), limit=100)
        self._store.traced_requests(query)
        self.by_expert.append(time.perf_counter() - began)


def encoded(traces: Iterator[Trace], layers: list[MoeLayer]) -> tuple[list[bytes], float, float]:
    """The parts of all traces as the workers send them; seconds of growing and of encoding."""
    bodies: list[bytes] = []
    grow_s = encode_s = 0.0
    while True:
        began = time.perf_counter()
        trace = next(traces, None)
        grown = time.perf_counter()
        grow_s += grown - began
        if trace is None:
            return bodies, grow_s, encode_s
        bodies += encode_trace(trace, layers, WHO, 1)
        encode_s += time.perf_counter() - grown


def store_all(writer: StoreWriter, bodies: Sequence[bytes], senders: int) -> float:
    """Store all parts, at most `senders` of them on the way at a time; seconds until all are acknowledged."""
    waiting: deque[Future[None]] = deque()
    began = time.perf_counter()
    for body in bodies:
        if len(waiting) == senders:
            waiting.popleft().result()
        waiting.append(writer.submit([ArrivedPart(decode_part(body), time.time())]))
    for future in waiting:
        future.result()
    return time.perf_counter() - began


def report(name: str, seconds: list[float]) -> None:
    """Print the quantiles of some durations."""
    p50, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
    print(f"{name:46} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   n {len(seconds)}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, help="default: one for 200 tokens")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=256)
    parser.add_argument("--senders", type=int, default=32)
    options = parser.parse_args()
    requests = options.requests or options.tokens // 200
    layers = [MoeLayer(n, options.experts, options.top_k) for n in range(options.layers)]
    experts, entropy = routing(options.tokens, layers, np.random.default_rng(0))
    raw = experts.nbytes
    bodies, grow_s, encode_s = encoded(arriving(experts, requests, options.at_once), layers)
    del experts

    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder), Retention(max_bytes=1 << 40))
        writer = StoreWriter(store)
        reader = Reader(store, requests, layers, pause_s=0.02)
        reader.start()
        cpu_s = -time.process_time()
        store_s = store_all(writer, bodies, options.senders)
        reader.stopping.set()
        reader.join()
        cpu_s += time.process_time()
        during = reader.by_id, reader.by_expert
        reader.by_id, reader.by_expert = [], []
        rng = np.random.default_rng(2)
        for _ in range(300):
            reader.ask(rng)
        with_log = store.usage().nbytes
        writer.close()  # what is in the log goes into the database
        nbytes = sum(path.stat().st_size for path in Path(folder).glob("moescope.sqlite*"))

    tokens = requests * (options.tokens // requests)
    print(f"{tokens} tokens of {options.layers} x {options.top_k} of {options.experts}, {requests} requests")
    print(
        f"workers, a token a step: {tokens / grow_s:.0f} tokens/s; encoding: {tokens / encode_s:.0f} tokens/s"
    )
    print(
        f"service, {options.senders} senders and a reader: {tokens / store_s:.0f} tokens/s acknowledged "
        f"({store_s:.1f} s; CPU {cpu_s - reader.cpu_s:.1f} s, the reader's {reader.cpu_s:.1f} s)"
    )
    print(
        f"disk: {nbytes / 2**20:.0f} MiB, {nbytes / raw:.3f} of raw; with SQLite's log before it was "
        f"checkpointed {with_log / 2**20:.0f} MiB, {with_log / raw:.3f}; entropy {entropy:.3f}"
    )
    report("by request id, whole trace, while writing", during[0])
    report("by layer and expert, 100 newest, while writing", during[1])
    report("by request id, whole trace", reader.by_id)
    report("by layer and expert, 100 newest", reader.by_expert)


if __name__ == "__main__":
    main()
