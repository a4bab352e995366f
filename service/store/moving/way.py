"""From which folder to which ClickHouse: what every step of a move needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moescope.service.store.limits import Retention
from moescope.service.store.moving.ages import Ages
from moescope.service.store.moving.source import Source
from moescope.service.store.moving.target import Target

Say = Callable[[str], None]


def _silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, slots=True)
class Way:
    """A move.

    Attributes:
        source: the folder.
        target: the ClickHouse.
        retention: the ages of the services' settings.
        clock: seconds of Unix time.
        say: is told how far it is.
    """

    source: Source
    target: Target
    retention: Retention
    clock: Callable[[], float]
    say: Say = _silent

    def ages(self, margin_s: float = 0.0) -> Ages:
        """What is too old to be moved, so many seconds from now."""
        return Ages(self.retention, round((self.clock() + margin_s) * 1000))
