"""A simulated fleet for each kind of verdict, with what has to be planted for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from moescope.service.simulation.plan import Outage


@dataclass(frozen=True, slots=True)
class Planted:
    """A fleet whose verdict is known.

    Attributes:
        kind: of the verdict.
        severity: of the verdict.
        words: parts of its sentence.
        fields: of the plan; see ``tests.service.advice.fleets.plan``.
        rounds: of 10 s that it runs.
        silent_s: seconds after its last frame.
    """

    kind: str
    severity: str
    words: tuple[str, ...]
    fields: dict[str, Any] = field(default_factory=dict)
    rounds: int = 7
    silent_s: float = 0.0


MANY: Final = {"ranks": 8, "layers": 8, "experts": 64}
PLANTED: Final = (
    Planted("silent", "critical", ("has sent anything for 2 min",), silent_s=120.0),
    Planted("no_traffic", "info", ("No traffic", "4 DP ranks report"), {"tokens_per_s": 0.0}),
    Planted("capture_incomplete", "warning", ("layer 4 can't be seen",), {"uncovered": (4,)}),
    Planted("capture_incomplete", "critical", ("layer 5 of the model's config not found",), {"absent": (5,)}),
    Planted(
        "part_only",
        "warning",
        ("a part of the deployment only: of 4 DP ranks [3] never reported",),
        {"outages": (Outage(3, 0.0),)},
    ),
    Planted("too_little_data", "info", ("the data span 20 s, of at least 30 s",), rounds=2),
    Planted(
        "one_expert_hot",
        "warning",
        ("in 3 of 3 layers", "An average EP rank waits"),
        {"habits": {"hot": 0.9}},
    ),
    Planted(
        "one_rank_hot",
        "critical",
        ("EP rank 0 is the busiest in 8 of 8 layers and causes 100 %", "waits 60 %", "(2.50x over 8 layers)"),
        {**MANY, "hot_rank": 2.5},
    ),
    Planted(
        "ranks_hot_by_layer",
        "critical",
        (
            "8 of 8 ranks are the busiest of some layer, and none causes more than 1",
            "every rank has 1.00 to 1.00 times",
            "waits 60 %",
        ),
        {**MANY, "hot_rank": 2.5, "hot_rank_by_layer": True},
    ),
    Planted(
        "ranks_hot_by_layer",
        "warning",
        ("2 of 2 ranks are the busiest of some layer", "every rank has 1.00 to 1.00 times"),
        {"ranks": 2, "layers": 8, "experts": 64, "hot_rank": 1.6, "hot_rank_by_layer": True},
    ),
    Planted("dp_uneven", "warning", ("DP rank 0 computes", "over 4 DP ranks"), {"rank_imbalance": 2.0}),
    Planted(
        "steps_only",
        "critical",
        ("in single steps only", "waits 60 %"),
        {**MANY, "alternate": 2.5, "steps_per_s": 8.0},
    ),
    Planted(
        "drifted",
        "info",
        ("slots go to other experts than in the hour before",),
        {"drift": 0.03, "ranks": 2, "experts": 64},
        120,
    ),
    Planted("balanced", "ok", ("Balanced: an average EP rank waits",)),
)


def named(planted: Planted) -> str:
    """A name for a test's case."""
    return f"{planted.kind}-{'-'.join(planted.fields)}"
