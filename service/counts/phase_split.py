"""Prefill and decode apart: what was computed of each, and why that may not be known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from moescope.service.counts.totals import Totals, no_decode


class Phase(StrEnum):
    """What a token was computed for: its request's prompt, or the answer that follows."""

    PREFILL = "prefill"
    DECODE = "decode"


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


def of_phase(totals: Totals, phase: Phase) -> Totals:
    """The part of totals that is known to be of one phase.

    In layers whose ``unphased_rows`` are not zero, that is not all of the phase, and the counts of prefill
    also hold the slots of unknown phase. ``steps`` are those with any token of the phase.
    """
    decode = totals.decode or no_decode(totals)
    if phase is Phase.DECODE:
        return replace(
            totals,
            counts=decode.counts,
            rows=decode.rows,
            ep_slots=decode.ep_slots,
            unplaced=decode.unplaced,
            tokens=decode.tokens,
            steps=decode.steps + decode.mixed_steps,
        )
    return replace(
        totals,
        counts=totals.counts - decode.counts,
        rows=totals.rows - decode.rows - totals.unphased_rows,
        ep_slots=totals.ep_slots - decode.ep_slots,
        unplaced=totals.unplaced - decode.unplaced,
        tokens=totals.tokens - decode.tokens - totals.unphased_tokens,
        steps=totals.steps - decode.steps - totals.unphased_steps,
    )


def split_by_phase(producers: Sequence[Totals]) -> PhaseWork:
    """What one DP rank computed by phase, from the totals of its producers.

    All of them compute the same tokens and steps: the one counts that knows the phases of most.
    """
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
    """See :func:`split_by_phase`; None if the phases of some tokens or steps are not known."""
    work = split_by_phase(producers)
    return None if work.unknown_tokens or work.unknown_steps else work


def why_unphased(tokens: Mapping[int, int], told: str | None = None) -> str | None:
    """Why a window has no split by phase; None: it has one.

    Args:
        tokens: DP rank to its tokens of unknown phase.
        told: the reason that a worker told, or None.
    """
    unknown = {rank: count for rank, count in tokens.items() if count}
    if not unknown:
        return None
    return (
        f"the phases of {sum(unknown.values())} tokens of DP ranks {sorted(unknown)} are not known: "
        f"{told or 'their capturer did not tell them'}"
    )
