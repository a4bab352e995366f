"""What phases and steps cost the service, and what a windowed ratio misses.

    python benchmarks/stragglers.py

First it measures the time to take in a frame of each of 256 ranks of DeepSeek-V3's shape (58 layers of 256
experts): as before wire 1.3, with phases, and with the loads of 25 steps. The three kinds are interleaved,
rank by rank; memory is measured after each kind in a process of its own. Then it compares fleets of 32 ranks,
4 layers, 256 experts and top-8: nothing hot, one rank hot throughout, and a hot rank that changes each step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
import numpy as np

from moescope.capture import wire
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits, Shape
from moescope.service.windows.assessment import assess
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.step_window import cost_of, straggler_cost, windowed_sums

RANKS: Final = 256
LAYERS: Final = 58
EXPERTS: Final = 256
STEPS: Final = 25
RESULTS: Final = Path(__file__).parent / "results" / "stragglers.json"

Way = Literal["plain", "phases", "steps"]
WAYS: Final[tuple[Way, ...]] = ("plain", "phases", "steps")


class Ranks:
    """Frames of all ranks: about 80 tokens a step, four fifths of them of decode; numbers don't matter."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._loads = rng.poisson(80 * 8 / RANKS, (STEPS, LAYERS, RANKS)).astype(np.int64)
        self._counts = rng.poisson(STEPS * 80 * 8 / EXPERTS, (LAYERS, EXPERTS)).astype(np.int64)
        experts = np.arange(EXPERTS)
        table = wire.PlacementTable(wire.pack_ids(experts), wire.pack_ids(experts * RANKS // EXPERTS))
        self._placement = wire.Placement(version=1, tables=[table], table_of_layer=[0] * LAYERS)
        self._layers = [wire.MoeLayer(layer + 3, EXPERTS, 8) for layer in range(LAYERS)]

    def frame(self, rank: int, seq: int, way: Way) -> bytes:
        """The frame of a rank in its round ``seq``."""
        counts = np.roll(self._counts, rank, axis=1) * seq
        tokens = STEPS * 80 * seq
        made = wire.Frame(
            wire=(1, 2 if way == "plain" else 3),
            producer=wire.Producer(
                server="bench", model="deepseek", dp_rank=rank, dp_size=RANKS, ep_rank=rank, ep_size=RANKS
            ),
            epoch=10**18,
            seq=seq,
            captured_at_ns=10**18 + (60 + seq) * 10**9,
            layers=self._layers,
            counts=wire.pack_counts(counts),
            rows=wire.pack_counts(np.full(LAYERS, tokens)),
            tokens=tokens,
            steps=STEPS * seq,
            placement=self._placement,
        )
        if way != "plain":
            made.decode_counts = wire.pack_counts(counts * 4 // 5)
            made.decode_rows = wire.pack_counts(np.full(LAYERS, tokens * 4 // 5))
            made.decode_tokens, made.decode_steps = tokens * 4 // 5, STEPS * seq
        if way == "steps":
            first = STEPS * (seq - 1)
            numbers = first + np.arange(STEPS)
            loads = np.roll(self._loads, rank, axis=2)
            made.step_loads = wire.pack_step_loads(first, first + STEPS, numbers, loads, 1)
        return wire.encode_frame(made)


def ingest(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds to decode and to take in a frame, each way."""
    ranks, now = Ranks(), [1e9]
    states = {way: LiveState(Settings(history_mib=256), lambda: now[0]) for way in WAYS}
    decoding: dict[str, list[float]] = {way: [] for way in WAYS}
    taking: dict[str, list[float]] = {way: [] for way in WAYS}
    sizes = {}
    for seq in range(1, rounds + 1):
        now[0] += 1
        for rank in range(RANKS):
            for way in WAYS:
                body = ranks.frame(rank, seq, way)
                sizes[way] = len(body)
                began = time.perf_counter()
                frame = wire.decode_frame(body)
                decoded = time.perf_counter()
                states[way].ingest(frame)
                taking[way].append((time.perf_counter() - decoded) * 1e3)
                decoding[way].append((decoded - began) * 1e3)
    joins = states["steps"].joins(("bench", "deepseek"))
    cost = cost_of(states["steps"].spans(("bench", "deepseek"), None, None))
    assert cost.stages[0].joined == STEPS * rounds, cost.stages
    assert joins[0].pending == 0
    return {
        way: {
            "frame_kib": round(sizes[way] / 1024, 1),
            "decode_ms": round(statistics.mean(decoding[way]), 2),
            "take_in_ms": round(statistics.mean(taking[way]), 2),
            "core_at_1_hz": round(RANKS * statistics.mean(decoding[way] + taking[way]) * 2 / 1e3, 3),
        }
        for way in WAYS
    }


def memory(way: Way, rounds: int) -> float:
    """MiB of this process after some rounds, with 256 MiB of history."""
    ranks, now = Ranks(), [1e9]
    state = LiveState(Settings(history_mib=256), lambda: now[0])
    for seq in range(1, rounds + 1):
        now[0] += 1
        for rank in range(RANKS):
            state.ingest(wire.decode_frame(ranks.frame(rank, seq, way)))
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def fleets(seconds: int) -> list[dict[str, float | str]]:
    """Straggler cost beside the window's figures."""
    even = Habits(skew=0.0, drift=0.0, decode_shift=0.0)
    hot = Habits(skew=0.0, drift=0.0, decode_shift=0.0, hot=1.0, hot_moves_s=1e9)
    shape = Shape(layers=4)
    plans = {
        "even, 20 slots a rank and step": Plan(habits=even, shape=shape, tokens_per_s=2000 / 32),
        "even, 640 slots a rank and step": Plan(habits=even, shape=shape),
        "one expert of every token": Plan(habits=hot, shape=shape),
        "hot rank alternates, 2.5 x the mean": Plan(habits=even, shape=shape, alternate=2.5),
    }
    found: list[dict[str, float | str]] = []
    for name, plan in plans.items():
        now = [1e9]
        state, fleet = LiveState(Settings(min_tokens=1), lambda now=now: now[0]), Fleet(plan, 10**18)
        for _ in range(seconds):
            now[0] += 1
            for frame in fleet.advance(1.0):
                state.ingest(frame)
        spans = state.spans((plan.server, plan.model), None, None)
        window = merge_spans_of_phase(spans, None)
        summary = assess(window, 1).ep_ranks.summary
        cost = straggler_cost(*cost_of(spans).sums)
        share = straggler_cost(*windowed_sums(window))
        assert cost is not None
        assert share is not None
        assert summary.ratio_of_sums is not None
        found.append(
            {
                "fleet": name,
                "straggler_cost": round(cost, 3),
                "windowed_straggler_share": round(share, 3),
                "windowed_imbalance_ratio": round(summary.ratio_of_sums, 3),
                "steps": cost_of(spans).stages[0].joined,
            }
        )
    return found


def main() -> None:
    """Print all of it, and write it to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="frames of each rank [4]")
    parser.add_argument("--seconds", type=int, default=20, help="of each simulated fleet [20]")
    parser.add_argument("--memory", choices=WAYS, help="print MiB after the rounds one way, and nothing else")
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"results file [{RESULTS.name}]")
    options = parser.parse_args()
    if options.memory:
        print(f"{memory(options.memory, options.rounds):.0f}")
        return
    result = {"ingest": ingest(options.rounds), "fleets": fleets(options.seconds)}
    for way in WAYS:
        command = [sys.executable, __file__, "--memory", way, "--rounds", str(options.rounds)]
        out = subprocess.run(command, capture_output=True, text=True, check=True)
        result["ingest"][way]["rss_mib"] = float(out.stdout)
    print(f"{RANKS} ranks, {LAYERS} x {EXPERTS}, {STEPS} steps a frame")
    for way, figures in result["ingest"].items():
        print(f"  {way:8}", *(f"{name} {value:g}" for name, value in figures.items()), sep="  ")
    for fleet in result["fleets"]:
        print(*(f"{name} {value}" for name, value in fleet.items()), sep="  ")
    options.out.write_bytes(msgspec.json.format(json.dumps(result).encode(), indent=2) + b"\n")


if __name__ == "__main__":
    main()
