"""What each rearrangement by a real EPLB promised, and what it gave.

    python -m benchmarks.eplb_achieved

A real vLLM on this machine's CPUs (a tiny random MoE: 4 MoE layers of 16 experts, DP=2, EP=2, two redundant
experts) serves stationary traffic while EPLB rearranges the experts every `--steps` passes. The service's own
account (``/v1/advice/rearrangements``) is printed and kept: the ratio of sums before, what the new placement
promised on the loads before, what it gave on those after, and what the former one would have given on those.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from tests.e2e.cluster import Cluster, Request

RESULTS: Final = Path(__file__).parent / "results" / "eplb_achieved.json"
COLUMNS: Final = ("before", "predicted", "otherwise", "achieved")


def serve(cluster: Cluster, seconds: float) -> None:
    """Requests of one kind, eight at a time."""
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        while time.monotonic() < end:
            cluster.complete(Request(f"client {number} asks at {time.monotonic():.6f}", 24))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(client, range(8)))


def observe(steps: int, seconds: float) -> list[dict[str, Any]]:
    """The rearrangements that the service saw, oldest first."""
    balancer = {"window_size": steps, "step_interval": steps, "num_redundant_experts": 2, "use_async": False}
    options = {
        "data_parallel_size": 2,
        "expert_parallel": True,
        "extra_args": ("--enable-eplb", "--eplb-config", json.dumps(balancer)),
    }
    with tempfile.TemporaryDirectory() as folder, Cluster(Path(folder), options) as cluster:
        serve(cluster, seconds)
        found = cluster.service.get("/v1/advice/rearrangements", min_tokens=1)["rearrangements"]
    return list(reversed(found))


def main() -> None:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600, help="passes between rearrangements (default 600)")
    parser.add_argument("--seconds", type=float, default=120, help="of traffic (default 120)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="results file")
    args = parser.parse_args()
    found = observe(args.steps, args.seconds)
    print("  ".join(f"{name:>9}" for name in (*COLUMNS, "moved", "tokens")), " reason")
    for item in found:
        ratios = ["     none" if item[name] is None else f"{item[name]:9.4f}" for name in COLUMNS]
        moved = "none" if item["copies_moved"] is None else item["copies_moved"]
        print("  ".join([*ratios, f"{moved:>9}", f"{item['tokens_after']:9}"]), "", item["reason"] or "")
    judged = [item for item in found if item["reason"] is None]
    if not judged:
        raise SystemExit("no rearrangement could be judged: serve longer (--seconds)")
    errors = [abs(item["achieved"] - item["predicted"]) for item in judged]
    mean = sum(errors) / len(errors)
    print(f"{len(judged)} judged; |achieved - predicted|: mean {mean:.4f}, most {max(errors):.4f}")
    args.output.write_text(json.dumps({"steps": args.steps, "rearrangements": judged}, indent=1) + "\n")


if __name__ == "__main__":
    main()
