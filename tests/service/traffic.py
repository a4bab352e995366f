"""The frames of simulated fleets, pushed into a running service."""

from __future__ import annotations

from typing import Any

from moescope.capture import wire
from moescope.service.simulation.fleet import Fleet
from tests.service.advice.fleets import plan
from tests.service.conftest import Service


def push_fleet(service: Service, rounds: int = 10, every: float = 30.0, **fields: Any) -> None:
    """Push the frames of a simulated fleet; the service's clock moves along with them."""
    fleet = Fleet(plan(**fields), int(service.clock.now * 1e9))
    for _ in range(rounds):
        service.clock.now += every
        for frame in fleet.advance(every):
            assert service.push_bytes(wire.encode_frame(frame)).status_code == 200


class Two:
    """A fleet that serves one kind of traffic, then another: two models of routing, one deployment."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._fleets = [Fleet(plan(skew=0.8, seed=seed), int(service.clock.now * 1e9)) for seed in (0, 1)]
        self._totals: dict[int, Any] = {}

    def run(self, kind: int, rounds: int, every: float = 60.0) -> None:
        """Push frames of one kind of traffic, 0 or 1; their totals are those of both."""
        for _ in range(rounds):
            self.service.clock.now += every
            new = list(self._fleets[kind].advance(every))
            self._totals[kind] = new
            for rank in range(len(new)):
                self._push(rank)

    def _push(self, rank: int) -> None:
        parts = [frames[rank] for frames in self._totals.values()]
        counts = sum(wire.unpack_counts(part.counts) for part in parts)
        rows = sum(wire.unpack_counts(part.rows) for part in parts)
        first = parts[0]
        made = wire.Frame(
            wire=first.wire,
            producer=first.producer,
            epoch=first.epoch,
            seq=sum(part.seq for part in parts),
            captured_at_ns=int(self.service.clock.now * 1e9),
            layers=first.layers,
            counts=wire.pack_counts(counts),
            rows=wire.pack_counts(rows),
            tokens=sum(part.tokens for part in parts),
            steps=sum(part.steps for part in parts),
            placement=first.placement,
        )
        assert self.service.push(made).json()["result"] == "accepted"
