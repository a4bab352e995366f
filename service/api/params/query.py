"""Parameters that several routes share: which deployment, which window."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Annotated, Final

from fastapi import Query

from moescope.service.api.problems import ProblemError
from moescope.service.counts.phase_split import Phase
from moescope.service.counts.weights import WeightsWish
from moescope.service.live.parts import other_parts, told
from moescope.service.live.pools import told_last
from moescope.service.live.producers import Deployment, ProducerState
from moescope.service.live.state import LiveState

_SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_RELATIVE: Final = re.compile(r"-(\d+(?:\.\d+)?)([smhd])")

MAX_STEPS: Final = 1000
SHORTEST_STEP_S: Final = 0.001
LARGEST: Final = 2**53
"""Largest number that a parameter takes. No count is larger, and a store compares 64-bit integers only."""

ServerParam = Annotated[str | None, Query(description="vLLM deployment; needed when there are several.")]
ModelParam = Annotated[str | None, Query(description="Model; needed when there are several.")]
PoolParam = Annotated[
    str | None, Query(description="Only deployments of this pool (MOESCOPE_POOL in vLLM's environment).")
]
DpRankParam = Annotated[int | None, Query(ge=0, le=LARGEST, description="Only the tokens of this DP rank.")]
LayerParam = Annotated[
    list[int] | None, Query(description="Only this decoder layer; may be repeated. All when absent.")
]
PhaseParam = Annotated[
    Phase | None,
    Query(description="Only tokens of this phase, `prefill` or `decode`. Absent: all of them."),
]
StartParam = Annotated[
    str | None,
    Query(
        description="Begin of the window: Unix seconds, `now`, or relative as `-5m` (s, m, h, d). "
        "Absent: everything since the producers started.",
        examples=["-5m"],
    ),
]
EndParam = Annotated[
    str | None, Query(description="End of the window, written as `start`. Absent: now.", examples=["now"])
]
MinTokensParam = Annotated[
    int | None,
    Query(ge=0, le=LARGEST, description="Fewer tokens are no sample; the service's setting when absent."),
]
WeightsParam = Annotated[
    WeightsWish,
    Query(description="latest: only what was counted since the weights were changed last. all: all of it."),
]
StepParam = Annotated[
    str | None,
    Query(
        description="Length of the intervals of a series: `10s`, `5m`, or seconds; needs `start`.",
        examples=["10s"],
    ),
]


@dataclass(frozen=True, slots=True)
class Bounds:
    """A requested window, seconds of Unix time; None is unbounded. ``moved`` says why its begin is later."""

    start: float | None
    end: float | None
    moved: str | None = None


def parse_bounds(start: str | None, end: str | None, now: float) -> Bounds:
    """Parse both ends of a window.

    Raises:
        ProblemError: one is not an instant, or the window ends before it begins.
    """
    bounds = Bounds(_instant("start", start, now), _instant("end", end, now))
    first, last = bounds.start, now if bounds.end is None else bounds.end
    if first is not None and first > last:
        raise ProblemError(
            400,
            "bad-window",
            "The window ends before it begins",
            f"start is {first - last:g} s after end: swap them, or leave one out.",
        )
    return bounds


def parse_step(text: str | None, bounds: Bounds, now: float) -> list[float]:
    """The instants, rising, that cut a window into intervals as long as ``text`` says; none if it is empty.

    The last interval ends with the window and may be shorter.

    Raises:
        ProblemError: ``text`` is no length of time, the window has no begin, or it has too many intervals.
    """
    if not text:
        return []
    step = parse_length(text)
    if bounds.start is None:
        raise ProblemError(
            400, "step-without-start", "A series needs a begin", "Give start, such as start=-1h, or no step."
        )
    end = now if bounds.end is None else bounds.end
    if (end - bounds.start) / step > MAX_STEPS:
        raise ProblemError(
            400,
            "too-many-steps",
            "The series would be too long",
            f"{end - bounds.start:g} s in steps of {step:g} s are over {MAX_STEPS} intervals: give a step of "
            f"{math.ceil((end - bounds.start) / MAX_STEPS)}s or more, or a shorter window.",
        )
    count = max(1, math.ceil((end - bounds.start) / step - 1e-9))
    return [bounds.start + i * step for i in range(count)] + [end]


def parse_length(text: str) -> float:
    """A length of time, seconds: ``10s``, ``5m``, ``1h``, ``1d``, or a number of seconds.

    Raises:
        ProblemError: it is none, or shorter than :data:`SHORTEST_STEP_S` (400).
    """
    found = _LENGTH.fullmatch(text)
    seconds = float(found[1]) * _SECONDS[found[2] or "s"] if found else 0.0
    if not SHORTEST_STEP_S <= seconds < math.inf:
        raise ProblemError(
            400,
            "bad-step",
            "Not a length of time",
            f"step is {text!r}: give 10s, 5m, 1h, or a number of seconds.",
        )
    return seconds


def choose(state: LiveState, server: str | None, model: str | None, pool: str | None = None) -> Deployment:
    """The one deployment that is meant.

    Raises:
        ProblemError: no deployment has reported yet or none has these names (404), or several have (400).
    """
    known = state.deployments()
    found = [item for item in known if server in (None, item[0]) and model in (None, item[1])]
    pools = _pools(state) if pool is not None or len(found) != 1 else {}
    found = [item for item in found if pool in (None, pools.get(item))]
    if len(found) > 1:  # if only one of them is alive, that one is meant
        found = [item for item in state.live_deployments() if item in found] or found
    if len(found) == 1:
        return found[0]
    listing = ", ".join(_named(item, pools.get(item, "")) for item in found or known)
    if found:
        raise ProblemError(
            400,
            "several-deployments",
            "Several deployments report",
            f"Choose one by server and model: {listing}.{told(other_parts(state.producers()), found)}",
        )
    if known:
        parts = told(other_parts(state.producers()), known)
        raise ProblemError(404, "no-such-deployment", "No such deployment", f"There are: {listing}.{parts}")
    raise ProblemError(
        404,
        "no-deployments",
        "No deployment has reported yet",
        "Start vLLM with moescope installed beside it, MOESCOPE=1 and MOESCOPE_ENDPOINT set to the address "
        "of this service. A worker that can't count reports that too: so none of them reaches this service.",
    )


def _pools(state: LiveState) -> dict[Deployment, str]:
    """Each deployment's pool; empty: none."""
    groups = groupby(state.producers(), key=lambda item: item.latest.producer.key[:2])
    return {key: told_last(list(group)).pool for key, group in groups}


def _named(deployment: Deployment, pool: str) -> str:
    """A deployment as parameters name it."""
    told = f"server={deployment[0]} model={deployment[1]}"
    return f"{told} pool={pool}" if pool else told


def check_known(kind: str, wanted: list[int], known: list[int]) -> None:
    """Check that everything wanted is known.

    Args:
        kind: what it is, for people: "layer", "DP rank".
        wanted: numbers that were asked for.
        known: numbers that there are.

    Raises:
        ProblemError: a wanted number isn't known (404); it lists the known ones.
    """
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        slug = f"no-such-{kind.lower().replace(' ', '-')}"
        raise ProblemError(404, slug, f"No such {kind}", f"There is no {kind} {unknown}; known are {known}.")


def check_dp_rank(dp_rank: int, producers: Iterable[ProducerState]) -> None:
    """Check that one of the producers, those of a deployment, is of the DP rank.

    Raises:
        ProblemError: none is (404).
    """
    check_known("DP rank", [dp_rank], sorted({item.latest.producer.dp_rank for item in producers}))


def _instant(name: str, text: str | None, now: float) -> float | None:
    if not text:
        return None
    if text == "now":
        return now
    relative = _RELATIVE.fullmatch(text)
    try:
        value = now - float(relative[1]) * _SECONDS[relative[2]] if relative else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise ProblemError(
            400,
            "bad-instant",
            "Not an instant",
            f"{name} is {text[:100]!r}: give Unix seconds (1700000000), now, or a time ago (-90s, -5m, -2h, "
            "-1d), from 1970 on.",
        )
    return value
