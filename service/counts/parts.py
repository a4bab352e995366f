"""What one life has in its account's totals: the sum of what its frames added.

Totals of an account are the parts of all its lives, and what is only in the sum (lives that are not
remembered, and what an earlier moescope did not keep by life). So two accounts of one producer are merged
life by life.

Where each frame of a life tells phases and slots by EP rank, or none of them does, its part follows from its
newest frame alone, whoever heard the earlier ones. Else it depends on the way from frame to frame, and is
kept.
"""

from __future__ import annotations

from dataclasses import replace

from moescope.capture.wire import Frame
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.placing import as_counted, counts_on, unplaced, without_places
from moescope.service.counts.totals import Totals


def part_of(life: EpochState) -> Totals:
    """What a life has in the totals of its account."""
    part = life.added
    if part is None:
        part = life.counted if life.counted.decode is not None else unphased(life.counted)
        if _has_one_rank(life):
            part = without_places(part)
        else:
            part = as_counted(part) if part.ep_slots.ranks else unplaced(part)
    return part if life.stragglers is None else replace(part, stragglers=life.stragglers)


def added_by(frame: Frame, counted: Totals, delta: Totals, known: EpochState | None) -> Totals | None:
    """:attr:`EpochState.added` once one more frame has come.

    Args:
        frame: the frame.
        counted: the totals that it tells.
        delta: what it adds to the account, placed and split by phase as far as that is known.
        known: the life before it; None: it is the first frame.
    """
    if _follows(frame, counted, delta, known):
        return None
    if known is None:
        return delta.sharing(counted)
    return part_of(replace(known, stragglers=None)).plus(delta).sharing(counted)


def unphased(totals: Totals) -> Totals:
    """Totals, or a difference, of which no phase is known."""
    return replace(
        totals,
        decode=None,
        unphased_rows=totals.rows,
        unphased_tokens=totals.tokens,
        unphased_steps=totals.steps,
    )


def _follows(frame: Frame, counted: Totals, delta: Totals, known: EpochState | None) -> bool:
    """Whether the part of a life follows from what its newest frame tells."""
    if known is not None:
        before = known.counted
        if known.added is not None or (before.decode is None) != (counted.decode is None):
            return False
        if known.producer is None or known.producer.ep_size != frame.producer.ep_size:
            return False
        if bool(before.ep_slots.ranks) != bool(counted.ep_slots.ranks):
            return False
    if frame.producer.ep_size == 1:
        return True
    if counted.ep_slots.ranks:
        return counts_on(counted, None if known is None else known.counted, frame.producer.ep_size)
    return not delta.ep_slots.ranks and not delta.estimated.any()  # else a placement told it


def _has_one_rank(life: EpochState) -> bool:
    return life.producer is not None and life.producer.ep_size == 1
