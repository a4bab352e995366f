"""How far back windows reach without a store, by memory for past snapshots: 256 ranks of 58 x 256 experts.

``python -m benchmarks.history_span --output benchmarks/results/history_span.json``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan, Shape

BEGIN = 1_700_000_000.0


def span(history_mib: int | None, ranks: int, seconds: int, every: float) -> dict[str, float | int | None]:
    """Snapshots in memory and how far back they reach after so many seconds of frames."""
    now = [BEGIN]
    plan = Plan(ranks=ranks, shape=Shape(58, 256, 8, 0), steps_per_s=2.0, tokens_per_s=500.0)
    fleet = Fleet(plan, int(BEGIN * 1e9))
    state = LiveState(Settings(port=0, history_mib=history_mib), lambda: now[0])
    for _ in range(round(seconds / every)):
        now[0] += every
        for frame in fleet.advance(every):
            state.ingest(frame)
    snapshots, nbytes = state.history_size()
    [(deployment, reaches)] = state.reaches().items()
    used = state.spans(deployment, now[0] - 60.0, None)
    return {
        "history_mib": history_mib,
        "mib": round(nbytes / 2**20),
        "snapshots_a_rank": round(snapshots / ranks, 1),
        "span_s": round(now[0] - reaches, 1),
        "last_minute_truncated": any(item.span.truncated for item in used),
        "last_minute_is_s": round(now[0] - min(item.span.start for item in used), 1),
        "wanted_mib": round(state.history_wanted() / 2**20),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=256)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--every", type=float, default=5.0, help="Seconds between frames of a rank.")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    found = [span(mib, args.ranks, args.seconds, args.every) for mib in (256, None)]
    text = json.dumps(found, indent=2)
    print(text)
    if args.output is not None:
        args.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
