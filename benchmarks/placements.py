"""Our own placement beside vLLM's policy: imbalance, and memory for copies that take load off a rank.

    python -m benchmarks.placements --out benchmarks/results/placements.json

Inputs are those of vLLM's own tests of its policy, and skewed loads of common shapes. The policy is the one
in the installed vLLM. "In vain" are copies on a rank that has another one of the same expert.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from vllm.distributed.eplb.policy.default import DefaultEplbPolicy

from moescope.service.advice.placements import PlacementArrays, distinct
from moescope.service.measures.arrays import FloatArray
from moescope.service.measures.loads import max_and_mean
from tests.vllm_cases import VLLM_CASES

LAYERS = 58
SHAPES = {
    "Qwen3-30B-A3B, 16 ranks": (128, 16, (0, 16, 32)),
    "DeepSeek-V3, 16 ranks": (256, 16, (0, 32, 64)),
    "DeepSeek-V3, 32 ranks": (256, 32, (0, 32, 64)),
    "DeepSeek-V3, 64 ranks": (256, 64, (64, 128)),
    "gpt-oss-120b, 8 ranks": (128, 8, (8, 32)),
}
SKEWS = {"mild": 4.0, "strong": 1.5}  # exponent of the loads' power law: the smaller, the more uneven


@dataclass(frozen=True)
class Row:
    """One input, by both policies: ratio of sums over layers, redundant copies and those in vain."""

    name: str
    redundant: int
    layers: int
    vllm: float
    ours: float
    worst_layer: float
    in_vain_vllm: int
    in_vain_ours: int


def compare(name: str, loads: FloatArray, physical: int, groups: int, nodes: int, ranks: int) -> Row:
    """Place the same loads, [L, E], by both policies."""
    experts = loads.shape[1]
    weights = torch.from_numpy(loads.astype(np.float32))
    theirs = DefaultEplbPolicy.rebalance_experts(weights, physical, groups, nodes, ranks).numpy()
    rank = np.tile(np.arange(physical) // (physical // ranks), (len(loads), 1))
    both = [
        PlacementArrays(theirs.astype(np.int64), rank, experts, ranks),
        distinct(loads, physical - experts, groups, nodes, ranks),
    ]
    [(most, mean), (own, _)] = [max_and_mean(placed.loads(loads)) for placed in both]
    return Row(
        name=name,
        redundant=physical - experts,
        layers=len(loads),
        vllm=round(float(most.sum() / mean.sum()), 4),
        ours=round(float(own.sum() / mean.sum()), 4),
        worst_layer=round(float((own / most).max()), 4),
        in_vain_vllm=both[0].in_vain,
        in_vain_ours=both[1].in_vain,
    )


def rows() -> list[Row]:
    """All inputs."""
    found = [
        compare(f"vLLM's test {number}", np.array(loads, dtype=np.float64), *numbers)
        for number, (loads, numbers) in enumerate(VLLM_CASES)
    ]
    for name, (experts, ranks, redundants) in SHAPES.items():
        for skew, exponent in SKEWS.items():
            loads = np.random.default_rng(0).pareto(exponent, (LAYERS, experts)) * 1000 + 1
            found += [
                compare(f"{name}, {skew} skew", loads, experts + redundant, 1, 1, ranks)
                for redundant in redundants
            ]
    return found


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    found = rows()
    print(
        f"{'input':38} {'R':>4} {'layers':>6} {'vLLM':>8} {'ours':>8} {'worst layer':>12} "
        f"{'in vain: vLLM':>14} ours"
    )
    for row in found:
        vain = f"{row.in_vain_vllm} of {row.redundant * row.layers}"
        print(
            f"{row.name:38} {row.redundant:4} {row.layers:6} {row.vllm:8.4f} {row.ours:8.4f} "
            f"{row.worst_layer:12.4f} {vain:>14} {row.in_vain_ours:4}"
        )
    if options.out is not None:
        made = {"vllm": metadata.version("vllm"), "rows": [asdict(row) for row in found]}
        options.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
