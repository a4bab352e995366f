"""What a DP rank computed, from what each of its workers tells.

All workers of a DP rank compute the same tokens, and they report one after the other. So what the rank has
computed up to an instant is the most that any of them tells there, number by number. None of these numbers
ever falls, and a window's are the differences of those at its two ends: windows add up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from moescope.service.counts.totals import Totals


@dataclass(frozen=True, slots=True)
class RankWork:
    """What a DP rank has computed up to an instant, or between two.

    ``prefill_steps`` and ``decode_steps`` have tokens of one phase only, ``mixed_steps`` of both. The phases
    of ``unknown_tokens`` and of ``unknown_steps`` were not told.
    """

    tokens: int = 0
    steps: int = 0
    idle_steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefill_steps: int = 0
    decode_steps: int = 0
    mixed_steps: int = 0

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
        return RankWork(*(getattr(self, name) - getattr(earlier, name) for name in _NAMES))


_NAMES = tuple(field.name for field in fields(RankWork))


def work_of(workers: Iterable[Totals | None]) -> RankWork:
    """What one DP rank has computed, from the totals of its workers; None: that worker counts nothing yet."""
    told = [_told(totals) for totals in workers if totals is not None]
    most = RankWork(*(max(getattr(one, name) for one in told) for name in _NAMES)) if told else RankWork()
    return RankWork(
        tokens=max(most.tokens, most.prefill_tokens + most.decode_tokens),
        steps=max(most.steps, most.prefill_steps + most.decode_steps + most.mixed_steps),
        idle_steps=most.idle_steps,
        prefill_tokens=most.prefill_tokens,
        decode_tokens=most.decode_tokens,
        prefill_steps=most.prefill_steps,
        decode_steps=most.decode_steps,
        mixed_steps=most.mixed_steps,
    )


def _told(totals: Totals) -> RankWork:
    """What one worker tells."""
    decode = totals.decode
    tokens, steps, mixed = (decode.tokens, decode.steps, decode.mixed_steps) if decode else (0, 0, 0)
    return RankWork(
        tokens=totals.tokens,
        steps=totals.steps,
        idle_steps=totals.idle_steps,
        prefill_tokens=totals.tokens - tokens - totals.unphased_tokens,
        decode_tokens=tokens,
        prefill_steps=totals.steps - steps - mixed - totals.unphased_steps,
        decode_steps=steps,
        mixed_steps=mixed,
    )
