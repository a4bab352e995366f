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

from moescope.service.counts.account_state import AccountState, Base, Latest, forget
from moescope.service.counts.choosing import STALE_AFTER_S, counting, surplus, takes_place
from moescope.service.counts.conflict import joined
from moescope.service.counts.epoch_state import EpochState
from moescope.service.counts.latest import latest_of_kept
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
    conflicts = joined([*base.conflicts, *more.conflicts])
    life = counting(lives.values(), stale_after)
    newest = _telling(life, base, more)
    latest = newest.latest
    others = tuple(
        item
        for epoch, item in _frames(base, more).items()
        if epoch in lives and epoch != life.epoch and not item.is_guessed
    )
    # Each switch of capture is counted by the services that saw it: the sum must not sink below either.
    switches = max(base.totals.switches, more.totals.switches)
    switches += switches % 2 != (latest.state == "disabled")
    former = max(base.totals.former_tokens, more.totals.former_tokens)
    if former:  # what the base lacked may be of former starts
        former += max(0, totals.tokens - max(base.totals.tokens, more.totals.tokens))
    totals = replace(
        totals,
        dp_size=latest.producer.dp_size,
        ep_size=latest.producer.ep_size,
        switches=switches,
        former_tokens=former,
        weights=_weights(newest, one if newest.totals is other.totals else other, totals, lives),
    )
    if (
        (lives, conflicts) == (known, base.conflicts)
        and _like(base, latest, others)
        and _way(totals) == _way(base.totals)
    ):
        return base if left_out is base.base else replace(base, base=left_out)
    at = max(item.heard_at for item in lives.values())
    gone = surplus(lives.values(), life.epoch, at, max_epochs, stale_after)
    return AccountState(
        totals=totals,
        epochs=tuple(item for epoch, item in lives.items() if epoch not in gone),
        forgotten=forget(base.forgotten, *gone),
        epochs_seen=seen,
        latest=latest,
        conflicts=conflicts,
        base=left_out,
        others=tuple(item for item in others if item.epoch not in gone),
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
    if told.at and its.at and not unlike:
        told = replace(told, at=min(told.at, its.at))  # who heard them first knows when they came
    former_lives = totals.tokens - life.counted.tokens
    if told.at and told.tokens:
        # Who knew less before them knows better what is of them: what each says of that is sure.
        sure = [newest] if unlike or not its.tokens else [newest, other]
        in_this_life = [_before_weights(item, life.epoch) for item in sure if item.latest.epoch == life.epoch]
        return replace(told, tokens=former_lives + min(in_this_life))
    # The newest life began with these weights, for all that is known: a worker that starts again loads them.
    return replace(told, at=max(told.at, its.at, life.came_at), tokens=former_lives)


def _before_weights(state: AccountState, epoch: int) -> int:
    """Tokens of a life that an account knows which may be of other weights than its newest ones."""
    life = next(item for item in state.epochs if item.epoch == epoch)
    return max(0, state.totals.weights.tokens - (state.totals.tokens - life.counted.tokens))


def _size_of(base: Base | None) -> int:
    """What one service leaves out of the counters and the other doesn't is new: the smaller base holds."""
    return 0 if base is None else 1 + base.totals.tokens


def _telling(life: EpochState, *states: AccountState) -> AccountState:
    """The account that tells most of the life that counts, with that life's newest frame as its latest.

    Both may have let another one count, each for what it did not know.
    """
    tellers = [state for state in states if any(item.epoch == life.epoch for item in state.epochs)]
    found = max(tellers, key=lambda state: (state.latest.epoch == life.epoch, *_told(life.epoch, state)))
    latest = latest_of_kept(life, _frames(*states).get(life.epoch, found.latest))
    return found if latest is found.latest else replace(found, latest=latest)


def _told(epoch: int, state: AccountState) -> tuple[int, int]:
    return next(item.seq for item in state.epochs if item.epoch == epoch), state.totals.tokens


def _frames(*states: AccountState) -> dict[int, Latest]:
    """By epoch the newest frames that accounts know."""
    found: dict[int, Latest] = {}
    for item in (item for state in states for item in (state.latest, *state.others)):
        known = found.get(item.epoch)
        if known is None or _worth(item) > _worth(known):
            found[item.epoch] = item
    return found


def _worth(latest: Latest) -> tuple[int, int, bool]:
    return latest.epoch, latest.seq, not latest.is_guessed


def _like(one: AccountState, latest: Latest, others: tuple[Latest, ...]) -> bool:
    """Whether an account has these frames."""
    if _worth(one.latest) != _worth(latest):
        return False
    return {_worth(item) for item in one.others} == {_worth(item) for item in others}


def _way(totals: Totals) -> tuple[object, ...]:
    """What totals say that depends on the frames between, of which one service heard some, another others."""
    return totals.dp_size, totals.ep_size, totals.switches, totals.former_tokens, totals.weights


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
        going_at=max(mine.going_at, its.going_at),
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
