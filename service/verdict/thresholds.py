"""From where on a measure matters for a verdict, each with its reason.

They are judgements, not measurements. All are here, so that an operator who disagrees finds them.
"""

from __future__ import annotations

from typing import Final

WAITING: Final = 0.2
"""Share of the time in experts that an average EP rank waits, from which on it is worth acting (warning).

A fifth: one GPU of five stands for nothing. The page's colours begin at the same imbalance ratio, 1.25. Below
it, a rearrangement often costs more than it brings.
"""
WAITING_BADLY: Final = 0.5
"""The same, from which on it is critical: ranks wait longer than they work; imbalance ratio 2."""
MOST: Final = 0.5
"""A rank is hot in most layers, or an expert in many, from this share of the layers on; and a cause is the
cause if it makes this share of the waiting. Below half, "the" cause would be a matter of words."""
DP_UNEVEN: Final = 1.5
"""Max / mean of tokens over DP ranks, as in the alert MoescopeDpImbalance: half as much again as the others.
"""
MOVED: Final = 0.2
"""Share of slots that go to other experts than in the base: a fifth, as of waiting."""
BEYOND_CHANCE: Final = 3.0
"""Multiple of the sampling noise from which on a divergence is drift, as on the page."""

LEAST_SECONDS: Final = 30.0
"""A shorter window is too little data: a single long prompt may fill it."""
LEAST_STEPS: Final = 20
"""Fewer steps are too little data: each has one busiest rank, so their shares would be chance."""
CHANCE: Final = 2.0
"""Loads are enough if so many times what chance makes of them stays below the ratio of ``WAITING``."""
