"""The joins of all deployments, and whose account what they yield goes to.

The sums of a pipeline stage are kept with the totals of its first worker (DP rank 0, TP rank 0), so that they
have its history, windows and restarts. Until that worker has reported they wait here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moescope.capture.wire import Frame
from moescope.service.layout import Layout
from moescope.service.stragglers.stage import Stage, Status
from moescope.service.stragglers.totals import Stragglers

Key = tuple[str, str, int, int, int]
Credit = Callable[[Key, Layout, Stragglers], bool]
"""Adds to the account of a key; False: there is none yet."""


@dataclass(slots=True)
class _Entry:
    stage: Stage
    waiting: tuple[Layout, Stragglers] | None = None


class Joins:
    """All stages; for one thread at a time."""

    def __init__(self, credit: Credit) -> None:
        self._credit = credit
        self._entries: dict[tuple[str, str, int], _Entry] = {}

    def take(self, frame: Frame) -> None:
        """Join the steps of a checked frame, and credit what that yields."""
        if frame.step_loads is None:
            return
        who = frame.producer
        entry = self._entries.setdefault((who.server, who.model, who.pp_rank), _Entry(Stage()))
        found = entry.stage.take(frame)
        if found is not None:
            entry.waiting = _sum(entry.waiting, found)
        if entry.waiting is not None:
            first = (who.server, who.model, 0, who.pp_rank, 0)
            if self._credit(first, *entry.waiting):
                entry.waiting = None

    def forget(self, key: Key) -> None:
        """Drop the stage of a producer that is forgotten."""
        self._entries.pop((key[0], key[1], key[3]), None)

    def status(self, server: str, model: str) -> dict[int, Status]:
        """How the joins of a deployment go, by pipeline stage; none where no frame told loads of steps."""
        return {
            key[2]: entry.stage.status()
            for key, entry in sorted(self._entries.items())
            if key[:2] == (server, model)
        }


def _sum(
    before: tuple[Layout, Stragglers] | None, more: tuple[Layout, Stragglers]
) -> tuple[Layout, Stragglers]:
    if before is None or before[0] != more[0]:  # a model of another shape began in the meantime
        return more
    return more[0], before[1].plus(more[1])
