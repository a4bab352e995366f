"""Accounts of one producer that several services kept apart, as one.

A service knows of each epoch the frame with the highest ``seq`` that came to it. The merged account has the
higher of the two frames for each epoch, and that life's part of the totals with it (see
:mod:`moescope.service.counts.parts`): slots, tokens and steps are exact, whichever service got which frame.
So are slots by EP rank and phases where the workers tell them. Of joined steps of a life those of the service
that joined most of them count.
Epochs that an account has only in its sum can't be taken out of it. So the base is the account whose sum
covers all forgotten epochs of the other, or else the one that has forgotten more of them.

Of a life both services may have heard: it came when the first of them heard it, and is heard as long as one
of them does. So lives have one order on all services, whose own clocks must agree within seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moescope.service.counts.account_state import AccountState, Base, EpochState, forget
from moescope.service.counts.conflict import joined
from moescope.service.counts.lives import STALE_AFTER_S, surplus, takes_place
from moescope.service.counts.parts import part_of, unphased
from moescope.service.counts.placing import as_counted, counts_on, unplaced
from moescope.service.counts.totals import Totals
from moescope.service.counts.weights import WeightsTold


def merge_accounts(
    one: AccountState, other: AccountState, max_epochs: int, stale_after: float = STALE_AFTER_S
) -> AccountState:
    """What both accounts know together; it is one of them itself if the other knows nothing newer.

    Args:
        one, other: accounts of the same producer key.
        max_epochs: how many epochs the merged account remembers, and all that are still heard.
        stale_after: seconds without a frame after which a life is silent.
    """
    if one.totals.layout.conflict(other.totals.layout) is not None:
        # The model changed: the other totals are of another one.
        found = one if takes_place(one.life, other.life, stale_after) else other
        seen = max(one.epochs_seen, other.epochs_seen)
        return found if seen == found.epochs_seen else replace(found, epochs_seen=seen)
    newest = _newest(one, other, stale_after)
    # Forgotten epochs are in a sum only: the merged account starts from the sum that has most of them.
    base, more = max(
        (one, other),
        (other, one),
        key=lambda pair: (pair[0].covers(pair[1]), _only_in_sum(pair[0]), _version(*pair)),
    )
    left_out = min((base.base, more.base), key=_size_of)
    known = {item.epoch: item for item in base.epochs}
    lives = dict(known)
    totals, seen = base.totals, base.epochs_seen
    for item in more.epochs:
        mine = known.get(item.epoch)
        if mine is None and base.has_forgotten(item.epoch):
            continue
        life = lives[item.epoch] = item if mine is None else _both(mine, item)
        seen += mine is None
        totals = _with_life(totals, life, mine)
    if newest.latest.epoch not in lives:
        newest = base  # of what the other tells of it, only the sum was kept
    conflicts = joined([*base.conflicts, *more.conflicts])
    if lives == known and conflicts == base.conflicts and newest.latest.epoch == base.latest.epoch:
        return base if left_out is base.base else replace(base, base=left_out)
    at = max(item.heard_at for item in lives.values())
    gone = surplus(lives.values(), newest.latest.epoch, at, max_epochs, stale_after)
    told = newest.totals
    # Each switch of capture is counted by the services that saw it: the sum must not sink below either.
    switches = max(base.totals.switches, more.totals.switches)
    switches += switches % 2 != told.switches % 2
    former = max(base.totals.former_tokens, more.totals.former_tokens)
    if former:  # what the base lacked may be of former starts
        former += max(0, totals.tokens - max(base.totals.tokens, more.totals.tokens))
    totals = replace(
        totals,
        dp_size=told.dp_size,
        ep_size=told.ep_size,
        switches=switches,
        former_tokens=former,
        weights=_weights(newest, more if newest is base else base, totals, lives),
    )
    return AccountState(
        totals=totals,
        epochs=tuple(item for epoch, item in lives.items() if epoch not in gone),
        forgotten=forget(base.forgotten, *gone),
        epochs_seen=seen,
        latest=newest.latest,
        conflicts=conflicts,
        base=left_out,
    )


def _weights(
    newest: AccountState, other: AccountState, totals: Totals, lives: Mapping[int, EpochState]
) -> WeightsTold:
    """``Totals.weights`` of both accounts: of other weights is all that is not known to be of these.

    Args:
        newest: the account whose latest frame is the newest.
        other: the other one.
        totals: what both counted.
        lives: those that are in the merged account.
    """
    told, its = newest.totals.weights, other.totals.weights
    life = lives[newest.latest.epoch]
    unlike = (its.version, its.label) != (told.version, told.label)
    if not (told.at or its.at or unlike):
        return told
    former_lives = totals.tokens - life.counted.tokens
    if told.at and told.tokens:
        mine = next(item for item in newest.epochs if item.epoch == life.epoch)
        in_this_life = max(0, told.tokens - (newest.totals.tokens - mine.counted.tokens))
        return replace(told, tokens=former_lives + in_this_life)
    # The newest life began with these weights, for all that is known: a worker that starts again loads them.
    return replace(told, at=max(told.at, its.at, life.came_at), tokens=former_lives)


def _size_of(base: Base | None) -> int:
    """What one service leaves out of the counters and the other doesn't is new: the smaller base holds."""
    return 0 if base is None else 1 + base.totals.tokens


def _newest(one: AccountState, other: AccountState, stale_after: float) -> AccountState:
    """The account whose latest frame is of the life that counts at present."""
    first, last = sorted((one, other), key=lambda state: _version(state, one, other))
    if first.latest.epoch == last.latest.epoch:
        return last
    heard = first.life.heard_at
    return first if heard - _heard_at(last.latest.epoch, one, other) > stale_after else last


def _heard_at(epoch: int, *states: AccountState) -> float:
    return max(item.heard_at for state in states for item in state.epochs if item.epoch == epoch)


def _version(state: AccountState, *others: AccountState) -> tuple[tuple[float, int], int, int]:
    """Accounts rise by this. A life began when the service says that puts it earliest."""
    epoch = state.latest.epoch
    order = min(item.order for known in (state, *others) for item in known.epochs if item.epoch == epoch)
    return order, state.latest.seq, state.totals.tokens


def _only_in_sum(state: AccountState) -> int:
    return state.epochs_seen - len(state.epochs)


def _both(mine: EpochState, its: EpochState) -> EpochState:
    """One life, of which two services heard."""
    told = max((mine, its), key=lambda item: (item.seq, -_unknown(item)))
    return replace(
        told,
        stragglers=max((told, mine, its), key=lambda item: item.joined).stragglers,
        began_at=min(mine.began_at, its.began_at),
        started_at=min(mine.started_at, its.started_at),
        came_at=min(mine.came_at, its.came_at),
        heard_at=max(mine.heard_at, its.heard_at),
        made_at=max(mine.made_at, its.made_at),
        lag=min(mine.lag, its.lag),
        overlaps=max(mine.overlaps, its.overlaps),
        spoken_at=max(mine.spoken_at, its.spoken_at),
    )


def _unknown(life: EpochState) -> int:
    """Slots and tokens in the part of a life of which it isn't known where they belong."""
    if life.added is None:
        return 0
    part = life.added
    return int(part.unplaced.sum()) + int(part.estimated.sum()) + part.unphased_tokens


def _with_life(totals: Totals, life: EpochState, before: EpochState | None) -> Totals:
    """Totals in which a life's part takes the place of what it was before; None: it was not there."""
    if before is None:
        return totals.plus(part_of(life))
    if (life.seq, life.joined) == (before.seq, before.joined) and life.added is before.added:
        return totals
    found = totals.minus(part_of(before)).plus(part_of(life))
    # What an earlier moescope kept has not been split by life: its sum may lack what the part has.
    if min(found.unplaced.min(initial=0), found.unphased_rows.min(initial=0)) >= 0:
        return found
    return totals.plus(_added(life, before))


def _difference(item: EpochState, known: EpochState | None) -> Totals:
    return item.counted if known is None else item.counted.minus(known.counted)


def _added(item: EpochState, known: EpochState | None) -> Totals:
    """What a life adds: unphased, and unplaced unless its worker counts the slots of each EP rank."""
    delta = unphased(_difference(item, known))
    ep_size = item.counted.ep_slots.ranks
    told = ep_size and counts_on(delta, None if known is None else known.counted, ep_size)
    return as_counted(delta) if told else unplaced(delta)
