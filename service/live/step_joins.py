"""The joins of all deployments, and whose account what they yield goes to.

The sums of a pipeline stage are kept with the totals of its first worker (DP rank 0, TP rank 0), so that they
have its history, windows and restarts. Until that worker has reported they wait here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import Frame
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.layers import Layout
from moescope.service.counts.step_costs import Stragglers
from moescope.service.live.producers import Deployment
from moescope.service.live.step_stage import Stage, Status
from moescope.service.store.records import Key

Credit = Callable[[Key, Layout, Stragglers], bool]
"""Adds to the account of a key; False: there is none yet."""


BUDGET: Final = 256 << 20


@dataclass(slots=True)
class _Entry:
    stage: Stage
    waiting: tuple[Layout, Stragglers] | None = None
    nbytes: int = 0


class Joins:
    """All stages; for one thread at a time. Over the budget the stage that takes most gives up its steps.

    Args:
        credit: see :data:`Credit`.
        budget: bytes of steps that wait, over all stages.
    """

    def __init__(self, credit: Credit, budget: int = BUDGET) -> None:
        self._credit = credit
        self._budget = budget
        self._nbytes = 0
        self._entries: dict[tuple[str, str, int], _Entry] = {}
        self._stages: dict[Deployment, set[int]] = {}

    def take(self, frame: Frame, life: EpochState | None = None) -> None:
        """Join the steps of a checked frame, and credit what that yields; see :meth:`Stage.take`."""
        if frame.step_loads is None:
            return
        who = frame.producer
        key = (who.server, who.model, who.pp_rank)
        entry = self._entries.setdefault(key, _Entry(Stage()))
        self._stages.setdefault(key[:2], set()).add(who.pp_rank)
        self._settle(key, entry, entry.stage.take(frame, life))
        while self._nbytes > self._budget:
            key, entry = max(self._entries.items(), key=lambda item: item[1].nbytes)
            before = entry.nbytes
            self._settle(key, entry, entry.stage.give_up())
            if entry.nbytes >= before:
                return  # what is left is marks, which are bounded by themselves

    def break_off(self, key: Key) -> None:
        """Give up what waits at a producer's stage, and begin it anew."""
        name = (key[0], key[1], key[3])
        entry = self._entries.get(name)
        if entry is not None:
            given_up = entry.stage.give_up()
            entry.stage = Stage()
            self._settle(name, entry, given_up)

    def forget(self, key: Key) -> None:
        """Drop the stage of a producer that is forgotten."""
        entry = self._entries.pop((key[0], key[1], key[3]), None)
        if entry is None:
            return
        self._nbytes -= entry.nbytes
        self._stages[key[:2]].remove(key[3])
        if not self._stages[key[:2]]:
            del self._stages[key[:2]]

    def _settle(
        self, key: tuple[str, str, int], entry: _Entry, found: tuple[Layout, Stragglers] | None
    ) -> None:
        """Credit what a stage yielded, and note what memory it takes now."""
        self._nbytes += entry.stage.nbytes - entry.nbytes
        entry.nbytes = entry.stage.nbytes
        if found is not None:
            entry.waiting = _sum(entry.waiting, found)
        if entry.waiting is not None and self._credit((key[0], key[1], 0, key[2], 0), *entry.waiting):
            entry.waiting = None

    def status(self, server: str, model: str) -> dict[int, Status]:
        """How the joins of a deployment go, by pipeline stage; none where no frame told loads of steps."""
        return {
            pp_rank: self._entries[server, model, pp_rank].stage.status()
            for pp_rank in sorted(self._stages.get((server, model), ()))
        }


def _sum(
    before: tuple[Layout, Stragglers] | None, more: tuple[Layout, Stragglers]
) -> tuple[Layout, Stragglers]:
    if before is None or before[0] != more[0]:  # a model of another shape began in the meantime
        return more
    return more[0], before[1].plus(more[1])
