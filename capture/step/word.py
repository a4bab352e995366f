"""The word on the device that tells the counting kernels what the step under way is.

It is one int64 value, written in the order of the steps' stream (`counting.word_writer`). A CUDA graph is
captured once for many steps: at each replay its kernels read here how many tokens are true, of which phase
they are and where loads go.

    bits  0 .. 31   true tokens of the step; 0 outside of steps, so that nothing counts
    bits 32 .. 33   `Phase`
    bits 40 .. 62   the step's place in the ring of loads (`counting.load_ring.LoadRing`)
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

MAX_TOKENS: Final = (1 << 32) - 1
MAX_PLACES: Final = 1 << 23
PHASE_SHIFT: Final = 32
PHASE_MASK: Final = 3
PLACE_SHIFT: Final = 40


class Phase(IntEnum):
    """The phase of a step's tokens; that of a single token is one of the first two."""

    PREFILL = 0
    DECODE = 1
    MIXED = 2
    """Tokens of both phases: that of each token is in `CountBuffers.phases`."""


def pack_step(tokens: int, phase: Phase = Phase.PREFILL, place: int = 0) -> int:
    """The word of a step of `tokens` true tokens, whose loads go to `place` of the ring.

    Raises:
        ValueError: a part doesn't fit.
    """
    if not 0 <= tokens <= MAX_TOKENS or not 0 <= place < MAX_PLACES:
        raise ValueError(f"a step of {tokens} tokens with place {place} does not fit the step's word")
    return tokens | phase << PHASE_SHIFT | place << PLACE_SHIFT
