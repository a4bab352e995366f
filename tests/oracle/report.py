"""What one needs to see a difference again."""

from __future__ import annotations

from typing import Final

from tests.oracle.delivery import Story

SHOWN: Final = 12


def repro(story: Story, found: list[str]) -> str:
    """The fleet, the first differences, and the command that shows them again."""
    fleet = story.fleet
    lines = [
        f"fleet {fleet.seed}: DP {fleet.dp}, PP {fleet.pp}, TP {fleet.tp}, EP {fleet.ep}, "
        f"{len(story.arrivals)} frames; again with: python -m tests.oracle --fleets 1 --seed {fleet.seed}",
        f"  layers {[tuple(layer.__dict__.values()) for layer in fleet.layers]}",
        f"  uncovered {fleet.uncovered}, blind {fleet.blind}, masking {fleet.masking}",
        f"  sharded {fleet.sharded}, silent {[tuple(worker) for worker in fleet.silent]}",
        f"  phases of {fleet.phased}, end {fleet.phases_end}",
        *(f"  {line[:400]}" for line in found[:SHOWN]),
    ]
    return "\n".join([*lines, f"  ... {len(found)} differences"] if len(found) > SHOWN else lines)
