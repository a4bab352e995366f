"""Prefill and decode apart: what ranks computed of each, and windows of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moescope.service.counts.totals import Totals


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What a DP rank computed by phase.

    ``prefill_steps`` and ``decode_steps`` have tokens of one phase only, ``mixed_steps`` of both. The phases
    of ``unknown_tokens`` in ``unknown_steps`` were not told.
    """

    prefill_tokens: int
    decode_tokens: int
    unknown_tokens: int
    prefill_steps: int
    decode_steps: int
    mixed_steps: int
    unknown_steps: int


def split_by_phase(producers: Sequence[Totals]) -> PhaseWork:
    """Of one DP rank, by that of its producers which knows most: they compute the same tokens and steps."""
    best = min(producers, key=lambda totals: (totals.unphased_tokens, -totals.tokens))
    decode = best.decode
    tokens, steps, mixed = (decode.tokens, decode.steps, decode.mixed_steps) if decode else (0, 0, 0)
    return PhaseWork(
        prefill_tokens=best.tokens - tokens - best.unphased_tokens,
        decode_tokens=tokens,
        unknown_tokens=best.unphased_tokens,
        prefill_steps=best.steps - steps - mixed - best.unphased_steps,
        decode_steps=steps,
        mixed_steps=mixed,
        unknown_steps=best.unphased_steps,
    )


def phase_work(producers: Sequence[Totals]) -> PhaseWork | None:
    """The same, or None where the phases of some tokens are not known."""
    work = split_by_phase(producers)
    return None if work.unknown_tokens or work.unknown_steps else work


def why_unphased(tokens: Mapping[int, int]) -> str | None:
    """Why there is no split by phase, from each DP rank's tokens of unknown phase; None: there are none."""
    unknown = {rank: count for rank, count in tokens.items() if count}
    if not unknown:
        return None
    return (
        f"the phases of {sum(unknown.values())} tokens of DP ranks {sorted(unknown)} are not known: "
        "their capturer did not tell them"
    )
