"""How long a store keeps what, and on how many bytes: the same for every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SEGMENT_TOKENS: Final = 2000
"""Tokens of a trace that are kept together, at most, unless they are of several short traces."""
SEGMENT_BYTES: Final = 4 << 20
"""Bytes of ids that are kept together, at most twice; a single token may have more."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Ages in seconds, and a size in bytes.

    Attributes:
        fine_s: age up to which the history has a snapshot a second; of older ones each 10 s keep the last.
        middle_s: age up to which it has one every 10 s; of older ones each 5 minutes keep the last.
        coarse_s: age up to which it has one every 5 minutes; older ones go.
        trace_s: age up to which routing traces are kept, counted from when they were stored.
        max_bytes: size on disk above which the oldest snapshots and traces go.
    """

    fine_s: float = 3600.0
    middle_s: float = 86400.0
    coarse_s: float = 90 * 86400.0
    trace_s: float = 7 * 86400.0
    max_bytes: int = 4 << 30
