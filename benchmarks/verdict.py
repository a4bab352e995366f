"""What a verdict costs, beside /v1/view of the same window: 58 layers x 256 experts, 32 and 128 ranks.

    python -m benchmarks.verdict --out benchmarks/results/verdict.json

In memory, without HTTP and without the second that a verdict is kept. `uneven` has a hot expert in each
layer, so the experts of the busiest ranks are looked for.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.balance import timed
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits
from moescope.service.verdict.gather import Question, facts_of
from moescope.service.verdict.judge import judge
from moescope.service.windows.assessment import assess
from moescope.service.windows.window import merge_spans


def measured(ranks: int, habits: Habits) -> dict[str, dict[str, float]]:
    """Milliseconds of a view and of a verdict on the last minute of a fleet."""
    now = 1_700_000_000.0
    state = LiveState(Settings(), lambda: now)
    plan = Plan(ranks=ranks, habits=habits, steps_per_s=1.0)
    fleet = Fleet(plan, int(now * 1e9))
    for _ in range(8):
        now += 10
        for frame in fleet.advance(10):
            state.ingest(frame)
    deployment = plan.server, plan.model
    question = Question(now - 60, None, now, 100)

    def view() -> None:
        assess(merge_spans(state.spans(deployment, now - 60, None)), 100)

    def verdict() -> None:
        spans = state.spans(deployment, question.start, None)
        judge(facts_of(question, spans, lambda: state.placements(deployment), lambda _: None))

    return {"view": timed(view, 20), "verdict": timed(verdict, 20)}


def main() -> None:
    """Print what was measured, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    out = parser.parse_args().out
    found = {
        f"{ranks} ranks, {name}": measured(ranks, habits)
        for ranks in (32, 128)
        for name, habits in (("even", Habits(skew=0.0)), ("uneven", Habits(hot=0.9)))
    }
    text = json.dumps(found, indent=1)
    print(text)
    if out is not None:
        out.write_text(text + "\n")


if __name__ == "__main__":
    main()
