"""Exact accounting of one producer's cumulative frames.

Invariants:
- An account's totals are the sum, over the producer's epochs, of the totals of that epoch's frame with the
  highest ``seq``. Doubled, late, reordered and lost frames and restarts change nothing about that.
- Slots by EP rank are added when a frame arrives, through the placement which that frame carries: a later
  rearrangement never rewrites the past.
- What a frame adds is split by phase if this frame and the epoch's frame before it both tell phases.
  Otherwise it counts as unphased.
- A refused frame leaves no trace in the account.
- Memory is bounded: the newest ``max_epochs`` epochs are remembered. Older ones are only in the sum, and
  their late frames are refused.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum

import numpy as np

from moescope.capture.wire import Frame
from moescope.service.counts.account_state import AccountState, Base, EpochState, Latest, forget
from moescope.service.counts.ep_slots import ep_slots_of
from moescope.service.counts.layers import Layout
from moescope.service.counts.reasons import known_traces
from moescope.service.counts.refusals import RefusedError, check_exact, check_growth, check_steps
from moescope.service.counts.step_costs import Stragglers
from moescope.service.counts.totals import Totals, no_totals, totals_of


class Verdict(StrEnum):
    """What became of a frame that was not refused."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"


class Account:
    """The totals of one ``producer.key`` over all its epochs."""

    def __init__(self, max_epochs: int) -> None:
        self._max_epochs = max_epochs
        self._epochs: dict[int, EpochState] = {}
        self._forgotten: tuple[int, ...] = (0,)
        self.totals = no_totals(Layout(()))
        self.latest: Latest | None = None
        self.base: Base | None = None
        self._epochs_seen = 0
        self.generation = 0
        """Rises whenever the totals begin again from zero because the model's shape changed."""

    @property
    def restarts(self) -> int:
        """Epochs seen, in whatever order, after the first."""
        return max(0, self._epochs_seen - 1)

    @classmethod
    def restored(cls, state: AccountState, max_epochs: int) -> Account:
        """The account whose :meth:`state` this is."""
        account = cls(max_epochs)
        account._epochs = {item.epoch: item for item in state.epochs}
        account._forgotten = state.forgotten
        account._epochs_seen = state.epochs_seen
        account.totals = state.totals
        account.latest = state.latest
        account.base = state.base
        return account

    def state(self) -> AccountState:
        """All that the account knows. It must have had a frame."""
        assert self.latest is not None, "an account without a frame"
        epochs = tuple(self._epochs.values())
        return AccountState(self.totals, epochs, self._forgotten, self._epochs_seen, self.latest, self.base)

    def seq_of(self, epoch: int) -> int | None:
        """The highest ``seq`` of an epoch that was taken; None: the epoch isn't remembered."""
        known = self._epochs.get(epoch)
        return None if known is None else known.seq

    def leave_out(self, part: Totals, at: float) -> None:
        """Leave a part of the totals out of the counters; they were zero at ``at`` if nothing was before."""
        if self.base is None:
            self.base = Base(part, 0, at)
        else:
            self.base = replace(self.base, totals=self.base.totals.plus(part))

    def leave_all_out(self, at: float) -> None:
        """Let the counters begin at zero."""
        self.base = Base(self.totals, self.restarts, at)

    def add_stragglers(self, layout: Layout, more: Stragglers) -> bool:
        """Add what joined steps cost; False, and nothing is added, if a layer of ``layout`` is not here."""
        mine = self.totals.layout
        if any(mine.index.get(layer.layer) is None for layer in layout.layers) or layout.conflict(mine):
            return False
        self.totals = self.totals.with_stragglers(layout, more)
        return True

    def post(self, frame: Frame, layout: Layout | None = None) -> Verdict:
        """Take a checked frame (see :func:`moescope.capture.wire.check_frame`) into account.

        Args:
            frame: the frame.
            layout: the layout of the frame's layers, which accounts may share; None: a new one is made.

        Raises:
            RefusedError: the frame contradicts an earlier one, is of a forgotten epoch, or can't be kept.
        """
        known, newer = self._epochs.get(frame.epoch), self._newer_than(frame)
        if known is None and frame.epoch <= self._forgotten[-1]:
            raise RefusedError(
                "epoch_forgotten",
                f"epoch: {frame.epoch} is older than the {self._max_epochs} epochs that are remembered; "
                "its totals as last seen stay counted",
            )
        if known is not None and frame.seq <= known.seq:
            return Verdict.DUPLICATE if frame.seq == known.seq else Verdict.STALE
        counted = totals_of(frame, layout or Layout(frame.layers))
        check_exact(counted)
        check_steps(frame)
        if known is not None:
            check_growth(frame, counted, known.counted, known.seq)
        began_again = self._is_another_model(frame, counted.layout)
        base = no_totals(counted.layout) if began_again else self.totals
        # There is almost always one epoch. Then the totals' counts equal the frame's: memory has them once.
        totals = base.plus(_placed(frame, _added(counted, known))).sharing(counted)
        who = frame.producer if newer is None else newer.producer
        switches = base.switches if newer is not None else _switched(base.switches, frame)
        totals = replace(totals, dp_size=who.dp_size, ep_size=who.ep_size, switches=switches)
        check_exact(totals)

        if began_again:
            self._begin_again(frame.epoch)
        self.totals = totals
        self._epochs_seen += known is None
        self._epochs[frame.epoch] = EpochState(frame.epoch, frame.seq, counted)
        self._forget_old_epochs()
        self._keep_latest(frame, counted)
        return Verdict.ACCEPTED

    def _newer_than(self, frame: Frame) -> Latest | None:
        """The newest frame, if its epoch is newer than that of this late frame."""
        return self.latest if self.latest is not None and frame.epoch < self.latest.epoch else None

    def _is_another_model(self, frame: Frame, layout: Layout) -> bool:
        """Whether a newer epoch has other experts or another top-k in some layer than the totals so far."""
        conflict = layout.conflict(self.totals.layout)
        if conflict is None:
            return False
        if self._newer_than(frame) is not None:
            raise RefusedError(
                "shape", f"layers: {conflict[0]} of an older epoch, the newer one has {conflict[1]}"
            )
        return True

    def _begin_again(self, epoch: int) -> None:
        self._epochs.clear()
        self.base = None
        self._forgotten = (epoch - 1,)
        self.generation += 1

    def _forget_old_epochs(self) -> None:
        while len(self._epochs) > self._max_epochs:
            oldest = min(self._epochs)
            del self._epochs[oldest]
            self._forgotten = forget(self._forgotten, oldest)

    def _keep_latest(self, frame: Frame, counted: Totals) -> None:
        if self._newer_than(frame) is not None:
            return
        self.latest = Latest(
            producer=frame.producer,
            epoch=frame.epoch,
            seq=frame.seq,
            captured_at_ns=frame.captured_at_ns,
            state=frame.state,
            state_reason=frame.state_reason,
            uncovered=tuple(frame.uncovered),
            placement_version=None if frame.placement is None else frame.placement.version,
            strategy=frame.strategy,
            counted=counted,
            traces=known_traces(frame.traces),
            unavailable=dict(frame.unavailable),
            absent=tuple(frame.absent),
            absent_unnamed=frame.absent_unnamed,
        )


def _switched(switches: int, frame: Frame) -> int:
    """``Totals.switches`` after the newest frame."""
    return switches + (switches % 2 != (frame.state == "disabled"))


def _added(counted: Totals, known: EpochState | None) -> Totals:
    """What a frame adds to the epoch's frame before it. It is unphased unless both tell phases."""
    before = None if known is None else known.counted
    delta = counted if before is None else counted.minus(before)
    if counted.decode is not None and (before is None or before.decode is not None or not before.tokens):
        return delta
    return replace(
        delta,
        decode=None,
        unphased_rows=delta.rows,
        unphased_tokens=delta.tokens,
        unphased_steps=delta.steps,
    )


def _placed(frame: Frame, delta: Totals) -> Totals:
    """The difference with its slots given to EP ranks, or counted as unplaced where no placement is known."""
    placement, ep_size = frame.placement, frame.producer.ep_size
    layout, decode = delta.layout, delta.decode
    if ep_size == 1:
        return delta
    if placement is None:
        told = decode and replace(decode, unplaced=layout.sums(decode.counts))
        return replace(delta, unplaced=layout.sums(delta.counts), decode=told)
    if decode is None:
        [whole] = ep_slots_of(delta.counts[np.newaxis], layout, placement, ep_size)
        return replace(delta, ep_slots=whole)
    both = np.stack([delta.counts, decode.counts])
    whole, part = ep_slots_of(both, layout, placement, ep_size)
    return replace(delta, ep_slots=whole, decode=replace(decode, ep_slots=part))
