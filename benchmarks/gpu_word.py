"""What the step's word costs on a GPU: by a fill, which is a launch, and by the stream's own write.

    python -m benchmarks.gpu_word

A step here is a replay of a CUDA graph with a few small kernels and the counting kernel of 48 layers at batch
8, with its word written before it and 0 after it. The ways take turns in blocks of steps, in a new order in
each round, in one process:

- "none": the word is written once, before the block;
- "fill": two fills a step;
- "stream-write": two writes by the stream a step.

Host: microseconds of the two calls, and of a capturer's whole `begin_step` and `end_step`, with nothing else
enqueued between. GPU: microseconds of a step between two events, while all of the block waits in the queue
behind a kernel that spins, so that the host has no part in it. Given are means over blocks without their
slowest tenth, with 95 % intervals, Student's; "more" is against "none" on the GPU. Before it measures, each
way has to count the same tokens in steps, and none in the dummy steps between them.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import triton

from benchmarks.intervals import half_interval, half_interval_of
from benchmarks.results_file import keep, parser_of
from moescope.capture.counting.capturer import RoutingCapturer
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.counting.word_writer import (
    Driver,
    FillWriter,
    StreamWriter,
    WordWriter,
    current_device_of,
    current_stream_of,
)
from moescope.capture.seam.rows import Ranks, StepRows
from moescope.capture.step.totals import StepTokens
from moescope.capture.step.word import Phase, pack_step
from moescope.capture.wire import MoeLayer

CUDA: Final = torch.device("cuda", 0)
RESULTS: Final = Path(__file__).with_name("results") / "gpu_word.json"
LAYERS: Final = [MoeLayer(index, 128, 8) for index in range(48)]
BATCH: Final = 8
WORD: Final = pack_step(BATCH, Phase.DECODE)
BLOCK: Final = 100
"""Steps of a block: all that they enqueue fits the queue of a stream, so that the host never waits in it."""
ROUNDS: Final = 300
SPIN_CYCLES: Final = 12_000_000
"""About 6 ms: longer than it takes to enqueue a block."""
ATTEMPTS: Final = 5
"""Of a block that the host did not enqueue in time."""
KEPT: Final = 0.9
"""The share of the blocks that counts, the fastest ones: in others something else had the processor."""


class Constant:
    """Writes nothing: the word stays as it is."""

    name = "none"

    def write(self, value: int) -> None:
        """Nothing."""


class Bench:
    """A model of 48 layers that routes at random, its capturer, and a graph of its pass."""

    def __init__(self) -> None:
        self.buffers = CountBuffers(LAYERS, CUDA, BATCH)
        self.capturer = RoutingCapturer(self.buffers, Ranks(), lambda: StepRows(None, None))
        self.word = self.buffers.step_word
        self.writers: dict[str, WordWriter] = {"none": Constant(), "fill": FillWriter(self.word)}
        if Driver().can_write(0):
            self.writers["stream-write"] = StreamWriter(
                self.word, Driver(), current_stream_of(), current_device_of()
            )
        generator = torch.Generator(CUDA).manual_seed(0)
        self._ids = [
            torch.rand(BATCH, layer.num_experts, device=CUDA, generator=generator)
            .topk(layer.top_k)
            .indices.to(torch.int32)
            for layer in LAYERS
        ]
        self._activations = torch.rand(BATCH, 512, device=CUDA, generator=generator)
        self._pass()
        torch.cuda.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self._pass()
        self.capturer.begin_step(1, 1)  # uploads the graph's table of pointers
        self.capturer.end_step()

    def _pass(self) -> None:
        for _ in range(4):
            self._activations.mul_(1.0)
        for ordinal, ids in enumerate(self._ids):
            self.capturer.record(ordinal, ids)

    def tokens_of(self, writer: WordWriter, steps: int) -> list[int]:
        """Tokens that each layer counts in so many steps, with a dummy step behind each of them."""
        self.buffers.flat.zero_()
        for _ in range(steps):
            writer.write(WORD)
            self.graph.replay()
            writer.write(0)
            self.graph.replay()
        return [int(self.buffers.rows_of(ordinal)) for ordinal in range(len(LAYERS))]

    def check(self) -> None:
        """Raises an AssertionError if a way of writing counts other tokens than those of the steps."""
        for name, writer in self.writers.items():
            if name != "none":
                assert set(self.tokens_of(writer, 500)) == {500 * BATCH}, name

    def on_gpu(self, writer: WordWriter) -> float:
        """Microseconds of a step on the GPU.

        Raises:
            RuntimeError: the host is too slow to enqueue a block while the device spins.
        """
        for _ in range(ATTEMPTS):
            took = self._queued(writer)
            if took is not None:
                return took
        raise RuntimeError("the device does not spin for long enough")

    def _queued(self, writer: WordWriter) -> float | None:
        """Microseconds of a step on the GPU; None if it had begun before the block was enqueued."""
        self.word.fill_(WORD)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        torch.cuda._sleep(SPIN_CYCLES)  # type: ignore[no-untyped-call]
        start.record()  # type: ignore[no-untyped-call]
        for _ in range(BLOCK):
            writer.write(WORD)
            self.graph.replay()
            writer.write(0)
        end.record()  # type: ignore[no-untyped-call]
        held = not start.query()  # type: ignore[no-untyped-call]
        end.synchronize()  # type: ignore[no-untyped-call]
        if not held:
            return None
        return float(start.elapsed_time(end)) * 1000 / BLOCK  # type: ignore[no-untyped-call]

    def calls(self, writer: WordWriter) -> float:
        """Microseconds of the host for the two writes of a step."""

        def step() -> None:
            writer.write(WORD)
            writer.write(0)

        return _host(step)

    def whole(self, writer: WordWriter) -> float:
        """Microseconds of the host for a capturer's begin and end of a step."""
        self.capturer._word = writer
        capturer, tokens = self.capturer, StepTokens(BATCH, BATCH)

        def step() -> None:
            capturer.begin_step_of(tokens)
            capturer.end_step()

        return _host(step)


def _host(step: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    began = time.perf_counter_ns()
    for _ in range(BLOCK):
        step()
    return (time.perf_counter_ns() - began) / 1000 / BLOCK


def measure(bench: Bench, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Microseconds a step of each block that counts, by what is measured and way of writing."""
    kinds = {"gpu": bench.on_gpu, "host, calls": bench.calls, "host, begin and end": bench.whole}
    names = list(bench.writers)
    found: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in names} for kind in kinds}
    rng = random.Random(0)  # noqa: S311
    for number in range(10 + rounds):
        for kind, time_of in kinds.items():
            for name in rng.sample(names, len(names)):
                took = time_of(bench.writers[name])
                if number >= 10:
                    found[kind][name].append(took)
    return {
        kind: {name: sorted(values)[: max(2, int(KEPT * len(values)))] for name, values in ways.items()}
        for kind, ways in found.items()
    }


def rows_of(found: dict[str, dict[str, list[float]]]) -> list[dict[str, Any]]:
    """Means, and on top of "none", with half of their 95 % intervals, in microseconds a step."""
    rows = []
    for kind, ways in found.items():
        for name, values in ways.items():
            rows.append(
                {
                    "what": kind,
                    "word": name,
                    "us": round(statistics.fmean(values), 3),
                    "us_half": round(half_interval_of(values), 3),
                    "more": round(statistics.fmean(values) - statistics.fmean(ways["none"]), 3),
                    "more_half": round(half_interval(values, ways["none"]), 3),
                }
            )
    return rows


def main() -> None:
    """Check, measure, print the table, and write it."""
    options: argparse.Namespace = parser_of(__doc__, RESULTS, ROUNDS).parse_args()
    bench = Bench()
    bench.check()
    device, chosen = torch.cuda.get_device_name(0), bench.capturer.word_writer
    print(f"{device}: microseconds a step of batch {BATCH}; a capturer here chooses {chosen}", flush=True)
    rows = rows_of(measure(bench, options.runs))
    for row in rows:
        print(
            f"{row['what']:<20} {row['word']:<13} {row['us']:8.3f} +- {row['us_half']:.3f}"
            f"   more: {row['more']:+7.3f} +- {row['more_half']:.3f}"
        )
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    keep(options, rows, device=device, cuda=str(torch.version.cuda), **versions)


if __name__ == "__main__":
    main()
