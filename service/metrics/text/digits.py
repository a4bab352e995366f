"""Numbers as the library's ``floatToGoString`` writes them, many at a time.

Whole numbers from 0 to 2**53, which counts are, are written by numpy: below a million as ``123456.0``, from
there on as ``1.234567e+06``. All others go through the library's function one by one.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client.utils import floatToGoString

from moescope.service.metrics.text.scatter import scatter

WIDTH: Final = 24
"""Bytes of the longest text: a sign, 17 digits, a point and ``e-308``."""

_EXACT: Final = 2**53
_DIGITS: Final = 16  # of 2**53
_EXPONENT_FROM: Final = 7  # digits
_SHORT: Final = 1e6
_POINT: Final = ord(".")

_POWERS: Final = 10 ** np.arange(1, _DIGITS, dtype=np.int64)
# By the number of digits: what makes a number one of sixteen digits, and what follows its last digit.
_SCALES: Final = 10 ** (_DIGITS - np.maximum(np.arange(_DIGITS + 1), 1))
_TAILS: Final = np.array(
    [b".0" if digits < _EXPONENT_FROM else b"e+%02d" % (digits - 1) for digits in range(_DIGITS + 1)], "S4"
)
_TAIL_SIZES: Final = np.where(np.arange(_DIGITS + 1) < _EXPONENT_FROM, 2, 4)
# Number n is the four digits of n, as four bytes in one number, so that numpy looks them up in one go.
_FOUR_DIGITS: Final = (
    (np.arange(10_000)[:, np.newaxis] // np.array([1000, 100, 10, 1]) % 10 + ord("0"))
    .astype(np.uint8)
    .view(np.uint32)
    .ravel()
)

_Bytes = npt.NDArray[np.uint8]
_Ints = npt.NDArray[np.int64]
_Mask = npt.NDArray[np.bool_]


class Numbers:
    """Numbers to write.

    Args:
        values: int64 or float64 [N].

    Attributes:
        sizes: int64 [N], bytes of each one's text; at most ``WIDTH``.
    """

    def __init__(self, values: npt.NDArray[Any]) -> None:
        whole = _whole(values)
        self._others = np.flatnonzero(~whole)
        self._texts = [go_number(value).encode() for value in values[self._others].tolist()]
        numbers = np.where(whole, values, 0) if self._texts else values
        self._numbers = numbers.astype(np.int64, copy=False)
        self._digits = _count_digits(self._numbers)
        self._exponents = np.flatnonzero(self._digits >= _EXPONENT_FROM)
        self._kept = self._without_zeros()
        self.sizes = self._kept + _TAIL_SIZES[self._digits]
        self.sizes[self._others] = list(map(len, self._texts))

    def write(self, buffer: _Bytes, starts: _Ints) -> None:
        """Write the texts.

        Args:
            buffer: [M]; written to. From each start on up to ``WIDTH`` bytes are overwritten.
            starts: int64 [N], where each text begins; any two are at least ``WIDTH`` bytes apart.
        """
        digits = _sixteen_digits(self._numbers * _SCALES[self._digits])
        after_point = starts.copy()
        after_point[self._exponents] += 1
        scatter(buffer, after_point, digits, _DIGITS)
        first = starts[self._exponents]
        buffer[first] = buffer[first + 1]
        buffer[first + 1] = _POINT
        scatter(buffer, starts + self._kept, _TAILS[self._digits], 4)
        for start, text in zip(starts[self._others].tolist(), self._texts, strict=True):
            buffer[start : start + len(text)] = np.frombuffer(text, dtype=np.uint8)

    def _without_zeros(self) -> _Ints:
        """Bytes before each tail: a mantissa loses its trailing zeros, and a point that nothing follows."""
        kept = self._digits.copy()
        kept[self._exponents] += 1
        rows, left = self._exponents, self._numbers[self._exponents]
        while len(rows):
            shorter = left // 10
            zero = shorter * 10 == left
            rows, left = rows[zero], shorter[zero]
            kept[rows] -= 1
        kept[self._exponents[kept[self._exponents] == 2]] = 1
        return kept


def go_number(value: float) -> str:
    """One number."""
    number = float(value)
    if -_SHORT < number < _SHORT:
        return repr(number)  # as the library does, which looks for more cases first
    return str(floatToGoString(number))  # type: ignore[no-untyped-call]


def _whole(values: npt.NDArray[Any]) -> _Mask:
    """Which values are whole numbers from 0 to 2**53; -0.0, infinities and NaN aren't."""
    within = (values >= 0) & (values <= _EXACT)
    if values.dtype.kind == "f":
        within &= (np.floor(values) == values) & ~np.signbit(values)
    return np.asarray(within)


def _count_digits(numbers: _Ints) -> _Ints:
    digits = np.ones(len(numbers), dtype=np.uint8)
    for power in _POWERS[: np.searchsorted(_POWERS, numbers.max(initial=0), side="right")]:
        digits += numbers >= power
    return digits.astype(np.int64)


def _sixteen_digits(numbers: _Ints) -> npt.NDArray[np.uint32]:
    """The digits as bytes, four in each number: [N, 4]."""
    digits = np.empty((len(numbers), 4), dtype=np.uint32)
    left = numbers
    for i in (3, 2, 1):
        rest = left // 10_000
        digits[:, i] = _FOUR_DIGITS[left - rest * 10_000]
        left = rest
    digits[:, 0] = _FOUR_DIGITS[left]
    return digits
