"""Where capture's cost is in a step: the time of each of its kernels on the GPU, mode by mode.

    python -m benchmarks.gpu_parts --shape qwen3 --out results.json

Decode, by the engine of `benchmarks.gpu_overhead` with the modes of its `--experiment references`
and its sets of CUDA graphs. The profiler's durations of kernels leave out all that the host does, and so tell
microseconds in a step of milliseconds. A number is the mean over the sets of graphs of a mode, against that
of "off", with a 95 % interval: Student's, over the sets. Then set by set: how many empty blocks of memory
were held while it was captured, and what all kernels of a step take, in each mode. The sets of a mode differ
in nothing else.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_engine import BATCHES, MORE_OF, SHAPES, Engine, Set, prepare_environment, write_report
from benchmarks.gpu_overhead import PROMPT
from benchmarks.intervals import half_interval
from devkit.frame_sink import FrameSink

STEPS: Final = 12
"""In a profile."""
SETTLE: Final = 4
ALL: Final = "all kernels"
GAPS: Final = "between kernels"
EXPERTS: Final = "fused_moe_kernel"
"""vLLM's Triton experts launch it twice a layer: up and gate, then down."""
LONGEST_GAP_NS: Final = 20_000
"""A longer one is between steps, where the host is busy."""
SHOWN: Final = 8

Parts = dict[str, float]
"""Microseconds in a step, by kernel."""


def profile_block(engine: Engine, which: Set, batch: int) -> Parts:
    """Run some decode steps with a set of graphs."""
    engine.switch(which)
    engine.add(batch, PROMPT, SETTLE + STEPS + 8)
    while not engine.prefilled(batch):
        engine.step()
    for _ in range(SETTLE):
        engine.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            engine.step()
        torch.cuda.synchronize()
    engine.drain()
    return parts_of(profiler.profiler.kineto_results.events())


def parts_of(events: Any) -> Parts:
    """Sum up the device's events of `STEPS` steps."""
    ran = sorted(
        (event.start_ns(), event.duration_ns(), event.name())
        for event in events
        if event.device_type() == DeviceType.CUDA and event.duration_ns() > 0
    )
    parts: Parts = defaultdict(float)
    end, expert_launches = ran[0][0], 0
    for start, duration, name in ran:
        kernel = name
        if name == EXPERTS:
            kernel = f"{EXPERTS}, {('up and gate', 'down')[expert_launches % 2]}"
            expert_launches += 1
        for part in (kernel, ALL):
            parts[part] += duration / STEPS / 1000
        if 0 < start - end < LONGEST_GAP_NS:
            parts[GAPS] += (start - end) / STEPS / 1000
        end = max(end, start + duration)
    return dict(parts)


def against_off(blocks: dict[Set, list[Parts]], mode: str) -> dict[str, dict[str, float]]:
    """By kernel: us in a step of this mode, those more than in "off", half of that one's 95 % interval."""
    found = {}
    for part in sorted({part for parts in blocks.values() for one in parts for part in one}):
        mine, offs = (
            [
                statistics.fmean(one.get(part, 0.0) for one in parts)
                for which, parts in blocks.items()
                if which.mode == wanted
            ]
            for wanted in (mode, "off")
        )
        mean = statistics.fmean(mine)
        more = mean - statistics.fmean(offs)
        found[part] = {"us": mean, "more": more, "half": half_interval(mine, offs)}
    return found


def of_layouts(blocks: dict[Set, list[Parts]]) -> dict[int, dict[str, float]]:
    """Microseconds of all kernels in a step by blocks held, in rising order, and mode."""
    found: dict[int, dict[str, float]] = {held: {} for held in sorted({which.held for which in blocks})}
    for which, parts in blocks.items():
        found[which.held][which.mode] = statistics.fmean(one[ALL] for one in parts)
    return found


def main() -> None:
    """Profile, print tables, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3")
    parser.add_argument("--batch", type=int, choices=BATCHES, default=MORE_OF, help="requests that decode")
    parser.add_argument("--rounds", type=int, default=3, help="in which each set is profiled once")
    parser.add_argument("--more-sets", type=int, default=11, help="of graphs, in each mode, beyond 5")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sink = FrameSink()
    prepare_environment(sink.url)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(options.shape, Path(folder), options.more_sets, "references", options.batch)
        sets = engine.sets(options.batch)
        profile_block(engine, sets[0], options.batch)
        blocks: dict[Set, list[Parts]] = {which: [] for which in sets}
        rng = random.Random(0)  # noqa: S311
        for _ in range(options.rounds):
            for which in rng.sample(sets, len(sets)):
                blocks[which].append(profile_block(engine, which, options.batch))
        modes = {mode: against_off(blocks, mode) for mode in dict.fromkeys(which.mode for which in sets)}
        for mode, parts in modes.items():
            _print_mode(mode, parts)
        by_layout = of_layouts(blocks)
        _print_layouts(by_layout)
        if options.out:
            report = {
                "shape": options.shape,
                "batch": options.batch,
                "device": torch.cuda.get_device_name(0),
                "sets of each mode": len(sets) // len(modes),
                "modes": modes,
                "all kernels by blocks held": by_layout,
                "capturer": engine.close(),
            }
            write_report(options.out, report)
    os._exit(0)  # vLLM's own shutdown is not what is measured


def _print_mode(mode: str, parts: dict[str, dict[str, float]]) -> None:
    print(mode)
    largest = sorted(parts, key=lambda part: -abs(parts[part]["more"]))[:SHOWN]
    for part in dict.fromkeys([ALL, GAPS, *largest]):
        one = parts[part]
        change = f"{one['more']:+8.2f} us (+- {one['half']:.2f})"
        print(f"  {one['us']:10.1f} us  {change:<26} {part[:70]}", flush=True)


def _print_layouts(by_layout: dict[int, dict[str, float]]) -> None:
    for held, modes in by_layout.items():
        cells = "  ".join(f"{mode} {us:.1f} us" for mode, us in modes.items())
        print(f"{held:>4} blocks held: {cells}", flush=True)


if __name__ == "__main__":
    main()
