"""A window over a deployment, by the definitions of docs/measures.md."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Final, Literal

from tests.oracle.delivery import Arrival
from tests.oracle.layout import Fleet, Layer, Worker
from tests.oracle.ledger import Ledger, Number, Numbers, Result, State, combined, plus

PHASES: Final = ("prefill", "decode", "unknown")
STALE_AFTER_S: Final = 15
Phase = Literal["prefill", "decode"] | None


class Deployment:
    """All that the service has been told of a fleet so far."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.ledgers: dict[Worker, Ledger] = {}
        self.now = 0.0

    def take(self, arrival: Arrival) -> Result:
        """Account for a frame: what the service should answer to it."""
        self.now = max(self.now, arrival.at)
        return self.ledgers.setdefault(arrival.snapshot.worker, Ledger()).take(arrival)

    def workers_of(self, dp: int) -> list[Worker]:
        """Those of a DP rank that reported."""
        return [worker for worker in sorted(self.ledgers) if worker.dp == dp]

    @property
    def dp_ranks(self) -> list[int]:
        """Those of which a worker reported."""
        return sorted({worker.dp for worker in self.ledgers})

    @property
    def layers(self) -> list[Layer]:
        """The layers that somebody counts, by index."""
        known = {layer for ledger in self.ledgers.values() for layer in ledger.newest.layers}
        return sorted(known, key=lambda layer: layer.index)

    def covers(self, dp: int, layer: Layer) -> bool:
        """Whether a worker of the DP rank that reported counts the layer."""
        return any(layer in self.ledgers[worker].newest.layers for worker in self.workers_of(dp))

    def is_silent(self, dp: int, stage: int) -> bool:
        """Whether a worker of the DP rank's pipeline stage never reported."""
        return any(Worker(dp, stage, tp) not in self.ledgers for tp in range(self.fleet.tp))


@dataclass(frozen=True)
class Seen:
    """What one layer shows of the tokens of a window, of the phase asked for.

    Attributes:
        shows: DP rank to slots by expert, of those whose tokens are all in them.
        missing: DP ranks that computed tokens which the layer can't show, to why.
        rows: tokens seen.
        ep: slots by EP rank; None: it isn't known where all experts were.
    """

    shows: dict[int, list[int]]
    missing: dict[int, str]
    rows: int
    ep: list[Fraction] | None

    @property
    def slots(self) -> list[int]:
        return [sum(column) for column in zip(*self.shows.values(), strict=True)]


class Window:
    """The figures of a deployment between two instants; None: since everything began, until now."""

    def __init__(self, deployment: Deployment, start: float | None, end: float | None, phase: Phase = None) -> None:
        self.deployment, self.phase = deployment, phase
        self.start, self.end = start, deployment.now if end is None else end
        self._begin = {w: self._at(ledger, start) for w, ledger in deployment.ledgers.items()}
        self._close = {w: ledger.state(self.end) for w, ledger in deployment.ledgers.items()}
        self.numbers = {w: plus(self._close[w].numbers, self._begin[w].numbers, -1) for w in self._close}

    def _at(self, ledger: Ledger, start: float | None) -> State:
        return State({}, ledger.begin, False) if start is None else ledger.state(start)

    @cached_property
    def used(self) -> tuple[list[float], list[float]]:
        """The instants of the totals that were subtracted, and of those that they were subtracted from."""
        return [s.at for s in self._begin.values()], [s.at for s in self._close.values()]

    @property
    def truncated(self) -> bool:
        """Whether some worker's totals at the begin are those of its first frame."""
        return any(state.guessed for state in self._begin.values())

    @cached_property
    def dp_ranks(self) -> list[int]:
        """DP ranks that take part: a frame of one of their workers came in the window or shortly before its end."""
        first = self.end - STALE_AFTER_S - 1 / 128  # a frame of exactly that age is not stale
        since = 0.0 if self.start is None else min(self.start, first)
        ledgers = self.deployment.ledgers
        return [
            dp
            for dp in self.deployment.dp_ranks
            if any(ledgers[worker].reported(since, self.end) for worker in self.deployment.workers_of(dp))
        ]

    def of_rank(self, dp: int, name: str, kind: str) -> int:
        """A DP rank's figure: that of the worker that knows of most, at the end less at the begin."""
        workers = self.deployment.workers_of(dp)
        most = [
            max(int(states[w].numbers.get((name, kind), 0)) for w in workers) for states in (self._close, self._begin)
        ]
        return most[0] - most[1]

    def tokens(self, dp: int) -> int | None:
        """Tokens of a DP rank and the phase; None: the phases of some are not known."""
        return self._of_phase({phase: self.of_rank(dp, "tokens", phase) for phase in PHASES})

    def _of_phase(self, parts: dict[str, int]) -> int | None:
        if self.phase is None:
            return sum(parts.values())
        return None if parts["unknown"] else parts[self.phase]

    def all_tokens(self, dp: int) -> int:
        """Tokens of a DP rank of whatever phase."""
        return sum(self.of_rank(dp, "tokens", phase) for phase in PHASES)

    def layer(self, layer: Layer, ranks: Iterable[int] | None = None) -> Seen:
        """What the layer shows of these DP ranks' tokens, or of all."""
        shows: dict[int, list[int]] = {}
        missing: dict[int, str] = {}
        figures: dict[int, Numbers] = {}
        for dp in self.deployment.dp_ranks if ranks is None else ranks:
            workers = [w for w in self.deployment.workers_of(dp) if w.pp == layer.stage]
            figures[dp] = combined(self.numbers[w] for w in workers)
            why = self._why_missing(dp, layer, workers, figures[dp])
            if why is None:
                shows[dp] = [self._sum(figures[dp], "slots", layer.index, e) for e in range(layer.experts)]
            elif self.all_tokens(dp):
                missing[dp] = why
        rows = sum(self._sum(figures[dp], "rows", layer.index) for dp in shows)
        ep = None
        if not any(self._sum(figures[dp], "unplaced", layer.index) for dp in shows):
            ep = [
                sum((Fraction(self._sum(figures[dp], "ep", layer.index, r)) for dp in shows), Fraction(0))
                for r in range(self.deployment.fleet.ep)
            ]
        return Seen(shows, missing, rows, ep)

    def _why_missing(self, dp: int, layer: Layer, workers: list[Worker], figures: Numbers) -> str | None:
        """Why a DP rank's tokens are not in the layer; None: they are."""
        if not self.deployment.covers(dp, layer):
            return "silent" if self.deployment.is_silent(dp, layer.stage) else "uncovered"
        if self.deployment.is_silent(dp, layer.stage):
            return "silent"
        rows = {phase: figures.get(("rows", phase, layer.index), 0) for phase in PHASES}
        if not any(rows.values()):
            computed = [sum(self.numbers[w].get(("tokens", p), 0) for p in PHASES) for w in workers]
            return "not seen" if all(computed) else None
        unknown = rows["unknown"] or any(
            figures.get(("slots", "unknown", layer.index, e), 0) for e in range(layer.experts)
        )
        return "phase" if self.phase and unknown else None

    def _sum(self, figures: Numbers, name: str, *of: int) -> Number:  # type: ignore[misc]
        phases = PHASES if self.phase is None else (self.phase,)
        return sum(figures.get((name, phase, *of), 0) for phase in phases)
