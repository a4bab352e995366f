"""Which life of a producer counts at present, as follows from what is known of all, and which are too many.

The rules are said in :mod:`moescope.service.counts.lives`. Here nothing depends on who heard what first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from moescope.service.counts.epoch_state import EpochState

STALE_AFTER_S: Final = 15.0
"""Seconds without a frame after which a life is silent, as the service's setting is by default."""


def counting(lives: Iterable[EpochState], stale_after: float) -> EpochState:
    """The life that counts at present: the newest one, or the older one that went on when it was silent.

    It depends on nothing but what is known of the lives, of which there must be one.

    Args:
        lives: all that are known of one producer.
        stale_after: seconds without a frame after which a life is silent.
    """
    newest_first = sorted(lives, key=lambda item: item.order, reverse=True)
    found, heard_at = newest_first[0], newest_first[0].heard_at
    for life in newest_first[1:]:
        # Of a life without a producer an earlier moescope kept nothing but the counts.
        if life.producer is not None and life.going_at - heard_at > stale_after:
            found = life
        heard_at = max(heard_at, life.heard_at)
    return found


def takes_place(life: EpochState, other: EpochState, stale_after: float) -> bool:
    """Whether of two lives whose models have different shapes the first one counts.

    It is the one that began later, unless the other still counted when that one had been silent for long.
    """
    older, newer = sorted((life, other), key=lambda item: item.order)
    goes_on = older.made_at - newer.heard_at > stale_after
    return life is (older if goes_on else newer)


def surplus(
    lives: Iterable[EpochState], current: int, at: float, max_epochs: int, stale_after: float
) -> list[int]:
    """The epochs of lives that are too many, those first that were not heard for longest.

    Args:
        lives: all that there are.
        current: the epoch of the one that counts at present, which stays.
        at: when that is, seconds of Unix time on the service's clock.
        max_epochs: how many may stay. Those that were heard in the last ``stale_after`` seconds stay too.
    """
    known = sorted(lives, key=lambda item: (item.heard_at, item.order))
    silent = [item.epoch for item in known if item.epoch != current and at - item.heard_at > stale_after]
    return silent[: max(0, len(known) - max_epochs)]
