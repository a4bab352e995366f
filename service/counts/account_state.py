"""What an account knows, as immutable values: for the store, and for merging what several services know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from moescope.capture.wire import Producer, UncoveredLayer
from moescope.service.counts.totals import Totals

_FORGOTTEN: Final = 64  # forgotten epochs that are remembered by number: 8 bytes each


@dataclass(frozen=True, slots=True)
class Latest:
    """The newest frame of the newest epoch, without the bytes of its arrays."""

    producer: Producer
    epoch: int
    seq: int
    captured_at_ns: int
    state: str
    state_reason: str
    uncovered: tuple[UncoveredLayer, ...]
    placement_version: int | None
    counted: Totals
    traces: Mapping[str, int] = field(default_factory=dict)
    strategy: str = ""
    unavailable: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[UncoveredLayer, ...] = ()
    absent_unnamed: str = ""

    @property
    def not_counted(self) -> tuple[UncoveredLayer, ...]:
        """The MoE layers that this producer doesn't count and names: uncovered ones, then absent ones."""
        return self.uncovered + self.absent

    @property
    def absences(self) -> list[tuple[int | None, str]]:
        """Layers that the model's config has and that were not found, with reasons; None: not known which."""
        named: list[tuple[int | None, str]] = [(entry.layer, entry.reason) for entry in self.absent]
        return [*named, (None, self.absent_unnamed)] if self.absent_unnamed else named

    @property
    def age_at_capture(self) -> float:
        """Seconds from the start of the epoch to this frame, by the producer's own clock; 0 at least."""
        return max(0.0, (self.captured_at_ns - self.epoch) / 1e9)


@dataclass(frozen=True, slots=True)
class EpochState:
    """The totals that an epoch's frame with the highest ``seq`` told."""

    epoch: int
    seq: int
    counted: Totals


@dataclass(frozen=True, slots=True)
class Base:
    """What counters in ``/metrics`` leave out of an account: what was counted before this service knew.

    Prometheus takes a counter that falls for one that began again at zero, and all that it then shows for
    new. So counters may only show what is known to be new.

    Attributes:
        totals: what is left out of the account's totals.
        restarts: what is left out of its restarts.
        at: when the counters of this account were zero, seconds of Unix time on the service's clock.
    """

    totals: Totals
    restarts: int
    at: float


@dataclass(frozen=True, slots=True)
class AccountState:
    """All that an account knows, so that it can be kept elsewhere.

    Attributes:
        totals: the sum over all epochs.
        epochs: those that are remembered.
        forgotten: the newest epochs that only the sum has, rising, one at least. All epochs up to the first
            of them count as forgotten too.
        epochs_seen: how many epochs there were in all.
        latest: the newest frame, which is of the newest of ``epochs``.
        base: what counters leave out; None: nothing.
    """

    totals: Totals
    epochs: tuple[EpochState, ...]
    forgotten: tuple[int, ...]
    epochs_seen: int
    latest: Latest
    base: Base | None = None

    def has_forgotten(self, epoch: int) -> bool:
        """Whether an epoch is only in the sum."""
        return epoch <= self.forgotten[0] or epoch in self.forgotten

    def covers(self, other: AccountState) -> bool:
        """Whether all epochs that another account of this producer has forgotten are in this one's sum."""
        known = {item.epoch for item in self.epochs}
        return all(epoch in known or self.has_forgotten(epoch) for epoch in other.forgotten)


def forget(forgotten: tuple[int, ...], *epochs: int) -> tuple[int, ...]:
    """``AccountState.forgotten`` with more epochs."""
    return tuple(sorted({*forgotten, *epochs})[-_FORGOTTEN:])
