"""The word of a step: its parts stay apart, and what doesn't fit is refused."""

from __future__ import annotations

import pytest

from moescope.capture.step.word import (
    MAX_PLACES,
    MAX_TOKENS,
    PHASE_MASK,
    PHASE_SHIFT,
    PLACE_SHIFT,
    Phase,
    pack_step,
)


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize(("tokens", "place"), [(0, 0), (1, 4095), (MAX_TOKENS, MAX_PLACES - 1)])
def test_a_steps_word_keeps_its_parts_apart(phase: Phase, tokens: int, place: int) -> None:
    word = pack_step(tokens, phase, place)
    assert 0 <= word < 2**63
    assert (word & MAX_TOKENS, word >> PHASE_SHIFT & PHASE_MASK, word >> PLACE_SHIFT) == (
        tokens, phase, place,
    )  # fmt: skip


@pytest.mark.parametrize(("tokens", "place"), [(MAX_TOKENS + 1, 0), (-1, 0), (1, MAX_PLACES), (1, -1)])
def test_what_does_not_fit_a_steps_word_is_refused(tokens: int, place: int) -> None:
    with pytest.raises(ValueError, match="does not fit the step's word"):
        pack_step(tokens, place=place)


def test_outside_of_steps_the_word_says_no_token() -> None:
    assert pack_step(0) == 0


def test_a_phase_fits_its_bits() -> None:
    assert max(Phase) <= PHASE_MASK < 1 << (PLACE_SHIFT - PHASE_SHIFT)
