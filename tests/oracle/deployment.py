"""All that the service has been told of a fleet so far."""

from __future__ import annotations

from typing import Final

from tests.oracle.delivery import Arrival
from tests.oracle.layout import Fleet, Layer, Worker
from tests.oracle.ledger import Ledger, Result

STALE_AFTER_S: Final = 15
"""The setting stale_after_s."""


class Deployment:
    """The ledgers of the workers that reported."""

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
    def missing_dp_ranks(self) -> list[int]:
        """Those of which none reported."""
        return sorted(set(range(self.fleet.dp)) - set(self.dp_ranks))

    @property
    def layers(self) -> list[Layer]:
        """The layers that somebody counts, by index."""
        known = {layer for ledger in self.ledgers.values() for layer in ledger.newest.layers}
        return sorted(known, key=lambda layer: layer.index)

    @property
    def uncovered(self) -> list[int]:
        """The layers that nobody counts and somebody can't count."""
        named = {layer.index for worker in self.ledgers for layer in self.fleet.not_covered(worker)}
        return sorted(named - {layer.index for layer in self.layers})

    def is_stale(self, worker: Worker) -> bool:
        """Whether a worker is silent at present."""
        return self.now - self.ledgers[worker].newest_at > STALE_AFTER_S

    def fell_silent(self, worker: Worker, end: float) -> bool:
        """Whether a worker fell silent before an instant, and others of its DP rank tell of more tokens."""
        mine, told = self.ledgers[worker], [self.ledgers[other] for other in self.workers_of(worker.dp)]
        later = any(other.newest_at - mine.newest_at > STALE_AFTER_S for other in told)
        most = max(other.state(end).tokens for other in told)
        return later and mine.newest_at < end and mine.state(end).tokens < most
