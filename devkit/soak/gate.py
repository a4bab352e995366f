"""What a gate is, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

HISTORIES: Final = 2000
"""Histories that the gate of several services asks for."""
FIRST_SEED: Final = 1000
"""The seed of the first of them."""


@dataclass(frozen=True, slots=True)
class Options:
    """How long gates run, and how hard they press.

    Attributes:
        seconds: how long the gate of load runs; the length of the others follows from ``quick``.
        quick: a tenth of everything, to see that the gates work.
        folder: where gates may write.
        histories: that the gate of several services plays.
        first_seed: of these histories; each further seed makes as many as are played at once.
    """

    seconds: float
    quick: bool
    folder: Path
    histories: int = HISTORIES
    first_seed: int = FIRST_SEED

    def cases(self, count: int) -> int:
        """The number of cases, or a tenth of it where the gates run quickly."""
        return max(1, count // 10) if self.quick else count


@dataclass(frozen=True, slots=True)
class Outcome:
    """A gate's figures in words, and whether they reach what it asks for."""

    passed: bool
    figures: str


@dataclass(frozen=True, slots=True)
class Gate:
    """``ask`` is the figure to reach; ``run`` raises AssertionError when something is plainly wrong."""

    name: str
    ask: str
    run: Callable[[Options], Outcome]
