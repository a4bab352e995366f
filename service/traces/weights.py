"""Which versions of a model's weights computed which positions of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from moescope.service.store.worker_trace import WorkerTrace


class Computed(NamedTuple):
    """A version of the weights; the positions that it computed are among ``first`` to before ``end``."""

    version: int
    first: int
    end: int


def computed_by(workers: Sequence[WorkerTrace]) -> list[Computed]:
    """The versions in the order of computing; one after a preemption may begin before the one before it.

    Args:
        workers: the traces of one request. Those of tensor-parallel workers have some of its positions each.
    """
    found: list[Computed] = []
    for worker in workers:
        for at, item in enumerate(_of_worker(worker)):
            if at < len(found) and found[at].version == item.version:
                first, end = min(found[at].first, item.first), max(found[at].end, item.end)
                found[at] = Computed(item.version, first, end)
            elif at == len(found):
                found.append(item)
    return found


def _of_worker(worker: WorkerTrace) -> list[Computed]:
    runs = worker.runs
    ends = np.cumsum(runs[:, 1])
    begins = ends - runs[:, 1]
    found, start = [], 0
    for version, tokens in worker.weights or ((0, worker.tokens),):
        stop = start + tokens
        inside = (begins < stop) & (ends > start)
        firsts = runs[inside, 0] + np.maximum(start - begins[inside], 0)
        lasts = runs[inside, 0] + np.minimum(stop, ends[inside]) - begins[inside]
        found.append(Computed(version, int(firsts.min(initial=1 << 62)), int(lasts.max(initial=0))))
        start = stop
    return found
