"""Microseconds of the counting kernel on a GPU, against an empty launch and against memory bandwidth.

    python -m benchmarks.gpu_kernel --out benchmarks/results/gpu_kernel.json

Each number is the time of one counting launch in a captured CUDA graph of many, the median over replays;
inputs rotate among sets that together exceed the L2 cache where they are large. Floors: the same grid of a
kernel that does nothing, and the ids' bytes, read once, over the bandwidth of a large copy on this device.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton

from moescope.capture.counting.launch import BLOCK, launch_layer, launch_step, num_blocks
from moescope.capture.counting.load_ring import LoadRing, ring_by_maps
from moescope.capture.counting.pointer_tables import PointerTables, table_entry
from moescope.capture.counting.reference import CountBuffers, count_rows
from moescope.capture.seam.replica_rule import ReplicaRule
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.step.word import Phase, pack_step
from moescope.capture.wire import MoeLayer
from tests.expert_maps import RandomMaps

TOKENS = (1, 8, 64, 256, 1024, 4096, 16384)
LAUNCHES = 48
REPLAYS = 40
L2_BYTES = 60 << 20
CUDA = torch.device("cuda", 0)
EP_SIZE = 8
REDUNDANT = 32
"""Physical experts of a layer beyond its logical ones, under EPLB with redundant experts."""
COLUMNS = (
    "empty_launch_us",
    "bytes_us",
    "per_step_us",
    "without_loads_us",
    "by_maps_us",
    "replicas_us",
    "mixed_us",
    "per_layer_us",
    "torch_us",
)


@triton.jit
def _empty(pointer) -> None:  # type: ignore[no-untyped-def]
    pass


class Case:
    """One shape and number of tokens: the ids of enough passes to outgrow the cache, and what counts them."""

    def __init__(self, num_layers: int, experts: int, top_k: int, tokens: int, skewed: bool) -> None:
        self.layers = [MoeLayer(index, experts, top_k) for index in range(num_layers)]
        self.tokens = tokens
        self.bytes = num_layers * tokens * top_k * 4
        # Linear placement on 8 EP ranks, as a server with expert parallelism has it.
        ep_ranks = np.tile(np.arange(experts, dtype=np.int32) * EP_SIZE // experts, (num_layers, 1))
        self.buffers = CountBuffers(self.layers, CUDA, tokens, LoadRing(ep_ranks, EP_SIZE, 0, CUDA))
        self.plain = CountBuffers(self.layers, CUDA, tokens)
        self.by_maps, self.replicas = (self._of_maps(redundant) for redundant in (0, REDUNDANT))
        for buffers in (self.buffers, self.plain, self.by_maps, self.replicas):
            buffers.phases[::3] = Phase.DECODE
            buffers.step_word.fill_(pack_step(tokens, Phase.DECODE))
        self.span = RowSpan(Layout.SINGLE_DP, 0, tokens, 0)
        sets = 1 if self.bytes * 2 < L2_BYTES else 1 + 2 * L2_BYTES // self.bytes
        if self.bytes < L2_BYTES // 32:
            sets = 4
        self.passes = [self._ids(experts, top_k, skewed, seed) for seed in range(max(2, min(sets, 8)))]
        self.tables = PointerTables(self.layers, CUDA)
        self.device_tables = [
            self.tables.for_graph({i: table_entry(ids, self.span) for i, ids in enumerate(one)})
            for one in self.passes
        ]
        self.tables.upload()

    def _of_maps(self, redundant: int) -> CountBuffers:
        """Buffers whose loads follow vLLM's own maps, of a placement at random."""
        experts = self.layers[0].num_experts
        rule = ReplicaRule.ROW_HASH if redundant else ReplicaRule.ONE_COPY
        maps = RandomMaps([experts] * len(self.layers), experts + redundant, EP_SIZE, CUDA)
        ring = ring_by_maps(maps.device_maps(CUDA, rule), EP_SIZE, CUDA)
        return CountBuffers(self.layers, CUDA, self.tokens, ring)

    def _ids(self, experts: int, top_k: int, skewed: bool, seed: int) -> list[torch.Tensor]:
        generator = torch.Generator(CUDA).manual_seed(seed)
        bias = torch.zeros(experts, device=CUDA)
        if skewed:
            bias[:top_k] = 4.0
        made = []
        for _ in self.layers:
            logits = torch.randn(self.tokens, experts, device=CUDA, generator=generator) + bias
            made.append(logits.topk(top_k, dim=-1).indices.to(torch.int32))
        return made

    def per_step(self, index: int, buffers: CountBuffers | None = None) -> None:
        """One launch for all layers, with phases and loads."""
        buffers = buffers or self.buffers
        table = self.device_tables[index % len(self.device_tables)]
        launch_step(table, buffers, buffers.flat, torch.int32, self.tokens * self.layers[0].top_k)

    def without_loads(self, index: int) -> None:
        """One launch for all layers, as with one EP rank."""
        self.per_step(index, self.plain)

    def following_maps(self, index: int) -> None:
        """One launch for all layers, under EPLB without redundant experts."""
        self.per_step(index, self.by_maps)

    def following_replicas(self, index: int) -> None:
        """One launch for all layers, under EPLB with redundant experts."""
        self.per_step(index, self.replicas)

    def per_layer(self, index: int) -> None:
        """One launch a layer."""
        buffers = self.buffers
        for ordinal, ids in enumerate(self.passes[index % len(self.passes)]):
            launch_layer(ids, self.span, buffers, ordinal, buffers.flat)

    def torch_operations(self, index: int) -> None:
        """The reference."""
        buffers = self.buffers
        for ordinal, ids in enumerate(self.passes[index % len(self.passes)]):
            count_rows(buffers, ordinal, ids, self.span, buffers.flat)

    def empty(self, index: int) -> None:  # noqa: ARG002 - called as the others are
        """A launch that does nothing, of the same size."""
        blocks = num_blocks(self.tokens * self.layers[0].top_k)
        _empty[(blocks, len(self.layers))](self.buffers.flat)

    def check(self) -> None:
        """The step kernel counts what the reference counts.

        Raises:
            AssertionError: it doesn't.
        """
        results = []
        for count in (self.per_step, self.torch_operations):
            assert self.buffers.ring is not None
            self.buffers.flat.zero_()
            self.buffers.ring.loads.zero_()
            count(0)
            results.append((self.buffers.flat.clone(), self.buffers.ring.loads[0].clone()))
        assert all(map(torch.equal, *results))
        assert int(results[0][1].sum()) > 0
        self.buffers.flat.zero_()


def microseconds(body: Callable[[int], None], launches: int) -> float:
    """The median time of one call of `body` in a graph of `launches` calls."""
    body(0)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for index in range(launches):
            body(index)
    times = []
    for _ in range(REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        start.record()  # type: ignore[no-untyped-call]
        graph.replay()
        end.record()  # type: ignore[no-untyped-call]
        end.synchronize()  # type: ignore[no-untyped-call]
        times.append(start.elapsed_time(end) * 1000 / launches)
    return statistics.median(times)


def bandwidth() -> float:
    """Bytes read and written per microsecond by a copy of 4 GiB within the device."""
    source = torch.empty(1 << 32, dtype=torch.uint8, device=CUDA).random_()
    target = torch.empty_like(source)

    def copy(_: int) -> None:
        target.copy_(source)

    return 2 * source.numel() / microseconds(copy, 4)


def mixed(case: Case) -> float:
    """Microseconds for a step of both phases, in which the kernel looks up the phase of each token."""
    case.buffers.step_word.fill_(pack_step(case.tokens, Phase.MIXED))
    case.check()
    result = microseconds(case.per_step, LAUNCHES)
    case.buffers.step_word.fill_(pack_step(case.tokens, Phase.DECODE))
    return result


def measure(shape: tuple[int, int, int], tokens: int, skewed: bool, speed: float) -> dict[str, Any]:
    """All numbers of one case."""
    case = Case(*shape, tokens, skewed)
    case.check()
    few = 4 if tokens > 1024 else 8
    return {
        "layers": shape[0],
        "experts": shape[1],
        "top_k": shape[2],
        "tokens": tokens,
        "routing": "skewed" if skewed else "uniform",
        "empty_launch_us": microseconds(case.empty, LAUNCHES),
        "bytes_us": case.bytes / speed,
        "per_step_us": microseconds(case.per_step, LAUNCHES),
        "without_loads_us": microseconds(case.without_loads, LAUNCHES),
        "by_maps_us": microseconds(case.following_maps, LAUNCHES),
        "replicas_us": microseconds(case.following_replicas, LAUNCHES),
        "mixed_us": mixed(case),
        "per_layer_us": microseconds(case.per_layer, few),
        "torch_us": microseconds(case.torch_operations, few),
    }


def main() -> None:
    """Measure, print a table, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    speed = bandwidth()
    rows = []
    print(f"{torch.cuda.get_device_name(0)}, copies at {speed / 1e6:.2f} TB/s, blocks of {BLOCK} slots")
    print(
        "layers,experts,top-k  routing  tokens    empty    bytes  per step  no loads  by maps   "
        "copies    mixed  per layer    torch   us a step"
    )
    for shape in ((48, 128, 8), (61, 384, 8)):
        for skewed in (False, True):
            for tokens in TOKENS:
                row = measure(shape, tokens, skewed, speed)
                rows.append(row)
                print(
                    f"{'x'.join(map(str, shape)):>20}  {row['routing']:>7}  {tokens:6d}  "
                    + "  ".join(f"{row[key]:7.2f}" for key in COLUMNS),
                    flush=True,
                )
    if options.out:
        device = torch.cuda.get_device_name(0)
        found = {"device": device, "torch": torch.__version__, "triton": triton.__version__}
        report = {**found, "copy_bytes_per_us": speed, "block": BLOCK, "rows": rows}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
