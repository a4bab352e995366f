"""What a DP rank computed, from what each of its workers tells.

All workers of a DP rank compute the same tokens, and they report one after the other. So what the rank has
computed up to an instant is the most that any of them tells there, number by number. None of these numbers
ever falls, and a window's are the differences of those at its two ends: windows add up.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, replace

from moescope.service.counts.totals import Totals


@dataclass(frozen=True, slots=True)
class RankWork:
    """What a DP rank has computed up to an instant, or between two.

    ``prefill_steps`` and ``decode_steps`` have tokens of one phase only, ``mixed_steps`` of both. The phases
    of ``unknown_tokens`` and of ``unknown_steps`` were not told. Of the tokens ``accepted_drafts`` and
    ``rejected_drafts`` are draft tokens of speculative decoding: in answers, or computed in vain.
    """

    tokens: int = 0
    steps: int = 0
    idle_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
    mixed_steps: int = 0
    accepted_drafts: int = 0
    rejected_drafts: int = 0

    @property
    def unknown_tokens(self) -> int:
        """Tokens of neither phase."""
        return self.tokens - self.prefill_tokens - self.decode_tokens

    @property
    def unknown_steps(self) -> int:
        """Steps whose phases were not told."""
        return self.steps - self.prefill_steps - self.decode_steps - self.mixed_steps

    def minus(self, earlier: RankWork) -> RankWork:
        """What was computed since ``earlier``."""
        return RankWork(
            tokens=self.tokens - earlier.tokens,
            steps=self.steps - earlier.steps,
            idle_steps=self.idle_steps - earlier.idle_steps,
            prefill_tokens=self.prefill_tokens - earlier.prefill_tokens,
            decode_tokens=self.decode_tokens - earlier.decode_tokens,
            prefill_steps=self.prefill_steps - earlier.prefill_steps,
            decode_steps=self.decode_steps - earlier.decode_steps,
            mixed_steps=self.mixed_steps - earlier.mixed_steps,
            accepted_drafts=self.accepted_drafts - earlier.accepted_drafts,
            rejected_drafts=self.rejected_drafts - earlier.rejected_drafts,
        )


def work_of(workers: Iterable[Totals | None]) -> RankWork:
    """What one DP rank has computed, from the totals of its workers; None: that worker counts nothing yet."""
    return _most([_told(totals) for totals in workers if totals is not None])


def work_between(workers: Iterable[tuple[Totals | None, Totals]]) -> RankWork:
    """:func:`work_of` the differences of its workers' totals, without a difference of any array.

    Args:
        workers: of each worker the totals before, None: nothing, and those after.
    """
    return _most(
        [
            _told(last) if first is None else tuple(map(operator.sub, _told(last), _told(first)))
            for first, last in workers
        ]
    )


def _most(told: list[tuple[int, ...]]) -> RankWork:
    if not told:
        return RankWork()
    if len(told) == 1:  # with hundreds of ranks almost always
        return RankWork(*told[0])
    most = RankWork(*map(max, zip(*told, strict=True)))
    kinds = most.prefill_steps + most.decode_steps + most.mixed_steps
    return replace(
        most,
        tokens=max(most.tokens, most.prefill_tokens + most.decode_tokens),
        steps=max(most.steps, kinds),
    )


def _told(totals: Totals) -> tuple[int, ...]:
    """What one worker tells, in the order of the fields of :class:`RankWork`."""
    decode = totals.decode
    tokens, steps, mixed = (decode.tokens, decode.steps, decode.mixed_steps) if decode else (0, 0, 0)
    return (
        totals.tokens,
        totals.steps,
        totals.idle_steps,
        totals.tokens - tokens - totals.unphased_tokens,
        tokens,
        totals.steps - steps - mixed - totals.unphased_steps,
        steps,
        mixed,
        totals.accepted_drafts,
        totals.rejected_drafts,
    )
