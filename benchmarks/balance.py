"""Measures and advice for a DeepSeek-V3 shape: 61 layers x 256 experts x 64 ranks.

    python -m benchmarks.balance --out benchmarks/results/balance.json

Synthetic skewed counts. Measures: every one of `balance.MEASURES` over the experts of each (layer, rank),
and over ranks of each layer. Placement beside the policy of the installed vLLM, if there is one. Advice: end
to end from a live state fed with frames of 64 simulated ranks, in memory, without HTTP. Drift: from the same
state.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moescope.service.advice.advise import AdviceWish, advise
from moescope.service.advice.distinct import place_distinct
from moescope.service.advice.eplb import place
from moescope.service.drift.baseline import BaselineBook
from moescope.service.drift.watch import DriftWatch
from moescope.service.live.state import LiveState
from moescope.service.measures.balance import MEASURES, measure_all
from moescope.service.measures.divergence import jensen_shannon
from moescope.service.settings import Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits, Shape

LAYERS, EXPERTS, RANKS = 61, 256, 64


def timed(run: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds: the median and the worst of some runs, after one that warms up."""
    run()
    found = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        found.append((time.perf_counter() - began) * 1e3)
    return {"median_ms": round(statistics.median(found), 2), "worst_ms": round(max(found), 2), "runs": times}


def measures(times: int) -> dict[str, dict[str, float]]:
    """All measures at once, one after the other, and divergence, of [layers, ranks, experts]."""
    counts = np.random.default_rng(0).pareto(1.5, (LAYERS, RANKS, EXPERTS)) * 1000
    counts = counts.astype(np.int64)
    by_rank = counts.sum(axis=2)
    return {
        "all measures at once, over experts and over ranks": timed(
            lambda: (measure_all(counts), measure_all(by_rank)), times
        ),
        "each measure by itself, over experts": timed(
            lambda: [measure(counts) for measure in MEASURES.values()], times
        ),
        "Jensen-Shannon divergence of two, over experts": timed(
            lambda: jensen_shannon(counts, counts[:, ::-1]), times
        ),
    }


def placement(times: int) -> dict[str, dict[str, float]]:
    """One placement of all layers: what vLLM's policy makes, by us and by vLLM, and our own."""
    loads = np.random.default_rng(0).pareto(1.5, (LAYERS, EXPERTS)).astype(np.float32) * 1000
    found = {
        f"placement, {redundant} redundant": timed(
            lambda redundant=redundant: place(loads, EXPERTS + redundant, 8, 8, RANKS), times
        )
        for redundant in (0, 64)
    }
    found |= {
        f"our own placement, {redundant} redundant": timed(
            lambda redundant=redundant: place_distinct(loads, EXPERTS + redundant, 8, 8, RANKS), times
        )
        for redundant in (0, 64)
    }
    try:
        torch = importlib.import_module("torch")
        policy = importlib.import_module("vllm.distributed.eplb.policy.default").DefaultEplbPolicy
    except ImportError:
        return found
    weights = torch.from_numpy(loads)
    for redundant in (0, 64):
        found[f"placement, {redundant} redundant, vLLM's policy"] = timed(
            lambda redundant=redundant: policy.rebalance_experts(weights, EXPERTS + redundant, 8, 8, RANKS),
            times,
        )
    return found


def fed() -> LiveState:
    """A state that took two hours of frames, one a minute of each rank."""
    now = 1_700_000_000.0
    plan = Plan(
        ranks=RANKS,
        shape=Shape(LAYERS, EXPERTS, 8, 0),
        habits=Habits(skew=0.5, drift=0.001),
        steps_per_s=0.1,
        tokens_per_s=200.0,
    )
    fleet = Fleet(plan, int(now * 1e9))
    clock = [now]
    # Enough memory for all frames, so that the store plays no part.
    state = LiveState(Settings(history_mib=16384), lambda: clock[0])
    for _ in range(120):
        clock[0] += 60
        for frame in fleet.advance(60.0):
            state.ingest(frame)
    return state


def advice(times: int) -> tuple[dict[str, dict[str, float]], dict[str, Any]]:
    """Advice and drift from a live state; and what the advice was."""
    state = fed()
    [deployment] = state.deployments()
    wish = AdviceWish(
        ranks=None,
        nodes=8,
        groups=8,
        redundant=(),
        min_tokens=100,
        fit_share=0.5,
        min_gain=0.05,
        memory_price=0.1,
    )
    found = advise(state, deployment, None, None, wish)
    assert found.found is not None
    figures = {
        f"advice, {len(found.found.options)} options, 5 windows": timed(
            lambda: advise(state, deployment, None, None, wish), times
        ),
        "drift of the last five minutes from the hour before, by phase": timed(
            lambda: DriftWatch(state, BaselineBook(), 100).latest(deployment), times
        ),
    }
    return figures, {"words": found.verdict.words, "evidence": list(found.verdict.evidence)}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    figures = measures(options.times) | placement(options.times)
    advised, verdict = advice(max(2, options.times // 3))
    figures |= advised
    for name, figure in figures.items():
        print(f"{name:62} median {figure['median_ms']:9.2f} ms   worst {figure['worst_ms']:9.2f} ms")
    print(verdict["words"])
    if options.out is not None:
        shape = {"layers": LAYERS, "experts": EXPERTS, "ranks": RANKS}
        options.out.write_text(
            json.dumps({"shape": shape, "figures": figures, "verdict": verdict}, indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
