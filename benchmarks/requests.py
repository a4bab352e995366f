"""Questions about many requests over a store of a million tokens: the first one, which reads, and the next.

    python -m benchmarks.requests --tokens 1000000

Routing is that of `benchmarks.store`, and so are the requests. The questions are put to what is
behind the routes; HTTP is left out.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.store import WHO, arriving, encoded, routing, store_all
from moescope.capture.wire import MoeLayer, PlacementTable, pack_ids
from moescope.service.store.limits import Retention
from moescope.service.store.records import TraceQuery
from moescope.service.store.sqlite.store import SqliteStore
from moescope.service.store.writer import StoreWriter
from moescope.service.traces.concentrated import concentrated
from moescope.service.traces.similar import similar
from moescope.service.traces.slot_table import Compared, SlotTable
from moescope.service.traces.unusual import unusual

LIMIT = 10


def milliseconds(ask: Callable[[], object], times: int) -> tuple[list[float], list[float]]:
    """How long a question takes, some times, and how much of a core: all of it is in this thread."""
    took, cpu = [], []
    for _ in range(times):
        began, began_cpu = time.perf_counter(), time.thread_time()
        ask()
        took.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.thread_time() - began_cpu) * 1e3)
    return took, cpu


def linear(layers: list[MoeLayer], ep_size: int) -> dict[MoeLayer, PlacementTable]:
    """Experts on EP ranks in their order, as vLLM places them."""
    return {
        layer: PlacementTable(
            physical_to_logical=pack_ids(np.arange(layer.num_experts)),
            physical_to_ep_rank=pack_ids(np.arange(layer.num_experts) * ep_size // layer.num_experts),
        )
        for layer in layers
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--requests", type=int, help="default: one for 200 tokens")
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("--experts", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--ep-size", type=int, default=8)
    parser.add_argument("--mib", type=int, default=64, help="memory for counts (request_counts_mib)")
    parser.add_argument("--times", type=int, default=20)
    options = parser.parse_args()
    requests = options.requests or options.tokens // 200
    layers = [MoeLayer(n, options.experts, options.top_k) for n in range(options.layers)]
    experts, _ = routing(options.tokens, layers, np.random.default_rng(0))
    bodies, _, _ = encoded(arriving(experts, requests, 256), layers)
    del experts
    placed = linear(layers, options.ep_size)
    query = TraceQuery(server=WHO.server, model=WHO.model, limit=requests)
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder), Retention(max_bytes=1 << 40))
        writer = StoreWriter(store)
        store_all(writer, bodies, 32)
        del bodies
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        table = SlotTable(store, options.mib << 20)

        def compared() -> Compared:
            found = table.gather(store.listed(query), for_s=1e9, total=None)
            assert isinstance(found, Compared)
            return found

        [first], [first_cpu] = milliseconds(compared, 1)
        found = compared()
        print(
            f"{found.tokens} tokens of {found.requests} requests, {options.layers} layers, top-k "
            f"{options.top_k} of {options.experts}: {sum(group.nbytes for group in found.groups) >> 20} MiB "
            f"of counts, {found.left_out} requests left out"
        )
        print(f"{'read from the store for the first question':46} {first:8.0f} ms   CPU {first_cpu:8.0f} ms")
        [to] = store.slots([store.listed(query)[requests // 2].number])
        questions: dict[str, Callable[[], object]] = {
            "listed and gathered from memory": compared,
            "most unusual": lambda: unusual(compared().groups, "surprise_score", None, LIMIT),
            "most concentrated on an EP rank": lambda: concentrated(
                compared().groups, placed, options.ep_size, LIMIT
            ),
            "similar to one": lambda: similar(compared().groups, to, None, LIMIT),
        }
        for name, ask in questions.items():
            took, cpu = milliseconds(ask, options.times)
            p50, p99 = np.percentile(took, (50, 99))
            print(
                f"{name:46} p50 {p50:7.1f} ms   p99 {p99:7.1f} ms   CPU {np.median(cpu):7.1f} ms   "
                f"n {options.times}"
            )
        more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(f"most memory, above that of the service that stored them: {more >> 10} MiB")
        writer.close()


if __name__ == "__main__":
    main()
