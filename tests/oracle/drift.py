"""What /v1/drift should answer against the hour before (docs/drift.md)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from statistics import median
from typing import Any, Final

from tests.oracle.deployment import Deployment
from tests.oracle.exact import HOT, divergence, moved, sampling_noise
from tests.oracle.window import Phase, Seen, Window

HOUR_S: Final = 3600
DEAD: Final = 20
"""An expert is newly dead if it would have got so many slots at its share in the base."""


def drift(
    deployment: Deployment, start: float, end: float | None, phase: Phase, min_tokens: int
) -> dict[str, Any]:
    """Each layer of a window against the hour before it."""
    window = Window(deployment, start, end, phase)
    base = Window(deployment, start - HOUR_S, start, phase)
    layers = [
        _layer(layer.index, window.layer(layer), base.layer(layer), min_tokens) for layer in deployment.layers
    ]
    known = [layer for layer in layers if layer["divergence"] is not None]
    worst = max(known, key=lambda layer: (layer["divergence"], -layer["layer"]), default=None)
    return {
        "tokens": window.all_tokens,
        "baseline_tokens": base.all_tokens,
        "summary": {
            "worst": worst and worst["divergence"],
            "median": median(layer["divergence"] for layer in known) if known else None,
            "noise": median(layer["noise"] for layer in known) if known else None,
            "new_dead": sum(len(layer["new_dead"]) for layer in known),
            "new_hot": sum(len(layer["new_hot"]) for layer in known),
            "layers": len(known),
        },
        "layers": layers,
    }


def _layer(index: int, now: Seen, base: Seen, min_tokens: int) -> dict[str, Any]:
    answer: dict[str, Any] = {"layer": index, **dict.fromkeys(("divergence", "noise", "moved"))}
    answer |= {"new_dead": [], "new_hot": []}
    if any(not seen.rows or seen.rows < min_tokens or not sum(seen.slots) for seen in (now, base)):
        return answer
    slots = sum(now.slots)
    return {
        **answer,
        "tokens": now.rows,
        "base_tokens": base.rows,
        "divergence": divergence(now.slots, base.slots),
        "noise": sampling_noise(now.slots, base.slots),
        "moved": moved(now.slots, base.slots),
        "new_dead": [e for e, (p, q) in enumerate(_shares(now, base)) if not p and q * slots >= DEAD],
        "new_hot": [
            e for e, (p, q) in enumerate(_shares(now, base)) if _newly_hot(p, q, now.slots, base.slots)
        ],
        "hot": [e for e, x in enumerate(now.slots) if x * len(now.slots) >= HOT * slots],
    }


def _shares(now: Seen, base: Seen) -> list[tuple[Fraction, Fraction]]:
    n, m = sum(now.slots), sum(base.slots)
    return [(Fraction(a, n), Fraction(b, m)) for a, b in zip(now.slots, base.slots, strict=True)]


def _newly_hot(p: Fraction, q: Fraction, now: Sequence[int], base: Sequence[int]) -> bool:
    variance = q * (1 - q) * (Fraction(1, sum(now)) + Fraction(1, sum(base)))
    grown = p > q and (p - q) ** 2 > 25 * variance
    return p * len(now) >= HOT and 2 * p >= 3 * q and grown
