"""Prefill and decode apart: what was computed of each, and why that may not be known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from moescope.service.counts.rank_work import RankWork
from moescope.service.counts.totals import Totals, no_decode


class Phase(StrEnum):
    """What a token was computed for: its request's prompt, or the answer that follows."""

    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class PhaseWork:
    """What a DP rank computed by phase.

    ``prefill_steps`` and ``decode_steps`` have tokens of one phase only, ``mixed_steps`` of both.
    """

    prefill_tokens: int
    decode_tokens: int
    prefill_steps: int
    decode_steps: int
    mixed_steps: int


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
            estimated=decode.estimated,
            tokens=decode.tokens,
            steps=decode.steps + decode.mixed_steps,
        )
    return replace(
        totals,
        counts=totals.counts - decode.counts,
        rows=totals.rows - decode.rows - totals.unphased_rows,
        ep_slots=totals.ep_slots.minus(decode.ep_slots),
        unplaced=totals.unplaced - decode.unplaced,
        estimated=totals.estimated - decode.estimated,
        tokens=totals.tokens - decode.tokens - totals.unphased_tokens,
        steps=totals.steps - decode.steps - totals.unphased_steps,
        accepted_drafts=0,
        rejected_drafts=0,
    )


def phase_work(work: RankWork) -> PhaseWork | None:
    """What a DP rank computed, by phase; None if the phases of some tokens or steps are not known."""
    if work.unknown_tokens or work.unknown_steps:
        return None
    return PhaseWork(
        prefill_tokens=work.prefill_tokens,
        decode_tokens=work.decode_tokens,
        prefill_steps=work.prefill_steps,
        decode_steps=work.decode_steps,
        mixed_steps=work.mixed_steps,
    )


def tokens_and_steps(work: RankWork, phase: Phase | None) -> tuple[int, int]:
    """Tokens of a phase, and steps with any token of it; None: of both phases."""
    if phase is None:
        return work.tokens, work.steps
    if phase is Phase.DECODE:
        return work.decode_tokens, work.decode_steps + work.mixed_steps
    return work.prefill_tokens, work.prefill_steps + work.mixed_steps


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
