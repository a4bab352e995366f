"""Prefill and decode apart: what ranks computed of each, and windows of one of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from moescope.service.totals import Totals


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


def phase_work(producers: Sequence[Totals]) -> PhaseWork | None:
    """Of one DP rank, by that of its producers which knows most: they compute the same tokens and steps.

    None: the phases of some tokens are not known.
    """
    best = min(producers, key=lambda totals: (totals.unphased_tokens, -totals.tokens))
    if best.unphased_tokens or best.unphased_steps:
        return None
    decode = best.decode
    tokens, steps, mixed = (decode.tokens, decode.steps, decode.mixed_steps) if decode else (0, 0, 0)
    return PhaseWork(best.tokens - tokens, tokens, best.steps - steps - mixed, steps, mixed)


def why_unphased(tokens: Mapping[int, int]) -> str | None:
    """Why there is no split by phase, from each DP rank's tokens of unknown phase; None: there are none."""
    unknown = {rank: count for rank, count in tokens.items() if count}
    if not unknown:
        return None
    return (
        f"the phases of {sum(unknown.values())} tokens of DP ranks {sorted(unknown)} are not known: "
        "their capturer did not tell them"
    )
