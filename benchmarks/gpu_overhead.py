"""What capture costs a real vLLM engine on a GPU: the time of a step, in one process, mode by mode.

    python -m benchmarks.gpu_overhead --shape qwen3 --out results.json

One engine with dummy weights captures its CUDA graphs several times for each mode, the modes in turn, and
switches between these sets of graphs. Capture is as with expert parallelism over 8 ranks, which are
pretended: phases apart, and loads by EP rank of each step. A block is a fixed batch of requests from its
start: the same tokens, the same experts, the same lengths in every block; its number is the median step. Each
round runs one block with each set, in a new random order, so that both sides of a ratio have the same
weights, memory and clocks.

A set's number is the median over rounds of log(its block / median of the round's "off" blocks). Where vLLM's
tensors lie in a graph's memory makes its own kernels faster or slower by more than capture costs, and what an
operator gets of that is chance. So each set has a pool of its own and another layout, by empty blocks held
while it is captured, as many in each mode; and a mode's 95 % interval is Student's over its sets and those of
"off", and not over rounds. A mode of one set has it over rounds.

Modes: "moescope"; "vllm", its own `enable_return_routed_experts`; "hooks", a mask and a scatter_add in torch
in every layer's callback, as peers do it. In "off" the worker is moescope's, without callbacks and marks.

`--dp 2` runs two DP ranks with expert parallelism, a GPU and a process each, in step with each other: both
switch modes together, and the times are those of rank 0. Each batch is that of one rank.

`--loads 8 --without hooks` measures one load, and leaves out a mode; `--more-of 1` captures the many sets for
batch 1 and not for batch 8. `--limit 560` ends within ten minutes, with the rounds that were run by then.

`--experiment references`, batch 8 only, takes apart what capture costs: "nothing", callbacks that return at
once; "references", that keep the ids until the last layer. `benchmarks.gpu_parts` does so kernel by kernel.
`--experiment traces`: "moescope" could trace and has nothing to, "traced" traces every request.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

from benchmarks.gpu_engine import (
    BATCHES,
    MORE,
    MORE_OF,
    PREFILL_TOKENS,
    SHAPES,
    Engine,
    Set,
    prepare_environment,
    write_report,
)
from benchmarks.gpu_ranks import Followers
from benchmarks.intervals import half_interval, half_interval_of
from devkit.frame_sink import FrameSink

PROMPT: Final = 64
EXTRAS: Final = ("vllm", "hooks")
LOADS: Final = (*map(str, BATCHES), "prefill")
MIN_ROUNDS: Final = 2
SETTLE: Final = 3
"""Steps at the start of a block that are not counted: some were under way before the switch."""


class Plan(NamedTuple):
    """How much to measure of one load; without steps, the load is the prefill of the requests."""

    name: str
    rounds: int
    steps: int
    requests: int
    length: int


def measure(engine: Engine, plan: Plan, deadline: float = math.inf) -> list[dict[Set, float]]:
    """Milliseconds of a block by set, a dict for each round; none begins after the deadline (monotonic)."""

    def decode(which: Set) -> float:
        engine.switch(which)
        engine.add(plan.requests, plan.length, SETTLE + plan.steps + 8)
        while not engine.prefilled(plan.requests):
            engine.step()
        times = [engine.step() for _ in range(SETTLE + plan.steps)]
        engine.drain()
        return statistics.median(times[SETTLE:])

    def prefill(which: Set) -> float:
        engine.switch(which)
        engine.add(plan.requests, plan.length, 1)
        total = 0.0
        while engine.llm.llm_engine.has_unfinished_requests():
            total += engine.step()
        return total

    block = decode if plan.steps else prefill
    rng = random.Random(0)  # noqa: S311
    sets = engine.sets(plan.requests if plan.steps else 0)
    rounds: list[dict[Set, float]] = []

    def is_over() -> bool:
        return engine.any_says(time.monotonic() >= deadline)

    for which in sets:
        if not is_over():
            block(which)
    while len(rounds) < plan.rounds and not is_over():
        rounds.append({which: block(which) for which in rng.sample(sets, len(sets))})
    return rounds


def summarise(rounds: list[dict[Set, float]], mode: str) -> dict[str, Any]:
    """Median ms, the ratio to "off" with its 95 % interval, and each set's ratio to the median of "off".

    The ratio is that of the geometric means over sets. Sets of "off" are not spread evenly around their
    median: some layouts are slower by 0.5 %.
    """
    logs: dict[Set, list[float]] = {which: [] for which in rounds[0]}
    for one in rounds:
        off = statistics.median(math.log(ms) for which, ms in one.items() if which.mode == "off")
        for which, ms in one.items():
            logs[which].append(math.log(ms) - off)
    of_sets = {which: statistics.median(values) for which, values in logs.items()}
    mine = [value for which, value in of_sets.items() if which.mode == mode]
    offs = [value for which, value in of_sets.items() if which.mode == "off"]
    mean = statistics.fmean(mine) - statistics.fmean(offs)
    if mode == "off":
        half = 0.0
    elif len(mine) > 1:
        half = half_interval(mine, offs)
    else:
        half = half_interval_of(logs[Set(mode, 0)])
    return {
        "ms": statistics.median(ms for one in rounds for which, ms in one.items() if which.mode == mode),
        "ratio": math.exp(mean),
        "low": math.exp(mean - half),
        "high": math.exp(mean + half),
        "sets": [math.exp(value) for value in mine],
    }


def plans_of(loads: Sequence[str], scale: float) -> list[Plan]:
    """What to measure of these loads, of `LOADS`."""
    plans = {
        "8": Plan("decode, batch 8", 8, 20, 8, PROMPT),
        "256": Plan("decode, batch 256", 5, 10, 256, PROMPT),
        "prefill": Plan(f"prefill, {PREFILL_TOKENS} tokens", 7, 0, PREFILL_TOKENS // 1024, 1024),
        "1": Plan("decode, batch 1", 8, 20, 1, PROMPT),
        "64": Plan("decode, batch 64", 5, 15, 64, PROMPT),
    }
    chosen = [plan for name, plan in plans.items() if name in loads]
    return [plan._replace(rounds=max(3, round(plan.rounds * scale))) for plan in chosen]


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3")
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of rounds")
    parser.add_argument("--more-sets", type=int, default=11, help="of graphs for one batch, in each mode")
    parser.add_argument("--more-of", type=int, choices=BATCHES, default=MORE_OF, help="that batch")
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=LOADS, help="batches (default: all)")
    parser.add_argument("--without", nargs="+", choices=EXTRAS, default=[], help="modes that are left out")
    parser.add_argument("--experiment", choices=MORE, default="default", help="which modes (default: all)")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds, after which no round begins")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--dp", type=int, default=1, help="DP ranks, each with a GPU (default: 1)")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Measure, print tables, write the results."""
    options = parsed()
    deadline = time.monotonic() + options.limit
    sink = FrameSink()
    endpoint = options.endpoint or sink.url
    following = options.dp if options.rank == 0 else 1
    logs = options.out.parent if options.out else Path()
    with (
        Followers("benchmarks.gpu_overhead", sys.argv[1:], following, endpoint, logs) as followers,
        tempfile.TemporaryDirectory() as folder,
    ):
        prepare_environment(endpoint)
        if options.experiment == "traces":
            os.environ["MOESCOPE_TRACE_OPT_IN"] = "1"
        engine = Engine(
            options.shape,
            Path(folder),
            options.more_sets,
            options.experiment,
            options.more_of,
            options.without,
            options.dp,
        )
        device = torch.cuda.get_device_name(0)
        report: dict[str, Any] = {"shape": options.shape, "device": device, **engine.facts(), "loads": {}}
        loads = [str(MORE_OF)] if options.experiment == "references" else options.loads
        _say(f"the engine and its sets of graphs are there, {deadline - time.monotonic():.0f} s are left")
        for plan in plans_of(loads, options.scale):
            rounds = measure(engine, plan, deadline)
            if len(rounds) < MIN_ROUNDS:
                _say(f"{plan.name}: {len(rounds)} rounds within the limit, which are too few")
                continue
            modes = dict.fromkeys(which.mode for which in rounds[0])
            summary = {mode: summarise(rounds, mode) for mode in modes}
            report["loads"][plan.name] = {"rounds": len(rounds), "modes": summary}
            _print_load(plan.name, len(rounds), summary)
            report |= {"memory": engine.memory_of_capture(), "capturer": engine.close()}
            if options.out:
                write_report(options.out, report)
        for what, size in report.get("memory", {}).items():
            print(f"memory: {what}: {size / 2**20:.2f} MiB")
        report |= {f"DP rank {rank}": theirs["capturer"] for rank, theirs in followers.results().items()}
        if options.out:
            write_report(options.out, report)
        _say(f"{report.get('capturer')} {len(sink.frames)} frames arrived")
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is measured


def _say(text: str) -> None:
    print(text, flush=True)


def _print_load(name: str, rounds: int, summary: dict[str, dict[str, Any]]) -> None:
    print(f"{name} ({rounds} rounds)")
    for mode, one in summary.items():
        interval = f"[{(one['low'] - 1) * 100:+.2f}, {(one['high'] - 1) * 100:+.2f}] %"
        print(
            f"  {mode:<16} {one['ms']:9.3f} ms  {(one['ratio'] - 1) * 100:+6.2f} %  {interval:>18}"
            f"  sets: {' '.join(f'{(ratio - 1) * 100:+.2f}' for ratio in one['sets'])}",
            flush=True,
        )


if __name__ == "__main__":
    main()
