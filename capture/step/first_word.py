"""The word that is written when a step begins, which is the same in each step of a steady batch."""

from __future__ import annotations

from typing import NamedTuple

from moescope.capture.step.totals import StepTokens
from moescope.capture.step.word import Phase, pack_step


class FirstWord(NamedTuple):
    """What the device is told of a step when it begins.

    Attributes:
        step: which step.
        word: see `step.word`; its place in the ring is 0.
        awaits_phases: whether another word follows, once the phases of its tokens are told.
    """

    step: StepTokens
    word: int
    awaits_phases: bool


def first_word_of(step: StepTokens) -> FirstWord:
    """The first word of a step; raises as `pack_step`."""
    phase = step.phase
    mixed = phase is Phase.MIXED
    return FirstWord(step, pack_step(step.tokens, Phase.PREFILL if mixed else phase), mixed)
