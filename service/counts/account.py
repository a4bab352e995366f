"""Exact accounting of one producer's cumulative frames.

Invariants:
- An account's totals are the sum, over the producer's epochs, of the totals of that epoch's frame with the
  highest ``seq``. Doubled, late, reordered and lost frames and restarts change nothing about that.
- Slots by EP rank are those that the worker counted on its device, step by step. Where a frame or the one
  before it doesn't tell them, what it adds goes through the placement which it carries: a later rearrangement
  never rewrites the past. Slots of an expert with copies on several EP ranks are an estimate then.
- What a frame adds is split by phase if this frame and the epoch's frame before it both tell phases.
  Otherwise it counts as unphased.
- A refused frame leaves no trace in the account.
- Which epoch counts at present, and whether several do, is for :mod:`moescope.service.counts.lives`.
- Memory is bounded: the ``max_epochs`` epochs heard last are remembered, and all that are still heard. Others
  are only in the sum, and their late frames are refused.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

from moescope.capture.wire import Frame, MoeLayer, Producer
from moescope.service.counts.account_state import AccountState, Base, Latest, forget, left_out
from moescope.service.counts.choosing import STALE_AFTER_S
from moescope.service.counts.conflict import REMEDY, Conflict, named
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.latest import latest_of, latest_of_kept
from moescope.service.counts.layers import Layout
from moescope.service.counts.lives import Lives
from moescope.service.counts.narrow import widened
from moescope.service.counts.parts import added_by, unphased
from moescope.service.counts.placing import placed
from moescope.service.counts.refusals import RefusedError, check_exact, check_growth, check_steps
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals, no_totals, totals_of
from moescope.service.counts.weights import weights_after, weights_after_late


class Verdict(StrEnum):
    """What became of a frame that was not refused."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"


class Account:
    """The totals of one ``producer.key`` over all its epochs."""

    def __init__(self, max_epochs: int, stale_after: float = STALE_AFTER_S, epochs_seen: int = 0) -> None:
        """Begin without a frame.

        Args:
            max_epochs: see above.
            stale_after: seconds without a frame after which an epoch's worker is silent.
            epochs_seen: epochs of the key that are in no account any more.
        """
        self._max_epochs = max_epochs
        self._lives = Lives(max_epochs, stale_after)
        self._latest: dict[int, Latest] = {}
        self._forgotten: tuple[int, ...] = ()
        self.totals = no_totals(Layout(()))
        self.base: Base | None = None
        self._epochs_seen = epochs_seen
        self.generation = 0
        """Rises whenever the totals begin again from zero because the model's shape changed."""

    @property
    def latest(self) -> Latest | None:
        """The newest frame of the life that counts at present; None: no frame came yet."""
        current = self._lives.current
        return None if current is None else self._latest[current.epoch]

    @property
    def life(self) -> EpochState:
        """The life that counts at present. There must have been a frame."""
        assert self._lives.current is not None, "an account without a frame"
        return self._lives.current

    @property
    def restarts(self) -> int:
        """Epochs seen, in whatever order, after the first."""
        return max(0, self._epochs_seen - 1)

    def started_at(self, epoch: int) -> float:
        """When the counting of an epoch that is remembered began, by the service's clock."""
        life = self._lives.get(epoch)
        assert life is not None, f"epoch {epoch} isn't remembered"
        return life.started_at

    @property
    def conflicts(self) -> tuple[tuple[float, float], ...]:
        """When several lives counted at once, as far as it is remembered: (since, until), oldest first."""
        return self._lives.conflicts

    def conflict(self, now: float) -> Conflict | None:
        """The live processes that claim this rank at present, if there are several."""
        return self._lives.conflict(now)

    def set_back(self, now: float) -> None:
        """The service's clock shows ``now``, maybe less than before: no life has an instant after it."""
        self._lives.set_back(now)

    def settle(self, now: float) -> bool:
        """Let a life that is heard take the place of one that fell silent; whether one did."""
        return self._lives.settle(now)

    @classmethod
    def restored(cls, state: AccountState, max_epochs: int, stale_after: float = STALE_AFTER_S) -> Account:
        """The account whose :meth:`state` this is."""
        account = cls(max_epochs, stale_after)
        account._lives.restore(state.epochs, state.latest.epoch, state.conflicts)
        # Of other lives stores keep nothing but the totals. What else they say comes with their next frame.
        told = {item.epoch: item for item in (*state.others, state.latest)}
        account._latest = {
            item.epoch: latest_of_kept(item, told.get(item.epoch, state.latest))
            for item in state.epochs
            if item.epoch == state.latest.epoch or item.producer is not None
        }
        account._forgotten = state.forgotten
        account._epochs_seen = state.epochs_seen
        account.totals = state.totals
        account.base = state.base
        return account

    def state(self) -> AccountState:
        """All that the account knows. It must have had a frame."""
        assert self.latest is not None, "an account without a frame"
        return AccountState(
            totals=self.totals,
            epochs=tuple(self._lives),
            forgotten=self._forgotten,
            epochs_seen=self._epochs_seen,
            latest=self.latest,
            conflicts=self.conflicts,
            base=self.base,
            others=tuple(
                item
                for item in self._latest.values()
                if item.epoch != self.latest.epoch and not item.is_guessed
            ),
        )

    def seq_of(self, epoch: int) -> int | None:
        """The highest ``seq`` of an epoch that was taken; None: the epoch isn't remembered."""
        known = self._lives.get(epoch)
        return None if known is None else known.seq

    def leave_out(self, part: Totals, at: float) -> None:
        """Leave a part of the totals out of the counters; they were zero at ``at`` if nothing was before."""
        if self.base is None:
            self.base = left_out(part, 0, at)
        else:
            self.base = left_out(widened(self.base.totals).plus(part), self.base.restarts, self.base.at)

    def leave_all_out(self, at: float) -> None:
        """Let the counters begin at zero."""
        self.base = left_out(self.totals, self.restarts, at)

    def add_stragglers(self, layout: Layout, more: Stragglers) -> bool:
        """Add what joined steps cost; False, and nothing is added, if a layer of ``layout`` is not here."""
        mine = self.totals.layout
        if any(mine.index.get(layer.layer) is None for layer in layout.layers) or layout.conflict(mine):
            return False
        self.totals = self.totals.with_stragglers(layout, more)
        self._lives.add_stragglers(layout, more)
        return True

    def post(self, frame: Frame, layout: Layout | None = None, at: float | None = None) -> Verdict:
        """Take a checked frame (see :func:`moescope.capture.wire.check_frame`) into account.

        Args:
            frame: the frame.
            layout: the layout of the frame's layers, which accounts may share; None: a new one is made.
            at: when it came, seconds of Unix time on the service's clock; None: at the instant of capture,
                as if the worker's clock were the service's.

        Raises:
            RefusedError: the frame contradicts an earlier one, is of a forgotten epoch, or can't be kept.
        """
        at = frame.captured_at_ns / 1e9 if at is None else at
        known = self._lives.get(frame.epoch)
        if known is not None and frame.seq <= known.seq:
            self._lives.check(frame, at)
            return Verdict.DUPLICATE if frame.seq == known.seq else Verdict.STALE
        layout = layout or Layout(frame.layers)
        if known is None:
            self._check_remembered(frame, layout)
        self._lives.check(frame, at)
        counted = totals_of(frame, layout)
        check_exact(counted)
        check_steps(frame)
        if known is not None:
            check_growth(frame, counted, known.counted, known.seq)
        began_again = self._is_another_model(frame, counted.layout, at)
        former_epoch = None if self.latest is None or began_again else self.latest.epoch
        base = no_totals(counted.layout) if began_again else self.totals
        # There is almost always one epoch. Then the totals' counts equal the frame's: memory has them once.
        delta = placed(frame, _added(counted, known), known)
        totals = base.plus(delta).sharing(counted)
        added = added_by(frame, counted, delta, known)
        check_exact(totals)

        if began_again:
            self._begin_again()
        self._epochs_seen += known is None
        is_current = self._lives.hear(frame, counted, at, added)
        self._latest[frame.epoch] = latest_of(frame, counted)
        self._forget_old_epochs(at)
        who = frame.producer if is_current or self.latest is None else self.latest.producer
        switches = _switched(base.switches, frame) if is_current else base.switches
        former = _former_tokens(totals, base, who, frame, known)
        weights = (
            weights_after(
                base.weights, frame, at, former_epoch=former_epoch, tokens=(base.tokens, totals.tokens)
            )
            if is_current
            else weights_after_late(base.weights, frame, at, totals.tokens)
        )
        self.totals = replace(
            totals,
            dp_size=who.dp_size,
            ep_size=who.ep_size,
            switches=switches,
            former_tokens=former,
            weights=weights,
        )
        return Verdict.ACCEPTED

    def check_late(self, frame: Frame, at: float, other: EpochState, long_s: float) -> None:
        """A frame may take the place of a silent life of another rank, whose model has another shape.

        Args:
            frame: the frame, which comes at ``at``.
            other: that life.
            long_s: for so long the other may be silent before anybody may take its place.

        Raises:
            RefusedError: that life is of a newer start, and the frame may have been made before it was heard.
        """
        order, made_at = self._lives.stands(frame, at)
        is_late = self._lives.get(frame.epoch) is None or made_at <= other.heard_at
        if order < other.order and is_late and at - other.heard_at <= long_s:
            raise RefusedError(
                "shape",
                f"layers: this is a late frame of an older start (pid {frame.producer.pid} on host "
                f"{frame.producer.host or 'unknown'}); {named([other])}, which began later, has another",
            )

    def _check_remembered(self, frame: Frame, layout: Layout) -> None:
        """An epoch that isn't known may be a new one: it has not been forgotten.

        Raises:
            RefusedError: it has been.
        """
        if frame.epoch not in self._forgotten:
            return
        conflict = layout.conflict(self.totals.layout)
        if conflict is not None:
            raise self._another_shape(frame, conflict)
        raise RefusedError(
            "epoch_forgotten",
            f"epoch: {frame.epoch} is none of the {self._max_epochs} epochs that are remembered any more; "
            "its totals as last seen stay counted",
        )

    def _is_another_model(self, frame: Frame, layout: Layout, at: float) -> bool:
        """Whether a newer epoch has other experts or another top-k in some layer than the totals so far."""
        conflict = layout.conflict(self.totals.layout)
        if conflict is None:
            return False
        current, known = self._lives.current, self._lives.get(frame.epoch)
        # A worker that doesn't tell how long it has been up may be one whose last frame came late.
        may_be_late = (
            current is not None
            and not frame.uptime_ns
            and frame.epoch < current.epoch
            and self._lives.is_heard(current, at)
        )
        if known is not None or may_be_late or self._lives.is_older(frame, at):
            raise self._another_shape(frame, conflict)
        return True

    def _another_shape(self, frame: Frame, conflict: tuple[MoeLayer, MoeLayer]) -> RefusedError:
        mine = "" if self._lives.current is None else f" ({named([self._lives.current])})"
        who = frame.producer
        return RefusedError(
            "shape",
            f"layers: {conflict[0]} of an older start (pid {who.pid} on host {who.host or 'unknown'}), the "
            f"newer one{mine} has {conflict[1]}; if both live, {REMEDY}",
        )

    def _begin_again(self) -> None:
        self._forgotten = forget(self._forgotten, *self._lives.clear())
        self._latest.clear()
        self.base = None
        self.generation += 1

    def _forget_old_epochs(self, at: float) -> None:
        for epoch in self._lives.forget_old(at):
            self._latest.pop(epoch, None)
            self._forgotten = forget(self._forgotten, epoch)


def _former_tokens(
    totals: Totals, before: Totals, told: Producer, frame: Frame, known: EpochState | None
) -> int:
    """``Totals.former_tokens`` once the totals have what a frame adds.

    Args:
        totals: with what the frame adds.
        before: without.
        told: the worker that tells the present sizes.
        frame: the frame.
        known: what its epoch had told before it; None: nothing.
    """
    if before.ep_size and (before.dp_size, before.ep_size) != _sizes(told):
        # Within an epoch it is not known which of the tokens that it adds were counted after the change.
        return before.tokens if known is None else totals.tokens
    return before.former_tokens if _sizes(frame.producer) == _sizes(told) else totals.tokens


def _sizes(who: Producer) -> tuple[int, int]:
    return who.dp_size, who.ep_size


def _switched(switches: int, frame: Frame) -> int:
    """``Totals.switches`` after the newest frame."""
    return switches + (switches % 2 != (frame.state == "disabled"))


def _added(counted: Totals, known: EpochState | None) -> Totals:
    """What a frame adds to the epoch's frame before it. It is unphased unless both tell phases."""
    before = None if known is None else known.counted
    delta = counted if before is None else counted.minus(before)
    if counted.decode is not None and (before is None or before.decode is not None or not before.tokens):
        return delta
    return unphased(delta)
