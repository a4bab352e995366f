"""Accounts of one producer that several services kept apart, as one.

A service knows of each epoch the frame with the highest ``seq`` that came to it. The merged account has the
higher of the two frames for each epoch, and totals that fit them: slots, tokens and steps are exact,
whichever service got which frame. What is derived on the way from frame to frame (EP ranks, phases, joined
steps) comes from one account, the base of the merged one. What the other adds is unplaced and unphased.
Epochs that an account has only in its sum can't be taken out of it. So the base is the account whose sum
covers all forgotten epochs of the other, or else the one whose forgotten epochs go further.
"""

from __future__ import annotations

from dataclasses import replace

from moescope.service.counts.account_state import AccountState, Base, EpochState, forget
from moescope.service.counts.totals import Totals, no_totals


def merge_accounts(one: AccountState, other: AccountState, max_epochs: int) -> AccountState:
    """What both accounts know together; it is one of them itself if the other knows nothing newer.

    Args:
        one, other: accounts of the same producer key.
        max_epochs: how many of the newest epochs the merged account remembers.
    """
    newest = max(one, other, key=_version)
    if one.totals.layout.conflict(other.totals.layout) is not None:
        return newest  # the model changed: the older totals are of another one
    # Forgotten epochs are in a sum only: the merged account starts from the sum that has most of them.
    base, more = max(
        (one, other),
        (other, one),
        key=lambda pair: (pair[0].covers(pair[1]), pair[0].forgotten[-1], _version(pair[0])),
    )
    epochs = {item.epoch: item for item in base.epochs}
    missing = [item for item in more.epochs if _is_news(item, epochs.get(item.epoch), base)]
    left_out = min((base.base, more.base), key=_size_of)
    if not missing:
        return base if left_out is base.base else replace(base, base=left_out)
    totals, seen = base.totals, base.epochs_seen
    for item in missing:
        known = epochs.get(item.epoch)
        seen += known is None
        totals = totals.plus(_unplaced(_difference(item, known)))
        epochs[item.epoch] = item
    kept = sorted(epochs)[-max_epochs:]
    forgotten = forget(base.forgotten, *(epoch for epoch in epochs if epoch < kept[0]))
    told = newest.totals
    totals = replace(totals, dp_size=told.dp_size, ep_size=told.ep_size, switches=told.switches)
    return AccountState(
        totals, tuple(epochs[epoch] for epoch in kept), forgotten, seen, newest.latest, left_out
    )


def _size_of(base: Base | None) -> int:
    """What one service leaves out of the counters and the other doesn't is new: the smaller base holds."""
    return 0 if base is None else 1 + base.totals.tokens


def _version(state: AccountState) -> tuple[int, int, int]:
    return state.latest.epoch, state.latest.seq, state.totals.tokens


def _is_news(item: EpochState, known: EpochState | None, base: AccountState) -> bool:
    if known is None:
        return not base.has_forgotten(item.epoch)
    return item.seq > known.seq


def _difference(item: EpochState, known: EpochState | None) -> Totals:
    return item.counted if known is None else item.counted.minus(known.counted)


def _unplaced(delta: Totals) -> Totals:
    layout = delta.layout
    return replace(
        no_totals(layout),
        counts=delta.counts,
        rows=delta.rows,
        tokens=delta.tokens,
        steps=delta.steps,
        idle_steps=delta.idle_steps,
        drops=delta.drops,
        unplaced=layout.sums(delta.counts),
        unphased_rows=delta.rows,
        unphased_tokens=delta.tokens,
        unphased_steps=delta.steps,
    )
