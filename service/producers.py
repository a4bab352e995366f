"""What is known of a producer, as readers get it."""

from __future__ import annotations

from dataclasses import dataclass

from moescope.service.history import Span
from moescope.service.ledger import Latest
from moescope.service.totals import Totals

Deployment = tuple[str, str]
"""(server, model)."""


@dataclass(frozen=True, slots=True)
class ProducerState:
    """One producer as of now.

    Attributes:
        latest: its newest frame.
        totals: over all its epochs.
        restarts: epochs after the first.
        received_at: when its newest frame was accepted, seconds of Unix time on the service's clock.
        age: seconds since then; ``stale`` and ``expired`` compare it with the settings.
    """

    latest: Latest
    totals: Totals
    restarts: int
    received_at: float
    age: float
    stale: bool
    expired: bool

    @property
    def state(self) -> str:
        """``counting``, ``disabled`` or ``stale``; a producer that fell silent is stale whatever it said."""
        return "stale" if self.stale else self.latest.state


@dataclass(frozen=True, slots=True)
class ProducerSpan:
    """One producer and what it counted in a window."""

    producer: ProducerState
    span: Span
