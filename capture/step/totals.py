"""Tokens and steps of a worker, as the host counts them."""

from __future__ import annotations

from typing import Final, NamedTuple

from moescope.capture.step.word import Phase

_new: Final = tuple.__new__
"""Makes a named tuple without its own function, on the path of each step."""


class StepTokens(NamedTuple):
    """True tokens of a step, and how many of them are decode tokens."""

    tokens: int
    decode: int

    @property
    def phase(self) -> Phase:
        """The phase of the whole step."""
        if self.decode == 0:
            return Phase.PREFILL
        return Phase.DECODE if self.decode == self.tokens else Phase.MIXED


class Totals(NamedTuple):
    """Cumulative tokens and steps of one DP rank; see `wire.Frame` for each number.

    ``phases_known`` is false for good once the phases of a step's tokens could not be told: the counts by
    phase are wrong from then on.
    """

    tokens: int = 0
    steps: int = 0
    idle_steps: int = 0
    decode_tokens: int = 0
    decode_steps: int = 0
    mixed_steps: int = 0
    phases_known: bool = True

    @property
    def forward_passes(self) -> int:
        """Steps so far, dummy steps included. It is the number of the next step, the same on all DP ranks."""
        return self.steps + self.idle_steps

    def with_step(self, step: StepTokens, phases_known: bool = True) -> Totals:
        """These totals and one more step that computed tokens."""
        tokens, decode = step
        of_tokens, steps, idle_steps, of_decode, decode_steps, mixed_steps, known = self
        return _new(
            Totals,
            (
                of_tokens + tokens,
                steps + 1,
                idle_steps,
                of_decode + decode,
                decode_steps + (0 < decode == tokens),
                mixed_steps + (0 < decode != tokens),
                known and phases_known,
            ),
        )
