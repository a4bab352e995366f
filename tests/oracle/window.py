"""A window over a deployment, by the section "Windows" of docs/measures.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

from tests.oracle.deployment import Deployment
from tests.oracle.layout import Layer, Worker
from tests.oracle.ledger import Ledger, Number, Numbers, State, combined, plus

PHASES: Final = ("prefill", "decode", "unknown")
Phase = Literal["prefill", "decode"] | None


@dataclass(frozen=True)
class Seen:
    """What one layer shows of the tokens of a window, of the phase asked for.

    Attributes:
        missing: DP ranks that computed tokens of which not all are known to be in the counts.
        rows: tokens seen.
        slots: by expert.
        by_dp: slots by DP rank.
        ep: slots by EP rank; None: it isn't known where all experts were.
    """

    missing: list[int]
    rows: int
    slots: list[int]
    by_dp: dict[int, int]
    ep: list[Number] | None

    @property
    def known(self) -> bool:
        """Whether there are counts: not where every token that was computed is missing."""
        return self.rows > 0 or not self.missing


class Window:
    """The figures of a deployment between two instants; None: since everything began, until now."""

    def __init__(
        self,
        deployment: Deployment,
        start: float | None,
        end: float | None,
        phase: Phase = None,
        dp_rank: int | None = None,
    ) -> None:
        self.deployment, self.phase = deployment, phase
        self.start, self.end = start, deployment.now if end is None else end
        self.ranks = deployment.dp_ranks if dp_rank is None else [dp_rank]
        mine = {w: ledger for w, ledger in deployment.ledgers.items() if w.dp in self.ranks}
        self._begin = {worker: self._at(ledger) for worker, ledger in mine.items()}
        self._close = {worker: ledger.state(self.end) for worker, ledger in mine.items()}
        self.numbers = {w: plus(self._close[w].numbers, self._begin[w].numbers, -1) for w in mine}

    def _at(self, ledger: Ledger) -> State:
        return State({}, ledger.begin, False) if self.start is None else ledger.state(self.start)

    @property
    def truncated(self) -> bool:
        """Whether a boundary is between some worker's begin and its first frame."""
        return any(state.guessed for states in (self._begin, self._close) for state in states.values())

    @cached_property
    def used(self) -> tuple[list[float], list[float]]:
        """From when the totals are that were subtracted, and those that they were subtracted from."""
        pairs = [(self._begin[worker].at, self._close[worker].at) for worker in self._begin]
        grown = [pair for pair in pairs if pair[0] < pair[1]] or pairs
        return [begin for begin, _ in grown], [close for _, close in grown]

    @cached_property
    def dp_ranks(self) -> list[int]:
        """DP ranks that take part: they computed tokens in the window, or report at present."""
        fresh = {worker.dp for worker in self.deployment.ledgers if not self.deployment.is_stale(worker)}
        return [dp for dp in self.ranks if dp in fresh or self.figures(dp, "tokens")["all"]]

    def figures(self, dp: int, name: str) -> dict[str, int]:
        """Tokens or steps of a DP rank by kind; ``all`` of them."""
        close, begin = self._told(dp, name, self._close), self._told(dp, name, self._begin)
        return {kind: close[kind] - begin[kind] for kind in close}

    def _told(self, dp: int, name: str, states: dict[Worker, State]) -> dict[str, int]:
        """The most that any worker tells at an instant, for each kind; the rest is unknown."""
        told = [states[worker].numbers for worker in self.deployment.workers_of(dp)]
        kinds = ("prefill", "decode", "mixed") if name == "steps" else ("prefill", "decode")
        most = {kind: max(int(numbers.get((name, kind), 0)) for numbers in told) for kind in kinds}
        whole = max(
            sum(int(numbers.get((name, kind), 0)) for kind in (*kinds, "unknown")) for numbers in told
        )
        whole = max(whole, sum(most.values()))
        return {**most, "unknown": whole - sum(most.values()), "all": whole}

    def idle_steps(self, dp: int) -> int:
        """Dummy steps of a DP rank."""
        close, begin = (
            max(int(states[worker].numbers.get(("idle",), 0)) for worker in self.deployment.workers_of(dp))
            for states in (self._close, self._begin)
        )
        return close - begin

    def tokens(self, dp: int) -> int | None:
        """Tokens of a DP rank and the phase; None: the phases of some are not known."""
        parts = self.figures(dp, "tokens")
        if self._is_unknown(dp):
            return None
        if self.phase is None:
            return parts["all"]
        return None if parts["unknown"] else parts[self.phase]

    @cached_property
    def all_tokens(self) -> int | None:
        """Tokens of all DP ranks; None where the phases of some are not known."""
        parts = [self.tokens(dp) for dp in self.ranks]
        return None if None in parts else sum(part or 0 for part in parts)

    def layer(self, layer: Layer) -> Seen:
        """What the layer shows."""
        of = {
            dp: combined(self.numbers[w] for w in self.deployment.workers_of(dp) if w.pp == layer.stage)
            for dp in self.ranks
        }
        missing = [dp for dp in self.ranks if self._is_missing(dp, layer, of[dp])]
        if self.phase:
            of = {dp: {} if _is_unphased(figures, layer) else figures for dp, figures in of.items()}
        whole = combined(of.values())
        ep = None
        if not self._sum(whole, "unplaced", layer.index):
            ranks = range(self.deployment.fleet.ep)
            ep = [self._sum(whole, "ep", layer.index, rank) for rank in ranks]
        return Seen(
            missing=missing,
            rows=int(self._sum(whole, "rows", layer.index)),
            slots=self._slots(whole, layer),
            by_dp={dp: sum(self._slots(of[dp], layer)) for dp in self.ranks},
            ep=ep,
        )

    def _slots(self, figures: Numbers, layer: Layer) -> list[int]:
        return [int(self._sum(figures, "slots", layer.index, expert)) for expert in range(layer.experts)]

    def _is_unknown(self, dp: int) -> bool:
        """Whether both boundaries are between the begin of the DP rank's workers and their first frames."""
        mine = self.deployment.workers_of(dp)
        return all(self._begin[worker].guessed and self._close[worker].guessed for worker in mine)

    @property
    def unphased(self) -> bool:
        """Whether a phase is asked for and some tokens are of unknown phase."""
        return bool(self.phase) and any(self.figures(dp, "tokens")["unknown"] for dp in self.ranks)

    def _is_missing(self, dp: int, layer: Layer, figures: Numbers) -> bool:
        if self._is_unknown(dp):
            return True
        if self.phase and _is_unphased(figures, layer):
            return True
        tokens, rows = self.figures(dp, "tokens"), self._sum(figures, "rows", layer.index)
        if not rows and not (tokens["all"] if self.phase is None else tokens[self.phase] + tokens["unknown"]):
            return False
        covers_not = any(
            layer in self.deployment.fleet.not_covered(worker) for worker in self.deployment.workers_of(dp)
        )
        if covers_not or not rows:
            return True
        stage = [Worker(dp, layer.stage, tp) for tp in range(self.deployment.fleet.tp)]
        counting = [worker for worker in stage if self._counts(worker)]
        return len(counting) < len(stage) and not any(self._is_whole(worker, layer) for worker in counting)

    def _counts(self, worker: Worker) -> bool:
        reported = worker in self.deployment.ledgers
        return reported and not self.deployment.fell_silent(worker, self.end)

    def _is_whole(self, worker: Worker, layer: Layer) -> bool:
        """Whether a worker's rows are all of its own tokens, so that none is left for its TP siblings."""
        mine = self.numbers[worker]
        rows = sum(mine.get(("rows", phase, layer.index), 0) for phase in PHASES)
        return 0 < rows == sum(mine.get(("tokens", phase), 0) for phase in PHASES)

    def _sum(self, figures: Numbers, name: str, *of: int) -> Number:
        phases: Sequence[str] = PHASES if self.phase is None else (self.phase,)
        return sum(figures.get((name, phase, *of), 0) for phase in phases)


def _is_unphased(figures: Numbers, layer: Layer) -> bool:
    """Whether some rows of the layer are of unknown phase."""
    return figures.get(("rows", "unknown", layer.index), 0) != 0
