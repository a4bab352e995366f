"""Several live processes that claim one rank: who they are, and what is said of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from moescope.capture.wire import Producer
from moescope.service.counts.epoch_state import EpochState

MAX_CONFLICTS: Final = 16
"""Conflicts that are remembered; beyond that the two oldest become one, with the time between."""
REMEDY: Final = "give each deployment a server name of its own (MOESCOPE_SERVER in vLLM's environment)"
_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class Conflict:
    """Several live processes that claim one rank.

    Attributes:
        lives: they, oldest first; two at least.
        since: when the second of them began to be heard, seconds of Unix time on the service's clock.
    """

    lives: tuple[EpochState, ...]
    since: float

    @property
    def reason(self) -> str:
        """What is wrong, who they are, and what to do."""
        who = self.lives[-1].producer
        rank = "one rank" if who is None else rank_of(who)
        return f"conflict: {len(self.lives)} live processes claim {rank}: {named(self.lives)}; {REMEDY}"


def named(lives: Iterable[EpochState]) -> str:
    """Lives by pid and host, the newest ones last."""
    names = [name_of(item.producer) for item in lives]
    more = f"{len(names) - _NAMED} more, " if len(names) > _NAMED else ""
    return more + ", ".join(names[-_NAMED:])


def name_of(who: Producer | None) -> str:
    """A process by pid and host."""
    return "one of unknown host" if who is None else f"pid {who.pid} on host {who.host or 'unknown'}"


def rank_of(who: Producer) -> str:
    """A worker's place by its ranks."""
    stage = f" PP rank {who.pp_rank}" if who.pp_size > 1 else ""
    shard = f" TP rank {who.tp_rank}" if who.tp_size > 1 else ""
    return f"DP rank {who.dp_rank}{stage}{shard} of {who.server}"


def joined(conflicts: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Intervals of time, sorted, with those that touch as one, and not too many."""
    found: list[tuple[float, float]] = []
    for since, until in sorted(conflicts):
        if found and since <= found[-1][1]:
            found[-1] = found[-1][0], max(found[-1][1], until)
        else:
            found.append((since, until))
    while len(found) > MAX_CONFLICTS:
        found[:2] = [(found[0][0], found[1][1])]
    return tuple(found)
