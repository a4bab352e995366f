"""What capture costs a real vLLM engine on a GPU, with a process of its own for each figure, mode by mode.

    python -m benchmarks.gpu_processes --shape deepseek --batches 256 --limit 560 --out results.json

`benchmarks.gpu_overhead` compares modes within one process, to 0.1 %; it can't see what differs between
processes. Here each process starts an engine as an operator would, in one mode: "off", vLLM's own worker;
"moescope"; "vllm", its own `enable_return_routed_experts`. All modes follow each other in each round, in a
new random order, until the rounds are run or the limit is near. A results file that is there is continued.

A process's figure is the median step at a batch. The ratio to "off" is that of the geometric means over
processes, with Student's 95 % interval. A process that is slower than `SLOW` times the median of all at its
batch is marked, and its row tells where the time went: what the thread of the steps computed (`cpu_ms`), how
often something else took its processor (`switches`, in a step), what all kernels of a step take on the GPU
(`kernels_ms`, by the profiler, in steps that are not timed), and how far single steps are apart (p10, p90).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu_engine import (
    BATCHES,
    EP_RANKS,
    SHAPES,
    WORKER,
    exactness_of,
    prepare_environment,
    start_llm,
    write_report,
)
from benchmarks.gpu_parts import ALL, STEPS, parts_of
from benchmarks.gpu_requests import Requests
from benchmarks.intervals import half_interval
from devkit.fake_placement import pretend_ep_ranks
from devkit.frame_sink import FrameSink
from devkit.vllm_features import routed_experts_need_v2

MODES: Final = ("off", "moescope", "vllm")
PROMPT: Final = 64
SETTLE: Final = 10
TIMED: Final = 60
BLOCKS: Final = 3
SLOW: Final = 1.2

Row = dict[str, Any]


def options_of(mode: str) -> dict[str, Any]:
    """What vLLM is told in a mode; as little as can be."""
    if mode == "moescope":
        return {"worker_cls": WORKER}
    if mode == "vllm":
        cache = {"enable_prefix_caching": True} if routed_experts_need_v2() else {}
        return {"enable_return_routed_experts": True, **cache}
    return {}


def measure(requests: Requests, batch: int) -> Row:
    """The figures of one batch size: blocks of the same requests from their start."""
    times: list[float] = []
    cpu = switches = kernels = 0.0
    for _ in range(BLOCKS):
        requests.add(batch, PROMPT, SETTLE + TIMED + STEPS + 16)
        while not requests.prefilled(batch):
            requests.step()
        for _ in range(SETTLE):
            requests.step()
        began, before = time.thread_time(), _switches()
        times += [requests.step() for _ in range(TIMED)]
        cpu += (time.thread_time() - began) * 1000
        switches += _switches() - before
        kernels += _kernels_ms(requests)
        requests.drain()
        requests.forget_prefixes()
    steps = sorted(times)
    return {
        "batch": batch,
        "ms": statistics.median(steps),
        "p10": steps[len(steps) // 10],
        "p90": steps[len(steps) * 9 // 10],
        "cpu_ms": cpu / len(times),
        "switches": switches / len(times),
        "kernels_ms": kernels / BLOCKS,
    }


def _switches() -> int:
    """How often this thread had to leave its processor, so far."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw


def _kernels_ms(requests: Requests) -> float:
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(STEPS):
            requests.step()
        torch.cuda.synchronize()
    return parts_of(profiler.profiler.kineto_results.events())[ALL] / 1000


def child(options: argparse.Namespace) -> None:
    """One process: an engine in one mode; its rows go to the file of the options."""
    prepare_environment(options.endpoint)
    began = time.monotonic()
    if options.child == "moescope":
        pretend_ep_ranks(EP_RANKS)
    else:
        del os.environ["MOESCOPE_ENDPOINT"]  # with it an installed moescope extends vLLM's own worker
    with tempfile.TemporaryDirectory() as folder:
        llm = start_llm(options.shape, Path(folder), **options_of(options.child))
        requests = Requests(llm, SHAPES[options.shape]()["vocab_size"])
        ready = time.monotonic() - began
        rows = [measure(requests, batch) for batch in options.batches]
        exact = None
        if options.child == "moescope":
            worker = requests.core.model_executor.driver_worker.worker
            exact = exactness_of(worker._capture.capturer)["exact"]
        import vllm

        facts = {"mode": options.child, "start_s": ready, "vllm": vllm.__version__, "exact": exact}
        write_report(options.out, {"rows": [facts | row for row in rows]})


def start(mode: str, options: argparse.Namespace, endpoint: str, folder: Path) -> list[Row]:
    """The rows of a process of this mode.

    Raises:
        subprocess.CalledProcessError: it failed; its output was printed.
    """
    out = folder / "rows.json"
    arguments = ["--child", mode, "--endpoint", endpoint, "--out", str(out), "--shape", options.shape]
    batches = [str(batch) for batch in options.batches]
    command = [sys.executable, "-m", "benchmarks.gpu_processes", *arguments, "--batches", *batches]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr[-6000:], flush=True)
        done.check_returncode()
    rows: list[Row] = json.loads(out.read_text())["rows"]
    return rows


def compare(rows: list[Row], batch: int) -> list[Row]:
    """By mode: processes, geometric mean of their ms, slow ones; change against "off" in %, its interval."""
    mine = [row for row in rows if row["batch"] == batch]
    usual = statistics.median(row["ms"] for row in mine)
    logs = {
        mode: [math.log(row["ms"]) for row in mine if row["mode"] == mode]
        for mode in dict.fromkeys(row["mode"] for row in mine)
    }
    found = []
    for mode, values in logs.items():
        mean, offs = statistics.fmean(values), logs.get("off", [])
        one: Row = {"batch": batch, "mode": mode, "processes": len(values), "ms": math.exp(mean)}
        one["slow"] = sum(value > math.log(SLOW * usual) for value in values)
        if mode != "off" and min(len(values), len(offs)) > 1:
            change, half = mean - statistics.fmean(offs), half_interval(values, offs)
            bounds = (change, change - half, change + half)
            one["change"], one["low"], one["high"] = ((math.exp(bound) - 1) * 100 for bound in bounds)
        found.append(one)
    return found


def main() -> None:
    """Start the processes, print rows and tables, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="deepseek")
    parser.add_argument("--batches", nargs="+", type=int, choices=BATCHES, default=[256])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["off", "moescope"])
    parser.add_argument("--rounds", type=int, default=10, help="processes of each mode")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds; none starts that would pass them")
    parser.add_argument("--out", type=Path, default=Path("gpu_processes.json"))
    parser.add_argument("--child", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--endpoint", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    device = torch.cuda.get_device_name(0)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    for more in _processes(options):
        rows += more
        tables = [one for batch in options.batches for one in compare(rows, batch)]
        report = {"shape": options.shape, "device": device, "modes": tables, "rows": rows}
        write_report(options.out, report)
    for batch in options.batches:
        for one in compare(rows, batch):
            _print(one)


def _processes(options: argparse.Namespace) -> Iterator[list[Row]]:
    """The rows of each process in turn, until the rounds or the time are over; prints them."""
    began, longest, sink = time.monotonic(), 0.0, FrameSink()
    rng = random.Random()  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for mode in rng.sample(options.modes, len(options.modes)):
                started = time.monotonic()
                if started - began + longest > options.limit:
                    print("the time is over", flush=True)
                    return
                rows = start(mode, options, sink.url, Path(folder))
                longest = max(longest, time.monotonic() - started)
                for row in rows:
                    print(" ".join(f"{name} {_short(value)}" for name, value in row.items()), flush=True)
                yield rows


def _short(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _print(one: Row) -> None:
    change = "" if "change" not in one else f"{one['change']:+.2f} % [{one['low']:+.2f}, {one['high']:+.2f}]"
    print(
        f"batch {one['batch']:>3}  {one['mode']:<9} {one['processes']:>2} processes  {one['ms']:8.3f} ms"
        f"  {change:<28} slow: {one['slow']}",
        flush=True,
    )


if __name__ == "__main__":
    main()
