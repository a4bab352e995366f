"""To which EP ranks the slots went that a frame adds to an account."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moescope.capture.wire import Frame, Int64Array, Placement
from moescope.service.counts.ep_slots import ep_slots_of, no_ep_slots, spread_slots
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.layers import Layout
from moescope.service.counts.totals import Decode, Totals


def placed(frame: Frame, delta: Totals, known: EpochState | None) -> Totals:
    """What a frame adds, with its slots given to EP ranks, or counted as unplaced where that isn't known.

    Args:
        frame: the frame.
        delta: what it adds to the frame before it, both with the slots by EP rank that they tell.
        known: the life, as the frame before it left it; None: there was none.
    """
    if frame.producer.ep_size == 1:
        return without_places(delta)
    if frame.ep_slots and counts_on(delta, None if known is None else known.counted, frame.producer.ep_size):
        return as_counted(delta)
    if frame.placement is None:
        return unplaced(delta)
    return _by_placement(without_places(delta), frame.placement, frame.producer.ep_size)


def counts_on(delta: Totals, before: Totals | None, ep_size: int) -> bool:
    """Whether the beginning of a difference tells the slots of each EP rank, as its end does.

    Args:
        delta: the difference; its end tells them.
        before: what it began from; None or nothing: the beginning of the life.
        ep_size: R at its end.
    """
    if delta.ep_slots.ranks != ep_size:
        return False
    return before is None or before.ep_slots.ranks == ep_size or not before.counts.any()


def as_counted(delta: Totals) -> Totals:
    """A difference whose slots by EP rank the worker has counted; those that it gave to none are unplaced."""
    layout, decode = delta.layout, delta.decode
    told = decode and replace(decode, unplaced=left_over(layout, decode))
    return replace(delta, unplaced=left_over(layout, delta), decode=told)


def left_over(layout: Layout, part: Totals | Decode) -> Int64Array:
    """The slots that a worker which counts those of each EP rank gave to none, int64 [L]."""
    return np.asarray(layout.sums(part.counts) - part.ep_slots.whole.sum(axis=1))


def unplaced(delta: Totals) -> Totals:
    """A difference of which no slot's EP rank is known."""
    layout, nowhere = delta.layout, without_places(delta)
    decode = nowhere.decode
    told = decode and replace(decode, unplaced=layout.sums(decode.counts))
    return replace(nowhere, unplaced=layout.sums(delta.counts), decode=told)


def without_places(delta: Totals) -> Totals:
    """A difference without the slots by EP rank that it tells."""
    nothing = no_ep_slots(len(delta.layout.layers))
    decode: Decode | None = delta.decode and replace(delta.decode, ep_slots=nothing)
    return replace(delta, ep_slots=nothing, decode=decode)


def _by_placement(delta: Totals, placement: Placement, ep_size: int) -> Totals:
    layout, decode = delta.layout, delta.decode
    delta = replace(delta, estimated=spread_slots(delta.counts, layout, placement))
    if decode is None:
        [whole] = ep_slots_of(delta.counts[np.newaxis], layout, placement, ep_size)
        return replace(delta, ep_slots=whole)
    both = np.stack([delta.counts, decode.counts])
    whole, part = ep_slots_of(both, layout, placement, ep_size)
    spread = spread_slots(decode.counts, layout, placement)
    return replace(delta, ep_slots=whole, decode=replace(decode, ep_slots=part, estimated=spread))
