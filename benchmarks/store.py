"""The embedded store under load: traces in while a reader queries, then the queries alone.

    python -m benchmarks.store --tokens 1000000

Synthetic routing: in each layer a skewed preference for experts, distinct top-k by Gumbel noise. Requests
of equal length grow a token a step side by side, as decode does; when they end, they are encoded, decoded
and stored, some in a transaction, by one process. HTTP is left out.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from moescope.capture.trace_buffer import Trace
from moescope.capture.trace_sender import encode_trace
from moescope.capture.trace_wire import decode_part
from moescope.capture.wire import MoeLayer, Producer
from moescope.service.store.records import ArrivedPart, TraceQuery
from moescope.service.store.retention import Retention
from moescope.service.store.sqlite import SqliteStore

WHO = Producer(server="bench", model="bench", dp_rank=0, dp_size=1)
BATCH = 32


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

    def ask(self, rng: np.random.Generator) -> None:
        """One question of each kind."""
        began = time.perf_counter()
        found = self._store.traced_requests(TraceQuery(name=f"r{rng.integers(self._requests)}", limit=2))
        if found:
            self._store.traces(found[0].number, None)
            self.by_id.append(time.perf_counter() - began)
        layer = self._layers[rng.integers(len(self._layers))]
        began = time.perf_counter()
        query = TraceQuery(layer=layer.layer, expert=int(rng.integers(layer.num_experts)), limit=100)
        self._store.traced_requests(query)
        self.by_expert.append(time.perf_counter() - began)


def report(name: str, seconds: list[float]) -> None:
    """Print the quantiles of some durations."""
    p50, p99 = np.percentile(np.array(seconds) * 1e3, (50, 99))
    print(f"{name:44} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   n {len(seconds)}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, help="default: one for 200 tokens")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--at-once", type=int, default=256)
    options = parser.parse_args()
    requests = options.requests or options.tokens // 200
    layers = [MoeLayer(n, options.experts, options.top_k) for n in range(options.layers)]
    experts, entropy = routing(options.tokens, layers, np.random.default_rng(0))

    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder), Retention(max_bytes=1 << 40))
        reader = Reader(store, requests, layers, pause_s=0.02)
        reader.start()
        grow_s = encode_s = decode_s = save_s = 0.0
        batch: list[ArrivedPart] = []
        traces = arriving(experts, requests, options.at_once)
        for _ in range(requests):
            began = time.perf_counter()
            trace = next(traces)
            grown = time.perf_counter()
            bodies = list(encode_trace(trace, layers, WHO, 1))
            encoded = time.perf_counter()
            batch += [ArrivedPart(decode_part(body), 1.7e9) for body in bodies]
            decoded = time.perf_counter()
            if len(batch) >= BATCH:
                store.save(batch)
                batch = []
            saved = time.perf_counter()
            grow_s, encode_s = grow_s + grown - began, encode_s + encoded - grown
            decode_s, save_s = decode_s + decoded - encoded, save_s + saved - decoded
        store.save(batch)
        reader.stopping.set()
        reader.join()
        during = reader.by_id, reader.by_expert
        reader.by_id, reader.by_expert = [], []
        rng = np.random.default_rng(2)
        for _ in range(300):
            reader.ask(rng)
        nbytes = store.usage().nbytes
        store.close()

    tokens = requests * (options.tokens // requests)
    print(f"{tokens} tokens of {options.layers} x {options.top_k} of {options.experts}, {requests} requests")
    print(f"worker, a token a step: {tokens / grow_s:12.0f} tokens/s   encoding: {tokens / encode_s:.0f}")
    print(
        f"service: stored {tokens / (decode_s + save_s):.0f} tokens/s (decoding and checks {decode_s:.1f} s, "
    )
    print(f"         store {save_s:.1f} s), with a reader")
    print(
        f"disk: {nbytes / 2**20:.0f} MiB, {nbytes / experts.nbytes:.3f} of raw; entropy {entropy:.3f} of raw"
    )
    report("by request id, whole trace, while writing", during[0])
    report("by layer and expert, 100 newest, while writing", during[1])
    report("by request id, whole trace", reader.by_id)
    report("by layer and expert, 100 newest", reader.by_expert)


if __name__ == "__main__":
    main()
