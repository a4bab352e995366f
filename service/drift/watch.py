"""Drift of every deployment for /metrics, refreshed beside the scrapes.

The hour before may have to be read from the store, which takes longer than a scrape should. So a thread of
its own makes the figures of a deployment, all but the first, and a scrape gets those that are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moescope.service.counts.phase_split import Phase
from moescope.service.drift.baseline import PREVIOUS_HOUR, BaselineBook
from moescope.service.drift.measure import LayerDrift, LayerSlots, layer_drifts, slots_of
from moescope.service.live.beside import Beside
from moescope.service.live.producers import Deployment
from moescope.service.live.state import LiveState
from moescope.service.windows.phase_window import merge_spans_of_phase
from moescope.service.windows.weights import changed_at, changed_within
from moescope.service.windows.window import ModelWindow

WINDOW_S: Final = 300.0
"""Length of the window that is compared."""
HOUR_S: Final = 3600.0
REFRESH_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Drifted:
    """A deployment's last five minutes against one base, by its name; of one phase, or of both (None)."""

    base: str
    phase: Phase | None
    layers: tuple[LayerDrift, ...]


class DriftWatch:
    """The newest drift of each deployment; safe for threads."""

    def __init__(self, state: LiveState, book: BaselineBook, min_tokens: int) -> None:
        self._state = state
        self._book = book
        self._min_tokens = min_tokens
        self._beside = Beside("drift", self._measure, state, REFRESH_S, lambda: book.changes)

    def latest(self, deployment: Deployment) -> tuple[Drifted, ...]:
        """The newest figures, at most a minute and a scrape interval old; none while others make the first.

        A changed baseline shows within a scrape interval.
        """
        return self.newest(deployment) or ()

    def newest(
        self, deployment: Deployment, may_make: Callable[[], bool] = lambda: True
    ) -> tuple[Drifted, ...] | None:
        """As :meth:`latest`; None while the first are made beside.

        Args:
            deployment: a known one.
            may_make: asked if there are none yet: whether the caller makes them now, else a thread does.
        """
        return self._beside.latest(deployment, may_make)

    def _measure(self, deployment: Deployment) -> tuple[Drifted, ...]:
        now = self._state.now()
        since = changed_within(self._state, deployment, now - WINDOW_S - HOUR_S, None)
        spans = self._state.series(deployment, _instants(now - WINDOW_S, None, since))
        changed = changed_at(item.span.last for item in spans[1])
        found = []
        for phase in (None, *Phase):
            hour, window = (merge_spans_of_phase(part, phase) for part in spans)
            bases: list[tuple[str, LayerSlots, str | None]] = [(PREVIOUS_HOUR, slots_of(hour), None)]
            bases += [
                (item.name, slots, item.why_other_weights(changed, now))
                for item in self._book.of(deployment)
                if (slots := item.slots(phase)) is not None
            ]
            found += [
                Drifted(name, phase, tuple(layer_drifts(window, base, self._min_tokens, why_not)))
                for name, base, why_not in bases
            ]
        return tuple(found)


def previous_hour(
    state: LiveState,
    deployment: Deployment,
    start: float,
    end: float | None,
    phase: Phase | None,
    dp_rank: int | None = None,
    since: float | None = None,
) -> tuple[ModelWindow, ModelWindow]:
    """The hour before ``start``, and the window that begins there; of a phase or of both.

    With ``dp_rank`` both are of that DP rank. Neither has what was counted before ``since``.

    Raises:
        StoreError: the archive can't be read.
    """
    spans = state.series(deployment, _instants(start, end, since))
    hour, window = (merge_spans_of_phase(part, phase, dp_rank) for part in spans)
    return hour, window


def _instants(start: float, end: float | None, since: float | None) -> tuple[float, float, float | None]:
    earliest = start - HOUR_S if since is None else max(start - HOUR_S, since)
    return earliest, max(start, earliest), end
