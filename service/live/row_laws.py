"""The law of rows at all pipeline stages: finds snapshots of one step among those that TP workers send."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Final

from moescope.service.counts.account_state import Latest
from moescope.service.counts.row_comparison import Mark, compare, mark_of, same_step
from moescope.service.counts.row_law import RowLaw
from moescope.service.store.records import Key

MAX_MARKS: Final = 16
"""Snapshots of a worker that wait for those of the others; 16 bytes a layer each."""

BOUND_AFTER_S: Final = 5.0
"""Snapshots of different steps are looked at only if there was no comparison of one step for so long."""


@dataclass(slots=True)
class _Worker:
    """A TP worker of a stage: its newest start, and its marks that no comparison has made old."""

    epoch: int
    started_at: float
    marks: deque[Mark] = field(default_factory=lambda: deque(maxlen=MAX_MARKS))


class _Stage:
    """One pipeline stage of one DP rank."""

    def __init__(self, tp_size: int) -> None:
        self.tp_size = tp_size
        self.began_at = -math.inf
        self.workers: dict[int, _Worker] = {}
        self.law = RowLaw()

    def note(self, latest: Latest, started_at: float, at: float) -> None:
        """Take what a worker told last; a worker that doesn't count has nothing to compare."""
        who = latest.producer
        worker = self.workers.get(who.tp_rank)
        if who.tp_size != self.tp_size:
            if started_at < self.began_at or (worker is not None and latest.epoch == worker.epoch):
                return  # a worker of the former start
            self.began_at = started_at
            self.tp_size, self.workers, worker = who.tp_size, {}, None
            self.law = self.law.started_again()
        if worker is None or latest.epoch != worker.epoch:
            worker = self.workers[who.tp_rank] = _Worker(latest.epoch, started_at)
            self._begin(started_at)
        worker.started_at = min(worker.started_at, started_at)
        if latest.state != "counting":
            return
        mark = mark_of(latest.counted, at)
        if worker.marks and worker.marks[-1].step == mark.step:
            worker.marks.pop()
        worker.marks.append(mark)
        self._judge(mark)

    def _begin(self, started_at: float) -> None:
        """A worker began anew, and so did the others: their marks of before are of another start."""
        self.law = self.law.started_again()
        for worker in self.workers.values():
            while worker.marks and worker.marks[0].at < started_at:
                worker.marks.popleft()

    def _judge(self, mark: Mark) -> None:
        """Compare, at the step of this mark if all workers have it, else over their newest marks."""
        workers = list(self.workers.values())
        if len(workers) < self.tp_size or not all(worker.marks for worker in workers):
            return
        started_at = min(worker.started_at for worker in workers)
        found = [_at(worker, mark.step) for worker in workers]
        marks = [item for item in found if item is not None]
        if len(marks) == len(workers) and same_step(marks):
            self.law = self.law.with_compared(compare(marks), started_at)
            for worker in workers:
                while worker.marks[0].step != mark.step:
                    worker.marks.popleft()
            return
        compared_at = started_at if self.law.compared is None else self.law.compared.at
        newest = [worker.marks[-1] for worker in workers]
        if mark.at - compared_at >= BOUND_AFTER_S and not same_step(newest):
            self.law = self.law.with_newest(compare(newest, self.law.compared), started_at)


def _at(worker: _Worker, step: tuple[int, int]) -> Mark | None:
    return next((mark for mark in reversed(worker.marks) if mark.step == step), None)


class RowLaws:
    """All stages; for one thread at a time."""

    def __init__(self) -> None:
        self._stages: dict[tuple[str, str, int, int], _Stage] = {}

    def note(self, latest: Latest, started_at: float, at: float) -> None:
        """Take what a producer told last.

        Args:
            latest: the newest frame of the life that counts at present.
            started_at: when that life began, seconds of Unix time on the service's clock.
            at: when the frame was accepted, on the same clock.
        """
        key = latest.producer.key
        stage = self._stages.setdefault(key[:4], _Stage(latest.producer.tp_size))
        stage.note(latest, started_at, at)

    def of(self, key: Key) -> RowLaw:
        """The law at a producer's stage."""
        stage = self._stages.get(key[:4])
        return RowLaw() if stage is None else stage.law

    def forget(self, key: Key) -> None:
        """Drop a producer, and its stage with the last one."""
        stage = self._stages.get(key[:4])
        if stage is not None:
            stage.workers.pop(key[4], None)
            if not stage.workers:
                del self._stages[key[:4]]
