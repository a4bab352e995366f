"""Drift of every deployment for /metrics, refreshed beside the scrapes.

The hour before may have to be read from the store, which takes longer than a scrape should: all but the first
figures of a deployment are made in a thread of their own, and a scrape gets those that are there.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import Int64Array
from moescope.service.drift.baseline import PREVIOUS_HOUR, BaselineBook
from moescope.service.drift.measure import LayerDrift, layer_drifts
from moescope.service.state import Deployment, LiveState
from moescope.service.window import ModelWindow, merge

WINDOW_S: Final = 300.0
"""Length of the window that is compared."""
HOUR_S: Final = 3600.0
REFRESH_S: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drifted:
    """A deployment's last five minutes against one base, by its name."""

    base: str
    layers: tuple[LayerDrift, ...]


@dataclass(frozen=True, slots=True)
class _Made:
    at: float
    found: tuple[Drifted, ...]


class DriftWatch:
    """The newest drift of each deployment; safe for threads."""

    def __init__(self, state: LiveState, book: BaselineBook, min_tokens: int) -> None:
        self._state = state
        self._book = book
        self._min_tokens = min_tokens
        self._lock = threading.Lock()
        self._made: dict[Deployment, _Made] = {}
        self._busy: set[Deployment] = set()

    def latest(self, deployment: Deployment) -> tuple[Drifted, ...]:
        """What is known, at most some 30 s and a scrape interval old."""
        now = self._state.now()
        with self._lock:
            made = self._made.get(deployment)
            due = made is None or not 0 <= now - made.at < REFRESH_S
            if not due or deployment in self._busy:
                return () if made is None else made.found
            self._busy.add(deployment)
        if made is None:
            return self._make(deployment)
        threading.Thread(target=self._refresh, args=(deployment,), name="moescope-drift", daemon=True).start()
        return made.found

    def _refresh(self, deployment: Deployment) -> None:
        try:
            self._make(deployment)
        except Exception:  # noqa: BLE001 whatever it is, the next scrape tries again
            _log.exception("the drift of %s can't be computed", deployment)

    def _make(self, deployment: Deployment) -> tuple[Drifted, ...]:
        now = self._state.now()
        try:
            found = self._measure(deployment, now)
            with self._lock:
                self._made[deployment] = _Made(now, found)
            return found
        finally:
            with self._lock:
                self._busy.discard(deployment)

    def _measure(self, deployment: Deployment, now: float) -> tuple[Drifted, ...]:
        hour, window = previous_hour(self._state, deployment, now - WINDOW_S, None)
        bases = [(PREVIOUS_HOUR, *slots_of(hour))]
        bases += [(item.name, item.by_layer(), item.rows_by_layer()) for item in self._book.of(deployment)]
        return tuple(
            Drifted(name, tuple(layer_drifts(window, counts, rows, self._min_tokens)))
            for name, counts, rows in bases
        )


def previous_hour(
    state: LiveState, deployment: Deployment, start: float, end: float | None
) -> tuple[ModelWindow, ModelWindow]:
    """The hour before ``start``, and the window that begins there.

    Raises:
        StoreError: the archive can't be read.
    """
    hour, window = (merge(spans) for spans in state.series(deployment, (start - HOUR_S, start, end)))
    return hour, window


def slots_of(window: ModelWindow) -> tuple[dict[int, Int64Array], dict[int, int]]:
    """Of each layer that was seen: slots per logical expert, int64 [num_experts]; tokens."""
    seen = [layer for layer in window.layers if layer.not_seen is None]
    return (
        {layer.shape.layer: layer.counts.sum(axis=0) for layer in seen},
        {layer.shape.layer: int(layer.rows.sum()) for layer in seen},
    )
