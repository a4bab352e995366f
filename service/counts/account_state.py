"""What an account knows, as immutable values: for the store, and for merging what several services know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from moescope.capture.wire import Producer, UncoveredLayer
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.instants import not_after
from moescope.service.counts.narrow import without_decode_arrays
from moescope.service.counts.totals import Totals

_FORGOTTEN: Final = 64  # forgotten epochs that are remembered by number: 8 bytes each


@dataclass(frozen=True, slots=True, weakref_slot=True)
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
    ended: bool = False
    decoder_layers: int = 0
    is_guessed: bool = field(default=False, compare=False)
    """Nothing but its totals is known: the rest is what another frame said."""

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
class Base:
    """What counters in ``/metrics`` leave out of an account: what was counted before this service knew.

    Prometheus takes a counter that falls for one that began again at zero, and all that it then shows for
    new. So counters may only show what is known to be new.

    Attributes:
        totals: what is left out of the account's totals, in narrow arrays; see
            :func:`without_decode_arrays`: no counter is of decode by expert, layer or EP rank.
        restarts: what is left out of its restarts.
        at: when the counters of this account were zero, seconds of Unix time on the service's clock.
    """

    totals: Totals
    restarts: int
    at: float


def left_out(totals: Totals, restarts: int, at: float) -> Base:
    """Leave these totals out; see :class:`Base`."""
    return Base(without_decode_arrays(totals), restarts, at)


@dataclass(frozen=True, slots=True)
class AccountState:
    """All that an account knows, so that it can be kept elsewhere.

    Attributes:
        totals: the sum over all epochs.
        epochs: those that are remembered.
        forgotten: numbers of epochs that only the sum has, the last forgotten one last.
        epochs_seen: how many epochs there were in all.
        latest: the newest frame of the life that counts at present, one of ``epochs``.
        conflicts: when several lives counted at once: (since, until), oldest first.
        base: what counters leave out; None: nothing.
        others: the newest frames of other lives, as far as they are known. No store keeps them.
    """

    totals: Totals
    epochs: tuple[EpochState, ...]
    forgotten: tuple[int, ...]
    epochs_seen: int
    latest: Latest
    conflicts: tuple[tuple[float, float], ...] = ()
    base: Base | None = None
    others: tuple[Latest, ...] = field(default=(), compare=False)

    @property
    def life(self) -> EpochState:
        """The life that counts at present."""
        return next(item for item in self.epochs if item.epoch == self.latest.epoch)

    @property
    def order(self) -> tuple[float, int]:
        """Accounts rise by when the life that counts at present began."""
        return self.life.order

    def has_forgotten(self, epoch: int) -> bool:
        """Whether an epoch is only in the sum."""
        return epoch in self.forgotten

    def covers(self, other: AccountState) -> bool:
        """Whether all epochs that another account of this producer has forgotten are in this one's sum."""
        known = {item.epoch for item in self.epochs}
        return all(epoch in known or self.has_forgotten(epoch) for epoch in other.forgotten)

    def dated(self, at: float) -> AccountState:
        """With instants where an earlier moescope kept none; ``at`` is when its newest frame had come.

        Lives were ordered by their epochs then, and still are among themselves.
        """
        if any(item.heard_at for item in self.epochs):
            return self
        began = at - self.latest.age_at_capture
        lives = tuple(
            replace(item, began_at=began, started_at=began, came_at=began, heard_at=began, made_at=began)
            if item.epoch != self.latest.epoch
            else replace(
                item,
                producer=self.latest.producer,
                began_at=began,
                started_at=began,
                came_at=began,
                heard_at=at,
                made_at=at,
                going_at=at,
                captured_at_ns=self.latest.captured_at_ns,
                lag=at - self.latest.captured_at_ns / 1e9,
            )
            for item in self.epochs
        )
        return replace(self, epochs=lives)

    def heard_by(self, now: float, known: Iterable[EpochState] = ()) -> AccountState:
        """With no instant after ``now``: the clock of whoever kept this may be ahead.

        However often accounts are told to and fro, each instant is moved once for each clock that is behind
        it; see :mod:`moescope.service.counts.instants`.

        Args:
            now: seconds of Unix time, on the clock of the service that hears this.
            known: what that service knows of lives, none of it after now.
        """
        mine = {item.epoch: item for item in known}
        epochs = tuple(
            item if item.epoch not in mine else item.as_known(mine[item.epoch], now) for item in self.epochs
        )
        conflicts = (at for conflict in self.conflicts for at in conflict)
        others = (self.totals.weights.at, *(() if self.base is None else (self.base.at,)))
        to = not_after(now, (*(at for item in epochs for at in item.instants), *conflicts, *others))
        if to is None:
            return replace(self, epochs=epochs) if mine else self
        weights = replace(self.totals.weights, at=to(self.totals.weights.at))
        return replace(
            self,
            totals=replace(self.totals, weights=weights),
            epochs=tuple(item.moved(to) for item in epochs),
            conflicts=tuple((to(since), to(until)) for since, until in self.conflicts),
            base=None if self.base is None else replace(self.base, at=to(self.base.at)),
        )


def forget(forgotten: tuple[int, ...], *epochs: int) -> tuple[int, ...]:
    """``AccountState.forgotten`` with more epochs."""
    return (*forgotten, *(epoch for epoch in epochs if epoch not in forgotten))[-_FORGOTTEN:]
