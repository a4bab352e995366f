"""An expected answer against the service's: integers, words and null exactly, the rest within a tolerance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

EXACT: Final = 1 << 53
"""Integers below it are exact as floats too."""
RELATIVE: Final = 1e-9
"""Largest relative error of a float; measures near 0 come from differences of numbers near 1."""
ABSOLUTE: Final = 1e-9

KINDS: Final = ("idle", "too few", "partial")
"""How reasons begin that are told apart; all the others are alike."""


def mismatches(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    """A line for each difference, but for what the expected answer does not name or has as ``...``."""
    if expected is ...:
        return
    if isinstance(expected, Mapping):
        if not isinstance(got, Mapping):
            yield f"{path}: expected an object, got {got!r}"
            return
        for key, value in expected.items():
            if key not in got:
                yield f"{path}.{key}: missing"
            elif str(key).endswith("reason"):
                yield from _reason(value, got[key], f"{path}.{key}")
            else:
                yield from mismatches(value, got[key], f"{path}.{key}")
    elif isinstance(expected, (list, tuple)):
        if not isinstance(got, Sequence) or len(expected) != len(got):
            yield f"{path}: expected {plain(expected)}, got {got!r}"
            return
        for place, (one, other) in enumerate(zip(expected, got, strict=True)):
            yield from mismatches(one, other, f"{path}[{place}]")
    elif not alike(expected, got):
        yield f"{path}: expected {plain(expected)}, got {got!r}"


def alike(expected: Any, got: Any) -> bool:
    """Whether two values are the same: integers exactly, fractions and floats within the tolerance."""
    if expected is None or isinstance(expected, (str, bool)):
        return bool(expected == got) and (expected is None) == (got is None)
    if got is None or isinstance(got, (str, bool)):
        return False
    if isinstance(expected, int) and abs(expected) < EXACT:
        return bool(got == expected)
    return abs(float(expected) - got) <= max(ABSOLUTE, RELATIVE * abs(float(expected)))


def _reason(expected: str | None, got: str | None, path: str) -> Iterator[str]:
    """Reasons by kind, as the documents do not give all their words."""
    kind = None if got is None else next((word for word in KINDS if got.startswith(word)), "other")
    if kind != expected:
        yield f"{path}: expected {expected}, got {got!r}"


def plain(value: Any) -> Any:
    """For messages: fractions as floats where they aren't whole."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    return value
