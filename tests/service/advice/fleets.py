"""Simulated fleets whose frames go straight into a live state, in simulated time."""

from __future__ import annotations

from typing import Any

from moescope.service.advice.advise import Advice, AdviceWish, advise
from moescope.service.advice.what_if import Option
from moescope.service.live.state import LiveState
from moescope.service.settings import Settings
from moescope.service.simulation.fleet import Fleet
from moescope.service.simulation.plan import Plan
from moescope.service.simulation.routing import Habits, Shape

START = 1_700_000_000.0
DEPLOYMENT = ("simulated", "simulated/moe")


class Simulated:
    """A fleet and the state that took its frames; ``now`` is its time."""

    def __init__(self, plan: Plan, archive: Any = None) -> None:
        self.now = START
        self.state = LiveState(Settings(), lambda: self.now, archive)
        self._fleet = Fleet(plan, int(START * 1e9))

    def run(self, seconds: float, every: float = 30.0) -> Simulated:
        """Let time pass, a frame of each rank every so often."""
        for _ in range(round(seconds / every)):
            self.now += every
            for frame in self._fleet.advance(every):
                self.state.ingest(frame)
        return self


def plan(
    skew: float = 0.0, drift: float = 0.0, ranks: int = 4, experts: int = 32, layers: int = 3, **fields: Any
) -> Plan:
    """Small, and with tokens enough to tell signal from chance, unless said otherwise."""
    habits = Habits(skew, drift, **{"decode_shift": 0.0, **fields.pop("habits", {})})
    shape = Shape(layers, experts, 4, 3)
    return Plan(
        ranks=ranks, shape=shape, habits=habits, **{"tokens_per_s": 5000.0, "steps_per_s": 1.0, **fields}
    )


def wish(**fields: Any) -> AdviceWish:
    """As the API asks by default."""
    return AdviceWish(
        **{
            "ranks": None,
            "nodes": None,
            "groups": 1,
            "redundant": (),
            "fit_share": 0.5,
            "min_gain": 0.05,
            "memory_price": 0.1,
            "min_tokens": 100,
            **fields,
        }
    )


def ask(simulated: Simulated, **wanted: object) -> Advice:
    """Advice on all that a fleet has done."""
    return advise(simulated.state, DEPLOYMENT, None, None, wish(**wanted))


def eplb_of(advice: Advice, redundant: int) -> Option:
    """What EPLB with so many redundant experts would do."""
    assert advice.found is not None
    [option] = [
        item for item in advice.found.options if (item.strategy, item.redundant) == ("eplb", redundant)
    ]
    return option
